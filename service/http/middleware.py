"""Middleware of every request: request id and metrics, the `Host` check, CORS, and the headers of all responses.

The `Host` check applies to a service without keys. Other machines cannot reach a service on loopback, but pages in this
machine's browser can: a site whose name resolves to 127.0.0.1 (DNS rebinding) has the same origin as the service. The
browser still sends the site's own name in `Host`, so the check detects it. A service with keys does not need it.

CORS is off unless SEGUE_CORS_ORIGINS is set. Credentials are not allowed: Segue uses no cookies, and a page sends its
API key itself. https://fetch.spec.whatwg.org/#http-cors-protocol (2026)
"""

import inspect
import ipaddress
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final, get_args
from urllib.parse import parse_qsl

import structlog
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic import ConfigDict, ValidationError, validate_call
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from segue.errors import SegueError
from service.http.admission_control import AdmissionControl
from service.problems import invalid_request_response, problem_response, response_to
from service.settings import Settings
from service.telemetry import Telemetry, request_id

# Sent with every answer, by uvicorn itself: so also with those that it gives on its own.
ANSWER_HEADERS: Final[list[tuple[str, str]]] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
]


_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
_MOST_REMEMBERED: Final = 64
_SHOWN: Final = 80
_OF_BROWSERS: Final = frozenset({b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"origin"})
_OWN_SITES: Final = frozenset({b"same-origin", b"same-site", b"none"})  # `none`: the user asks, as by a bookmark
_PAGES: Final = frozenset({"/", "/docs", "/ops"})
_READING: Final = frozenset({"GET", "HEAD"})
_FOREIGN: Final = problem_response(
    403,
    "a page of another site made this request: use the service's own pages, or name the page's origin in "
    "SEGUE_CORS_ORIGINS",
)


def is_needed(settings: Settings) -> bool:
    """Whether names are checked: where they are set, and where nobody else looks at who asks."""
    return bool(settings.allowed_hosts) or (settings.api_keys is None and not settings.allow_unauthenticated)


class HostCheckMiddleware:
    """An ASGI layer that refuses requests for names which are neither this machine's own nor allowed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in (*settings.allowed_hosts, settings.host))
        self._origins = frozenset(settings.cors_origins)
        self._known: set[bytes] = set()  # headers that have passed: clients send the same one again and again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            sent = next((value for name, value in scope["headers"] if name == b"host"), None)
            if sent is None:  # HTTP/1.0 alone may leave it out, see service/http/protocol.py; probes of health do
                if not scope["path"].startswith("/health/"):
                    await problem_response(421, "the Host header is missing: send the name of this service")(
                        scope, receive, send
                    )
                    return
            elif not (sent in self._known or self._passes(sent)):
                await _misdirected(sent)(scope, receive, send)
                return
            if self._is_foreign(scope):
                await _FOREIGN(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether a page of another site asks, which is neither allowed to nor links to a page of the service.

        Browsers say so (https://www.w3.org/TR/fetch-metadata/, 2025). Such a page could not read the answer, but the
        work would be done.
        """
        sent: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _OF_BROWSERS:
                sent[name] = value if name not in sent else b""
        site = sent.get(b"sec-fetch-site")
        if site is None or site in _OWN_SITES:
            return False
        if "*" in self._origins or sent.get(b"origin", b"").decode("latin-1") in self._origins:
            return False
        is_link = sent.get(b"sec-fetch-mode") == b"navigate" and sent.get(b"sec-fetch-dest") == b"document"
        return not (is_link and scope["method"] in _READING and scope["path"] in _PAGES)

    def _passes(self, header: bytes) -> bool:
        if not names(header, self._names):
            return False
        if len(self._known) < _MOST_REMEMBERED:
            self._known.add(header)
        return True


def names(header: bytes, allowed: Iterable[str] = ()) -> bool:
    """Whether a Host header names this machine's loopback, or one of `allowed` (lower case), with or without a port."""
    found = _HOST.fullmatch(header.decode("latin-1").lower())
    if found is None:
        return False
    name = (found[1] or found[2]).removesuffix(".")
    # `localhost` and what ends with it are no names of the DNS (RFC 6761), so nobody can have them resolve elsewhere.
    return name in allowed or name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _misdirected(sent: bytes) -> ASGIApp:
    return problem_response(
        421,
        f"the Host header is {sent.decode('latin-1')[:_SHOWN]!a}, which is no name of this service: ask localhost, or "
        "add the name to SEGUE_ALLOWED_HOSTS",
    )


_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")
_SENT: Final = ("Authorization", "Content-Type", "X-Request-ID", "If-None-Match", "traceparent")
_READ: Final = ("Retry-After", "X-Request-ID", "ETag", "Segue-Release", "WWW-Authenticate", "Allow")


