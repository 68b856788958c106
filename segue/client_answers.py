"""What the calls of segue.client return, and the errors that they raise."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict

import httpx
from pydantic import BaseModel, ConfigDict

from segue.errors import InputError

MAX_SHOWN: Final = 200  # characters of an unexpected response in an error


class ServiceError(Exception):
    """The service rejected a call or did not answer. `status` is 0 if there was no answer."""

    def __init__(
        self, status: int, title: str, detail: str, errors: Sequence[Mapping[str, str]] = (), retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{status} {title}: {detail}" if status else f"{title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = list(errors)  # the invalid fields of a 422: `field`, `found` and `expected`
        self.retry_after_s = retry_after_s  # 0 if the service names no time


class InvalidRequest(ServiceError):
    """The request is invalid or too large (400, 413, 415, 422)."""


class AccessDenied(ServiceError):
    """The API key is missing or unknown (401), or does not have the scope that the call needs (403)."""


class NotFound(ServiceError):
    """There is no such track, release or path (404)."""


class Conflict(ServiceError):
    """The release cannot do this, for example rank with caution (409)."""


class RateLimited(ServiceError):
    """The rate limit was exceeded until the deadline (429)."""


class Unavailable(ServiceError):
    """The service was overloaded or unavailable until the deadline (502, 503, 504)."""


class NoAnswer(ServiceError):
    """No attempt got an answer before the deadline: timeouts or lost connections."""


_ERRORS: Final[dict[int, type[ServiceError]]] = {
    **dict.fromkeys((400, 413, 415, 422), InvalidRequest),
    **dict.fromkeys((401, 403), AccessDenied),
    **dict.fromkeys((502, 503, 504), Unavailable),
    404: NotFound,
    409: Conflict,
    429: RateLimited,
}


def error_of(problem: Mapping[str, Any], retry_after_s: float = 0.0) -> ServiceError:
    """Return the error of a problem document. `retry_after_s` is the wait that the service asks for, 0 for none."""
    kind = _ERRORS.get(problem["status"], ServiceError)
    errors = problem.get("errors")
    fields = errors if isinstance(errors, list) else ()
    return kind(problem["status"], problem["title"], problem["detail"], fields, retry_after_s)


def error_in(response: httpx.Response) -> ServiceError:
    """Return the error of a response that is not a success."""
    problem: dict[str, Any] = {"title": response.reason_phrase, "detail": response.text[:MAX_SHOWN]}
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        with contextlib.suppress(ValueError, TypeError):  # not a JSON object
            problem |= response.json()
    seconds = response.headers.get("retry-after", "")
    retry_after_s = float(seconds) if seconds.isascii() and seconds.isdigit() else 0.0
    return error_of(problem | {"status": response.status_code}, retry_after_s)


def headers_for(url: str, key: str | None) -> dict[str, str]:
    """Return the request headers for the service at `url`.

    Raises InputError for an invalid URL or key.
    """
    try:
        is_valid = httpx.URL(url).scheme in {"http", "https"} and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        is_valid = False
    if not is_valid:
        raise InputError(f"{url!r} is not the address of a service: expected an address such as http://127.0.0.1:8000")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InputError("--key contains characters that no key has: copy the key again")
    return {"Authorization": f"Bearer {key.strip()}"} if key else {}


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)  # unknown members are ignored: a later service may have more


class Track(_Answer):
    """A track of the catalogue."""

    track_id: str
    title: str | None = None
    artist: str | None = None
    attributes: dict[str, Any] | None = None  # those that `fields` named and the track has


class RankedTrack(Track):
    """A track in a list, best first. Rank 1 is the best."""

    rank: int
    score: float


class RankedCandidate(Track):
    """A candidate in its place. `score` is None for a track that the service does not know."""

    rank: int
    score: float | None = None


class Recommendations(_Answer):
    """Recommended next tracks, best first, and the release that answered."""

    release: str
    source: str  # model or popularity
    items: list[RankedTrack]


class RankedCandidates(_Answer):
    """All candidates, best first. Not in `items`: `filtered`, which `repeat` excludes, and `removed` tracks."""

    release: str
    source: str  # model or popularity
    items: list[RankedCandidate]
    unknown: list[str]
    filtered: list[str]
    removed: list[str]


class Reported(_Answer):
    """The result of reporting events. `length` is the number of plays of the session."""

    session_id: str
    length: int
    accepted: int
    duplicates: int
    unknown_tracks: list[str]
    recommendations: Recommendations | None = None


class Options(TypedDict, total=False):
    """Options of all calls that rank. Without one, the service uses its default."""

    repeat: str  # allow, never or after:N
    caution: float  # 0 to 10
    policy: str  # a policy of the service; other options take precedence


class RankOptions(Options, total=False):
    """Options of `rank`."""

    release: str  # a live release


class ReportOptions(Options, total=False):
    """Options of the list that a report of events returns."""

    filter: str  # such as genre:rock|pop,explicit:false
    fields: list[str]  # attributes to return
    max_per_artist: int
    artist_gap: int
    seed: int  # of the policy's exploration


class BatchOptions(ReportOptions, total=False):
    """Options of `recommend_batch`. They apply to all sessions."""

    release: str  # a live release


class ListOptions(BatchOptions, total=False):
    """Options of `recommend` and `what_if`."""

    exclude: list[str]  # tracks


class EventFields(TypedDict, total=False):
    """Optional fields of an event."""

    at: datetime  # with a time zone; without it, the time of arrival counts
    ms_played: int
    event_id: str


class TrackFields(TypedDict, total=False):
    """Fields of an added or changed track. A new track needs neighbours, an embedding, or a known artist or album."""

    title: str
    artist: str
    attributes: dict[str, Any]
    neighbours: list[str]
    embedding: list[float]
