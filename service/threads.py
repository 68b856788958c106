"""Threads for the calls that would keep the event loop from answering; each call has a deadline.

ONNX Runtime, FAISS and file systems may never return. ONNX Runtime can be interrupted: a call registers its RunOptions,
and the watchdog sets `terminate` on them at the deadline. FAISS's interrupt callback is one for the whole process, so
it would end the searches of others too. What cannot be interrupted is given up: its caller gets an error, its thread
is abandoned and replaced. A few are replaced; beyond that every call is refused at once until one of them returns.

A deadline counts the time in which the process runs: while it is stopped, as by a debugger or by the host of a virtual
machine, the watchdog is late as well, and deadlines move by as much.

No thread here is joined when the process ends: all are daemons. One watchdog thread looks at the running calls a few
times a second, so that a call itself costs two assignments under a lock and no timer.
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

MOST_STUCK: Final = 4  # each keeps a core busy
LONG: Final = 5  # times the deadline, for a call that ranks some hundred times
GRACE_S: Final = 0.1  # from the interrupt until a call is given up
_LOOKS: Final = 20  # of the watchdog within a deadline
_SECONDS_BETWEEN_LINES: Final = 1.0

_log = structlog.get_logger()
_this_thread = threading.local()


class Interruptible(Protocol):
    """What ends a call in C++ once `terminate` is set, as onnxruntime.RunOptions does."""

    terminate: bool


def interrupt_of_this_thread(make: Callable[[], Interruptible]) -> Interruptible | None:
    """What the watchdog sets at the deadline of this thread's call; None in a thread that has no deadline."""
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
        """Hand the outcome to whoever waits. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Worker:
    """A thread and the call that it runs."""

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
        """Give the call time that the process did not have."""
        with self.lock:
            self.until += seconds

    def interrupt_late_call(self, now: float) -> _Call | None:
        """Interrupt the call if its deadline has just passed, and answer it."""
        with self.lock:
            if self.call is None or self.expired or now < self.until:
                return None
            self.expired = True
            if self.interrupt is not None:
                self.interrupt.terminate = True
            return self.call

    def abandon_stuck_call(self, now: float) -> _Call | None:
        """Give the call up if the interrupt has not ended it, and answer it. The thread ends when the call returns."""
        with self.lock:
            if self.call is None or now < self.until + GRACE_S:
                return None
            self.abandoned = True
            return self.call


_stuck_anywhere: Final[set[_Worker]] = set()


class Threads:
    """Runs a bounded number of calls at a time, each within `timeout_s`."""

    def __init__(
        self,
        number: int,
        timeout_s: float = math.inf,
        name: str = "ranking",
        on_timeout: Callable[[], None] = lambda: None,
        on_stuck: Callable[[int], None] = lambda _: None,
    ) -> None:
        """At most `number` calls run at once; the others wait.

        `on_timeout` is called for each call that is interrupted, `on_stuck` with 1 for each thread that is stuck and
        with -1 once it has returned; both in other threads.
        """
        self.name = name
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.timeout_s = timeout_s
        self._number = number
        self._on_timeout = on_timeout
        self._on_stuck = on_stuck
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._beside: list[Threads] = []
        self._stuck = 0
        self._closed = threading.Event()
        self._told = -math.inf

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` answers. Raises ModelUnavailable if it does not within the deadline."""
        return await self._submit(partial(function, *args, **kwargs), self.timeout_s)

    async def run_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a call that ranks many times: it gets `LONG` times the deadline."""
        return await self._submit(partial(function, *args, **kwargs), self.timeout_s * LONG)

    def beside(self, number: int) -> "Threads":
        """Other threads with the same deadline. They are closed with these."""
        other = Threads(number, self.timeout_s, f"{self.name}-beside", self._on_timeout, self._on_stuck)
        self._beside.append(other)
        return other

    @property
    def exhausted(self) -> bool:
        """Whether so many threads are stuck that no call is accepted."""
        return self._stuck >= MOST_STUCK

    def refuse_exhausted(self) -> None:
        """Raise ModelUnavailable if no call is accepted."""
        if self.exhausted:
            raise ModelUnavailable(
                f"{self._stuck} calls of the model hang: restart the service, and go back to an earlier release"
            )

    def close(self) -> None:
        """Accept no more calls. Idle threads end, busy ones with their call."""
        self._closed.set()
        for other in self._beside:
            other.close()
        for _ in self._workers:
            self.calls.put(None)

    def _submit(self, function: Callable[[], T], seconds: float) -> "asyncio.Future[T]":
        self.refuse_exhausted()
        if not self._workers:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        call = partial(contextvars.copy_context().run, function)  # log lines name the request
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
        period = min(max(self.timeout_s / _LOOKS, 0.005), 0.1)
        looked = time.monotonic()
        while not self._closed.wait(period):
            now = time.monotonic()
            paused = now - looked - period
            looked = now
            for worker in tuple(self._workers):
                if paused > period:  # the process was stopped, or got no core: no call is at fault for it
                    worker.extend(paused)
                if now < worker.until:
                    continue  # idle, or within its deadline; without the lock, as the calls below look again
                if late := worker.interrupt_late_call(now):
                    self._on_timeout()
                    self._tell(late)
                if stuck := worker.abandon_stuck_call(now):
                    self._replace(worker)
                    stuck.settle(None, timed_out(stuck.seconds))

    def _replace(self, worker: _Worker) -> None:
        with self._lock:
            self._stuck += 1
            _stuck_anywhere.add(worker)
            self._workers.remove(worker)
            self._workers.append(_Worker(self))
        self._on_stuck(1)
        _log.error("ranking_thread_stuck", threads=self.name, stuck=self._stuck, most=MOST_STUCK)
        while self.exhausted and not self.calls.empty():
            waiting = self.calls.get()
            if waiting is not None:
                waiting.settle(None, timed_out(waiting.seconds))

    def has_returned(self, worker: _Worker) -> None:
        """A stuck thread has come back, and ends."""
        with self._lock:
            self._stuck -= 1
            _stuck_anywhere.discard(worker)
        self._on_stuck(-1)

    def _tell(self, call: _Call) -> None:
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            _log.error("ranking_timed_out", threads=self.name, seconds=call.seconds)


def timed_out(seconds: float) -> ModelUnavailable:
    """What the caller of a call is told that was given up."""
    return ModelUnavailable(
        f"the model did not answer within {seconds:g} s: ask for other tracks, or try again in a minute"
    )


@atexit.register
def _leave_stuck_threads_behind() -> None:
    """End the process without finalising Python: a thread that returns from C++ meanwhile would abort it."""
    if not _stuck_anywhere:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class BlockingCalls:
    """Calls that wait for a disk, each in a daemon thread of its own and with a limit of time.

    `asyncio.to_thread` would have the process wait for them when it ends.
    """

    def __init__(self, what: str, limit_s: float = math.inf, most: int = 8) -> None:
        """At most `most` calls run at once, those that hang included; `what` is for the message."""
        self._what = what
        self._limit_s = limit_s
        self._most = most
        self._running = 0
        self._lock = threading.Lock()

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` answers. Raises TimeoutError if it does not within the limit, or if too many calls hang."""
        if self._running >= self._most:
            raise TimeoutError(f"{self._what}: {self._running} calls have not returned")
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

        threading.Thread(target=run, name=self._what, daemon=True).start()
        try:
            async with asyncio.timeout(None if math.isinf(self._limit_s) else self._limit_s):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # the function's own
            raise TimeoutError(f"{self._what}: no answer within {self._limit_s:g} s") from None
