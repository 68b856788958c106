"""Authorization: the table of calls and scopes, the check of API keys, and rate limits.

The check runs before the route. It puts a `Caller` into the request, because some options of a call need another scope
or count for more than one request, and only the route knows the options.

A rate limit is a token bucket per key or session, in the memory of one worker. Workers share nothing, so N workers
accept up to N times the rate: the limit protects the service and is not a quota.
"""

import ipaddress
import math
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Asgi

from segue.errors import BadOption
from segue.sessions import SESSION_ID_PATTERN
from service.http.keys import Key, Keyring, Scope, read_keys
from service.problems import MissingScope, missing_scope_headers, problem_response
from service.settings import Settings

_IN_REQUEST: Final = "segue.caller"

# Calls that count as several requests in the rate limits. Measured: a list with explanations takes about as long as 13
# lists, because it is computed again without each of several plays.
EXPLANATION_COST: Final = 13
RANK_COST: Final = 2  # with 500 candidates and transition counts, as above
CALL_COSTS: Final[dict[str, int]] = {"GET /map": 5}  # up to 800 kB
MAX_BUCKETS: Final = 65_536


class RateLimit:
    """Allows `per_s` requests per second for each name, with bursts of up to `burst_s` seconds' worth of requests.

    A bucket is one number: the time at which it will be full again (the generic cell rate algorithm). A full bucket
    holds no information. The bucket that was idle longest is dropped above `MAX_BUCKETS`, which changes a limit only if
    that many names are active at once.
    """

    def __init__(
        self,
        per_s: float,
        burst_s: float,
        max_buckets: int = MAX_BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds."""
        self._interval_s = 1 / per_s
        # A bucket with room for less than one token would reject every request.
        self._room_s = max(burst_s, self._interval_s) - self._interval_s + 1e-9
        self._max_buckets = max_buckets
        self._clock = clock
        self._full_at: dict[str, float] = {}  # most recently used last

    def wait_s(self, name: str) -> float:
        """Count a request and return 0, or return the seconds to wait without counting it."""
        now = self._clock()
        full_at = max(self._full_at.pop(name, now), now)
        wait_s = full_at - now - self._room_s
        if wait_s > 0:
            self._full_at[name] = full_at
            return wait_s
        self._full_at[name] = full_at + self._interval_s
        self._forget()
        return 0.0

    def _forget(self) -> None:
        if len(self._full_at) > self._max_buckets:
            del self._full_at[next(iter(self._full_at))]

    def charge(self, name: str, requests: int) -> None:
        """Count additional requests of an accepted name. Later requests wait longer."""
        now = self._clock()
        self._full_at[name] = max(self._full_at.pop(name, now), now) + requests * self._interval_s
        self._forget()

    def __len__(self) -> int:
        """Number of buckets kept."""
        return len(self._full_at)


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `key` is None if the service has no keys. `limits` are the rate limits that apply."""

    key: Key | None = None
    limits: tuple[tuple[RateLimit, str], ...] = ()

    def require(self, scope: Scope, what: str) -> None:
        """Raise MissingScope if the key does not have the scope that `what` needs."""
        if self.key is not None and not self.key.allows(scope):
            has = " and ".join(sorted(self.key.scopes))
            raise MissingScope(
                f"the key {self.key.name!r} has the scope {has}, and {what} needs {scope} as well", scope
            )

    def charge(self, requests: int) -> None:
        """Count additional requests. This request is not rejected; later ones wait longer."""
        for limit, name in self.limits:
            limit.charge(name, requests)


_ANONYMOUS: Final = Caller()


def note_caller(request: Asgi, caller: Caller) -> None:
    """Store the caller in the request, for its route."""
    request[_IN_REQUEST] = caller


def caller_of(request: Asgi) -> Caller:
    """The caller of a request."""
    found: Caller = request.get(_IN_REQUEST, _ANONYMOUS)
    return found


OPEN: Final = None

# The scope that a call needs. A route that is not listed needs `admin`, so a forgotten route is closed, not open.
# The most frequent calls come first.
CALLS: Final[dict[tuple[str, str], Scope | None]] = {
    ("POST", "/sessions/{session_id}/events"): "client",
    ("GET", "/recommendations"): "client",
    ("POST", "/recommendations/what-if"): "client",
    ("POST", "/recommendations/batch"): "client",
    ("POST", "/rank"): "client",
    ("GET", "/tracks"): "client",
    ("GET", "/tracks/{track_id:path}/similar"): "client",
    ("GET", "/sessions/{session_id}"): "read",
    ("GET", "/sessions/{session_id}/stream"): "read",
    ("PUT", "/sessions/{session_id}/station"): "client",
    ("DELETE", "/sessions/{session_id}/station"): "client",
    ("DELETE", "/sessions/{session_id}"): "admin",
    ("GET", "/listeners/{listener_id}"): "read",
    ("DELETE", "/listeners/{listener_id}"): "admin",
    ("GET", "/map"): "read",
    ("GET", "/map/tracks/{position}"): "read",
    ("GET", "/releases/current"): "read",
    ("GET", "/policies"): "read",
    ("PUT", "/releases/current"): "admin",
    ("GET", "/releases"): "admin",
    ("PUT", "/added-tracks/{track_id:path}"): "admin",
    ("DELETE", "/added-tracks/{track_id:path}"): "admin",
    ("GET", "/added-tracks"): "admin",
    ("PUT", "/removed-tracks/{track_id:path}"): "admin",
    ("DELETE", "/removed-tracks/{track_id:path}"): "admin",
    ("POST", "/removed-tracks"): "admin",
    ("GET", "/removed-tracks"): "admin",
    ("GET", "/operations"): "admin",
    ("GET", "/metrics"): "metrics",
    ("GET", "/health/live"): OPEN,
    ("GET", "/health/ready"): OPEN,
    ("GET", "/"): OPEN,
    ("GET", "/ops"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/docs/files/{path:path}"): OPEN,
    ("GET", "/web/{path:path}"): OPEN,
    ("GET", "/openapi.json"): OPEN,
}


class Call(NamedTuple):
    """The row of the table for a request."""

    name: str  # method and path template, never text from a client
    scope: Scope | None
    session_id: str | None  # None also if it is not valid; then the route rejects it


def call_of(method: str, path: str, query: bytes) -> Call:
    """Find the call of a request by method and path, with the same expressions as the router."""
    for name, expression, scope in _BY_METHOD.get(method, ()):
        if match := expression.fullmatch(path):
            session_id = match.groupdict().get("session_id")
            if name == "GET /recommendations":  # the last one counts, as in the router
                session_id = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get("session_id")
            return Call(name, scope, session_id if session_id and _SESSION_ID.fullmatch(session_id) else None)
    return Call("this call", "admin", None)


_SESSION_ID: Final = re.compile(SESSION_ID_PATTERN)
_BY_METHOD: Final = {
    method: [
        (f"{method} {template}", compile_path(template)[0], scope)
        for (of_method, template), scope in CALLS.items()
        if of_method == method
    ]
    for method, _ in CALLS
}


class Access:
    """Middleware that rejects requests without the required key or above a rate limit."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Raises BadOption if the keys file cannot be read or is invalid."""
        self._app = app
        self._keys = Keyring(settings.api_keys) if settings.api_keys is not None else None
        self._key_limit = _limit(settings.key_rate_limit, settings)
        self._session_limit = _limit(settings.session_rate_limit, settings)

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        """One request."""
        rejection = self._check(scope) if scope["type"] == "http" else None
        await (rejection or self._app)(scope, receive, send)

    def _check(self, request: Asgi) -> Response | None:
        # Only the session limit needs the query.
        query = request["query_string"] if self._session_limit is not None else b""
        call = call_of(request["method"], request["path"], query)
        key: Key | None = None
        limits: list[tuple[RateLimit, str]] = []
        if call.scope is not OPEN and self._keys is not None:
            texts = [value for name, value in request["headers"] if name == b"authorization"]
            key = self._keys.find(_bearer(texts[0])) if len(texts) == 1 else None
            if key is None:
                return _unauthorized(sent=bool(texts))
            if not key.allows(call.scope):
                return _forbidden(key, call.name, call.scope)
            if self._key_limit is not None:
                if wait_s := self._key_limit.wait_s(key.name):
                    return _rate_limited(f"the key {key.name!r}", wait_s)
                limits.append((self._key_limit, key.name))
        if self._session_limit is not None and call.session_id is not None:
            if wait_s := self._session_limit.wait_s(call.session_id):
                return _rate_limited("this session", wait_s)
            limits.append((self._session_limit, call.session_id))
        caller = Caller(key, tuple(limits))
        if cost := CALL_COSTS.get(call.name):
            caller.charge(cost - 1)
        note_caller(request, caller)
        return None


def check(settings: Settings) -> None:
    """Raise BadOption if the keys file is invalid, or if other machines could reach the service without a key."""
    if settings.api_keys is not None:
        read_keys(settings.api_keys)
    elif not settings.allow_unauthenticated and not _is_loopback(settings.host):
        raise BadOption(
            f"host is {settings.host}, so other machines could connect without a key: create keys with "
            "`segue keys new` and set SEGUE_API_KEYS to their file, or set SEGUE_ALLOW_UNAUTHENTICATED=true if a "
            "gateway authenticates clients"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
    except OSError:
        return True  # listening on it fails too, with its own message
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def is_needed(settings: Settings) -> bool:
    """Whether there are keys or limits. Without them the middleware is left out, which saves time."""
    return any(value is not None for value in (settings.api_keys, settings.session_rate_limit))


def _limit(per_s: float | None, settings: Settings) -> RateLimit | None:
    return RateLimit(per_s, settings.rate_limit_burst_s) if per_s is not None else None


def _bearer(header: bytes) -> bytes:
    scheme, _, text = header.partition(b" ")
    return text.strip() if scheme.lower() == b"bearer" else b""


def _unauthorized(*, sent: bool) -> Response:
    if not sent:
        return problem_response(
            401,
            "this call needs a key: send it as `Authorization: Bearer KEY`",
            headers={"WWW-Authenticate": 'Bearer realm="segue"'},
        )
    return problem_response(
        401,
        "the key in `Authorization: Bearer KEY` is unknown or revoked: use a valid key",
        headers={"WWW-Authenticate": 'Bearer realm="segue", error="invalid_token"'},
    )


def _forbidden(key: Key, call: str, scope: Scope) -> Response:
    has = " and ".join(sorted(key.scopes))
    call = call.replace(":path}", "}")
    return problem_response(
        403,
        f"the key {key.name!r} has the scope {has}, and {call} needs {scope}: use another key",
        headers=missing_scope_headers(scope),
    )


def _rate_limited(name: str, wait_s: float) -> Response:
    seconds = math.ceil(wait_s)
    return problem_response(
        429, f"the rate limit of {name} is exceeded: try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )


def describe_access(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI document, in place, which key each call needs and how requests are rejected."""
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    seconds = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}
    challenge = {"WWW-Authenticate": {"description": "The kind of key that is needed", "schema": {"type": "string"}}}
    rejections: dict[str, dict[str, Any]] = {
        "401": {"description": "The key is missing or unknown", "headers": challenge},
        "403": {
            "description": "The key does not have the scope that the call or one of its options needs",
            "headers": challenge,
        },
        "429": {"description": "The rate limit of the key or the session is exceeded", "headers": seconds},
    }
    misdirected = {
        "403": {
            "description": "The request comes from a page of another site, and the service has no keys",
            "content": problem,
        },
        "421": {"description": "`Host` is not a name of this service", "content": problem},
    }
    schema["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "Required if the service has keys (`SEGUE_API_KEYS`); `admin` includes all other scopes",
        }
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            scope = _scope_of(method.upper(), path)
            operation["responses"] = dict(sorted((operation["responses"] | misdirected).items()))
            if scope is OPEN:
                continue
            operation["security"] = [{}, {"key": [scope]}]
            responses = operation["responses"] | {
                status: rejection | {"content": problem} for status, rejection in rejections.items()
            }
            operation["responses"] = dict(sorted(responses.items()))


def _scope_of(method: str, path: str) -> Scope | None:
    """The scope of a path as OpenAPI writes it, without converters (`:path`)."""
    for (of_method, template), scope in CALLS.items():
        if of_method == method and template.replace(":path", "") == path:
            return scope
    return "admin"
