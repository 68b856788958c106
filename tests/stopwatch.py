"""Time limits in tests that do not count pauses of the whole machine.

A virtual machine can stand still for minutes, and CI once failed for it. A limit on wall time then says nothing about
the code. A stopwatch therefore looks at the clock every 20 ms and counts at most 250 ms of what passed in between.
Python that keeps the stopwatch's thread from running uses the processor meanwhile: that time counts in full.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Self

BEAT_S: Final = 0.02
LONGEST_BEAT_S: Final = 0.25


class Elapsed:
    """Adds up the time between calls of `beat`, without pauses of the machine."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.process_time
    ) -> None:
        """Begin at 0. `clock` is the wall time and `used` the processor time of this process, both in seconds."""
        self._clock, self._used = clock, used
        self._lock = threading.Lock()
        self._last = (clock(), used())
        self._seconds = 0.0

    def beat(self) -> float:
        """Add the time since the last call. Return the seconds since the beginning."""
        with self._lock:
            now = (self._clock(), self._used())
            passed, computed = (later - earlier for later, earlier in zip(now, self._last, strict=True))
            self._last = now
            self._seconds += min(passed, max(LONGEST_BEAT_S, computed))
            return self._seconds


class Stopwatch:
    """Measures the time in a `with` block. A thread keeps it going while the block waits."""

    def __init__(self) -> None:
        """Prepare a stopwatch. It runs from `__enter__` to `__exit__`."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stopwatch", daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._began = time.monotonic()
        self._elapsed = Elapsed()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop. `seconds` is fixed from here on."""
        self._left.set()
        self._thread.join()
        self._total = self._elapsed.beat()
        self.wall_seconds = time.monotonic() - self._began  # with pauses: for what must take at least so long

    @property
    def seconds(self) -> float:
        """The seconds since the start, or in all once the block has been left."""
        return self._total if self._left.is_set() else self._elapsed.beat()

    def _run(self) -> None:
        while not self._left.wait(BEAT_S):
            self._elapsed.beat()


def until(condition: Callable[[], object], seconds: float = 20, failed: Callable[[], object] = lambda: "") -> float:
    """Wait until `condition` is true. Return the seconds waited.

    Raises:
        AssertionError: It is still false after `seconds`. The message is what `failed` returns.

    """
    with Stopwatch() as watch:
        while not condition():
            assert watch.seconds < seconds, failed()
            time.sleep(BEAT_S)
        return watch.seconds
