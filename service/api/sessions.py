"""The calls of the HTTP interface. What they mean is in docs/session-semantics.md and openapi.yaml."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from segue.errors import UnknownSession
from segue.events import EventType
from segue.sessions import Play, plays_of
from service.api.bodies import (
    DEFAULT_K,
    CurrentReleaseBody,
    EventsAnswer,
    EventsRequest,
    Health,
    NextTracks,
    RecommendationsBody,
    SessionBody,
    SwapRequest,
    WhatIfRequest,
    next_tracks_json,
    recommendations_json,
)
from service.api.state import (
    AppState,
    By,
    Excluded,
    ExcludeHeard,
    Explained,
    K,
    Limit,
    Recommend,
    ReleaseName,
    Reported,
    SearchText,
    Service,
    SessionId,
    SessionIdQuery,
    SwapBody,
    TrackIdPath,
    WhatIfBody,
    body_of,
)
from service.api.track_bodies import FoundTracks, RankedTrackBody, SimilarTracks, TrackBody
from service.http.auth import EXPLANATION_COST
from service.problems import problem_responses
from service.releases.loaded import Explanation, Question, RecommendResult
from service.releases.registry import ActiveRelease
from service.sessions.store import Appended

router = APIRouter()


def _links(**links: tuple[str, dict[str, str]]) -> dict[int | str, dict[str, Any]]:
    """What a client may do next with an answer: for readers of openapi.yaml, and for tests that follow it."""
    described = {
        name: {"operationId": operation, "parameters": given} for name, (operation, given) in sorted(links.items())
    }
    return {200: {"links": described}}


_IN_PATH = {"path.session_id": "$request.path.session_id"}
_IN_QUERY = {"query.session_id": "$request.path.session_id"}


@router.post(
    "/sessions/{session_id}/events",
    tags=["sessions"],
    response_model=EventsAnswer,
    responses=problem_responses(404, 413, 415, 422, 503)
    | _links(
        next=("recommendations", _IN_QUERY),
        plays=("session", _IN_PATH),
        erasure=("erase_session", _IN_PATH),
    ),
    openapi_extra=body_of(EventsRequest),
)
async def report_events(
    session_id: SessionId, reported: Reported, service: Service, recommend: Recommend = None
) -> Response:
    """Append what happened to a session; optionally answer with its next tracks."""
    return _json(await append_events(service, session_id, reported, recommend))


@router.get(
    "/recommendations",
    tags=["recommendations"],
    response_model=RecommendationsBody,
    responses=problem_responses(404, 422, 503)
    | _links(similar=("similar_tracks", {"path.track_id": "$response.body#/items/0/track_id"})),
)
async def recommendations(
    session_id: SessionIdQuery,
    service: Service,
    explain: Explained,
    k: K = DEFAULT_K,
    exclude_heard: ExcludeHeard = True,
    exclude: Excluded = [],  # noqa: B006 (FastAPI copies it)
    release: ReleaseName = None,
) -> Response:
    """The next tracks for a session; the most popular ones if it holds no usable play, or cannot be read for now."""
    question = partial(Question, k=k, exclude=exclude, exclude_heard=exclude_heard)
    return _json(await recommend_for_session(service, session_id, question, explain=explain, release=release))


@router.post(
    "/recommendations/what-if",
    tags=["recommendations"],
    response_model=NextTracks,
    responses=problem_responses(404, 413, 415, 422, 503),
    openapi_extra=body_of(WhatIfRequest),
)
async def what_if(supposed: WhatIfBody, service: Service, by: By) -> Response:
    """The next tracks for a session that is only supposed: nothing is stored, and Redis is not asked."""
    if supposed.explain:
        by.charge(EXPLANATION_COST - 1)
    plays = service.store.kept(plays_of(supposed.events))
    question = Question(plays, supposed.k, supposed.exclude, supposed.exclude_heard)
    served = service.releases.named(supposed.release)
    answer = await served.ranking(question)
    return _json(next_tracks_json(answer, await _why(service, served, question, answer) if supposed.explain else None))


@router.get(
    "/sessions/{session_id}",
    tags=["sessions"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 422, 503),
)
async def session(session_id: SessionId, service: Service) -> SessionBody:
    """The plays of a session, oldest first."""
    plays = await service.store.plays(session_id)
    if not plays:
        raise UnknownSession(f"session {session_id!r} holds no plays: it never did, is over, or was erased")
    return SessionBody.of(session_id, plays)


@router.delete(
    "/sessions/{session_id}",
    tags=["sessions"],
    status_code=204,
    response_class=Response,
    responses=problem_responses(404, 422, 503),
)
async def erase_session(session_id: SessionId, service: Service) -> Response:
    """Erase a session, from the store at once and from the event log's files at their next writing."""
    await service.store.erase(session_id)
    return Response(status_code=204)


