"""How often somebody may ask: a token bucket for each, in the memory of one worker.

Workers share nothing, so N workers let up to N times as many through: the limit protects the service, and is no bill.
"""

import time
from collections.abc import Callable
from typing import Final

MOST_REMEMBERED: Final = 65_536


class RateLimit:
    """Lets each name through `per_s` times a second, and as many at once as gather in `burst_s` seconds.

    A bucket is one number: the time at which it will be full again (the generic cell rate algorithm). One that is full
    need not be remembered, so forgetting the name that was idle longest forgets nothing, unless more than
    `MOST_REMEMBERED` are busy.
    """

    def __init__(
        self,
        per_s: float,
        burst_s: float,
        most_remembered: int = MOST_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` answers seconds."""
        self._interval_s = 1 / per_s
        # A bucket that holds less than one token would let nobody through.
        self._room_s = max(burst_s, self._interval_s) - self._interval_s + 1e-9
        self._most = most_remembered
        self._clock = clock
        self._full_at: dict[str, float] = {}  # the name that came last is last

    def wait_s(self, name: str) -> float:
        """0 lets the name through and counts it; else nothing is counted, and it may come again in so many seconds."""
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
        if len(self._full_at) > self._most:
            del self._full_at[next(iter(self._full_at))]

    def charge(self, name: str, requests: int) -> None:
        """Count so many more requests of a name that was let through; the ones that follow wait for longer."""
        now = self._clock()
        self._full_at[name] = max(self._full_at.pop(name, now), now) + requests * self._interval_s
        self._forget()

    def __len__(self) -> int:
        """Names that are remembered."""
        return len(self._full_at)
