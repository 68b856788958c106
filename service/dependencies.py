"""What routes ask for, by name: the parts of the running service and the checked pieces of a request."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError, WithJsonSchema

from segue.events import MAX_ID_LENGTH, TEXT_PATTERN, TrackId
from segue.release import NAME_PATTERN
from service.bodies import MAX_TRACKS, EventsRequest, SwapRequest, WhatIfRequest
from service.credits import Credits
from service.fallback import Fallback
from service.live_state import LiveState
from service.problems import MOST_ERRORS, WrongMediaType
from service.readiness import Readiness
from service.releases import LiveReleases
from service.session_store import SessionStore
from service.session_stream import SessionStreams
from service.telemetry import Telemetry
from service.threads import Threads

Body = TypeVar("Body", bound=BaseModel)

SESSION_ID_PATTERN = r"^[A-Za-z0-9._~-]{1,128}$"


@dataclass(slots=True)
class Parts:
    """What the lifespan opened. A request takes its release once: `releases` may give the next one another."""

    releases: LiveReleases
    credits: Credits
    store: SessionStore
    streams: SessionStreams
    fallback: Fallback
    threads: Threads
    telemetry: Telemetry
    live_state: LiveState
    readiness: Readiness


async def _parts(request: Request) -> Parts:  # async, or FastAPI would call it in a thread
    parts: Parts = request.app.state.parts
    return parts


async def _reported(request: Request) -> EventsRequest:
    return await _checked(EventsRequest, request)


async def _supposed(request: Request) -> WhatIfRequest:
    return await _checked(WhatIfRequest, request)


async def _wanted(request: Request) -> SwapRequest:
    return await _checked(SwapRequest, request)


async def _checked(model: type[Body], request: Request) -> Body:
    """The body, checked as JSON: numbers for numbers and text for text, nothing is converted.

    It must say that it is JSON. Whatever a browser sends for a page of another site without asking first says something
    else, or nothing (https://fetch.spec.whatwg.org/#cors-safelisted-request-header, 2026).
    """
    kinds = request.headers.getlist("content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != "application/json":
        shown = ascii(kinds[0][:80]) if len(kinds) == 1 else "missing" if not kinds else "there twice"
        raise WrongMediaType(f"Content-Type is {shown}: send JSON, and say so by application/json")
    try:
        return model.model_validate_json(await request.body(), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)[:MOST_ERRORS]
        errors = [{**one, "loc": ("body", *one["loc"])} for one in found]
        raise RequestValidationError(errors) from error


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """What a route's `openapi_extra` says of its body, as FastAPI does not read it itself; see service/app.py."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


Reported = Annotated[EventsRequest, Depends(_reported)]
Supposed = Annotated[WhatIfRequest, Depends(_supposed)]
Wanted = Annotated[SwapRequest, Depends(_wanted)]
Service = Annotated[Parts, Depends(_parts)]

SessionId = Annotated[
    str,
    PathParameter(pattern=SESSION_ID_PATTERN, description="The client's own id of the session", examples=["s-42"]),
]
SessionIdQuery = Annotated[
    str, Query(alias="session_id", pattern=SESSION_ID_PATTERN, description="The session to continue")
]
TrackIdPath = Annotated[
    str,
    PathParameter(
        min_length=1, max_length=MAX_ID_LENGTH, pattern=TEXT_PATTERN, description="A track; may hold slashes"
    ),
]
K = Annotated[int, Query(ge=1, le=MAX_TRACKS, description="How many tracks to answer with")]
Recommend = Annotated[
    int | None,
    Query(ge=1, le=MAX_TRACKS, description="Answer with this many next tracks in the same round trip"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TRACKS}),  # a query holds no null
]
Excluded = Annotated[
    list[TrackId],
    Query(max_length=MAX_TRACKS, description="A track that must not be answered; repeat it for several"),
]
ExcludeHeard = Annotated[bool, Query(description="Whether the session's own tracks are left out")]
ReleaseName = Annotated[
    str | None,
    Query(
        alias="release",
        pattern=NAME_PATTERN,
        description="A release that is live (GET /releases/current names them), instead of the one that would answer",
    ),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN}),
]
Explain = Annotated[bool, Query(description="Whether the answer says why each track is where it is")]
SearchText = Annotated[
    str, Query(alias="query", max_length=200, description="Words of title, artist or id; none finds the most played")
]
Limit = Annotated[int, Query(ge=1, le=MAX_TRACKS, description="How many tracks to find at most")]
