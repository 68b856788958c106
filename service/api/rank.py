"""Rank candidates of another system for a stored or a hypothetical session."""

from typing import Annotated, Any, Final, Literal, Self

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from segue.release import RELEASE_NAME_PATTERN
from segue.sessions import (
    SESSION_ID_PATTERN,
    Event,
    SessionState,
    TrackId,
    session_of,
)
from service.api.json_body import JsonBody, described_body, read_json
from service.api.recommendations import MAX_HYPOTHETICAL_EVENTS, answer_or_popular, stored_or_none
from service.api.state import AppState, Asked, RankOptions, rules_of
from service.api.stations import wishes_of
from service.http.auth import RANK_COST, caller_of
from service.problems import problem_responses
from service.releases.loaded import RecommendResult
from service.releases.ranking import RankQuestion, outside_filter, without_unwanted
from service.releases.registry import ActiveRelease

MAX_CANDIDATES: Final = 500
# The limit of a body with this number of events has room for the candidates as well: an event has two ids.
_EVENTS_IN_LIMIT: Final = MAX_HYPOTHETICAL_EVENTS + MAX_CANDIDATES // 2
_MAX_SHOWN: Final = 80

router = APIRouter()

# One of `session_id` and `events`, the other one absent or null. pydantic does not describe this by itself.
_ONE_SESSION: Final[dict[str, Any]] = {
    "oneOf": [
        {"required": ["session_id"], "properties": {"session_id": {"type": "string"}}},
        {"required": ["events"], "properties": {"events": {"type": "array"}}},
    ]
}


