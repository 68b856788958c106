"""Thread pools for calls that would block the event loop. Each call has a deadline.

Calls into ONNX Runtime, FAISS and file systems may never return. A call into ONNX Runtime can be interrupted: the call
registers its RunOptions, and the watchdog thread sets `terminate` in the RunOptions at the deadline. FAISS has only one
interrupt callback per process, so an interrupt would also end other searches. A call that cannot be interrupted is
abandoned: its caller gets an error, and a new thread replaces the stuck thread. While `MAX_STUCK` threads are stuck,
the pool rejects all calls.

Deadlines exclude pauses of the process. If the process was paused, for example by a debugger or a virtual machine host,
the watchdog wakes up late and extends all deadlines by the duration of the pause.

All threads are daemon threads, so the interpreter does not join them at exit. One watchdog thread per pool checks the
running calls several times per deadline. A call therefore needs no timer of its own, only two assignments under a lock.
"""

import asyncio
import atexit
import contextvars
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, Protocol, TypeVar

import structlog

from segue.errors import ModelUnavailable

P = ParamSpec("P")
T = TypeVar("T")

MAX_STUCK: Final = 4  # maximum number of stuck threads; each of them may keep a CPU core busy
LONG: Final = 5  # deadline factor for calls that rank about a hundred times
GRACE_S: Final = 0.1  # time between the interrupt and the abandonment of a call
_CHECKS_PER_DEADLINE: Final = 20
_MIN_LOG_INTERVAL_S: Final = 1.0

_log = structlog.get_logger()
_this_thread = threading.local()


class Interruptible(Protocol):
    """An object that ends a running C++ call when `terminate` is set to True, such as onnxruntime.RunOptions."""

    terminate: bool


def interrupt_of_this_thread(make: Callable[[], Interruptible]) -> Interruptible | None:
    """Return the object that interrupts the current call of this thread at its deadline.

    `make` creates the object at the first call in a thread. Returns None in a thread outside the pools.
    """
    worker: _Worker | None = getattr(_this_thread, "worker", None)
    if worker is None:
        return None
    if worker.interrupt is None:
        worker.interrupt = make()
        worker.interrupt.terminate = worker.expired
    return worker.interrupt


@dataclass(slots=True)
class _Call:
    function: Callable[[], Any]
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    seconds: float

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Set the result of the future, or its exception if `error` is not None. Thread-safe."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the event loop is closed, so no caller waits for the result
            return

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Worker:
    """A thread of a pool and its current call."""

    def __init__(self, owner: "Threads") -> None:
        self.lock = threading.Lock()
        self.until = math.inf
        self.call: _Call | None = None
        self.interrupt: Interruptible | None = None
        self.expired = False
        self.abandoned = False
        self._owner = owner
        threading.Thread(target=self._run, name=f"{owner.name}-call", daemon=True).start()

    def _run(self) -> None:
        _this_thread.worker = self
        while not self.abandoned and (call := self._owner.calls.get()) is not None:
            if call.future.done():
                continue
            self._do(call)
            del call
        if self.abandoned:
            self._owner.has_returned(self)

    def _do(self, call: _Call) -> None:
        with self.lock:
            self.call, self.until = call, time.monotonic() + call.seconds
        result, error = None, None
        try:
            result = call.function()
        except BaseException as raised:  # noqa: BLE001 (the caller gets it)
            error = raised
        with self.lock:
            expired, self.expired = self.expired, False
            self.call, self.until = None, math.inf
            if expired and self.interrupt is not None:
                self.interrupt.terminate = False
        if error is not None and expired:
            error = timed_out(call.seconds)
        if not self.abandoned:
            call.settle(result, error)

    def extend(self, seconds: float) -> None:
        """Extend the deadline of the current call by the duration of a process pause."""
        with self.lock:
            self.until += seconds

    def interrupt_late_call(self, now: float) -> _Call | None:
        """Interrupt the current call if it has passed its deadline and is not interrupted yet.

        Return the interrupted call, or None.
        """
        with self.lock:
            if self.call is None or self.expired or now < self.until:
                return None
            self.expired = True
            if self.interrupt is not None:
                self.interrupt.terminate = True
            return self.call

    def abandon_stuck_call(self, now: float) -> _Call | None:
        """Abandon the current call if it is still running GRACE_S after its deadline.

        Return the abandoned call, or None. The thread ends when the abandoned call returns.
        """
        with self.lock:
            if self.call is None or now < self.until + GRACE_S:
                return None
            self.abandoned = True
            return self.call


_stuck_workers: Final[set[_Worker]] = set()


