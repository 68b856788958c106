"""Adaptive concurrency limit: reject requests (503) when more are in flight than can be answered within the budget.

Without a limit, requests beyond the capacity of the service would only queue. A request that exceeds the limit is
rejected before its body is read, so the accepted requests are answered in time.

The limit adapts to the response times. If their mean exceeds the latency budget, the next late response lowers the
limit in proportion, once for all requests that were in flight then. Each response in time raises it a little while at
least half of it is in use. By Little's law the limit settles where a request takes about the budget.
service/http/protocol.py calls this for every request.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Final

from segue.errors import Overloaded
from service.problems import response_to

# So many are always let in: where fewer are within, batches are so small that each request costs more than it must.
FEWEST: Final = 16
_AT_FIRST: Final = 64
_DEEPEST_CUT: Final = 0.5
_RISE: Final = 1 / 32
# The mean is of about so many answers, none counted for more than so many targets: a core that was away for a moment
# makes a round of answers late and is no overload.
_REMEMBERED: Final = 64
_LONGEST: Final = 4
_CAME: Final = "segue.came"
_OUTSIDE: Final = "segue.outside"

OVERLOADED_RESPONSE: Final = response_to(
    Overloaded("more is asked of the service than it can answer in time: try again in a moment")
)


class AdmissionControl:
    """Counts the requests within, and learns how many there may be. For one event loop."""

    def __init__(
        self,
        target_s: float = math.inf,
        most_connections: int = 2048,
        read_timeout_s: float = 10,
        clock: Callable[[], float] = time.perf_counter,
        on_refusal: Callable[[], None] = lambda: None,
        on_invalid: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`target_s` is how long an answer may take; infinite lets everybody in.

        Connections above `most_connections` are refused; `read_timeout_s` is how long a client may take to send a
        request. `on_refusal` is called for each request or connection that is refused, `on_invalid` with the status
        of each answer to a request that is not valid HTTP, too large or too slow.
        """
        self.most_connections = most_connections
        self.read_timeout_s = read_timeout_s
        self.on_refusal = on_refusal
        self.on_invalid = on_invalid
        self.unfinished: dict[Any, int] = {}  # bytes that connections hold of requests not yet whole, oldest first
        self.unfinished_bytes = 0  # all of them
        self.closing = asyncio.Event()  # the service is to end: whoever answers without end stops
        self.within = 0
        self.most_within = math.inf if math.isinf(target_s) else float(_AT_FIRST)
        self._target_s = target_s
        self._clock = clock
        self._cut_at = -math.inf
        self._mean_s = 0.0

    def is_full(self) -> bool:
        """Whether the next request is to be refused."""
        return self.within >= self.most_within

    def enter(self, scope: Any) -> None:
        """A request is within, from when it works or has been received whole. `scope` is its ASGI scope."""
        if _OUTSIDE in scope or _CAME in scope:
            return
        self.within += 1
        scope[_CAME] = self._clock()

    def leave(self, scope: Any, *, learn: bool) -> None:
        """A request that may have entered has been answered; `learn` says whether its time tells of the load."""
        came = scope.pop(_CAME, None)
        if came is None:
            return
        if learn:
            self._learn(came)
        self.within -= 1

    def stay_outside(self, scope: Any) -> None:
        """A request takes nobody's place from now on, whether all of it has come or not."""
        scope[_OUTSIDE] = True
        self.leave(scope, learn=False)

    def _learn(self, came: float) -> None:
        if came < self._cut_at:
            return  # it came while more were let in, and tells what is known already
        now = self._clock()
        took = min(now - came, _LONGEST * self._target_s)
        self._mean_s += (took - self._mean_s) / _REMEMBERED
        if took <= self._target_s:
            if self.within * 2 >= self.most_within:
                self.most_within += _RISE
        elif self._mean_s > self._target_s:
            self.most_within = max(FEWEST, self.most_within * max(_DEEPEST_CUT, self._target_s / took))
            self._mean_s = self._target_s
            self._cut_at = now
