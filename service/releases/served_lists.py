"""Served lists: logs the lists of a sample of the sessions beside the event log, with their propensities.

`segue off-policy` reads them. A request only appends its list to a queue. A background task sends the queue to Redis,
where the session's key is known, and the event log's writer moves the lists into files `lists-*.parquet`.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from segue.errors import StoreUnavailable
from segue.sessions import Play
from service.releases.experiment import SessionSampler
from service.releases.loaded import RecommendResult
from service.releases.registry import ActiveRelease, ReleaseRegistry
from service.sessions.event_log import list_fields
from service.sessions.store import SessionStore
from service.telemetry import Telemetry

MAX_QUEUED: Final = 1_000  # if Redis is slow, further lists are dropped
_BATCH: Final = 50  # lists sent at a time

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Served:
    session_id: str
    plays: int  # before the list
    latest: Play  # of them
    at_ms: int
    arm: str
    policy: str | None
    answer: RecommendResult


class ServedLists:
    """Logs the lists of a sample of the sessions. Use an instance in one event loop only.

    The sampling unit is the session, as in the attribution of plays. Every list of a sampled session is logged, so the
    last list before a play is known. Every worker makes the same choice, without random state.
    """

    def __init__(self, store: SessionStore, releases: ReleaseRegistry, rate: float, telemetry: Telemetry) -> None:
        """Create the log. `rate` is the share of the sessions, from 0 to 1."""
        self._store = store
        self._releases = releases
        self._sample = SessionSampler("lists", rate)
        self._telemetry = telemetry
        self._queue: asyncio.Queue[_Served] = asyncio.Queue(MAX_QUEUED)

    def __contains__(self, session_id: str) -> bool:
        """Return True if the lists of the session are logged."""
        return session_id in self._sample

    def add(
        self,
        session_id: str,
        plays: Sequence[Play],
        active: ActiveRelease,
        policy: str | None,
        answer: RecommendResult,
    ) -> None:
        """Append the list that followed `plays` to the queue. If it is full, the list is dropped and counted.

        A list without plays is ignored, because the event log names a session by its first play.
        """
        if not plays:
            return
        try:
            at_ms, arm = time.time_ns() // 1_000_000, self._arm(active)
            self._queue.put_nowait(_Served(session_id, len(plays), plays[-1], at_ms, arm, policy, answer))
        except asyncio.QueueFull:
            self._telemetry.list_drops.inc()

    async def run(self, stopping: asyncio.Event) -> None:
        """Send the queue to Redis until `stopping` is set. Send the remaining lists before the return."""
        stop = asyncio.create_task(stopping.wait())
        while not stopping.is_set() or not self._queue.empty():
            first = asyncio.create_task(self._queue.get())
            await asyncio.wait((first, stop), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                first.cancel()
                continue
            served = [first.result()]
            while len(served) < _BATCH and not self._queue.empty():
                served.append(self._queue.get_nowait())
            await self._send(served)
        await stop

    async def _send(self, served: Sequence[_Served]) -> None:
        """Send lists in one command pipeline. Lists that Redis does not accept are dropped and counted."""
        sent = await asyncio.gather(*map(self._store_list, served), return_exceptions=True)
        dropped = sum(1 if isinstance(one, BaseException) else one for one in sent)
        if dropped:
            self._telemetry.list_drops.inc(dropped)
        for one in sent:
            if isinstance(one, BaseException) and not isinstance(one, StoreUnavailable):
                _log.error("list_log_error", exc_info=one)  # nothing awaits this task: it must survive

    async def _store_list(self, served: _Served) -> int:
        answer = served.answer
        track_ids = [answer.release.catalogue.track_id(row) for row in answer.rows]
        if not track_ids:
            return 0
        steps = answer.steps
        before = steps.before_exploration if steps is not None else None
        fields = list_fields(
            track_ids,
            steps.propensities if steps is not None else None,
            None if before is None else [row != own for row, own in zip(answer.rows, before, strict=True)],
            release=answer.release.name,
            arm=served.arm,
            policy=served.policy or "",
            source=answer.source,
        )
        return await self._store.log_list(served.session_id, served.plays, served.latest, served.at_ms, fields)

    def _arm(self, active: ActiveRelease) -> str:
        """Return the arm of a running A/B test that gave the answer, '' without one."""
        live = self._releases.live()
        if len(live) < 2 or not live[1][1]:
            return ""
        return "second" if active is live[1][0] else "current"
