"""Middleware for all requests: request ids, metrics, the `Host` check, CORS, and response headers.

The `Host` check protects a service without API keys against DNS rebinding. If the domain of a web page resolves to
127.0.0.1, a browser treats the page and a local service as the same origin, but sends the domain of the page in `Host`.
A service with API keys does not need the check.

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
from typing import Any, Final, get_args, get_origin
from urllib.parse import parse_qsl

import structlog
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic import ValidationError, create_model
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from segue.errors import SegueError
from service.http.admission_control import AdmissionControl
from service.problems import invalid_request_response, parameter_errors, problem_response, response_to
from service.settings import Settings
from service.telemetry import Telemetry, request_id

# uvicorn adds these headers to every response, including responses that uvicorn itself creates.
RESPONSE_HEADERS: Final[list[tuple[str, str]]] = [
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
_MAX_KNOWN_HOSTS: Final = 64
_MAX_SHOWN: Final = 80
_FETCH_METADATA: Final = frozenset({b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"origin"})
# `none` means that the user made the request, for example with a bookmark.
_TRUSTED_SITES: Final = frozenset({b"same-origin", b"same-site", b"none"})
_PAGES: Final = frozenset({"/", "/docs", "/ops"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_CROSS_SITE: Final = problem_response(
    403,
    "a page of another site made this request: use the service's own pages, or add the origin of the page to "
    "SEGUE_CORS_ORIGINS",
)


def is_needed(settings: Settings) -> bool:
    """Return True if `allowed_hosts` is set, or if there are no API keys and `allow_unauthenticated` is false."""
    return bool(settings.allowed_hosts) or (settings.api_keys is None and not settings.allow_unauthenticated)


class HostCheckMiddleware:
    """Rejects cross-site requests, and requests whose `Host` is neither loopback nor an allowed name."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in (*settings.allowed_hosts, settings.host))
        self._origins = frozenset(settings.cors_origins)
        self._known: set[bytes] = set()  # a cache of accepted Host headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and pass it to the app or reject it."""
        if scope["type"] == "http":
            sent = next((value for name, value in scope["headers"] if name == b"host"), None)
            if sent is None:  # HTTP/1.0 may omit Host (service/http/protocol.py), and health probes do
                if not scope["path"].startswith("/health/"):
                    await problem_response(421, "the Host header is missing: send the name of this service")(
                        scope, receive, send
                    )
                    return
            elif not (sent in self._known or self._is_allowed(sent)):
                await _misdirected(sent)(scope, receive, send)
                return
            if self._is_cross_site(scope):
                await _CROSS_SITE(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_cross_site(self, scope: Scope) -> bool:
        """Return True if a page of another site sent the request, except for allowed origins and links to our pages.

        Browsers report the site in Fetch Metadata headers (https://www.w3.org/TR/fetch-metadata/, 2025). The other page
        cannot read the response, but without this check its request would be executed.
        """
        sent: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _FETCH_METADATA:
                sent[name] = value if name not in sent else b""
        site = sent.get(b"sec-fetch-site")
        if site is None or site in _TRUSTED_SITES:
            return False
        if "*" in self._origins or sent.get(b"origin", b"").decode("latin-1") in self._origins:
            return False
        is_link = sent.get(b"sec-fetch-mode") == b"navigate" and sent.get(b"sec-fetch-dest") == b"document"
        return not (is_link and scope["method"] in _SAFE_METHODS and scope["path"] in _PAGES)

    def _is_allowed(self, header: bytes) -> bool:
        if not names(header, self._names):
            return False
        if len(self._known) < _MAX_KNOWN_HOSTS:
            self._known.add(header)
        return True


def names(header: bytes, allowed: Iterable[str] = ()) -> bool:
    """Return True if a Host header is a loopback name or one of `allowed` (lower case), with or without a port."""
    found = _HOST.fullmatch(header.decode("latin-1").lower())
    if found is None:
        return False
    name = (found[1] or found[2]).removesuffix(".")
    # `localhost` and its subdomains are not in the DNS (RFC 6761), so they cannot resolve to another machine.
    return name in allowed or name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _misdirected(sent: bytes) -> ASGIApp:
    return problem_response(
        421,
        f"the Host header is {sent.decode('latin-1')[:_MAX_SHOWN]!a}, which is not a name of this service: "
        "use localhost, or add the name to SEGUE_ALLOWED_HOSTS",
    )


_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")
_REQUEST_HEADERS: Final = ("Authorization", "Content-Type", "X-Request-ID", "If-None-Match", "traceparent")
_EXPOSED_HEADERS: Final = ("Retry-After", "X-Request-ID", "ETag", "Segue-Release", "WWW-Authenticate", "Allow")


class CrossOrigin(CORSMiddleware):
    """Adds CORS headers to every response. It is the outermost of these layers, so error responses have them too."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
            allow_private_network=True,  # pages of allowed origins may call a service on loopback
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the app and add CORS headers to the response."""
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class Preflight(CrossOrigin):
    """Answers CORS preflight requests, which have no API key. It runs inside Measured, so metrics include them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight request, or pass any other request to the app."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                await self.preflight_response(headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request. A rejection is a problem document."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        text = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        return problem_response(
            403,
            f"the {text} of this cross-origin request is not allowed: use an origin in "
            f"SEGUE_CORS_ORIGINS, the methods {', '.join(_METHODS)}, and the headers {', '.join(_REQUEST_HEADERS)}",
            headers={"Vary": answer.headers["Vary"]},
        )


_log = structlog.get_logger()

# Only the response times of these routes, without explanations, adapt the concurrency limit. The response times of
# other requests depend too much on their parameters.
_LOAD_ROUTES = ("/recommendations", "/sessions/{session_id}/events")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:/+=-]{1,128}")
CLIENT_CLOSED = 499  # the client disconnected before the response; nginx uses this status too. Only for metrics


class Measured:
    """Assigns an id to every request, records metrics, and answers 500 after unexpected exceptions.

    The request id is the `X-Request-ID` header of the client or proxy, or a new id. Responses and log lines contain the
    request id. This layer also notifies admission control when a request ends.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, admission_control: AdmissionControl) -> None:
        self._app = app
        self._telemetry = telemetry
        self._admission_control = admission_control
        self._id_prefix = secrets.token_hex(8)  # unique for each worker and start
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the app, and record its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0
        id_ = self._request_id(scope)
        request_id.set(id_.decode())
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:  # HEAD is GET without the response body (RFC 9110, 9.3.2, 2022)
            scope["method"] = "GET"

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id_)]
                scope["method"] = method
                await send(message)
                if is_head:  # end the response now, because a stream may never end
                    await send({"type": "http.response.body"})
            elif not is_head:
                await send(message)

        try:
            await self._app_for(scope)(scope, receive, send_noting_status)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception:
            _log.exception("request_error", method=scope["method"], path=scope["path"])
            if status:  # the response has started: uvicorn closes the connection
                raise
            status = 500
            await problem_response(500, "an internal error occurred: see the log of the service")(
                scope, receive, send_noting_status
            )
        finally:
            self._record(scope, method, status, time.perf_counter() - began)

    def _app_for(self, scope: Scope) -> ASGIApp:
        """Return the app, or a 404 for a path with a trailing newline, which the `$` of route patterns would accept."""
        if scope["path"].endswith("\n"):
            return problem_response(404, "the path ends with a newline: remove it")
        return self._app

    def _request_id(self, scope: Scope) -> bytes:
        for header, value in scope["headers"]:
            if header == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                given: bytes = value
                return given
        return b"%b-%d" % (self._id_prefix.encode(), next(self._numbers))

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        is_typical = route in _LOAD_ROUTES and b"explain=" not in scope["query_string"]
        self._admission_control.leave(scope, learn=is_typical and status < 400)
        if route == "none" or status == 405:
            method = "any"  # clients may send arbitrary methods, which would create an unlimited number of labels
        series = self._telemetry.series
        series(self._telemetry.requests, method, route, str(status)).inc()
        series(self._telemetry.request_seconds, method, route).observe(seconds)
        _log.debug("request", method=method, route=route, status=status, ms=round(seconds * 1000, 3))


