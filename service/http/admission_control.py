"""Admission control: decide whether to accept or reject a request before its body is read.

A request is rejected if its head is invalid or too large. It is also rejected (503) if more requests are in flight than
can be answered within the latency budget. Without that limit, excess requests would queue and all responses would be
late.

The limit adapts to the response times. If their mean exceeds the latency budget, the next late response lowers the
limit in proportion, once for all requests that were in flight then. Each response in time raises it a little while at
least half of it is in use. By Little's law the limit settles where a request takes about the budget.
service/http/protocol.py calls this for every request.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from segue.errors import Overloaded
from service.problems import problem_response, response_to

MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 100
MAX_TARGET_BYTES: Final = 32_768  # path and query: room for 100 excluded tracks of 256 letters
MAX_PARAMETERS: Final = 200
_VERSIONS: Final = ("1.1", "1.0")
_MAX_SHOWN: Final = 80

# The lowest limit. With fewer requests in flight, batches are small and each request costs more.
MIN_IN_FLIGHT: Final = 16
_INITIAL_LIMIT: Final = 64
_LARGEST_DECREASE: Final = 0.5
_INCREASE: Final = 1 / 32
# The mean covers about this many responses, and each counts as at most `_MAX_TARGETS` budgets. A core that pauses for a
# moment makes a few responses late, which is not overload.
_MEAN_WINDOW: Final = 64
_MAX_TARGETS: Final = 4
_STARTED: Final = "segue.started"
_EXEMPT: Final = "segue.exempt"

OVERLOADED_RESPONSE: Final = response_to(Overloaded("the service is overloaded: try again in a moment"))


class PrebuiltResponse:
    """A response as bytes, for the cases that uvicorn does not handle."""

    def __init__(self, response: Response, *, closing: bool = False) -> None:
        """`closing` adds `Connection: close`."""
        self._status = STATUS_LINE[response.status_code]
        self._headers = [*response.raw_headers, (b"connection", b"close")] if closing else list(response.raw_headers)
        self._body = bytes(response.body)
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._bytes = b""

    def with_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The response with these headers first. uvicorn makes a new list once a second, for the date."""
        if headers is not self._default_headers:
            lines = b"".join(b"%b: %b\r\n" % line for line in [*headers, *self._headers])
            self._bytes = b"%b%b\r\n%b" % (self._status, lines, self._body)
            self._default_headers = headers
        return self._bytes


OVERLOADED_KEEP_ALIVE: Final = PrebuiltResponse(OVERLOADED_RESPONSE)
OVERLOADED_CLOSE: Final = PrebuiltResponse(OVERLOADED_RESPONSE, closing=True)


class AdmissionControl:
    """Counts the requests in flight and adapts the limit. For one event loop."""

    def __init__(
        self,
        target_s: float = math.inf,
        max_connections: int = 2048,
        read_timeout_s: float = 10,
        clock: Callable[[], float] = time.perf_counter,
        on_rejection: Callable[[], None] = lambda: None,
        on_invalid: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`target_s` is the latency budget; infinity disables the limit.

        Connections above `max_connections` are rejected. `read_timeout_s` is the time a client has to send a request.
        `on_rejection` is called for each request or connection that is rejected as overload, `on_invalid` with the
        status of each response to a request that is not valid HTTP, too large or too slow.
        """
        self.max_connections = max_connections
        self.read_timeout_s = read_timeout_s
        self.on_rejection = on_rejection
        self.on_invalid = on_invalid
        self.unfinished: dict[Any, int] = {}  # connection -> bytes of its incomplete request, oldest first
        self.unfinished_bytes = 0  # their sum
        self.closing = asyncio.Event()  # set when the service shuts down: endless responses stop
        self.in_flight = 0
        self.max_in_flight = math.inf if math.isinf(target_s) else float(_INITIAL_LIMIT)
        self._target_s = target_s
        self._clock = clock
        self._lowered_at = -math.inf
        self._mean_s = 0.0

    def is_full(self) -> bool:
        """Whether to reject the next request."""
        return self.in_flight >= self.max_in_flight

    def enter(self, scope: Any) -> None:
        """Count a request as in flight: its task has started or its body is complete. `scope` is its ASGI scope."""
        if _EXEMPT in scope or _STARTED in scope:
            return
        self.in_flight += 1
        scope[_STARTED] = self._clock()

    def leave(self, scope: Any, *, learn: bool) -> None:
        """Stop counting a request, if it was counted. `learn` says whether its response time adapts the limit."""
        started = scope.pop(_STARTED, None)
        if started is None:
            return
        if learn:
            self._learn(started)
        self.in_flight -= 1

    def exempt(self, scope: Any) -> None:
        """Never count this request, or stop counting it."""
        scope[_EXEMPT] = True
        self.leave(scope, learn=False)

    def hold(self, connection: Any, number: int) -> None:
        """Record how many bytes of an incomplete request a connection holds."""
        before = self.unfinished.get(connection, 0) if self.unfinished else 0
        if number != before:
            self.unfinished_bytes += number - before
            if number:
                self.unfinished[connection] = number
            else:
                del self.unfinished[connection]

    def _learn(self, started: float) -> None:
        if started < self._lowered_at:
            return  # it started under the previous limit, which this response would count against a second time
        now = self._clock()
        took = min(now - started, _MAX_TARGETS * self._target_s)
        self._mean_s += (took - self._mean_s) / _MEAN_WINDOW
        if took <= self._target_s:
            if self.in_flight * 2 >= self.max_in_flight:
                self.max_in_flight += _INCREASE
        elif self._mean_s > self._target_s:
            factor = max(_LARGEST_DECREASE, self._target_s / took)
            self.max_in_flight = max(MIN_IN_FLIGHT, self.max_in_flight * factor)
            self._mean_s = self._target_s
            self._lowered_at = now


def check_head(
    version: str, url: bytes, headers: Sequence[tuple[bytes, bytes]], read: int, hosts: int, coding: bytes
) -> Response | None:
    """The response that rejects a request by its head, or None.

    `read` is the number of bytes read, at least those of the head. `hosts` counts the Host headers. `coding` is the
    Transfer-Encoding.
    """
    if read > MAX_HEAD_BYTES and _head_bytes(url, headers) > MAX_HEAD_BYTES:
        return problem_response(431, f"request line and headers have more than {MAX_HEAD_BYTES:,} bytes: send less")
    if len(headers) > MAX_HEADERS:
        return problem_response(431, f"the request has more than {MAX_HEADERS} headers: send fewer")
    if len(url) > MAX_TARGET_BYTES:
        return problem_response(422, f"path and query are longer than {MAX_TARGET_BYTES:,} bytes: exclude fewer tracks")
    if url.count(b"&") >= MAX_PARAMETERS:
        return problem_response(422, f"the query has more than {MAX_PARAMETERS} parameters: send fewer")
    return _check_protocol(version, hosts, coding)


def _check_protocol(version: str, hosts: int, coding: bytes) -> Response | None:
    if version not in _VERSIONS:
        return problem_response(505, f"the request line says HTTP/{version}: send HTTP/1.1")
    if hosts != 1 and (hosts or version != "1.0"):
        found = "missing" if not hosts else f"there {hosts} times"
        return problem_response(400, f"the Host header is {found}: send it once")
    if coding and coding.lower() != b"chunked":
        shown = ascii(coding[:_MAX_SHOWN].decode("latin-1"))
        return problem_response(501, f"Transfer-Encoding is {shown}: send chunked, or Content-Length instead")
    return None


def _head_bytes(url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