@router.get(
    "/tracks",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(422, 503)
    | _links(similar=("similar_tracks", {"path.track_id": "$response.body#/items/0/track_id"})),
)
async def find_tracks(service: Service, query: SearchText = "", limit: Limit = 20) -> FoundTracks:
    """Find tracks by words of their title, artist or id."""
    found = await service.threads.run(service.releases.current.live.search, query, limit)
    return FoundTracks(items=[TrackBody.of(track) for track in found])


@router.get(
    "/tracks/{track_id:path}/similar",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 422, 503),
)
async def similar_tracks(track_id: TrackIdPath, service: Service, k: K = DEFAULT_K) -> SimilarTracks:
    """The tracks nearest to a track."""
    found = await service.threads.run(service.releases.current.live.similar, track_id, k)
    return SimilarTracks(items=RankedTrackBody.list_of(found))


@router.get("/releases/current", tags=["releases"])
async def current_release(service: Service) -> CurrentReleaseBody:
    """What is served; sessions of an experiment may get another release, which their answers name."""
    return _current(service)


@router.put(
    "/releases/current",
    tags=["releases"],
    responses=problem_responses(404, 409, 413, 415, 422, 503),
    openapi_extra=body_of(SwapRequest),
)
async def swap_release(wanted: SwapBody, service: Service) -> CurrentReleaseBody:
    """Serve another release once it is verified and warm; if it is refused, what was served is served on."""
    await service.releases.swap(wanted.name)
    return _current(service)


@router.get("/health/live", tags=["operations"])
async def live() -> Health:
    """Whether the process answers."""
    return Health(status="live")


@router.get("/health/ready", tags=["operations"], responses=problem_responses(503))
async def ready(service: Service) -> Health:
    """Whether requests can be served: Redis accepts a write and keeps it as promised, and the release ranks."""
    await service.readiness.check()
    return Health(status="ready")


@router.get(
    "/metrics",
    tags=["operations"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text"}},
)
async def metrics(service: Service) -> Response:
    """Metrics for Prometheus, of all workers."""
    return Response(service.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


async def append_events(service: AppState, session_id: str, reported: EventsRequest, recommend: int | None) -> bytes:
    """Store the events; the content of an EventsAnswer. Raises StoreUnavailable."""
    served = service.releases.for_session(session_id)
    stored = await service.store.append(session_id, reported.events, with_plays=recommend is not None)
    unknown = served.live.unknown([event.track_id for event in reported.events])
    _count_events(service, reported, stored, len(unknown))
    service.credits.count(stored.credits)
    answer: dict[str, Any] = {
        "session_id": session_id,
        "length": stored.length,
        "accepted": len(reported.events) - stored.duplicates,
        "duplicates": stored.duplicates,
        "unknown_tracks": unknown,
    }
    if recommend is not None:
        found = await _recommend(service, served, session_id, Question(stored.plays, recommend))
        answer["recommendations"] = orjson.Fragment(found)
    return orjson.dumps(answer)


async def recommend_for_session(
    service: AppState,
    session_id: str,
    question: Callable[[Sequence[Play]], Question],
    *,
    explain: bool = False,
    release: str | None = None,
) -> bytes:
    """The content of a RecommendationsBody. Raises StoreUnavailable where there is no fallback, UnknownRelease."""
    releases = service.releases
    served = releases.for_session(session_id) if release is None else releases.named(release)
    asked = question(await service.fallback.plays(session_id))
    return await _recommend(service, served, session_id, asked, explain=explain, credited=release is None)


async def _recommend(
    service: AppState,
    served: ActiveRelease,
    session_id: str,
    question: Question,
    *,
    explain: bool = False,
    credited: bool = True,
) -> bytes:
    """`credited`: whether the list is the session's own, so that what becomes of it tells of the release."""
    answer = await service.fallback.answer(served, question)
    service.telemetry.recommendations.labels(served.live.name, answer.source).inc()
    if credited:
        service.credits.remember(session_id, answer)
    why = await _why(service, served, question, answer) if explain else None
    return recommendations_json(session_id, answer, why)


async def _why(service: AppState, served: ActiveRelease, question: Question, answer: RecommendResult) -> Explanation:
    return await service.threads.run_long(served.live.explain, question, answer)


def _current(service: AppState) -> CurrentReleaseBody:
    return CurrentReleaseBody.of_all([(served.live, share) for served, share in service.releases.live()])


def _json(content: bytes) -> Response:
    """What two calls answer ready made; pydantic would take longer over it than the whole search."""
    return Response(content, media_type="application/json")


def _count_events(service: AppState, reported: Reported, stored: Appended, unknown: int) -> None:
    """Count what was reported; which of the events were duplicates is known to Redis alone, how many is answered."""
    telemetry = service.telemetry
    skips = sum(event.type is EventType.SKIP for event in reported.events)
    telemetry.events.labels("skip").inc(skips)
    telemetry.events.labels("play").inc(len(reported.events) - skips)
    telemetry.duplicates.inc(stored.duplicates)
    telemetry.log_drops.inc(stored.dropped)
    telemetry.sessions.inc(stored.began)
    telemetry.unknown_tracks.inc(unknown)
