"""Sessions: report events, show a session's plays, watch them change, erase them."""

from typing import Annotated, Any, NamedTuple

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints, WithJsonSchema
from starlette.types import Receive, Scope, Send

from segue.errors import UnknownSession
from segue.filters import check_filter, read_filter
from segue.sessions import SESSION_ID_PATTERN, Event, EventType
from service.api.json_body import JsonBody, described_body, read_json
from service.api.recommendations import RecommendationsBody, recommend, with_bans
from service.api.state import (
    MAX_TRACKS,
    AppState,
    ArtistGap,
    Asked,
    Caution,
    Fields,
    FilterText,
    MaxPerArtist,
    PolicyName,
    Repeat,
    Seed,
    Service,
    SessionId,
    fields_of,
    link_responses,
    rules_of,
)
from service.api.stations import wishes_of
from service.api.stream import EVENT_STREAM, SessionBody, SessionStreams
from service.http.admission_control import AdmissionControl
from service.problems import NotAcceptable, problem_responses
from service.releases.loaded import Question
from service.sessions.store import Appended

MAX_EVENTS = 100

router = APIRouter()


class EventsRequest(JsonBody):
    """What happened in a session, in order."""

    max_items = MAX_EVENTS
    remedy = f"send at most {MAX_EVENTS} events at a time"

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)
    listener_id: Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)] | None = Field(
        default=None,
        description="Your id of the listener. Bans among the events then hold in all sessions of the listener, and the "
        "session remembers the listener (docs/how-to/likes-and-bans.md)",
    )


class EventsAnswer(BaseModel):
    """The result of reporting events. The events are stored before this is sent."""

    session_id: str
    length: int = Field(description="Number of plays in the session now")
    accepted: int = Field(description="Events that changed the session")
    duplicates: int = Field(description="Events with an `event_id` that was reported before. They change nothing")
    unknown_tracks: list[str] = Field(
        description="Tracks that are not in the release's catalogue. They are stored, and ignored by the model"
    )
    recommendations: RecommendationsBody | None = Field(default=None, description="Present if you set `recommend`")


Recommend = Annotated[
    int | None,
    Query(ge=1, le=MAX_TRACKS, description="Return this many next tracks in the same response"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TRACKS}),  # a query has no null
]
_IN_PATH = {"path.session_id": "$request.path.session_id"}
_IN_QUERY = {"query.session_id": "$request.path.session_id"}


