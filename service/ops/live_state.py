"""The whole service at a moment, for operators: what `GET /operations` answers."""

import time

from service.api.bodies import ReleaseBody
from service.api.operations_bodies import EventLogState, Experiment, LogFile, Operations, RedisState
from service.ops.live_numbers import MetricsSnapshot
from service.ops.status import LIMIT_S, EventLogFiles, RedisSnapshot, RedisStatus
from service.ops.telemetry import SECONDS, Telemetry
from service.releases.registry import ReleaseRegistry
from service.settings import Settings
from service.threads import BlockingCalls


class ServiceStatus:
    """Puts together what metrics, Redis, the event log's folder and the releases say. For one event loop."""

    def __init__(self, store: RedisStatus, releases: ReleaseRegistry, settings: Settings, telemetry: Telemetry) -> None:
        self._store = store
        self._releases = releases
        self._telemetry = telemetry
        self._share = settings.experiment[1] if settings.experiment is not None else 0.0
        self._reading = BlockingCalls("metrics and the event log's folder", LIMIT_S, most=32)
        self._log_kept = settings.event_log
        self._folder = (
            EventLogFiles(settings.event_log_folder) if settings.event_log and settings.event_log_writer else None
        )

    async def look(self) -> Operations:
        """All of it; within little more than the time limit of StoreState, whatever is wrong."""
        store = await self._store.look()
        at = time.time()
        numbers = MetricsSnapshot(await self._reading(self._telemetry.families))
        return Operations(
            instance=self._telemetry.instance,
            at=at,
            bounds_s=list(SECONDS),
            routes=numbers.routes(),
            shed=numbers.count("segue_shed_requests_total"),
            events=numbers.events(),
            releases=numbers.releases(),
            fallbacks=numbers.by("segue_fallbacks_total", "failed"),
            redis=self._redis(store, numbers),
            event_log=await self._event_log(store, numbers),
            release=ReleaseBody.of(self._releases.current.live),
            experiment=self._experiment(),
            swaps=numbers.by("segue_release_swaps_total", "result"),
        )

    def _redis(self, store: RedisSnapshot, numbers: MetricsSnapshot) -> RedisState:
        return RedisState(
            reachable=store.reachable,
            detail=store.detail,
            workers_away=numbers.count("segue_redis_circuit_open"),
            repeats=numbers.count("segue_redis_retries_total"),
            **store.facts,
        )

    async def _event_log(self, store: RedisSnapshot, numbers: MetricsSnapshot) -> EventLogState:
        return EventLogState(
            kept=self._log_kept,
            written_here=self._folder is not None,
            waiting=store.waiting,
            oldest_s=store.oldest_s,
            last_file=await self._last_file(),
            plays_written=numbers.count("segue_event_log_written_plays_total"),
            dropped=numbers.count("segue_event_log_dropped_plays_total"),
            failures=numbers.count("segue_event_log_failures_total"),
        )

    async def _last_file(self) -> LogFile | None:
        if self._folder is None:
            return None
        try:
            return await self._reading(self._folder.latest)
        except TimeoutError:  # its disk does not answer
            return None

    def _experiment(self) -> Experiment | None:
        challenger = self._releases.challenger
        if challenger is None:
            return None
        return Experiment(release=challenger.live.name, folder=challenger.live.folder, share=self._share)
