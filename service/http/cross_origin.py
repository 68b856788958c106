"""Pages of other origins (CORS): which may read answers, and how their preflights are answered.

Off unless SEGUE_CORS_ORIGINS is set. Credentials are not allowed: Segue knows no cookies, and a page
sends its key itself.
https://fetch.spec.whatwg.org/#http-cors-protocol (2026)
"""

from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import problem_response

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