class OneSession(BaseModel):
    """A stored session by its id, or a hypothetical session as events."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_ONE_SESSION)

    session_id: Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)] | None = Field(
        default=None, description="A stored session. Send either this or `events`"
    )
    events: list[Event] | None = Field(
        default=None,
        max_length=MAX_HYPOTHETICAL_EVENTS,
        description="A hypothetical session: events in order. Nothing is stored",
    )

    @model_validator(mode="after")
    def _one_session(self) -> Self:
        if (self.session_id is None) == (self.events is None):
            raise PydanticCustomError("one_session", "Send either session_id or events")
        return self


class RankRequest(JsonBody, OneSession, RankOptions):
    """Candidates to rank for a session."""

    max_items = MAX_HYPOTHETICAL_EVENTS
    max_other_values = MAX_CANDIDATES
    remedy = f"send at most {MAX_HYPOTHETICAL_EVENTS} events and {MAX_CANDIDATES} candidates"

    candidates: list[TrackId] = Field(
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="Track ids, each of them once",
        json_schema_extra={"uniqueItems": True},
    )
    release: str | None = Field(
        default=None,
        pattern=RELEASE_NAME_PATTERN,
        description="A live release to ask. Default: the session's own, or the current one for `events`",
    )

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, candidates: list[str]) -> list[str]:
        seen: set[str] = set()
        for track_id in candidates:
            if track_id in seen:
                shown = ascii(track_id[:_MAX_SHOWN])
                raise PydanticCustomError("duplicate", "Send each track once: {shown} is repeated", {"shown": shown})
            seen.add(track_id)
        return candidates

    @classmethod
    def bytes_limit(cls, max_request_bytes: int) -> int:
        """Return the maximum body size in bytes: that of 750 events, because candidates need room as well."""
        return super().bytes_limit(max_request_bytes) * _EVENTS_IN_LIMIT // MAX_HYPOTHETICAL_EVENTS


class RankedCandidate(BaseModel):
    """A candidate in its place."""

    rank: int = Field(ge=1, description="1 is the best")
    score: float | None = Field(
        default=None,
        description="Higher is better. Comparable between answers of the same release for the same session. Absent for "
        "an unknown track",
    )
    track_id: str
    title: str | None = Field(default=None, description="Absent if the catalogue does not know it")
    artist: str | None = Field(default=None, description="Absent if the catalogue does not know it")


class RankedCandidates(BaseModel):
    """The candidates in the order of their scores."""

    release: str = Field(description="The release that answered")
    source: Literal["model", "popularity"] = Field(
        description="`popularity` if the session has no play of a track in the catalogue, or if the session store or "
        "the model is unavailable. Scores are then numbers of plays"
    )
    items: list[RankedCandidate] = Field(
        description="Best first. Candidates with the same score keep the order of the request. Unknown tracks come "
        "last, in the order of the request"
    )
    unknown: list[str] = Field(
        description="Candidates that are not in the release's catalogue, in the order of `items`"
    )
    filtered: list[str] = Field(
        description="Candidates that `repeat`, a dislike, a ban or the filter of the policy excludes, in the order of "
        "the request. They are not in `items`"
    )
    removed: list[str] = Field(
        description="Candidates that are removed (`PUT /removed-tracks/{track_id}`), in the order of the request. They "
        "are not in `items`"
    )


@router.post(
    "/rank",
    tags=["recommendations"],
    response_model=RankedCandidates,
    response_model_exclude_none=True,
    responses=problem_responses(404, 409, 413, 415, 422, 503),
    openapi_extra=described_body(RankRequest),
)
async def rank(request: Request) -> Response:
    """Rank up to 500 candidates, for example those of another system, for a stored or a hypothetical session.

    The scores are those of the recommendations. No candidate is dropped unless `repeat`, a dislike, a ban or the filter
    of the policy excludes it, or it is removed. Of a policy, only `repeat`, `caution` and `filter` have an effect.
    """
    service: AppState = request.app.state.service
    asked = await read_json(RankRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    caller_of(request.scope).charge(RANK_COST - 1)
    active = release_for(service, asked, asked.release)
    rules = await rules_of(service, active.live, Asked(asked.repeat, asked.caution, policy=asked.policy))
    found = await session_for(service, asked)
    wishes = await wishes_of(service, active.live, found.preferences)
    gone = service.releases.removed.since
    removed = [track_id for track_id in asked.candidates if track_id in gone] if gone else []
    left = [track_id for track_id in asked.candidates if track_id not in gone] if gone else asked.candidates
    outside = () if rules.filter is None else outside_filter(active.live, rules.filter, left)
    allowed, filtered = without_unwanted(left, found.plays, rules.repeat, [*wishes.exclude, *outside])
    count, station = len(allowed), wishes.station
    question = RankQuestion(found.plays, count, caution=rules.caution, candidates=allowed, station=station)
    if asked.session_id is None:
        answer = await active.ranking(question)
    else:
        answer = await answer_or_popular(service, active, question)
    return Response(_ranked_json(answer, allowed, filtered, removed), media_type="application/json")


def release_for(service: AppState, asked: OneSession, name: str | None) -> ActiveRelease:
    """Return the release with this name; for None the session's own, or the current one. Raises UnknownRelease."""
    if name is None and asked.session_id is not None:
        return service.releases.for_session(asked.session_id)
    return service.releases.named(name)


async def session_for(service: AppState, asked: OneSession) -> SessionState:
    """Return a stored or hypothetical session. Without the store an empty one, if there is a fallback.

    Raises StoreUnavailable without a fallback.
    """
    if asked.session_id is not None:
        return await stored_or_none(service, asked.session_id)
    plays, preferences = session_of(asked.events or ())
    return SessionState(service.store.kept(plays), preferences)


def _ranked_json(answer: RecommendResult, allowed: list[str], filtered: list[str], removed: list[str]) -> bytes:
    """RankedCandidates as JSON. The catalogue keeps the members of each track ready."""
    catalogue = answer.release.catalogue
    scores = orjson.dumps(answer.scores, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    items = [
        b'{"rank":%d,"score":%b,%b}' % (rank, score, catalogue.json(row))
        for rank, (row, score) in enumerate(zip(answer.rows, scores, strict=False), start=1)
    ]
    unknown = [track_id for track_id in allowed if track_id not in catalogue]
    for track_id in unknown:
        items.append(b'{"rank":%d,"track_id":%b}' % (len(items) + 1, orjson.dumps(track_id)))
    return b'{"release":%b,"source":"%b","items":[%b],"unknown":%b,"filtered":%b,"removed":%b}' % (
        orjson.dumps(answer.release.name),
        answer.source.encode(),
        b",".join(items),
        orjson.dumps(unknown),
        orjson.dumps(filtered),
        orjson.dumps(removed),
    )
