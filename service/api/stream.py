"""A session as clients see it: its plays now, and a stream of server-sent events with its changes.

Each open stream reads its session from Redis twice a second, so it sees the changes of every worker.
Publishing every event instead would cost every event, for the few sessions that are watched.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, 2026.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from segue.errors import Overloaded, StoreUnavailable
from segue.sessions import CONTROL_CHARACTERS, MAX_ID_LENGTH, Outcome, SessionState, Station, TrackId
from service.sessions.store import SessionStore

EVENT_STREAM: Final = "text/event-stream"
POLL_INTERVAL_S: Final = 0.5
HEARTBEAT_INTERVAL_S: Final = 5.0  # below the idle timeout of any proxy; docker/haproxy.cfg has 10 s
MAX_STREAM_S: Final = 300.0  # then the client asks again, with an API key that may have been revoked
MAX_STREAMS: Final = 256  # per worker; each uses a connection and reads Redis twice a second

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BEAT: Final = b":\n\n"
_AWAY: Final = b"event: away\ndata: {}\n\n"


class PlayBody(BaseModel):
    """One play of a track in a session."""

    track_id: str
    outcome: Outcome
    at: datetime = Field(description="Start of the play, RFC 3339 in UTC")
    ms_played: int | None = Field(default=None, description="Absent if the client did not report it")


MAX_SEED_TRACKS: Final = 100
MAX_SEED_ARTISTS: Final = 10

_Artist = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=rf"^[^{CONTROL_CHARACTERS}]+$")
]


_SOME_SEED: Final[JsonValue] = [
    {"required": [name], "properties": {name: {"minItems": 1}}} for name in ("tracks", "artists")
]


class StationBody(BaseModel):
    """Seeds that pull the recommendations of a session."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"anyOf": _SOME_SEED})

    tracks: list[TrackId] = Field(
        default_factory=list,
        max_length=MAX_SEED_TRACKS,
        description="Track ids, such as those of a playlist. Together they are one seed",
    )
    artists: list[_Artist] = Field(
        default_factory=list,
        max_length=MAX_SEED_ARTISTS,
        description="Artists by name or `artist_id`. Each is a seed, by its most played tracks",
    )
    weight: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of P(next | seeds) in the score; 1 - weight is that of P(next | session). 0: no pull, also "
        "of likes. 1: the session's plays have no effect on the scores",
    )

    @model_validator(mode="after")
    def _some_seed(self) -> Self:
        if not self.tracks and not self.artists:
            raise PydanticCustomError("no_seed", "Send at least one track or artist")
        return self

    @property
    def station(self) -> Station:
        """The station. A seed counts once."""
        return Station(tuple(dict.fromkeys(self.tracks)), tuple(dict.fromkeys(self.artists)), self.weight)

    @classmethod
    def of(cls, station: Station) -> "StationBody":
        """The body for a station."""
        return StationBody(tracks=[*station.tracks], artists=[*station.artists], weight=station.weight)


class SessionBody(BaseModel):
    """The plays of a session, oldest first, and its preferences."""

    session_id: str
    plays: list[PlayBody]
    station: StationBody | None = Field(default=None, description="Absent if the session has none")
    likes: list[str] | None = Field(default=None, description="Liked tracks, oldest first. Absent if there are none")
    dislikes: list[str] | None = Field(default=None, description="Disliked tracks. Absent if there are none")
    bans: list[str] | None = Field(
        default=None, description="Tracks banned in this session. Bans of the listener are in GET /listeners"
    )
    artist_bans: list[str] | None = Field(
        default=None, description="Tracks whose artists are banned in this session. Absent if there are none"
    )
    listener_id: str | None = Field(default=None, description="The listener that the latest events named, if any")

    @classmethod
    def of(cls, session_id: str, found: SessionState) -> Self:
        """The body for a session."""
        bodies = [
            PlayBody(
                track_id=play.track_id,
                outcome=play.outcome,
                at=_EPOCH + timedelta(milliseconds=play.at_ms or 0),
                ms_played=play.ms_played,
            )
            for play in found.plays
        ]
        said = found.preferences
        if said is None:
            return cls(session_id=session_id, plays=bodies)
        return cls(
            session_id=session_id,
            plays=bodies,
            station=None if said.station is None else StationBody.of(said.station),
            likes=said.likes or None,
            dislikes=said.dislikes or None,
            bans=said.bans or None,
            artist_bans=said.artist_bans or None,
            listener_id=said.listener_id,
        )


class SessionStreams:
    """The open streams of one worker. For one event loop."""

    def __init__(self, store: SessionStore, max_streams: int = MAX_STREAMS) -> None:
        self._store = store
        self._max_streams = max_streams
        self._open = 0

    def acquire_slot(self) -> None:
        """Take a slot for one more stream, until `release_slot`. Raises Overloaded if there is none."""
        if self._open >= self._max_streams:
            raise Overloaded(
                f"{self._max_streams} session streams are open, the maximum of a worker: try again in a moment"
            )
        self._open += 1

    def release_slot(self) -> None:
        """Give back the slot of a stream that has ended."""
        self._open -= 1

    async def changes(self, session_id: str, leaving: asyncio.Event) -> AsyncIterator[bytes]:
        """The session now and after each change, for `MAX_STREAM_S` or until `leaving` is set.

        Sends `away` while the session store is unavailable. Sends at least a heartbeat every `HEARTBEAT_INTERVAL_S`
        seconds, so that both ends notice when the other is gone, and no proxy closes the connection as idle.
        """
        shown: SessionState | None = None
        sent_at = time.monotonic()
        ends_at = sent_at + MAX_STREAM_S
        while not leaving.is_set() and time.monotonic() < ends_at:
            found = await self._found(session_id)
            if found is None:
                shown, sent_at = None, time.monotonic()
                yield _AWAY
            elif found != shown:
                shown, sent_at = found, time.monotonic()
                yield (
                    b"event: session\ndata: %b\n\n"
                    % SessionBody.of(session_id, found).model_dump_json(exclude_none=True).encode()
                )
            elif time.monotonic() - sent_at >= HEARTBEAT_INTERVAL_S - POLL_INTERVAL_S:
                sent_at = time.monotonic()
                yield _BEAT
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), POLL_INTERVAL_S)

    async def _found(self, session_id: str) -> SessionState | None:
        try:
            return await self._store.session(session_id)
        except StoreUnavailable:
            return None