class CrossOrigin(CORSMiddleware):
    """Adds to every answer which origin may read it. The outermost layer, so that errors have it too."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_SENT,
            expose_headers=_READ,
            allow_private_network=True,  # a page of an allowed origin may ask a service on loopback
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class Preflight(CrossOrigin):
    """Answers preflights, which browsers send without a key. Within the layer that counts requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                await self.preflight_response(headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """What the browser may send; a refusal is a problem document."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        text = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        return problem_response(
            403,
            f"cross-origin requests are not allowed because of their {text}: allowed are the origins of "
            f"SEGUE_CORS_ORIGINS, the methods {', '.join(_METHODS)}, and the headers {', '.join(_SENT)}",
            headers={"Vary": answer.headers["Vary"]},
        )


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

    def __init__(self, app: ASGIApp, telemetry: Telemetry, admission_control: AdmissionControl) -> None:
        self._app = app
        self._telemetry = telemetry
        self._admission_control = admission_control
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
            _log.exception("request_error", method=scope["method"], path=scope["path"])
            if status:  # half an answer cannot be taken back: uvicorn closes the connection
                raise
            status = 500
            await problem_response(500, "an internal error occurred: see the log of the service")(
                scope, receive, send_noting_status
            )
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
        self._admission_control.leave(scope, learn=is_usual and status < 400)
        if route == "none" or status == 405:
            method = "any"  # a client may send methods that no route has
        self._telemetry.requests.labels(method, route, str(status)).inc()
        self._telemetry.request_seconds.labels(method, route).observe(seconds)
        _log.debug("request", method=method, route=route, status=status, ms=round(seconds * 1000, 3))


def without_range(app: ASGIApp) -> ASGIApp:
    """The same app, deaf to `Range`: Starlette answers a damaged one in plain text, and small files need none."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [line for line in scope["headers"] if line[0] != b"range"]
        await app({**scope, "headers": headers}, receive, send)

    return answer


class HotRoutes:
    """Answers the calls that clients make for every track, without FastAPI's routing and dependencies.

    The calls are ordinary routes of the app, which describes them in openapi.yaml. This layer calls the same functions
    with the same declared parameters, read by pydantic's `validate_call`: benchmarks/README.md has the gain.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[APIRoute]) -> None:
        """Parameters of the routes' functions are a `request`, and those of path and query."""
        self._app = app
        self._routes = [_HotRoute(route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            for hot in self._routes:
                if scope["method"] in hot.methods and (found := hot.path(scope["path"])):
                    scope["route"] = hot.route
                    await (await hot.answer(found.groupdict(), Request(scope, receive)))(scope, receive, send)
                    return
        await self._app(scope, receive, send)


class _HotRoute:
    def __init__(self, route: APIRoute) -> None:
        self.route = route
        self.methods = frozenset(route.methods or ())
        self.path = route.path_regex.fullmatch
        self._call = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(route.endpoint)
        declared = inspect.signature(route.endpoint).parameters
        query = {name: one.annotation for name, one in declared.items() if _is_query(one.annotation)}
        self._query = frozenset(query)
        self._lists = frozenset(name for name, kind in query.items() if str(get_args(kind)[0]).startswith("list"))

    async def answer(self, path: dict[str, Any], request: Request) -> Response:
        """The response; a problem document for a request that is invalid or cannot be served."""
        try:
            arguments = {**self._read_query(request.scope["query_string"]), **path}
            answer: Response = await self._call(request=request, **arguments)
        except ValidationError as error:
            return invalid_request_response(RequestValidationError([self._located(one) for one in error.errors()]))
        except RequestValidationError as error:
            return invalid_request_response(error)
        except SegueError as error:
            return response_to(error)
        return answer

    def _read_query(self, query: bytes) -> dict[str, Any]:
        """The declared parameters. Of a parameter that is sent twice the last one counts, as in FastAPI."""
        text = query.decode("latin-1")
        if "%" in text or "+" in text:
            pairs = parse_qsl(text, keep_blank_values=True)
        else:
            pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split("&"))]
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in self._lists:
                found.setdefault(name, []).append(value)
            elif name in self._query:
                found[name] = value
        return found

    def _located(self, error: Any) -> dict[str, Any]:
        """An error of `validate_call` as FastAPI reports it."""
        name = error["loc"][0]
        located = {**error, "loc": ("query" if name in self._query else "path", *error["loc"])}
        if error["type"].startswith("missing"):
            located |= {"type": "missing", "msg": "Field required"}
        return located


def _is_query(annotation: Any) -> bool:
    return any(isinstance(one, Query) for one in getattr(annotation, "__metadata__", ()))


class DisconnectAware:
    """Wraps an app: sending to a disconnected client raises ClientDisconnect. For service/http/protocol.py."""

    __slots__ = ("_app", "_cycle")

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (replaced)
        """One request."""
        try:
            await self._app(scope, receive, self._send)
        except ClientDisconnect:
            self._cycle.disconnected = True  # otherwise uvicorn logs that there is no response

    def _send(self, message: Message) -> Awaitable[None]:
        cycle = self._cycle
        if cycle.disconnected or cycle.transport.is_closing():
            cycle.disconnected = True
            raise ClientDisconnect
        return cycle.send(message)  # type: ignore[arg-type]
