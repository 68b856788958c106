"""The service at one moment, for operators: metrics, releases, Redis and the event log. `GET /operations` answers it.

Every part has a time limit, so that there is an answer whatever is wrong.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from service.ops.metrics_snapshot import EventNumbers, MetricsSnapshot, ReleaseNumbers, RouteNumbers
from service.releases.folder import ReleaseBody
from service.releases.registry import ReleaseRegistry
from service.sessions.privacy import BUCKETS
from service.sessions.redis_client import UNREACHABLE
from service.sessions.store import stream_of
from service.settings import Settings
from service.telemetry import SECONDS, Telemetry
from service.threads import BlockingCalls

LIMIT_S: Final = 1.0


class RedisState(BaseModel):
    """The session store. What it says of itself is absent where it is away, or its user may not ask (`+info`)."""

    reachable: bool = Field(description="Whether it answered within a second")
    detail: str | None = Field(default=None, description="What is wrong, or why something is absent")
    workers_away: int = Field(description="Workers that do not ask it for now, as it did not answer (circuit breaker)")
    repeats: int = Field(description="Commands sent again, as a connection had ended")
    version: str | None = None
    nodes: int | None = Field(default=None, description="Servers that take writes")
    clients: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = Field(default=None, description="0 for none")
    evicted_keys: int | None = Field(default=None, description="Keys dropped for want of memory: sessions are lost")
    append_only: bool | None = Field(default=None, description="Whether it keeps an append-only file")
    last_write_ok: bool | None = Field(default=None, description="Whether its latest write to disk succeeded")


class LogFile(BaseModel):
    """A file of the event log."""

    name: str
    written_at: datetime
    bytes: int


class EventLogState(BaseModel):
    """The event log."""

    kept: bool = Field(description="Whether events are logged")
    written_here: bool = Field(description="Whether this service writes the files")
    waiting: int | None = Field(default=None, description="Events in Redis that are in no file; absent if it is away")
    oldest_s: float | None = Field(default=None, description="Age of the oldest of them, in seconds")
    last_file: LogFile | None = Field(default=None, description="The latest file, where this service writes them")
    plays_written: int
    dropped: int = Field(description="Events that were dropped as their stream was full: they are in no file")
    failures: int = Field(description="Turns of the writer that failed")


class Experiment(BaseModel):
    """A second release that answers a share of the sessions."""

    release: str
    folder: str
    share: float


class Operations(BaseModel):
    """The service at a moment. Counters count since it started."""

    instance: str = Field(description="Differs for each start and replica: only counters of the same one compare")
    at: float = Field(description="When this was counted, in seconds since 1970")
    bounds_s: list[float] = Field(description="Bounds of `within`, in seconds, rising")
    routes: list[RouteNumbers]
    shed: int = Field(description="Requests and connections refused as the service was full; in no route's numbers")
    events: EventNumbers
    releases: list[ReleaseNumbers]
    fallbacks: dict[str, int] = Field(description="Lists that came from popularity as this had failed")
    redis: RedisState
    event_log: EventLogState
    release: ReleaseBody = Field(description="What is served")
    experiment: Experiment | None = None
    swaps: dict[str, int] = Field(description="Releases that were `loaded` or `rejected`")


@dataclass(slots=True)
class RedisSnapshot:
    """What one look found. `facts` are fields of RedisState, empty where nothing was told."""

    reachable: bool
    detail: str | None
    facts: dict[str, Any]
    waiting: int | None = None
    oldest_s: float | None = None


class RedisStatus:
    """Looks at Redis. For one event loop."""

    def __init__(self, client: "Redis | RedisCluster") -> None:
        self._client = client

    async def look(self) -> RedisSnapshot:
        """Ask Redis how it is and what its streams hold; within the limit of time, answered or not."""
        try:
            async with asyncio.timeout(LIMIT_S):
                found = await self._facts()
                found.waiting, found.oldest_s = await self._streams()
                return found
        except TimeoutError:
            return RedisSnapshot(reachable=False, detail=f"it does not answer within {LIMIT_S:g} s", facts={})
        except UNREACHABLE:  # where it is, its error says, and answers do not
            return RedisSnapshot(reachable=False, detail="it cannot be reached: the log says why", facts={})
        except RedisError as error:
            return RedisSnapshot(reachable=True, detail=f"it refuses to be asked ({type(error).__name__})", facts={})

    async def _facts(self) -> RedisSnapshot:
        try:
            if isinstance(self._client, Redis):
                nodes: list[Mapping[str, Any]] = [await self._client.info()]
            else:
                by_node: Any = await self._client.info(target_nodes=RedisCluster.PRIMARIES)
                nodes = list(by_node.values()) if "redis_version" not in by_node else [by_node]
        except (NoPermissionError, ResponseError):
            return RedisSnapshot(reachable=True, detail="its user may not ask how it is: grant +info", facts={})
        return RedisSnapshot(reachable=True, detail=None, facts=redis_facts(nodes))

    async def _streams(self) -> tuple[int, float | None]:
        """Entries of the event log's streams, and the age in seconds of the oldest."""
        pipeline = self._client.pipeline(transaction=False)
        for stream in map(stream_of, range(BUCKETS)):
            pipeline.xlen(stream)
            pipeline.xrange(stream, count=1)
        answers: list[Any] = await pipeline.execute()
        first = [int(entries[0][0].partition("-")[0]) for entries in answers[1::2] if entries]
        return sum(answers[::2]), max(0.0, time.time() - min(first) / 1000) if first else None


