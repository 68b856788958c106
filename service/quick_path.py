"""The two calls that a listener's client makes all the time, without the general machinery around a route.

FastAPI takes longer to match, check and hand over what these requests say than the rest of the service takes to answer.
A request in the plain form that clients send is read here; it then takes the same functions as its route
(service.routes). Any other - escapes in the query, a parameter twice, a body that is not as described - goes on to
FastAPI, which checks it, answers its problem document, and says in openapi.yaml what both of them take.
"""

import re
from functools import partial
from typing import Any, Final

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue.errors import SegueError
from service.bodies import DEFAULT_K, MAX_TRACKS, EventsRequest
from service.dependencies import SESSION_ID_PATTERN, Parts
from service.live_release import Question
from service.problems import response_to
from service.routes import answer_recommendations, answer_reported

_ID: Final = SESSION_ID_PATTERN.strip("^$")
_NUMBER: Final = "([1-9][0-9]{0,2})"
_EVENTS_PATH: Final = re.compile(f"/sessions/({_ID})/events")
_EVENTS_QUERY: Final = re.compile(f"recommend={_NUMBER}".encode())
_RECOMMENDATIONS_QUERY: Final = re.compile(
    f"session_id=({_ID})(?:&k={_NUMBER})?(?:&exclude_heard=(true|false))?".encode()
)


class QuickPath:
    """An ASGI layer that answers what it can and hands the rest to `app`."""

    def __init__(self, app: ASGIApp, routes: dict[str, Any], max_bytes: int) -> None:
        """`routes` by name, for metrics; bodies above `max_bytes` are left to the layer that refuses them."""
        self._app = app
        self._events_route, self._recommendations_route = routes["report_events"], routes["recommendations"]
        self._max_bytes = max_bytes

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
        service: Parts = scope["app"].state.parts
        try:
            content = await answer_recommendations(
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
        length, kind = _length_and_kind(scope["headers"])
        if query and (asked is None or int(asked[1]) > MAX_TRACKS):
            await self._app(scope, receive, send)
            return
        if kind != b"application/json" or not length.isdigit() or int(length) > self._max_bytes:
            await self._app(scope, receive, send)
            return
        messages, body = await _whole_body(receive)
        try:
            reported = EventsRequest.model_validate_json(body, strict=True)
        except ValidationError:
            await self._app(scope, _again(messages, receive), send)
            return
        scope["route"] = self._events_route
        try:
            content = await answer_reported(
                scope["app"].state.parts, session_id, reported, int(asked[1]) if asked else None
            )
        except SegueError as error:
            await response_to(error)(scope, receive, send)
            return
        await _answer(content, send)


def _length_and_kind(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The values of Content-Length and Content-Type; of a header that is there twice, nothing that passes."""
    length = kind = b""
    for name, value in headers:
        if name == b"content-length":
            length = value
        elif name == b"content-type":
            kind += value
    return length, kind


async def _whole_body(receive: Receive) -> tuple[list[Message], bytes]:
    """What was received, and the body in it; less than the whole body where the client has gone."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages, b"".join(message.get("body", b"") for message in messages)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that gives these messages once more, then what comes after them."""
    kept = iter(messages)

    async def receive_again() -> Message:
        for message in kept:
            return message
        return await receive()

    return receive_again


async def _answer(content: bytes, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
