"""The event log: what was reported, as Parquet files that `segue prepare events` reads. What was served becomes data.

The streams in Redis hold every event until it is in a file, so nothing is lost by a crash; a crash between writing
and deleting writes some rows twice (at least once). One writer works on a folder at a time. Per session_id and
position, the row with the latest `written_at` is the play: one that became a skip has two rows.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import polars as pl
import structlog
from redis.asyncio import Redis, RedisCluster

from segue.errors import BadOption, StoreUnavailable
from segue.safe_files import UNREADABLE, DamagedFile, check_footer, private_file
from service.sessions.privacy import BUCKETS, close_to_others
from service.sessions.redis_client import store_errors
from service.sessions.store import erasures_of, stream_of
from service.telemetry import Telemetry
from service.threads import BlockingCalls

_log = structlog.get_logger()

SCHEMA: Final[dict[str, pl.DataType]] = {
    "session_id": pl.String(),  # <id>@<start of the session in ms since 1970>: a reused id is another session
    "position": pl.Int64(),  # of the play in its session, from 0
    "track_id": pl.String(),
    "skipped": pl.Boolean(),
    "timestamp": pl.Datetime("ms", "UTC"),
    "ms_played": pl.Int64(),
    "written_at": pl.Datetime("us", "UTC"),  # the stream's own clock: never runs backwards
}
_MOST_ROWS: Final = 100_000  # of a file
# Entries read, and rows handed to Polars, at a time: each takes Python a few milliseconds, in which nobody is answered.
_AT_ONCE: Final = 500
_UNFINISHED: Final = ".unfinished"
_DIGITS: Final = 32  # of the sha256 of a file's content, in its name
_NAME: Final = re.compile(rf"events-\d{{8}}T\d{{6}}-([0-9a-f]{{{_DIGITS}}})\.parquet")

Entry: TypeAlias = tuple[str, dict[str, str]]


@dataclass(slots=True)
class _Batch:
    """What one look at the streams found."""

    read_to: dict[str, str] = field(default_factory=dict)  # stream -> id of the last entry that was read
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    erasures: dict[str, list[str]] = field(default_factory=dict)  # set of erasures -> its marks
    oldest_us: int | None = None
    full: bool = False  # whether streams hold more

    def add(self, stream: str, entries: Sequence[Entry]) -> None:
        self.read_to[stream] = entries[-1][0]
        for entry_id, fields in entries:
            written_us = _written_us(entry_id)
            self.oldest_us = min(self.oldest_us or written_us, written_us)
            self.rows.append(_row(fields, written_us))


class EventLog:
    """Moves events from the streams into the files of one folder, for as long as it holds the folder's lock."""

    def __init__(self, client: "Redis | RedisCluster", folder: Path, flush_s: float, telemetry: Telemetry) -> None:
        self._client = client
        self._folder = folder
        self._flush_s = flush_s
        self._telemetry = telemetry
        self._lock: IO[str] | None = None
        # Without a limit of time: what was given up and goes on would write beside its successor.
        self._on_disk = BlockingCalls("the event log")

    async def run(self, leaving: asyncio.Event) -> None:
        """Write a file every `flush_s` seconds until `leaving` is set, and then a last one."""
        while not leaving.is_set():
            await self._try_flush()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), self._flush_s)
        await self._try_flush()
        if self._lock is not None:
            self._lock.close()

    async def flush(self) -> int:
        """Move everything that the streams hold; answers the number of rows written, 0 if another process writes."""
        if not self._is_writer():
            return 0
        rows = 0
        while True:
            batch = await self._read()
            now_us = time.time_ns() // 1000
            self._telemetry.log_lag.set((now_us - (batch.oldest_us or now_us)) / 1e6)
            if batch.erasures:
                marks = [mark for marks in batch.erasures.values() for mark in marks]
                await self._on_disk(erase_from_files, self._folder, marks)
            if batch.rows:
                await self._on_disk(write_file, self._folder, batch.rows)
            await self._delete(batch)
            rows += len(batch.rows)
            self._telemetry.logged_plays.inc(len(batch.rows))
            if not batch.full:
                return rows

    async def _try_flush(self) -> None:
        try:
            rows = await self.flush()
        except (StoreUnavailable, OSError, pl.exceptions.PolarsError) as error:
            # The events wait in their streams; the next look finds them.
            self._telemetry.log_failures.inc()
            reason = error.reason if isinstance(error, StoreUnavailable) else str(error).partition("\n")[0][:200]
            _log.error("event_log_write_failed", folder=str(self._folder), reason=reason)
        except Exception:  # noqa: BLE001 (see below)
            # The outermost loop of a task that nobody watches: it must outlive what it cannot foresee.
            self._telemetry.log_failures.inc()
            _log.exception("event_log_error", folder=str(self._folder))
        else:
            if rows:
                _log.info("event_log_written", folder=str(self._folder), rows=rows)

    def _is_writer(self) -> bool:
        """Take the folder's lock, or say that another process holds it; the kernel frees it when its holder ends."""
        if self._lock is not None:
            return True
        lock = private_file(self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        for left_over in self._folder.glob(f".*{_UNFINISHED}"):
            left_over.unlink()
        return True

    async def _read(self) -> _Batch:
        batch = _Batch()
        with store_errors():
            batch.erasures = await self._erasures()  # before the streams: one that comes later is for the next turn
            for stream in await self._streams_with_entries():
                begin = "-"
                while entries := await self._entries(stream, begin):
                    batch.add(stream, entries)
                    begin = "(" + entries[-1][0]
                    batch.full = len(batch.rows) >= _MOST_ROWS
                    if batch.full:
                        return batch
                    if len(entries) < _AT_ONCE:
                        break
        return batch

    async def _entries(self, stream: str, begin: str) -> list[Entry]:
        entries: Any = await self._client.xrange(stream, begin, count=_AT_ONCE)
        return list(entries)

    async def _streams_with_entries(self) -> list[str]:
        streams = [stream_of(bucket) for bucket in range(BUCKETS)]
        pipeline = self._client.pipeline(transaction=False)
        for stream in streams:
            pipeline.xlen(stream)
        return [stream for stream, length in zip(streams, await pipeline.execute(), strict=True) if length]

    async def _erasures(self) -> dict[str, list[str]]:
        sets = [erasures_of(bucket) for bucket in range(BUCKETS)]
        pipeline = self._client.pipeline(transaction=False)
        for one in sets:
            pipeline.smembers(one)
        return {one: sorted(marks) for one, marks in zip(sets, await pipeline.execute(), strict=True) if marks}

    async def _delete(self, batch: _Batch) -> None:
        """Delete what was read: an entry's id rises above those before it, so all that came since is kept."""
        if not batch.read_to and not batch.erasures:
            return
        with store_errors():
            pipeline = self._client.pipeline(transaction=False)
            for erasures, marks in batch.erasures.items():
                pipeline.srem(erasures, *marks)
            for stream, last in batch.read_to.items():
                ms, _, number = last.partition("-")
                pipeline.xtrim(stream, minid=f"{ms}-{int(number) + 1}", approximate=False)
            await pipeline.execute()


def open_folder(folder: Path) -> Path:
    """The folder, made if need be and closed to other users. Raises BadOption if it cannot be written."""
    try:
        close_to_others(folder, own=("events-*.parquet", f".*{_UNFINISHED}", "lock"))  # others may be in it
        private_file(folder / "lock")
    except OSError as error:
        raise BadOption(f"the event log folder {folder} cannot be written: {error.strerror}; choose another") from error
    return folder


def write_file(folder: Path, rows: Sequence[tuple[Any, ...]]) -> Path:
    """Write rows in the order of SCHEMA to a new file, whole or not at all."""
    parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    frame = pl.concat([pl.DataFrame(part, schema=SCHEMA, orient="row") for part in parts])
    return _write_whole(frame, folder, f"events-{datetime.now(UTC):%Y%m%dT%H%M%S}")


def erase_from_files(folder: Path, marks: Sequence[str]) -> None:
    """Remove erased sessions' plays from the folder's files; one of which something is left is renamed.

    A mark `<id>@<ms>` erases what its id named until then. A damaged file is left as it is: events that wait behind
    this erasure are not to wait until it is taken away.
    """
    until: dict[str, int] = {}
    for session_id, _, ms in (mark.rpartition("@") for mark in marks):
        until[session_id] = max(int(ms), until.get(session_id, 0))
    named, began = (pl.col("session_id").str.extract(part, 1) for part in ("^(.*)@", "@([0-9]+)$"))
    of_erased = began.cast(pl.Int64) <= named.replace_strict(until, default=-1, return_dtype=pl.Int64)
    for path in sorted(folder.glob("events-*.parquet")):
        try:
            _check_whole(path)
            check_footer(path)
            if not pl.scan_parquet(path).select(of_erased.any()).collect().item():
                continue
            kept = pl.read_parquet(path, memory_map=False).filter(~of_erased)
        except UNREADABLE as error:
            _log.error("event_log_file_corrupt", file=str(path), reason=str(error).partition("\n")[0][:200])
            continue
        if len(kept) and _write_whole(kept, folder, path.name.rpartition("-")[0]) == path:
            continue
        path.unlink()  # after a crash before this, the erasure is read from its stream again
        _flush_to_disk(folder)


def _check_whole(path: Path) -> None:
    """Raise DamagedFile where the file is not what it was written as, which its name tells.

    Polars cannot be left to find out: for some bytes it asks for 2^61 others, and ends the process.
    """
    named = _NAME.fullmatch(path.name)  # files of Segue before this have names that tell nothing
    if named is not None and _digest(path) != named[1]:
        raise DamagedFile("it is not what was written: its sha256 is not the one that it is named by")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:_DIGITS]


def _write_whole(frame: pl.DataFrame, folder: Path, stem: str) -> Path:
    """Write a new file, whole or not at all; its name ends with what its content is told by."""
    unfinished = folder / f".{stem}-{uuid.uuid4().hex[:8]}{_UNFINISHED}"
    try:
        frame.write_parquet(private_file(unfinished), compression="zstd")
        _flush_to_disk(unfinished)
        path = folder / f"{stem}-{_digest(unfinished)}.parquet"
        unfinished.replace(path)
        _flush_to_disk(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    return path


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written_us(entry_id: str) -> int:
    """Microseconds from an entry id `<ms>-<number within the ms>`: rises with the id, as Redis never adds 1000 a ms."""
    ms, _, number = entry_id.partition("-")
    return int(ms) * 1000 + min(int(number), 999)


def _row(fields: Mapping[str, str], written_us: int) -> tuple[Any, ...]:
    return (
        fields["session_id"],
        int(fields["position"]),
        fields["track_id"],
        fields["skipped"] == "1",
        int(fields["at"]),
        int(fields["ms_played"]) if fields["ms_played"] else None,
        written_us,
    )