def redis_facts(nodes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of RedisState from what each server that takes writes answers to INFO."""
    limits = [int(node.get("maxmemory", 0)) for node in nodes]
    return {
        "version": str(nodes[0]["redis_version"]),
        "nodes": len(nodes),
        "clients": sum(int(node["connected_clients"]) for node in nodes),
        "memory_bytes": sum(int(node["used_memory"]) for node in nodes),
        "memory_limit_bytes": sum(limits) if all(limits) else 0,
        "evicted_keys": sum(int(node["evicted_keys"]) for node in nodes),
        "append_only": all(int(node["aof_enabled"]) for node in nodes),
        "last_write_ok": all(
            node["aof_last_write_status" if int(node["aof_enabled"]) else "rdb_last_bgsave_status"] == "ok"
            for node in nodes
        ),
    }


class EventLogFiles:
    """The latest file of the event log. The folder is read anew only where it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed_ns = -1
        self._latest: LogFile | None = None

    def latest(self) -> LogFile | None:
        """The file whose name has the latest time; None without one. Reads the disk: call it off the event loop."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                name = max((file.name for file in self._path.glob("events-*.parquet")), default=None)
                self._latest = self._facts(name) if name is not None else None
                self._changed_ns = changed_ns
        except OSError:  # gone, or going: an erasure takes files away
            return None
        return self._latest

    def _facts(self, name: str) -> LogFile:
        found = (self._path / name).stat()
        return LogFile(name=name, written_at=datetime.fromtimestamp(found.st_mtime, UTC), bytes=found.st_size)


class ServiceStatus:
    """Puts together what metrics, Redis, the event log's folder and the releases say. For one event loop."""

    def __init__(self, store: RedisStatus, releases: ReleaseRegistry, settings: Settings, telemetry: Telemetry) -> None:
        self._store = store
        self._releases = releases
        self._telemetry = telemetry
        self._share = settings.experiment[1] if settings.experiment is not None else 0.0
        self._reading = BlockingCalls("metrics and the event log's folder", LIMIT_S, max_calls=32)
        self._log_kept = settings.event_log
        self._folder = (
            EventLogFiles(settings.event_log_folder) if settings.event_log and settings.event_log_writer else None
        )

    async def look(self) -> Operations:
        """All of it; within little more than the time limit of RedisStatus, whatever is wrong."""
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
            fallbacks=numbers.by("segue_fallbacks_total", "component"),
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