@router.post(
    "/sessions/{session_id}/events",
    tags=["sessions"],
    response_model=EventsAnswer,
    responses=problem_responses(404, 409, 413, 415, 422, 503)
    | link_responses(
        next=("recommendations", _IN_QUERY),
        plays=("session", _IN_PATH),
        erasure=("erase_session", _IN_PATH),
    ),
    openapi_extra=described_body(EventsRequest),
)
async def report_events(  # noqa: PLR0913, PLR0917 (parameters of the request)
    session_id: SessionId,
    request: Request,
    recommend: Recommend = None,
    repeat: Repeat = None,
    caution: Caution = None,
    filter: FilterText = None,  # noqa: A002 (the name of the parameter)
    fields: Fields = None,
    max_per_artist: MaxPerArtist = None,
    artist_gap: ArtistGap = None,
    policy: PolicyName = None,
    seed: Seed = None,
) -> Response:
    """Report plays, skips, likes, dislikes and bans of a session.

    With `recommend`, also return its next tracks, chosen under the other parameters.
    """
    service: AppState = request.app.state.service
    reported = await read_json(EventsRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    if filter is not None:  # a filter that does not fit is an error, also without a list
        check_filter(read_filter(filter), service.releases.for_session(session_id).live.catalogue.attributes)
    if fields is not None:
        fields_of(service.releases.for_session(session_id).live, fields)
    if policy is not None:
        service.policies.named(policy)
    wanted = (
        None
        if recommend is None
        else Wanted(recommend, fields, Asked(repeat, caution, filter, max_per_artist, artist_gap, policy, seed))
    )
    content = await append_events(service, session_id, reported, wanted)
    return Response(content, media_type="application/json")


class Wanted(NamedTuple):
    """The next tracks that a report of events also asks for: how many, which fields, and the options of the list."""

    k: int
    fields: str | None
    options: Asked


async def append_events(service: AppState, session_id: str, reported: EventsRequest, wanted: Wanted | None) -> bytes:
    """Store events. Returns an EventsAnswer as JSON, with next tracks unless `wanted` is None.

    Raises StoreUnavailable. Raises the errors of `rules_of` before anything is stored.
    """
    active, events = service.releases.for_session(session_id), reported.events
    live, listener_id = active.live, reported.listener_id
    if wanted is not None:
        fields = () if wanted.fields is None else fields_of(live, wanted.fields)
        rules = await rules_of(service, live, wanted.options)
    stored = await service.store.append(session_id, events, with_plays=wanted is not None, listener_id=listener_id)
    unknown = live.unknown([event.track_id for event in events])
    _count_events(service, events, stored, len(unknown))
    service.attribution.count(stored.attributions)
    answer: dict[str, Any] = {
        "session_id": session_id,
        "length": stored.length,
        "accepted": len(events) - stored.duplicates,
        "duplicates": stored.duplicates,
        "unknown_tracks": unknown,
    }
    if wanted is not None:
        exclude: list[str] = []
        station = None
        if stored.session.preferences is not None:  # they name the listener of the request as well
            found = await with_bans(service, stored.session)
            exclude, station, _ = await wishes_of(service, live, found.preferences)
        question = Question(stored.plays, wanted.k, exclude, *rules, station=station)
        policy = wanted.options.policy
        tracks = await recommend(service, active, session_id, question, fields=fields, policy=policy)
        answer["recommendations"] = orjson.Fragment(tracks)
    return orjson.dumps(answer)


def _count_events(service: AppState, events: list[Event], stored: Appended, unknown: int) -> None:
    """Count reported events. Redis knows which of them are duplicates and returns only their number."""
    telemetry = service.telemetry
    skips = sum(event.type is EventType.SKIP for event in events)
    plays = sum(event.type is EventType.PLAY for event in events)
    telemetry.series(telemetry.events, "skip").inc(skips)
    telemetry.series(telemetry.events, "play").inc(plays)
    if skips + plays < len(events):
        for event in events:
            if event.type not in (EventType.SKIP, EventType.PLAY):
                telemetry.series(telemetry.events, event.type.value).inc()
    for counter, count in (
        (telemetry.duplicates, stored.duplicates),
        (telemetry.log_drops, stored.dropped),
        (telemetry.sessions, stored.began),
        (telemetry.unknown_tracks, unknown),
    ):
        if count:  # most are 0, and counting takes a lock
            counter.inc(count)


@router.get(
    "/sessions/{session_id}",
    tags=["sessions"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 422, 503),
)
async def session(session_id: SessionId, service: Service) -> SessionBody:
    """Return the plays of a session, oldest first, with its station, likes, dislikes and bans."""
    found = await service.store.session(session_id)
    if not found.plays and found.preferences is None:
        raise UnknownSession(f"session {session_id!r} has no plays: none were reported, it expired, or it was erased")
    return SessionBody.of(session_id, found)


@router.delete(
    "/sessions/{session_id}",
    tags=["sessions"],
    status_code=204,
    response_class=Response,
    responses=problem_responses(404, 422, 503),
)
async def erase_session(session_id: SessionId, service: Service) -> Response:
    """Erase a session: at once from the store, and from the event log's files when the log is next written."""
    await service.store.erase(session_id)
    return Response(status_code=204)


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        "description": "Server-sent events. `session` carries what GET /sessions/{session_id} returns, with an empty "
        "list of plays if there are none. `away` means that the session store is unavailable",
    }
}


@router.get(
    "/sessions/{session_id}/stream",
    tags=["sessions"],
    response_class=StreamingResponse,
    responses=_STREAM | problem_responses(406, 422, 503),
)
async def watch_session(session_id: SessionId, service: Service, request: Request) -> StreamingResponse:
    """Stream the plays of a session: now, and after each change, for up to five minutes.

    Send `Accept: text/event-stream`. Without it the request is rejected, because other clients would wait for an end.
    """
    if EVENT_STREAM not in request.headers.get("accept", ""):
        raise NotAcceptable(f"this response does not end: ask for it with Accept: {EVENT_STREAM}")
    admission_control: AdmissionControl = request.state.admission_control
    answer = _Stream(service.streams, session_id, admission_control)
    admission_control.exempt(request.scope)
    return answer


class _Stream(StreamingResponse):
    """A stream of session changes. It takes its slot when it is created."""

    def __init__(self, streams: SessionStreams, session_id: str, admission_control: AdmissionControl) -> None:
        """Raises Overloaded if there is no free slot."""
        streams.acquire_slot()
        self._streams = streams
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would buffer the events
        super().__init__(
            streams.changes(session_id, admission_control.closing), media_type=EVENT_STREAM, headers=headers
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the changes. The slot is released even if the client leaves before the first one."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.release_slot()
