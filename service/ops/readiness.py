"""Whether requests can be served: what `GET /health/ready` answers.

Redis must answer, accept a write and keep what was promised, and each live release must rank a question in time. The
event log's writer is not asked: what it has not written waits in Redis, and an alert tells of it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import ModelUnavailable, SegueError
from segue.sessions import Play
from service.releases.loaded import LoadedRelease, Question
from service.releases.registry import ReleaseRegistry
from service.sessions.store import SessionStore
from service.threads import Threads

_RANKED_EVERY_S: Final = 1.0  # between two looks at the model: each ranks
_PROBES: Final = 64  # tracks that are asked in turn after one has failed


class Readiness:
    """Answers for one worker, within about the deadlines of Redis and of the model. For one event loop."""

    def __init__(self, store: SessionStore, releases: ReleaseRegistry, threads: Threads) -> None:
        """`threads` rank for requests. Questions of readiness have their own, and wait behind no explanation."""
        self._releases = releases
        self._threads = threads
        self._own_threads = threads.separate_pool(2)  # releases that are live at a time
        self._turn = 0
        self._stored = _Look(store.check, 0.0)
        self._ranked = _Look(self._rank, _RANKED_EVERY_S)

    async def check(self) -> None:
        """Return if requests can be served. Raises StoreUnavailable or ModelUnavailable with the reason."""
        for error in await asyncio.gather(self._stored(), self._ranked()):
            if error is not None:
                raise error.with_traceback(None)

    async def _rank(self) -> None:
        self._threads.check_capacity()
        await asyncio.gather(*(self._rank_by(served.live) for served, _ in self._releases.live()))

    async def _rank_by(self, live: LoadedRelease) -> None:
        try:
            await self._own_threads.run(live.answer, [_question(live, self._turn)])
        except Exception as error:  # ONNX Runtime's and FAISS's errors share no class of their own
            self._turn += 1  # the track may be at fault, so that the next look takes another one
            if isinstance(error, SegueError):
                raise
            raise ModelUnavailable(f"{live.name} fails to rank: go back to an earlier release") from error


class _Look:
    """What some work has found, done once for all who wait for it, and at most every `every_s`."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], every_s: float) -> None:
        self._work = work
        self._every_s = every_s
        self._task: asyncio.Task[SegueError | None] | None = None
        self._began = -math.inf

    async def __call__(self) -> SegueError | None:
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._began >= self._every_s):
            self._began = now
            self._task = asyncio.create_task(_error_of(self._work()))
        return await asyncio.shield(self._task)  # a client that leaves must not cancel what others wait for


async def _error_of(work: Coroutine[Any, Any, None]) -> SegueError | None:
    try:
        await work
    except SegueError as error:
        return error
    return None


def _question(live: LoadedRelease, turn: int) -> Question:
    """One play of a track of the release; of no track where it has none."""
    tracks = len(live.catalogue)
    if not tracks:
        return Question((), 1)
    step = max(1, tracks // _PROBES)
    return Question([Play(live.catalogue.track_id(FIRST_TRACK_ROW + turn * step % tracks))], 1)
