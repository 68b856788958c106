"""Redis memory of sessions, and disk space of the event log, for docs/sizing.md.

    python -m benchmarks.storage --out benchmarks/results/storage.json

Synthetic sessions go through the session store into the embedded Redis, and their plays into files of the event log.
Ids of tracks are random letters of a fixed length, drawn by a Zipf distribution from a catalogue of 100,000.
"""

import argparse
import asyncio
import functools
import json
import platform
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from segue.sessions import Event, EventType
from service.sessions.embedded_redis import embedded_redis
from service.sessions.event_log import EventLog, open_folder
from service.sessions.redis_server import connect
from service.sessions.store import SessionStore
from service.settings import Settings
from service.telemetry import Telemetry

TRACKS: Final = 100_000
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_AT_ONCE: Final = 64  # sessions that are written concurrently
_ALPHABET: Final = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")


def sessions(number: int, plays: int, *, id_length: int, event_ids: bool) -> Iterator[tuple[str, list[Event]]]:
    """Sessions by id, each with a number of plays; a play in five is reported as a skip, and has `ms_played`."""
    rng = np.random.default_rng(0)
    ids = _track_ids(id_length)
    for _ in range(number):
        at = START + timedelta(seconds=int(rng.integers(0, 86_400)))
        events = []
        for row in (rng.zipf(1.2, plays) % TRACKS).tolist():
            skipped = bool(rng.random() < 0.2)
            at += timedelta(seconds=15 if skipped else 200)
            event_id = str(uuid.UUID(bytes=rng.bytes(16))) if event_ids else None
            kind = EventType.SKIP if skipped else EventType.PLAY
            heard = 15_000 if skipped else 200_000
            events.append(Event(type=kind, track_id=ids[row], at=at, ms_played=heard, event_id=event_id))
        yield str(uuid.UUID(bytes=rng.bytes(16))), events


@functools.cache
def _track_ids(length: int) -> list[str]:
    return ["".join(row) for row in np.random.default_rng(1).choice(_ALPHABET, (TRACKS, length)).tolist()]


async def memory(number: int, plays: int, *, id_length: int, event_ids: bool) -> dict[str, Any]:
    """Bytes of Redis memory that sessions take, as `used_memory` says before and after."""
    with tempfile.TemporaryDirectory() as folder, embedded_redis(Path(folder)) as url:
        settings = Settings(release=Path(), redis_url=url, event_log=False)
        client = connect(settings)
        store = SessionStore(client, settings)
        before = await _used(client)
        await _write(store, number, plays, id_length=id_length, event_ids=event_ids)
        taken = await _used(client) - before
        for session_id, events in sessions(number, plays, id_length=id_length, event_ids=event_ids):
            latest = (await store.plays(session_id))[-1]
            await store.remember(
                session_id, latest, "sasrec-0123456789", [events[0].track_id[:-2] + f"{n:02}" for n in range(20)]
            )
        remembered = await _used(client) - before - taken
        version = (await client.info("server"))["redis_version"]
        await store.aclose()
        await client.aclose()
    return {
        "redis": version,
        "sessions": number,
        "plays_of_each": plays,
        "track_id_bytes": id_length,
        "event_ids": event_ids,
        "bytes_a_session": round(taken / number),
        "bytes_a_remembered_list": round(remembered / number),
        "bytes_a_play": round(taken / number / plays, 1),
    }


async def log_size(number: int, plays: int, *, flush_every: int) -> dict[str, Any]:
    """Bytes of the event log's files, written after every `flush_every` sessions, and of Redis' stream entries."""
    with tempfile.TemporaryDirectory() as folder, embedded_redis(Path(folder) / "redis") as url:
        settings = Settings(release=Path(), redis_url=url, event_log_stream_max_length=10**9, max_session_plays=1)
        client = connect(settings)
        store = SessionStore(client, settings)
        files = open_folder(Path(folder) / "events")
        log = EventLog(client, files, 3600, Telemetry())
        rows, stream_bytes = 0, 0
        made = list(sessions(number, plays, id_length=22, event_ids=False))
        for start in range(0, number, flush_every):
            for session_id, events in made[start : start + flush_every]:
                await store.append(session_id, events)
            usage = [await client.memory_usage(key, samples=0) async for key in client.scan_iter("*:events")]
            stream_bytes += sum(found or 0 for found in usage)
            rows += await log.flush()
        size = sum(path.stat().st_size for path in files.glob("events-*.parquet"))
        number_of_files = len(list(files.glob("events-*.parquet")))
        await store.aclose()
        await client.aclose()
    return {
        "plays": rows,
        "files": number_of_files,
        "plays_of_each_file": round(rows / number_of_files),
        "mb_a_million_plays": round(size / rows, 1),
        "stream_bytes_a_play": round(stream_bytes / rows),
    }


async def _write(store: SessionStore, number: int, plays: int, *, id_length: int, event_ids: bool) -> None:
    waiting: list[Any] = []
    for session_id, events in sessions(number, plays, id_length=id_length, event_ids=event_ids):
        waiting.append(store.append(session_id, events))
        if len(waiting) == _AT_ONCE:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)


async def _used(client: Any) -> int:
    """Redis' memory without the buffer of its append-only file and of clients."""
    facts = await client.info("memory")
    return int(facts["used_memory"]) - int(facts["mem_aof_buffer"]) - int(facts["mem_clients_normal"])


async def measure() -> dict[str, Any]:
    """All of docs/sizing.md's own figures."""
    cases = [(plays, 22, event_ids) for plays in (1, 20, 100, 1000) for event_ids in (False, True)] + [(20, 8, False)]
    found = [
        await memory(max(50, min(2_000, 20_000 // plays)), plays, id_length=id_length, event_ids=event_ids)
        for plays, id_length, event_ids in cases
    ]
    logged = [await log_size(2_500, 20, flush_every=sessions) for sessions in (50, 500, 2_500)]
    return {"python": platform.python_version(), "memory": found, "event_log": logged}


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = asyncio.run(measure())
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in (*found["memory"], *found["event_log"]):
        print(*(f"{name}={value}" for name, value in line.items()))


if __name__ == "__main__":
    main()
