"""What happens around every request: it is named and measured, its body is limited, no failure goes unanswered."""

import itertools
import re
import secrets
import time

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.door import Door
from service.problems import BodyTooLarge, problem_response
from service.telemetry import Telemetry, request_id

_log = structlog.get_logger()

# The calls whose time tells how much is asked of the service: that of others depends on what they ask for, and that of
# a list with reasons is that of some hundred lists.
_USUAL = ("/recommendations", "/sessions/{session_id}/events")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:/+=-]{1,128}")
CLIENT_CLOSED = 499  # what nginx calls a request whose client left before its answer; never sent, only counted


class Measured:
    """The outermost layer: names, counts and times every request and answers 500 where nothing else did.

    A request is called what its client or a proxy calls it (`X-Request-ID`), or gets a name of ours; the answer and the
    log lines say it. It tells the door when a request has been answered.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, door: Door) -> None:
        self._app = app
        self._telemetry = telemetry
        self._door = door
        self._ours = secrets.token_hex(8)  # of this worker, this start
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0
        name = self._name(scope)
        request_id.set(name.decode())

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception:
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:  # half an answer cannot be taken back: uvicorn closes the connection
                raise
            status = 500
            await problem_response(500, "the service failed; its log says why")(scope, receive, send_noting_status)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _name(self, scope: Scope) -> bytes:
        for header, value in scope["headers"]:
            if header == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                given: bytes = value
                return given
        return b"%b-%d" % (self._ours.encode(), next(self._numbers))

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        is_usual = route in _USUAL and b"explain=" not in scope["query_string"]
        self._door.leave(scope, learn=is_usual and status < 400)
        method = scope["method"] if route != "none" else "any"  # a client may invent methods without end
        self._telemetry.requests.labels(method, route, str(status)).inc()
        self._telemetry.request_seconds.labels(method, route).observe(seconds)
        _log.debug("request", method=method, route=route, status=status, ms=round(seconds * 1000, 3))


def whole(app: ASGIApp) -> ASGIApp:
    """The same app, deaf to `Range`: Starlette answers a damaged one in plain text, and small files need none."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [line for line in scope["headers"] if line[0] != b"range"]
        await app({**scope, "headers": headers}, receive, send)

    return answer


class LimitedBody:
    """Refuses bodies over a number of bytes, whether or not the client says their length."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        text = f"the body is larger than {self._max_bytes:,} bytes: send fewer events at a time"
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._max_bytes:
            await problem_response(413, text, BodyTooLarge.title)(scope, receive, send)
            return
        received = 0

        async def receive_counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise BodyTooLarge(text)
            return message

        await self._app(scope, receive_counting, send)
