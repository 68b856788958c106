"""What happens around every request: it gets an id, is measured and counted, and no failure goes unanswered."""

import itertools
import re
import secrets
import time

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.admission_control import Door
from service.ops.telemetry import Telemetry, request_id
from service.problems import problem_response

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
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:  # it gets what GET gets, without the body (RFC 9110, 9.3.2, 2022)
            scope["method"] = "GET"

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
                scope["method"] = method
                await send(message)
                if is_head:  # at once, as the body of a stream has no end
                    await send({"type": "http.response.body"})
            elif not is_head:
                await send(message)

        try:
            await self._app_for(scope)(scope, receive, send_noting_status)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception:
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:  # half an answer cannot be taken back: uvicorn closes the connection
                raise
            status = 500
            await problem_response(500, "the service failed; its log says why")(scope, receive, send_noting_status)
        finally:
            self._note(scope, method, status, time.perf_counter() - began)

    def _app_for(self, scope: Scope) -> ASGIApp:
        """What answers. In a route's expression, which ends with `$`, a last newline is ignored."""
        if scope["path"].endswith("\n"):
            return problem_response(404, "the path ends with a newline, as no path of this service does")
        return self._app

    def _name(self, scope: Scope) -> bytes:
        for header, value in scope["headers"]:
            if header == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                given: bytes = value
                return given
        return b"%b-%d" % (self._ours.encode(), next(self._numbers))

    def _note(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        is_usual = route in _USUAL and b"explain=" not in scope["query_string"]
        self._door.leave(scope, learn=is_usual and status < 400)
        if route == "none" or status == 405:
            method = "any"  # a client may send methods that no route has
        self._telemetry.requests.labels(method, route, str(status)).inc()
        self._telemetry.request_seconds.labels(method, route).observe(seconds)
        _log.debug("request", method=method, route=route, status=status, ms=round(seconds * 1000, 3))


def whole(app: ASGIApp) -> ASGIApp:
    """The same app, deaf to `Range`: Starlette answers a damaged one in plain text, and small files need none."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [line for line in scope["headers"] if line[0] != b"range"]
        await app({**scope, "headers": headers}, receive, send)

    return answer