class HotRoutes:
    """Answers the most frequent requests without the overhead of FastAPI's routing and dependency injection.

    The app also has these routes as FastAPI routes, so openapi.yaml describes them. This layer calls the same functions
    and validates their declared parameters with one pydantic model each. benchmarks/README.md reports the speed-up.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[APIRoute]) -> None:
        """Answer `routes` directly. Their functions may have only `request`, path parameters and query parameters."""
        self._app = app
        self._routes = [_HotRoute(route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request if it matches a hot route, otherwise pass it to the app."""
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
        declared = {
            name: one for name, one in inspect.signature(route.endpoint).parameters.items() if name != "request"
        }
        fields: dict[str, Any] = {
            name: (one.annotation, ... if one.default is one.empty else one.default) for name, one in declared.items()
        }
        self._parameters = create_model("Parameters", **fields)
        metadata = {name: one.annotation.__metadata__ for name, one in declared.items()}
        self._query = {name for name, items in metadata.items() if any(isinstance(item, Query) for item in items)}
        self._lists = {name for name in self._query if get_origin(get_args(declared[name].annotation)[0]) is list}

    async def answer(self, path: dict[str, Any], request: Request) -> Response:
        """Return the response to a request. If the request is invalid or fails, return a problem document."""
        try:
            given = self._parameters.model_validate({**self._read_query(request.scope["query_string"]), **path})
        except RequestValidationError as error:
            return invalid_request_response(error)
        except ValidationError as error:  # of the parameters: one from the endpoint itself is a fault of the service
            return invalid_request_response(RequestValidationError([self._located(one) for one in error.errors()]))
        try:
            answer: Response = await self.route.endpoint(request=request, **given.__dict__)
        except RequestValidationError as error:
            return invalid_request_response(error)
        except SegueError as error:
            return response_to(error)
        return answer

    def _read_query(self, query: bytes) -> dict[str, Any]:
        """Return the query parameters. Raises RequestValidationError for unknown and for repeated ones."""
        if not query:
            return {}
        text = query.decode("latin-1")
        if "%" in text or "+" in text:
            pairs = parse_qsl(text, keep_blank_values=True)
        else:
            pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split("&")) if name]
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in self._lists:
                found.setdefault(name, []).append(value)
            elif name in self._query and name not in found:
                found[name] = value
            else:
                raise RequestValidationError(parameter_errors(pairs, self._query, self._lists))
        return found

    def _located(self, error: Any) -> dict[str, Any]:
        """Convert an error of the parameters to the format of FastAPI's validation errors."""
        return {**error, "loc": ("query" if error["loc"][0] in self._query else "path", *error["loc"])}


class DisconnectAware:
    """Wraps an app so that sending to a disconnected client raises ClientDisconnect. For service/http/protocol.py."""

    __slots__ = ("_app", "_cycle")

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (replaced)
        """Pass one request to the app, and end quietly if the client disconnects."""
        try:
            await self._app(scope, receive, self._send)
        except ClientDisconnect:
            self._cycle.disconnected = True  # otherwise uvicorn logs an error about a missing response

    def _send(self, message: Message) -> Awaitable[None]:
        cycle = self._cycle
        if cycle.disconnected or cycle.transport.is_closing():
            cycle.disconnected = True
            raise ClientDisconnect
        return cycle.send(message)  # type: ignore[arg-type]
