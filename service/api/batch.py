"""Recommendations for many sessions in one call. A session that fails costs the others nothing."""

import asyncio
from typing import Annotated, Any, Final

import orjson
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import CoreSchema

from segue.errors import SegueError
from segue.filters import MAX_VALUES, read_filter
from segue.release import RELEASE_NAME_PATTERN
from service.api.json_body import JsonBody, described_body, read_json
from service.api.rank import OneSession, release_for, session_for
from service.api.recommendations import NextTracks, next_tracks_json, recommend
from service.api.state import (
    MAX_TRACKS,
    AppState,
    ListOptions,
    fields_of,
)
from service.api.stations import wishes_of
from service.api.stream import MAX_SEED_ARTISTS, MAX_SEED_TRACKS
from service.http.auth import caller_of
from service.problems import (
    Problem,
    invalid_request_response,
    problem_response,
    problem_responses,
    response_to,
)
from service.releases.loaded import Question

MAX_SESSIONS: Final = 100
MAX_BATCH_EVENTS: Final = 1000  # of all hypothetical sessions together: validating them blocks the event loop
_VALUES_OF_A_SESSION: Final = 3
_MAX_LISTED: Final = 10  # errors of a session in its problem document; above it only their number

router = APIRouter()
_log = structlog.get_logger()


class InvalidSession(BaseModel):
    """A session of a batch that is not valid. Its result is a problem document."""

    errors: list[Any]


def _session_or_errors(value: Any, handler: ValidatorFunctionWrapHandler) -> OneSession | InvalidSession:
    try:
        session: OneSession = handler(value)
    except ValidationError as error:
        count = error.error_count()
        if count > _MAX_LISTED:
            summary = {"type": "too_many_errors", "loc": (), "msg": "A session as openapi.json describes it"}
            return InvalidSession(errors=[{**summary, "found": f"wrong in {count:,} places"}])
        return InvalidSession(errors=error.errors(include_url=False))
    return session


class _OrAnythingElse:
    """Describes in OpenAPI that another value is no error of the request: only its own result is a problem."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {}]}


class BatchRequest(JsonBody, ListOptions):
    """Sessions to recommend tracks for. The options apply to all of them."""

    max_items = MAX_BATCH_EVENTS
    max_other_values = (
        MAX_SESSIONS * _VALUES_OF_A_SESSION + MAX_TRACKS + 2 * MAX_VALUES + MAX_SEED_TRACKS + MAX_SEED_ARTISTS
    )
    remedy = f"send at most {MAX_SESSIONS} sessions with {MAX_BATCH_EVENTS:,} events in total"

    sessions: list[Annotated[OneSession, WrapValidator(_session_or_errors), _OrAnythingElse()]] = Field(
        min_length=1,
        max_length=MAX_SESSIONS,
        description=f"Stored and hypothetical sessions, with at most {MAX_BATCH_EVENTS:,} events in total",
    )
    release: str | None = Field(
        default=None,
        pattern=RELEASE_NAME_PATTERN,
        description="A live release to ask. Default: each session's own, or the current one for `events`",
    )

    @model_validator(mode="after")
    def _few_events(self) -> "BatchRequest":
        events = sum(len(one.events or ()) for one in self.sessions if isinstance(one, OneSession))
        if events > MAX_BATCH_EVENTS:
            raise PydanticCustomError(
                "too_many_events",
                "At most {most} events in all sessions together, found {events}",
                {"most": MAX_BATCH_EVENTS, "events": events},
            )
        return self


class BatchedTracks(NextTracks):
    """Recommended next tracks for one session of the batch."""

    session_id: str | None = Field(default=None, description="Absent for a hypothetical session")


class BatchResult(BaseModel):
    """The result for one session: its recommendations, or the problem that prevented them."""

    recommendations: BatchedTracks | None = None
    problem: Problem | None = None


class BatchResults(BaseModel):
    """One result per session."""

    results: list[BatchResult] = Field(description="In the order of the sessions of the request")


@router.post(
    "/recommendations/batch",
    tags=["recommendations"],
    response_model=BatchResults,
    response_model_exclude_none=True,
    responses=problem_responses(404, 413, 415, 422, 503),
    openapi_extra=described_body(BatchRequest),
)
async def recommend_batch(request: Request) -> Response:
    """Return the next tracks of up to 100 stored or hypothetical sessions.

    A session that fails has a problem document as its result; the other sessions are answered. Counts as one request of
    the API key per session.
    """
    service: AppState = request.app.state.service
    asked = await read_json(BatchRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    caller_of(request.scope).charge(len(asked.sessions) - 1)
    service.releases.named(asked.release)  # an unknown release is an error of the call, not of each session
    if asked.filter is not None:
        read_filter(asked.filter)  # so is a filter that cannot be read
    if asked.policy is not None:
        service.policies.named(asked.policy)
    results = await asyncio.gather(
        *(_result(service, asked, place, session) for place, session in enumerate(asked.sessions))
    )
    return Response(b'{"results":[%b]}' % b",".join(results), media_type="application/json")


async def _result(service: AppState, asked: BatchRequest, place: int, session: OneSession | InvalidSession) -> bytes:
    """A BatchResult as JSON."""
    if isinstance(session, InvalidSession):
        errors = [{**one, "loc": ("body", "sessions", place, *one["loc"])} for one in session.errors]
        return _problem(invalid_request_response(RequestValidationError(errors)))
    try:
        found = await _recommendations(service, asked, session)
    except SegueError as error:
        return _problem(response_to(error))
    except Exception:  # noqa: BLE001 (ONNX Runtime's and FAISS's errors share no class of their own)
        _log.exception("batch_error", session=place)
        return _problem(problem_response(500, "an internal error occurred: see the log of the service"))
    return b'{"recommendations":%b}' % found


async def _recommendations(service: AppState, asked: BatchRequest, session: OneSession) -> bytes:
    active = release_for(service, session, asked.release)
    live = active.live
    fields, rules = fields_of(live, ",".join(asked.fields)), await asked.rules(service, live)
    found = await session_for(service, session)
    exclude, station, unknown = await wishes_of(service, live, found.preferences, asked.station)
    question = Question(found.plays, asked.k, exclude, *rules, station=station)
    if session.session_id is None:
        return next_tracks_json(await active.ranking(question), fields=fields, unknown_seeds=unknown)
    options: dict[str, Any] = {"fields": fields, "attributed": asked.release is None, "unknown_seeds": unknown}
    return await recommend(service, active, session.session_id, question, policy=asked.policy, **options)


def _problem(response: Response) -> bytes:
    return orjson.dumps({"problem": orjson.Fragment(bytes(response.body))})
