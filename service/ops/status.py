"""The state of the service for operators (`GET /operations`) and the readiness check (`GET /health/ready`).

The state covers metrics, releases, Redis and the event log. Each part has a time limit, so that the service responds
even if Redis or the disk fails.

The readiness check requires that Redis responds, accepts a write and is as durable as configured, and that each live
release ranks a question in time. The check does not cover the writer of the event log, because unwritten events stay in
Redis and an alert reports them.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import BaseModel, Field
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import ModelUnavailable, Overloaded, SegueError, StoreUnavailable
from segue.sessions import Play
from service.ops.metrics_snapshot import EventNumbers, MetricsSnapshot, ReleaseNumbers, RouteNumbers
from service.releases.experiment import ExperimentBody
from service.releases.folder import ReleaseBody
from service.releases.loaded import LoadedRelease, Question
from service.releases.registry import ReleaseRegistry
from service.sessions.privacy import BUCKETS
from service.sessions.redis_errors import CLIENT_ERRORS, UNREACHABLE_MESSAGE, as_store_error
from service.sessions.store import SessionStore, stream_of
from service.settings import Settings
from service.telemetry import SECONDS, Telemetry
from service.threads import BlockingCalls, Threads

_log = structlog.get_logger()

LIMIT_S: Final = 1.0
_RANK_INTERVAL_S: Final = 1.0  # minimum time between two model checks, because each check runs the model
_PROBE_TRACKS: Final = 64  # number of different tracks that the model check tries, one after another, after failures


class RedisState(BaseModel):
    """The state of Redis, the session store.

    Fields about the server are absent if Redis is unreachable or if the Redis user lacks the permission `+info`.
    """

    reachable: bool = Field(description="Whether it responded within a second")
    detail: str | None = Field(default=None, description="The problem, or why fields are absent")
    workers_away: int = Field(description="Workers whose circuit breaker is open")
    repeats: int = Field(description="Commands retried because the connection was lost")
    version: str | None = None
    nodes: int | None = Field(default=None, description="Number of primaries")
    clients: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = Field(default=None, description="0 for none")
    evicted_keys: int | None = Field(
        default=None, description="Keys evicted at the memory limit: these sessions are lost"
    )
    append_only: bool | None = Field(default=None, description="Whether it has an append-only file")
    last_write_ok: bool | None = Field(default=None, description="Whether its latest write to disk succeeded")


class LogFile(BaseModel):
    """A file of the event log."""

    name: str
    written_at: datetime
    bytes: int


class EventLogState(BaseModel):
    """The state of the event log."""

    kept: bool = Field(description="Whether events are logged")
    written_here: bool = Field(description="Whether this service writes the log's files")
    waiting: int | None = Field(
        default=None, description="Events in Redis not yet in a file; absent if Redis is unreachable"
    )
    oldest_s: float | None = Field(default=None, description="Age of the oldest waiting event in seconds")
    last_file: LogFile | None = Field(default=None, description="The latest file, if this service writes them")
    plays_written: int
    dropped: int = Field(description="Events lost because their Redis stream was full")
    failures: int = Field(description="Failed flushes")


class ServedListsState(BaseModel):
    """The log of served lists."""

    rate: float = Field(description="Share of the sessions whose lists are logged; 0: off")
    written: int = Field(description="Lists written to files by this service")
    dropped: int = Field(description="Lists lost because a queue was full or Redis was unavailable")


class Operations(BaseModel):
    """The state of the service. Counters start at zero with the service."""

    instance: str = Field(description="Identifies a start of a replica: compare counters of the same instance only")
    at: float = Field(description="Time of the snapshot in seconds since 1970")
    bounds_s: list[float] = Field(description="Upper bounds of `within` in seconds, ascending")
    routes: list[RouteNumbers]
    shed: int = Field(description="Requests and connections rejected because of overload; not counted in `routes`")
    events: EventNumbers
    releases: list[ReleaseNumbers]
    fallbacks: dict[str, int] = Field(description="Popularity lists by the component that failed")
    redis: RedisState
    event_log: EventLogState
    served_lists: ServedListsState
    release: ReleaseBody = Field(description="The current release")
    experiment: ExperimentBody | None = None
    swaps: dict[str, int] = Field(description="Number of releases `loaded` and `rejected`")


@dataclass(slots=True)
class RedisSnapshot:
    """The result of one status query to Redis. `facts` contains fields of RedisState and is empty if unknown."""

    reachable: bool
    detail: str | None
    facts: dict[str, Any]
    waiting: int | None = None
    oldest_s: float | None = None


class RedisStatus:
    """Queries the status of Redis. Use an instance in one event loop only."""

    def __init__(self, client: "Redis | RedisCluster") -> None:
        self._client = client

    async def look(self) -> RedisSnapshot:
        """Query Redis and its streams. Returns within the time limit, even if Redis does not respond."""
        try:
            async with asyncio.timeout(LIMIT_S):
                found = await self._facts()
                found.waiting, found.oldest_s = await self._streams()
                return found
        except TimeoutError:
            return RedisSnapshot(reachable=False, detail=f"it did not respond within {LIMIT_S:g} s", facts={})
        except CLIENT_ERRORS as error:
            known = as_store_error(error)
            if str(known) == UNREACHABLE_MESSAGE:
                # The error contains the address, which must not be in the response.
                return RedisSnapshot(reachable=False, detail="it cannot be reached: see the service's log", facts={})
            if isinstance(known, StoreUnavailable):
                return RedisSnapshot(reachable=True, detail=str(known), facts={})
            if isinstance(error, RedisError):
                return RedisSnapshot(reachable=True, detail=f"it rejected the query ({type(error).__name__})", facts={})
            raise

    async def _facts(self) -> RedisSnapshot:
        try:
            if isinstance(self._client, Redis):
                nodes: list[Mapping[str, Any]] = [await self._client.info()]
            else:
                by_node: Any = await self._client.info(target_nodes=RedisCluster.PRIMARIES)
                nodes = list(by_node.values()) if "redis_version" not in by_node else [by_node]
        except ResponseError as error:
            if not isinstance(error, NoPermissionError) and "unknown command" not in str(error):
                raise
            return RedisSnapshot(reachable=True, detail="its user lacks a permission: grant +info", facts={})
        return RedisSnapshot(reachable=True, detail=None, facts=redis_facts(nodes))

    async def _streams(self) -> tuple[int, float | None]:
        """Return the number of entries in the event streams, and the age of the oldest entry in seconds."""
        pipeline = self._client.pipeline(transaction=False)
        for stream in map(stream_of, range(BUCKETS)):
            pipeline.xlen(stream)
            pipeline.xrange(stream, count=1)
        answers: list[Any] = await pipeline.execute()
        first = [int(entries[0][0].partition("-")[0]) for entries in answers[1::2] if entries]
        return sum(answers[::2]), max(0.0, time.time() - min(first) / 1000) if first else None


def redis_facts(nodes: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute fields of RedisState from the INFO replies of all primaries. `nodes` has one reply per primary."""

    def total(name: str) -> int:
        return sum(int(node.get(name, 0)) for node in nodes)  # a Sentinel has only some of the fields

    limits = [int(node.get("maxmemory", 0)) for node in nodes]
    has_persistence = all("aof_enabled" in node for node in nodes)
    return {
        "version": str(nodes[0].get("redis_version", "unknown")),
        "nodes": len(nodes),
        "clients": total("connected_clients"),
        "memory_bytes": total("used_memory"),
        "memory_limit_bytes": sum(limits) if all(limits) else 0,
        "evicted_keys": total("evicted_keys"),
        "append_only": all(int(node["aof_enabled"]) for node in nodes) if has_persistence else None,
        "last_write_ok": all(
            node["aof_last_write_status" if int(node["aof_enabled"]) else "rdb_last_bgsave_status"] == "ok"
            for node in nodes
        )
        if has_persistence
        else None,
    }


