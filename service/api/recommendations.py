"""Recommendations: for a stored session, for a hypothetical one, and with explanations.

The popularity fallback answers with the release's most played tracks while Redis or the model is unavailable, if
SEGUE_FALLBACK=popularity. Writes have no fallback: an event that cannot be stored is not acknowledged.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

import orjson
import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from segue.errors import ModelUnavailable, SegueError, StoreUnavailable
from segue.filters import MAX_VALUES
from segue.release import RELEASE_NAME_PATTERN
from segue.sessions import Event, SessionState, TrackId, session_of
from service.api.explanations import ExplanationBody
from service.api.json_body import JsonBody, described_body, read_json
from service.api.state import (
    DEFAULT_K,
    MAX_TRACKS,
    AppState,
    ArtistGap,
    Asked,
    Caution,
    Fields,
    FilterText,
    K,
    ListOptions,
    MaxPerArtist,
    PolicyName,
    ReleaseName,
    Repeat,
    Seed,
    SessionIdQuery,
    fields_of,
    link_responses,
    rules_of,
)
from service.api.stations import ListenerIdQuery, wishes_of
from service.api.stream import MAX_SEED_ARTISTS, MAX_SEED_TRACKS
from service.api.tracks import RankedTrackBody
from service.http.auth import EXPLANATION_COST, caller_of
from service.problems import problem_responses
from service.releases.explanation import Explanation, explain_answer
from service.releases.loaded import Question, RecommendResult
from service.releases.ranking import popular
from service.releases.registry import ActiveRelease

MAX_HYPOTHETICAL_EVENTS = 500

router = APIRouter()

# --- bodies ---

Excluded = Annotated[
    list[TrackId], Query(max_length=MAX_TRACKS, description="A track not to return. Repeat it for several tracks")
]
Explain = Annotated[
    bool,
    Query(
        description="Return an explanation of the ranking. It contains the session's plays, so an API key needs the "
        "scope `read` as well as `client`. Counts as 13 requests"
    ),
]
_LOG_INTERVAL_S: Final = 1.0
_log = structlog.get_logger()


class WindowBody(BaseModel):
    """What the encoder used of the session."""

    plays: int = Field(description="Plays in the window that were not skipped")
    skips: int = Field(description="Plays in the window that were skipped")


class NextTracks(BaseModel):
    """Recommended next tracks."""

    release: str = Field(description="The release that answered")
    source: Literal["model", "popularity"] = Field(
        description="`popularity` if the session has no play of a track in the catalogue, or if the session store or "
        "the model is unavailable"
    )
    items: list[RankedTrackBody] = Field(description="Best first")
    window: WindowBody
    explanation: ExplanationBody | None = Field(default=None, description="Present if you set `explain`")
    unknown_seeds: list[str] | None = Field(
        default=None, description="Seeds of the request's station that the release does not know. Absent if none"
    )


class RecommendationsBody(NextTracks):
    """Recommended next tracks for a session."""

    session_id: str


class WhatIfRequest(JsonBody, ListOptions):
    """A hypothetical session: what would be recommended after these events."""

    max_items = MAX_HYPOTHETICAL_EVENTS
    max_other_values = 2 * MAX_TRACKS + 2 * MAX_VALUES + MAX_SEED_TRACKS + MAX_SEED_ARTISTS
    remedy = (
        f"send at most {MAX_HYPOTHETICAL_EVENTS} events, {MAX_TRACKS} tracks in exclude, {MAX_VALUES} in the filter"
    )

    events: list[Event] = Field(
        max_length=MAX_HYPOTHETICAL_EVENTS,
        description="Events in order. They form one session, even with long pauses",
    )
    exclude: list[TrackId] = Field(default_factory=list, max_length=MAX_TRACKS, description="Tracks not to return")
    explain: bool = Field(default=False, description="Return an explanation. Counts as 13 requests of the API key")
    release: str | None = Field(
        default=None, pattern=RELEASE_NAME_PATTERN, description="A live release to ask instead of the current one"
    )


# --- calls ---


@router.get(
    "/recommendations",
    tags=["recommendations"],
    response_model=RecommendationsBody,
    responses=problem_responses(404, 409, 422, 503)
    | link_responses(similar=("similar_tracks", {"path.track_id": "$response.body#/items/0/track_id"})),
)
async def recommendations(  # noqa: PLR0913, PLR0917 (parameters of the request)
    session_id: SessionIdQuery,
    request: Request,
    k: K = DEFAULT_K,
    repeat: Repeat = None,
    exclude: Excluded = [],  # noqa: B006 (never changed)
    release: ReleaseName = None,
    explain: Explain = False,
    caution: Caution = None,
    filter: FilterText = None,  # noqa: A002 (the name of the parameter)
    fields: Fields = None,
    max_per_artist: MaxPerArtist = None,
    artist_gap: ArtistGap = None,
    policy: PolicyName = None,
    seed: Seed = None,
    listener_id: ListenerIdQuery = None,
) -> Response:
    """Return the next tracks of a session.

    The most popular tracks are returned if the session has no usable play, or cannot be read at the moment.
    """
    service: AppState = request.app.state.service
    if explain:
        caller = caller_of(request.scope)
        caller.require("read", "explain=true, whose answer has the session's plays,")
        caller.charge(EXPLANATION_COST - 1)
    releases = service.releases
    active = releases.for_session(session_id) if release is None else releases.named(release)
    live = active.live
    asked = Asked(repeat, caution, filter, max_per_artist, artist_gap, policy, seed)
    rules = await rules_of(service, live, asked)
    names = () if fields is None else fields_of(live, fields)
    found = await stored_or_none(service, session_id, listener_id)
    station = None
    if found.preferences is not None:
        wishes = await wishes_of(service, live, found.preferences)
        exclude, station = [*exclude, *wishes.exclude], wishes.station
    question = Question(found.plays, k, exclude, *rules, station=station)
    content = await recommend(
        service, active, session_id, question, explain, names, attributed=release is None, policy=policy
    )
    return Response(content, media_type="application/json")


@router.post(
    "/recommendations/what-if",
    tags=["recommendations"],
    response_model=NextTracks,
    responses=problem_responses(404, 409, 413, 415, 422, 503),
    openapi_extra=described_body(WhatIfRequest),
)
async def what_if(request: Request) -> Response:
    """Return the next tracks of a hypothetical session. Nothing is stored, and Redis is not used."""
    service: AppState = request.app.state.service
    asked = await read_json(WhatIfRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    if asked.explain:
        caller_of(request.scope).charge(EXPLANATION_COST - 1)
    active = service.releases.named(asked.release)
    live, found = active.live, session_of(asked.events)
    names = fields_of(live, ",".join(asked.fields))
    rules = await asked.rules(service, live)
    wishes = await wishes_of(service, live, found.preferences, asked.station)
    plays, exclude = service.store.kept(found.plays), [*asked.exclude, *wishes.exclude]
    question = Question(plays, asked.k, exclude, *rules, station=wishes.station)
    answer = await active.ranking(question)
    explanation = await _explanation(service, question, answer) if asked.explain else None
    content = next_tracks_json(answer, explanation, names, unknown_seeds=wishes.unknown)
    return Response(content, media_type="application/json")


async def recommend(  # noqa: PLR0913 (options of the request)
    service: AppState,
    active: ActiveRelease,
    session_id: str,
    question: Question,
    explain: bool = False,
    fields: Sequence[str] = (),
    *,
    attributed: bool = True,
    policy: str | None = None,
    unknown_seeds: Sequence[str] = (),
) -> bytes:
    """The next tracks of a session: a RecommendationsBody as JSON, with the attributes `fields` of the tracks.

    `attributed`: whether plays and skips of these tracks count for the release, and the list may be logged. They do
    not if the client chose the release itself. A list with a seed is not logged, as its exploration is not random.
    """
    lists = service.served_lists if attributed and question.seed is None else None
    if lists is not None and session_id in lists:
        question = replace(question, with_propensities=True)
    else:
        lists = None
    answer = await answer_or_popular(service, active, question)
    service.telemetry.series(service.telemetry.recommendations, active.live.name, answer.source).inc()
    if attributed:
        service.attribution.remember(session_id, question.plays, answer)
    if lists is not None:
        lists.add(session_id, question.plays, active, policy, answer)
    explanation = await _explanation(service, question, answer) if explain else None
    # Session ids need no JSON escapes.
    return b'{"session_id":"%b",%b' % (
        session_id.encode(),
        next_tracks_json(answer, explanation, fields, unknown_seeds)[1:],
    )


def next_tracks_json(
    answer: RecommendResult,
    explanation: Explanation | None = None,
    fields: Sequence[str] = (),
    unknown_seeds: Sequence[str] = (),
) -> bytes:
    """NextTracks as JSON, from pieces that the catalogue keeps ready: pydantic takes longer than the whole search."""
    catalogue = answer.release.catalogue
    scores = orjson.dumps(answer.scores, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    lines = [
        b'"rank":%d,"score":%b,%b' % (rank, score, catalogue.json(row))
        for rank, (row, score) in enumerate(zip(answer.rows, scores, strict=False), start=1)
    ]
    if fields:
        values = catalogue.attributes.of_rows(answer.rows, fields)
        lines = [b'%b,"attributes":%b' % (line, orjson.dumps(one)) for line, one in zip(lines, values, strict=True)]
    items = b"{%b}" % b"},{".join(lines) if lines else b""
    explained = b""
    if explanation is not None:
        body = ExplanationBody.of(answer, explanation)
        explained = b',"explanation":' + body.model_dump_json(exclude_none=True).encode()
    if unknown_seeds:
        explained += b',"unknown_seeds":' + orjson.dumps(unknown_seeds)
    return b'{"release":%b,"source":"%b","items":[%b],"window":{"plays":%d,"skips":%d}%b}' % (
        orjson.dumps(answer.release.name),
        answer.source.encode(),
        items,
        answer.window_plays,
        answer.window_skips,
        explained,
    )


async def _explanation(service: AppState, question: Question, answer: RecommendResult) -> Explanation:
    return await service.threads.run_long(explain_answer, answer.release, question, answer)


async def stored_or_none(service: AppState, session_id: str, listener_id: str | None = None) -> SessionState:
    """The session, with the bans of its listener. Without the store none, if there is a fallback.

    Raises StoreUnavailable without a fallback.
    """
    try:
        found = await service.store.session(session_id)
        if listener_id is None and found.preferences is None:
            return found
        return await with_bans(service, found, listener_id)
    except StoreUnavailable:
        if not service.fallback:
            raise
        service.telemetry.fallbacks.labels("store").inc()
        return SessionState([])


async def with_bans(service: AppState, found: SessionState, listener_id: str | None = None) -> SessionState:
    """The session together with the bans of this listener, or of the one that it remembers."""
    if listener_id is None and found.preferences is not None:
        listener_id = found.preferences.listener_id
    if listener_id is None:
        return found
    bans = await service.store.listeners.bans(listener_id)
    return found._replace(preferences=bans.added_to(found.preferences))


async def answer_or_popular(service: AppState, active: ActiveRelease, question: Question) -> RecommendResult:
    """The next tracks, by popularity if encoder or index fail and there is a fallback."""
    try:
        return await active.ranking(question)
    except Exception as error:  # ONNX Runtime's and FAISS's errors share no class of their own
        if (isinstance(error, SegueError) and not isinstance(error, ModelUnavailable)) or not service.fallback:
            raise
        _log_model_error(service, active, error)
        service.telemetry.fallbacks.labels("model").inc()
        return popular(active.live, question)


def _log_model_error(service: AppState, active: ActiveRelease, error: Exception) -> None:
    """Log at most one line a second, as each of thousands of requests may fail."""
    now = time.monotonic()
    if now - service.model_error_logged_at < _LOG_INTERVAL_S:
        return
    service.model_error_logged_at = now
    if isinstance(error, ModelUnavailable):
        _log.error("model_error", release=active.live.name, reason=str(error))
    else:
        _log.exception("model_error", release=active.live.name)