class Threads:
    """A thread pool with a fixed number of threads. Each call has a deadline of `timeout_s` seconds."""

    def __init__(
        self,
        number: int,
        timeout_s: float = math.inf,
        name: str = "ranking",
        on_timeout: Callable[[], None] = lambda: None,
        on_stuck: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Create a pool of `number` threads. Further calls are queued.

        The pool calls `on_timeout` for each call that exceeds its deadline. The pool calls `on_stuck` with 1 when it
        abandons a thread, and with -1 when an abandoned thread returns. Both callbacks run in other threads.
        """
        self.name = name
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.timeout_s = timeout_s
        self._number = number
        self._on_timeout = on_timeout
        self._on_stuck = on_stuck
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._separate: list[Threads] = []
        self._stuck = 0
        self._closed = threading.Event()
        self._logged_at = -math.inf

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the pool and return its result. Raises ModelUnavailable if it exceeds the deadline."""
        return await self._submit(partial(function, *args, **kwargs), self.timeout_s)

    async def run_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that ranks many times, with a deadline that is `LONG` times longer.

        Raises ModelUnavailable if `function` exceeds the longer deadline.
        """
        return await self._submit(partial(function, *args, **kwargs), self.timeout_s * LONG)

    def separate_pool(self, number: int) -> "Threads":
        """Create a second pool of `number` threads with the same deadline. `close` closes both pools."""
        other = Threads(number, self.timeout_s, f"{self.name}-separate", self._on_timeout, self._on_stuck)
        self._separate.append(other)
        return other

    @property
    def exhausted(self) -> bool:
        """Whether calls are rejected because too many threads are stuck."""
        return self._stuck >= MAX_STUCK

    def check_capacity(self) -> None:
        """Raise ModelUnavailable if the pool rejects calls because too many threads are stuck."""
        if self.exhausted:
            raise ModelUnavailable(
                f"{self._stuck} model calls hang: restart the service, and roll back to an earlier release"
            )

    def close(self) -> None:
        """Stop all threads of the pool. Idle threads end now. Busy threads end after their current call."""
        self._closed.set()
        for other in self._separate:
            other.close()
        for _ in self._workers:
            self.calls.put(None)

    def _submit(self, function: Callable[[], T], seconds: float) -> "asyncio.Future[T]":
        self.check_capacity()
        if not self._workers:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        call = partial(contextvars.copy_context().run, function)  # log lines of the call contain the request id
        self.calls.put(_Call(call, future, loop, seconds))
        return future

    def _start(self) -> None:
        with self._lock:
            if self._workers:
                return
            self._workers = [_Worker(self) for _ in range(self._number)]
        if not math.isinf(self.timeout_s):
            threading.Thread(target=self._watch, name=f"{self.name}-watchdog", daemon=True).start()

    def _watch(self) -> None:
        period = min(max(self.timeout_s / _CHECKS_PER_DEADLINE, 0.005), 0.1)
        checked = time.monotonic()
        while not self._closed.wait(period):
            now = time.monotonic()
            paused = now - checked - period
            checked = now
            for worker in tuple(self._workers):
                if paused > period:  # the process was paused or got no CPU time, so the call did not cause the delay
                    worker.extend(paused)
                if now < worker.until:
                    continue  # idle or within its deadline; the methods below check again under the lock
                if late := worker.interrupt_late_call(now):
                    self._on_timeout()
                    self._log_timeout(late)
                if stuck := worker.abandon_stuck_call(now):
                    self._replace(worker)
                    stuck.settle(None, timed_out(stuck.seconds))

    def _replace(self, worker: _Worker) -> None:
        with self._lock:
            self._stuck += 1
            _stuck_workers.add(worker)
            self._workers.remove(worker)
            self._workers.append(_Worker(self))
        self._on_stuck(1)
        _log.error("ranking_thread_stuck", threads=self.name, stuck=self._stuck, most=MAX_STUCK)
        while self.exhausted and not self.calls.empty():
            waiting = self.calls.get()
            if waiting is not None:
                waiting.settle(None, timed_out(waiting.seconds))

    def has_returned(self, worker: _Worker) -> None:
        """Record that the call of an abandoned thread has returned. The thread ends afterwards."""
        with self._lock:
            self._stuck -= 1
            _stuck_workers.discard(worker)
        self._on_stuck(-1)

    def _log_timeout(self, call: _Call) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _MIN_LOG_INTERVAL_S:
            self._logged_at = now
            _log.error("ranking_timed_out", threads=self.name, seconds=call.seconds)


def timed_out(seconds: float) -> ModelUnavailable:
    """Create the error for a call that exceeded its deadline of `seconds`."""
    return ModelUnavailable(f"the model did not respond within {seconds:g} s: try again in a minute")


@atexit.register
def _exit_despite_stuck_threads() -> None:
    """Exit without finalising Python if threads are stuck.

    A stuck thread that returns from C++ code during finalisation would abort the process.
    """
    if not _stuck_workers:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class BlockingCalls:
    """Runs blocking disk calls. Each call has its own daemon thread and a time limit.

    `asyncio.to_thread` is not suitable, because the process cannot exit while one of its threads is blocked.
    """

    def __init__(self, resource: str, limit_s: float = math.inf, max_calls: int = 8) -> None:
        """Allow at most `max_calls` concurrent calls, including calls that hang, with `limit_s` seconds for each.

        Error messages contain the name `resource`.
        """
        self._resource = resource
        self._limit_s = limit_s
        self._max_calls = max_calls
        self._running = 0
        self._lock = threading.Lock()

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread and return its result.

        Raises TimeoutError if the call exceeds the time limit, or if too many calls are already running.
        """
        if self._running >= self._max_calls:
            raise TimeoutError(f"{self._resource}: {self._running} calls have not returned")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        call = _Call(partial(contextvars.copy_context().run, function, *args, **kwargs), future, loop, self._limit_s)
        with self._lock:
            self._running += 1

        def run() -> None:
            result, error = None, None
            try:
                result = call.function()
            except BaseException as raised:  # noqa: BLE001 (the caller gets it)
                error = raised
            with self._lock:
                self._running -= 1
            call.settle(result, error)

        threading.Thread(target=run, name=self._resource, daemon=True).start()
        try:
            async with asyncio.timeout(None if math.isinf(self._limit_s) else self._limit_s):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # `function` itself raised this TimeoutError
            raise TimeoutError(f"{self._resource}: no response within {self._limit_s:g} s") from None
