"""A client of the HTTP API, for Python programs: `Client`, and `AsyncClient` with the same methods.

Every event gets an id. A call that fails for a passing reason (timeout, lost connection, 429, 502, 503 or 504) is
repeated with the same ids until the deadline, so an event counts once. docs/how-to/call-the-service.md has examples.
"""

import asyncio
import functools
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, ParamSpec, Self, TypeVar, Unpack, overload
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from segue.client_answers import (
    MAX_SHOWN,
    AccessDenied,
    BatchOptions,
    Conflict,
    EventFields,
    InvalidRequest,
    ListOptions,
    NoAnswer,
    NotFound,
    RankedCandidate,
    RankedCandidates,
    RankedTrack,
    RankOptions,
    RateLimited,
    Recommendations,
    Reported,
    ReportOptions,
    ServiceError,
    Track,
    TrackFields,
    Unavailable,
    error_in,
    error_of,
)
from segue.sessions import Event, EventType

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Client",
    "Conflict",
    "InvalidRequest",
    "NoAnswer",
    "NotFound",
    "RankedCandidate",
    "RankedCandidates",
    "RankedTrack",
    "RateLimited",
    "Recommendations",
    "Reported",
    "ServiceError",
    "Track",
    "Unavailable",
]

P = ParamSpec("P")
T = TypeVar("T")
Batch = list["Recommendations | ServiceError"]

_FIRST_WAIT_S: Final = 0.1  # between two attempts, if the service names no time; it doubles with each attempt
_LOST: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError)
_TRACKS: Final = TypeAdapter(dict[str, list[Track]])
_RANKED_TRACKS: Final = TypeAdapter(dict[str, list[RankedTrack]])


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient, timeout_s: float) -> httpx.Request:
        return http.build_request(self.method, self.path, params=self.query, json=self.body, timeout=timeout_s)

    def answer(self, response: httpx.Response) -> T:
        """Return the answer. Raises the ServiceError of a problem document."""
        if not response.is_success:
            raise error_in(response)
        try:
            return self.read(response.content)
        except (ValueError, LookupError, TypeError) as error:
            raise ServiceError(response.status_code, "Not an answer of Segue", str(error)[:MAX_SHOWN]) from None


def _in_query(options: ReportOptions | ListOptions) -> dict[str, Any]:
    return {name: ",".join(value) if name == "fields" else value for name, value in options.items()}  # type: ignore[arg-type]


def _as_json(events: Sequence[Event] | None) -> list[dict[str, Any]] | None:
    return None if events is None else [event.model_dump(mode="json", exclude_none=True) for event in events]


