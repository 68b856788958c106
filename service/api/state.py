"""What routes ask for, by name: the parts of the running service and the checked pieces of a request."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, WithJsonSchema

from segue.events import MAX_ID_LENGTH, SESSION_ID_PATTERN, TEXT_PATTERN, TrackId
from segue.release import RELEASE_NAME_PATTERN
from service.api.bodies import MAX_TRACKS, EventsRequest, SwapRequest, WhatIfRequest
from service.api.fallback import PopularityFallback
from service.api.json_body import Body, read_json
from service.api.stream import SessionStreams
from service.http.auth import EXPLANATION_COST, Caller, caller_of
from service.ops.readiness import Readiness
from service.ops.status import ServiceStatus
from service.releases.attribution import Attribution
from service.releases.registry import ReleaseRegistry
from service.sessions.store import SessionStore
from service.telemetry import Telemetry
from service.threads import Threads


@dataclass(slots=True)
class AppState:
    """What the lifespan opened. A request takes its release once: `releases` may give the next one another."""

    releases: ReleaseRegistry
    credits: Attribution
    store: SessionStore
    streams: SessionStreams
    fallback: PopularityFallback
    threads: Threads
    telemetry: Telemetry
    live_state: ServiceStatus
    readiness: Readiness
    max_body_bytes: dict[type[BaseModel], int]


async def _parts(request: Request) -> AppState:  # async, or FastAPI would call it in a thread
    parts: AppState = request.app.state.parts
    return parts


async def _caller(request: Request) -> Caller:
    return caller_of(request.scope)


async def _reported(request: Request) -> EventsRequest:
    return await _body(EventsRequest, request)


async def _supposed(request: Request) -> WhatIfRequest:
    return await _body(WhatIfRequest, request)


async def _wanted(request: Request) -> SwapRequest:
    return await _body(SwapRequest, request)


async def _body(model: type[Body], request: Request) -> Body:
    parts: AppState = request.app.state.parts
    return await read_json(model, request.scope["headers"], request.receive, parts.max_body_bytes[model])


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """What a route's `openapi_extra` says of its body, as FastAPI does not read it itself; see service/app.py."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


Reported = Annotated[EventsRequest, Depends(_reported)]
WhatIfBody = Annotated[WhatIfRequest, Depends(_supposed)]
SwapBody = Annotated[SwapRequest, Depends(_wanted)]
Service = Annotated[AppState, Depends(_parts)]
By = Annotated[Caller, Depends(_caller)]

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
        pattern=RELEASE_NAME_PATTERN,
        description="A release that is live (GET /releases/current names them), instead of the one that would answer",
    ),
    WithJsonSchema({"type": "string", "pattern": RELEASE_NAME_PATTERN}),
]
Explain = Annotated[
    bool,
    Query(
        description="Whether the answer says why each track is where it is. It then holds the session's plays, so that "
        "a key needs the scope `read` as well as `client`. It counts as 13 requests"
    ),
]


async def _explained(by: By, explain: Explain = False) -> bool:
    """Whether a stored session is to be explained. Checked here, as the query is read: it can be spelt in many ways."""
    if explain:
        by.require("read", "explain=true, whose answer holds the session's plays,")
        by.charge(EXPLANATION_COST - 1)
    return explain


Explained = Annotated[bool, Depends(_explained)]
SearchText = Annotated[
    str, Query(alias="query", max_length=200, description="Words of title, artist or id; none finds the most played")
]
Limit = Annotated[int, Query(ge=1, le=MAX_TRACKS, description="How many tracks to find at most")]