class EventLogFiles:
    """Finds the latest file of the event log. The folder is listed only if it has changed since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed_ns = -1
        self._latest: LogFile | None = None

    def latest(self) -> LogFile | None:
        """Return the file with the latest time in its name, or None if there are no files.

        This method does blocking disk I/O. Do not call it on the event loop.
        """
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                name = max((file.name for file in self._path.glob("events-*.parquet")), default=None)
                self._latest = self._facts(name) if name is not None else None
                self._changed_ns = changed_ns
        except OSError:  # an erasure may delete files or the folder at any time
            return None
        return self._latest

    def _facts(self, name: str) -> LogFile:
        found = (self._path / name).stat()
        return LogFile(name=name, written_at=datetime.fromtimestamp(found.st_mtime, UTC), bytes=found.st_size)


class ServiceStatus:
    """Combines metrics, Redis status, event log files and releases. Use an instance in one event loop only."""

    def __init__(self, store: RedisStatus, releases: ReleaseRegistry, settings: Settings, telemetry: Telemetry) -> None:
        self._store = store
        self._releases = releases
        self._telemetry = telemetry
        self._reading = BlockingCalls("metrics and the event log's folder", LIMIT_S, max_calls=32)
        self._log_kept = settings.event_log
        self._list_log_rate = settings.list_log_rate
        self._folder = (
            EventLogFiles(settings.event_log_folder) if settings.event_log and settings.event_log_writer else None
        )

    async def look(self) -> Operations:
        """Return the state of the service. Each step has the time limit LIMIT_S, so the call always ends.

        Raises Overloaded if the metrics cannot be read in this time.
        """
        store = await self._store.look()
        at = time.time()
        try:
            numbers = MetricsSnapshot(await self._reading(self._telemetry.families))
        except TimeoutError as error:
            raise Overloaded(f"{error}: try again in a moment") from error
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
            served_lists=ServedListsState(
                rate=self._list_log_rate,
                written=numbers.count("segue_list_log_written_lists_total"),
                dropped=numbers.count("segue_list_log_dropped_lists_total"),
            ),
            release=ReleaseBody.of(self._releases.current.live),
            experiment=self._releases.experiment(),
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
        except TimeoutError:  # the disk does not respond
            return None


# --- readiness ---


class Readiness:
    """The readiness check of one worker. Use an instance in one event loop only.

    Redis and the model are checked concurrently, so a check takes at most about the longer of their two deadlines.
    """

    def __init__(self, store: SessionStore, releases: ReleaseRegistry, threads: Threads) -> None:
        """Create the check. `threads` is the pool that ranks for requests.

        The check uses a separate pool with the same deadline, so that it does not queue behind requests.
        """
        self._releases = releases
        self._threads = threads
        self._own_threads = threads.separate_pool(2)  # at most two releases are live
        self._turn = 0
        self._check_store = _SharedCheck(store.check, 0.0)
        self._check_model = _SharedCheck(self._rank, _RANK_INTERVAL_S)

    async def check(self) -> None:
        """Raise StoreUnavailable or ModelUnavailable with the reason if requests cannot be served."""
        for error in await asyncio.gather(self._check_store(), self._check_model()):
            if error is not None:
                raise error.with_traceback(None)

    async def _rank(self) -> None:
        self._threads.check_capacity()
        await asyncio.gather(*(self._rank_by(served.live) for served, _ in self._releases.live()))

    async def _rank_by(self, live: LoadedRelease) -> None:
        try:
            await self._own_threads.run(live.answer, [_question(live, self._turn)])
        except Exception as error:  # exceptions of ONNX Runtime and FAISS have no common base class
            self._turn += 1  # the track may be the cause, so the next check uses another track
            if isinstance(error, SegueError):
                raise
            raise ModelUnavailable(f"{live.name} fails to rank: roll back to an earlier release") from error


class _SharedCheck:
    """Runs a check at most every `min_interval_s` seconds and shares its result among concurrent callers."""

    def __init__(self, check: Callable[[], Coroutine[Any, Any, None]], min_interval_s: float) -> None:
        self._check = check
        self._min_interval_s = min_interval_s
        self._task: asyncio.Task[SegueError | None] | None = None
        self._started_at = -math.inf

    async def __call__(self) -> SegueError | None:
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._started_at >= self._min_interval_s):
            self._started_at = now
            self._task = asyncio.create_task(_error_of(self._check()))
        return await asyncio.shield(self._task)  # a cancelled caller must not cancel the check for the others


async def _error_of(check: Coroutine[Any, Any, None]) -> SegueError | None:
    try:
        await check
    except SegueError as error:
        return error
    except Exception:  # noqa: BLE001 (readiness reports it)
        _log.exception("readiness_error")
        return StoreUnavailable("the check failed unexpectedly: see the log of the service")
    return None


def _question(live: LoadedRelease, turn: int) -> Question:
    """Return a question with one play of a track that depends on `turn`, or without plays if there are no tracks."""
    tracks = len(live.catalogue)
    if not tracks:
        return Question((), 1)
    step = max(1, tracks // _PROBE_TRACKS)
    return Question([Play(live.catalogue.track_id(FIRST_TRACK_ROW + turn * step % tracks))], 1)
