"""A circuit breaker: while Redis does not answer, nobody waits for it, and it is asked now and then whether it does.

The caller of a command that fails says so. After some failures in a row, or one that took the whole timeout, the
circuit is open: commands fail at once. A probe in the background, so no caller's request, closes it again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.exceptions import RedisError

FAILURES: Final = 2  # in a row: a single one may be a connection that had grown old
PAUSE_S: Final = 0.25  # between two probes


class Circuit:
    """Whether it is worth while to ask. For one event loop."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[Any]],
        on_change: Callable[[bool], None] = lambda _: None,
        pause_s: float = PAUSE_S,
    ) -> None:
        """`probe` raises RedisError or OSError where there is no answer; `on_change` hears whether it is now open."""
        self.is_open = False
        self._probe = probe
        self._on_change = on_change
        self._pause_s = pause_s
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None

    def succeeded(self) -> None:
        """A command was answered."""
        self._failures = 0

    def failed(self, *, timed_out: bool) -> None:
        """A command was not answered, be it at once or within the timeout."""
        self._failures += 1
        if not self.is_open and (timed_out or self._failures >= FAILURES):
            self._set(is_open=True)
            self._probing = asyncio.create_task(self._close_again())

    async def aclose(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _close_again(self) -> None:
        while self.is_open:
            await asyncio.sleep(self._pause_s)
            try:
                await self._probe()
            except (RedisError, OSError):
                continue
            self._failures = 0
            self._set(is_open=False)

    def _set(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._on_change(is_open)
