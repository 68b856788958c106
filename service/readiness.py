"""Whether requests can be served: what `GET /health/ready` answers.

Redis must answer, accept a write and keep what was promised, and each live release must rank a question in time. The
event log's writer is not asked: what it has not written waits in Redis, and an alert tells of it.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final

from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import ModelUnavailable, SegueError
from segue.sessions import Play
from service.live_release import LiveRelease, Question
from service.releases import LiveReleases
from service.session_store import SessionStore
from service.threads import GRACE_S, Threads

_EVERY_S: Final = 1.0  # between two questions of readiness
_WAITS: Final = 2  # deadlines: every thread may be busy with a call that hangs, and then the question has its own
_PROBES: Final = 64  # tracks that are asked in turn after one has failed


class Readiness:
    """Answers for one worker. For one event loop."""

    def __init__(self, store: SessionStore, releases: LiveReleases, threads: Threads) -> None:
        self._store = store
        self._releases = releases
        self._threads = threads
        self._turn = 0
        self._stored: asyncio.Task[SegueError | None] | None = None
        self._ranked: asyncio.Task[SegueError | None] | None = None
        self._ranked_at = -_EVERY_S

    async def check(self) -> None:
        """Return if requests can be served. Raises StoreUnavailable or ModelUnavailable with the reason."""
        if self._stored is None or self._stored.done():  # those who ask at the same time share one look
            self._stored = asyncio.create_task(_error_of(self._store.check()))
        now = time.monotonic()
        if self._ranked is None or (self._ranked.done() and now - self._ranked_at >= _EVERY_S):
            self._ranked_at = now
            self._ranked = asyncio.create_task(_error_of(self._rank()))
        # Shielded: a client that leaves must not cancel what others wait for.
        for error in await asyncio.gather(asyncio.shield(self._stored), asyncio.shield(self._ranked)):
            if error is not None:
                raise error.with_traceback(None)

    async def _rank(self) -> None:
        limit_s = _WAITS * (self._threads.timeout_s + GRACE_S)
        for served, _ in self._releases.live():
            live = served.live
            try:
                async with asyncio.timeout(limit_s):
                    await self._threads.run(live.answer, [_question(live, self._turn)])
            except TimeoutError:
                self._turn += 1
                raise ModelUnavailable(
                    f"{live.name} ranks nothing within {limit_s:g} s: every thread is busy"
                ) from None
            except SegueError:
                self._turn += 1  # the track may be at fault, so that the next look takes another one
                raise
            except Exception as error:  # ONNX Runtime's and FAISS's errors share no class of their own
                self._turn += 1
                raise ModelUnavailable(f"{live.name} fails to rank: go back to an earlier release") from error


async def _error_of(work: Coroutine[Any, Any, None]) -> SegueError | None:
    try:
        await work
    except SegueError as error:
        return error
    return None


def _question(live: LiveRelease, turn: int) -> Question:
    """One play of a track of the release; of no track where it has none."""
    tracks = len(live.table)
    if not tracks:
        return Question((), 1)
    step = max(1, tracks // _PROBES)
    return Question([Play(live.table.track_id(FIRST_TRACK_ROW + turn * step % tracks))], 1)
