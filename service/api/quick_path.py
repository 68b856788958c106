"""The two calls that a listener's client makes all the time, without the general machinery around a route.

FastAPI takes longer to match, check and hand over what these requests say than the rest of the service takes to answer.
A request whose path and query have the plain form that clients send is answered here, by the same functions as its
route (service.api.json_body, service.api.sessions). Any other, with escapes or a parameter twice, goes on to FastAPI,
which checks it, answers its problem document, and describes both in openapi.yaml.
"""

import re
from functools import partial
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from segue.errors import SegueError
from segue.events import SESSION_ID_PATTERN
from service.api.bodies import DEFAULT_K, MAX_TRACKS, EventsRequest
from service.api.json_body import read_json
from service.api.sessions import append_events, recommend_for_session
from service.api.state import AppState
from service.problems import invalid_request_response, response_to
from service.releases.loaded import Question

_ID: Final = SESSION_ID_PATTERN.strip("^$")
_NUMBER: Final = "([1-9][0-9]{0,2})"
_EVENTS_PATH: Final = re.compile(f"/sessions/({_ID})/events")
_EVENTS_QUERY: Final = re.compile(f"recommend={_NUMBER}".encode())
_RECOMMENDATIONS_QUERY: Final = re.compile(
    f"session_id=({_ID})(?:&k={_NUMBER})?(?:&exclude_heard=(true|false))?".encode()
)


class FastPath:
    """An ASGI layer that answers what it can and hands the rest to `app`."""

    def __init__(self, app: ASGIApp, routes: dict[str, Any]) -> None:
        """`routes` by name, for metrics."""
        self._app = app
        self._events_route, self._recommendations_route = routes["report_events"], routes["recommendations"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            if path == "/recommendations" and method == "GET":
                asked = _RECOMMENDATIONS_QUERY.fullmatch(scope["query_string"])
                if asked is not None and int(asked[2] or DEFAULT_K) <= MAX_TRACKS:
                    await self._recommend(asked, scope, receive, send)
                    return
            elif method == "POST" and (named := _EVENTS_PATH.fullmatch(path)):
                await self._report(named[1], scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _recommend(self, asked: re.Match[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        session_id, k, heard = asked.groups()
        scope["route"] = self._recommendations_route
        service: AppState = scope["app"].state.parts
        try:
            content = await recommend_for_session(
                service,
                session_id.decode(),
                partial(Question, k=int(k or DEFAULT_K), exclude_heard=heard != b"false"),
            )
        except SegueError as error:
            await response_to(error)(scope, receive, send)
            return
        await _answer(content, send)

    async def _report(self, session_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"]
        asked = _EVENTS_QUERY.fullmatch(query) if query else None
        if query and (asked is None or int(asked[1]) > MAX_TRACKS):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._events_route
        service: AppState = scope["app"].state.parts
        try:
            reported = await read_json(EventsRequest, scope["headers"], receive, service.max_body_bytes[EventsRequest])
            content = await append_events(service, session_id, reported, int(asked[1]) if asked else None)
        except RequestValidationError as error:
            await invalid_request_response(error)(scope, receive, send)
            return
        except SegueError as error:
            await response_to(error)(scope, receive, send)
            return
        await _answer(content, send)


async def _answer(content: bytes, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
