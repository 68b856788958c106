"""How Redis and the event log are, asked with a limit of time: for operators, so it answers whatever is wrong."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from service.api.operations_bodies import LogFile
from service.sessions.erased_data import BUCKETS
from service.sessions.redis_client import AWAY
from service.sessions.store import stream_of

LIMIT_S: Final = 1.0


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

    def __init__(self, client: "Redis | RedisCluster", limit_s: float = LIMIT_S) -> None:
        self._client = client
        self._limit_s = limit_s

    async def look(self) -> RedisSnapshot:
        """Ask Redis how it is and what its streams hold; within the limit of time, answered or not."""
        try:
            async with asyncio.timeout(self._limit_s):
                found = await self._facts()
                found.waiting, found.oldest_s = await self._streams()
                return found
        except TimeoutError:
            return RedisSnapshot(reachable=False, detail=f"it does not answer within {self._limit_s:g} s", facts={})
        except AWAY:  # where it is, its error says, and answers do not
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