class _Method(Generic[P, T]):
    """A method of both clients, from the function that makes its call. `AsyncClient` returns an awaitable."""

    def __init__(self, make: Callable[P, _Call[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, client: "Client", owner: type | None = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type | None = None) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type | None = None) -> Any:
        if client is None:
            return self  # help() asks the class
        return functools.wraps(self._make)(lambda *args, **options: client.run(self._make(*args, **options)))


def _events(
    session_id: str,
    events: Sequence[Event],
    *,
    recommend: int = 0,
    listener_id: str | None = None,
    **options: Unpack[ReportOptions],
) -> _Call[Reported]:
    """Report up to 100 events, made by `segue.sessions.play` and `skip`. `recommend=N` also returns N tracks.

    With `listener_id`, bans among the events hold in all sessions of the listener.
    """
    named = [one if one.event_id else one.model_copy(update={"event_id": uuid.uuid4().hex}) for one in events]
    query = _in_query(options) | ({"recommend": recommend} if recommend else {})
    body = {"events": _as_json(named)} | ({} if listener_id is None else {"listener_id": listener_id})
    return _Call("POST", _path("sessions", session_id, "events"), Reported.model_validate_json, query, body)


def _play(
    session_id: str, track_id: str, *, listener_id: str | None = None, **fields: Unpack[EventFields]
) -> _Call[Reported]:
    """Report that a track started."""
    return _events(session_id, [Event(type=EventType.PLAY, track_id=track_id, **fields)], listener_id=listener_id)


def _skip(
    session_id: str, track_id: str, *, listener_id: str | None = None, **fields: Unpack[EventFields]
) -> _Call[Reported]:
    """Report that the listener skipped a track."""
    return _events(session_id, [Event(type=EventType.SKIP, track_id=track_id, **fields)], listener_id=listener_id)


def _like(
    session_id: str, track_id: str, *, listener_id: str | None = None, **fields: Unpack[EventFields]
) -> _Call[Reported]:
    """Report that the listener likes a track. It pulls the session's recommendations."""
    return _events(session_id, [Event(type=EventType.LIKE, track_id=track_id, **fields)], listener_id=listener_id)


def _dislike(
    session_id: str, track_id: str, *, listener_id: str | None = None, **fields: Unpack[EventFields]
) -> _Call[Reported]:
    """Report that the listener dislikes a track. It is not recommended again in the session."""
    return _events(session_id, [Event(type=EventType.DISLIKE, track_id=track_id, **fields)], listener_id=listener_id)


def _ban(
    session_id: str, track_id: str, *, listener_id: str | None = None, whole_artist: bool = False
) -> _Call[Reported]:
    """Ban a track, or all tracks of its artist, in the session, and in all sessions of a listener."""
    kind = EventType.BAN_ARTIST if whole_artist else EventType.BAN
    return _events(session_id, [Event(type=kind, track_id=track_id)], listener_id=listener_id)


def _recommend(
    session_id: str, k: int = 20, *, listener_id: str | None = None, **options: Unpack[ListOptions]
) -> _Call[Recommendations]:
    """Return the next `k` tracks of a session. The bans of `listener_id` hold, or of the session's own listener."""
    named = {} if listener_id is None else {"listener_id": listener_id}
    query = {"session_id": session_id, "k": k, **_in_query(options), **named}
    return _Call("GET", "/recommendations", Recommendations.model_validate_json, query)


def _recommend_batch(session_ids: Sequence[str], k: int = 20, **options: Unpack[BatchOptions]) -> _Call[Batch]:
    """Return the next tracks of up to 100 sessions. A session that failed has its error in the list."""

    def read(content: bytes) -> Batch:
        return [
            Recommendations.model_validate(one["recommendations"]) if "problem" not in one else error_of(one["problem"])
            for one in json.loads(content)["results"]
        ]

    body = {"sessions": [{"session_id": session_id} for session_id in session_ids], "k": k, **options}
    return _Call("POST", "/recommendations/batch", read, body=body)


def _what_if(events: Sequence[Event], k: int = 20, **options: Unpack[ListOptions]) -> _Call[Recommendations]:
    """Return the next `k` tracks of a hypothetical session. Nothing is stored."""
    body = {"events": _as_json(events), "k": k, **options}
    return _Call("POST", "/recommendations/what-if", Recommendations.model_validate_json, body=body)


def _rank(
    candidates: Sequence[str],
    *,
    session_id: str | None = None,
    events: Sequence[Event] | None = None,
    **options: Unpack[RankOptions],
) -> _Call[RankedCandidates]:
    """Rank up to 500 tracks for a session, or for `events`. Unknown tracks come last."""
    body = {"candidates": list(candidates), "session_id": session_id, "events": _as_json(events), **options}
    return _Call("POST", "/rank", RankedCandidates.model_validate_json, body=body)


def _similar(track_id: str, k: int = 20, **only: str) -> _Call[list[RankedTrack]]:
    """Return the `k` tracks most similar to a track. `only` is filter=FILTER, or nothing."""
    path = _path("tracks", track_id, "similar")
    return _Call("GET", path, lambda content: _RANKED_TRACKS.validate_json(content)["items"], {"k": k, **only})


def _search(query: str, limit: int = 20, **only: str) -> _Call[list[Track]]:
    """Return tracks with all words of `query` in title, artist or id, most played first. `only` as for similar."""
    given = {"query": query, "limit": limit, **only}
    return _Call("GET", "/tracks", lambda content: _TRACKS.validate_json(content)["items"], given)


def _forget(session_id: str) -> _Call[None]:
    """Erase a session. The API key needs the scope `admin`."""
    return _Call("DELETE", _path("sessions", session_id), lambda _: None)


def _start_station(
    session_id: str, *, artists: Sequence[str] = (), tracks: Sequence[str] = (), weight: float = 0.5
) -> _Call[list[str]]:
    """Let artists and tracks pull a session's recommendations. Returns the seeds that the service does not know."""
    body = {"artists": list(artists), "tracks": list(tracks), "weight": weight}
    path = _path("sessions", session_id, "station")
    return _Call("PUT", path, lambda content: json.loads(content)["unknown"], {}, body)


def _end_station(session_id: str) -> _Call[None]:
    """End the station of a session."""
    return _Call("DELETE", _path("sessions", session_id, "station"), lambda _: None)


def _add_track(track_id: str, **facts: Unpack[TrackFields]) -> _Call[None]:
    """Add a track, or change what is known of one, without training. The API key needs the scope `admin`."""
    return _Call("PUT", _path("added-tracks", track_id), lambda _: None, {}, facts)


def _remove_track(track_id: str) -> _Call[None]:
    """Take a track down: no answer has it from now on. The API key needs the scope `admin`."""
    return _Call("PUT", _path("removed-tracks", track_id), lambda _: None)


def _restore_track(track_id: str) -> _Call[None]:
    """Bring back a track that was taken down. The API key needs the scope `admin`."""
    return _Call("DELETE", _path("removed-tracks", track_id), lambda _: None)


def _remove_tracks(track_ids: Sequence[str]) -> _Call[None]:
    """Take up to 1,000 tracks down, all or none. The API key needs the scope `admin`."""
    return _Call("POST", "/removed-tracks", lambda _: None, {}, {"track_ids": list(track_ids)})


def _restore_tracks(track_ids: Sequence[str]) -> _Call[None]:
    """Bring back up to 1,000 tracks that were taken down. The API key needs the scope `admin`."""
    return _Call("POST", "/removed-tracks", lambda _: None, {}, {"track_ids": list(track_ids), "removed": False})


def _forget_listener(listener_id: str) -> _Call[None]:
    """Erase the bans of a listener. The API key needs the scope `admin`."""
    return _Call("DELETE", _path("listeners", listener_id), lambda _: None)


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


class _Attempts:
    """The attempts of one call: how long each may take, and how long to wait before the next one."""

    def __init__(self, timeout_s: float, deadline_s: float) -> None:
        self._timeout_s = timeout_s
        self._until = time.monotonic() + deadline_s
        self._next_wait_s = _FIRST_WAIT_S
        self._problem: ServiceError | None = None  # of the latest attempt that was answered

    def timeout_s(self) -> float:
        return max(min(self._timeout_s, self._until - time.monotonic()), 0.001)

    def wait_s(self, failure: Exception) -> float:
        """Return the seconds to wait before the next attempt. Raises the failure if there is to be none."""
        self._problem = failure if isinstance(failure, ServiceError) else self._problem
        kind = NoAnswer if isinstance(failure, _LOST) else ServiceError
        error = self._problem or kind(0, "No answer", repr(failure)[:MAX_SHOWN])
        wait_s = max(error.retry_after_s, self._next_wait_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
        self._next_wait_s = min(2 * self._next_wait_s, 20 * _FIRST_WAIT_S)
        if not isinstance(error, RateLimited | Unavailable | NoAnswer) or time.monotonic() + wait_s >= self._until:
            raise error
        return wait_s


class _Methods:
    """The methods of both clients. Each raises a ServiceError if the call fails."""

    _kind: ClassVar[Any]

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 2.0, deadline_s: float = 10.0) -> None:
        """Connect to the service at `url` with the first call. `key` is an API key.

        An attempt waits at most `timeout_s` for a connection, and as long for data. The last attempt starts at most
        `deadline_s` after the call.
        """
        self._limits = timeout_s, deadline_s
        self._http = self._kind(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {})

    events = _Method(_events)
    play = _Method(_play)
    skip = _Method(_skip)
    like = _Method(_like)
    dislike = _Method(_dislike)
    ban = _Method(_ban)
    recommend = _Method(_recommend)
    recommend_batch = _Method(_recommend_batch)
    what_if = _Method(_what_if)
    rank = _Method(_rank)
    similar = _Method(_similar)
    search = _Method(_search)
    start_station = _Method(_start_station)
    end_station = _Method(_end_station)
    add_track = _Method(_add_track)
    remove_track = _Method(_remove_track)
    restore_track = _Method(_restore_track)
    remove_tracks = _Method(_remove_tracks)
    restore_tracks = _Method(_restore_tracks)
    forget = _Method(_forget)
    forget_listener = _Method(_forget_listener)


class Client(_Methods):
    """A client for programs with threads. It may be used by several threads at once."""

    _kind = httpx.Client

    def run(self, call: _Call[T]) -> T:
        """Make a call, and repeat it while it fails for a passing reason."""
        attempts = _Attempts(*self._limits)
        while True:
            try:
                return call.answer(self._http.send(call.request(self._http, attempts.timeout_s())))
            except (httpx.RequestError, ServiceError) as failure:
                wait_s = attempts.wait_s(failure)
            time.sleep(wait_s)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Methods):
    """A client for asyncio, for one event loop. Its methods return awaitables."""

    _kind = httpx.AsyncClient

    async def run(self, call: _Call[T]) -> T:
        """As `Client.run`."""
        attempts = _Attempts(*self._limits)
        while True:
            try:
                return call.answer(await self._http.send(call.request(self._http, attempts.timeout_s())))
            except (httpx.RequestError, ServiceError) as failure:
                wait_s = attempts.wait_s(failure)
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
