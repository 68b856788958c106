"""The event log: reported events as Parquet files. `segue prepare events` reads the plays as training data.

Plays are in files `events-*.parquet`. Likes, dislikes and bans are in files `preferences-*.parquet`, and served lists
(SEGUE_LIST_LOG_RATE) in files `lists-*.parquet`, so that no reader of plays takes them for plays.

Every event stays in its Redis stream until it is in a file, so a crash loses nothing. A crash between writing and
deleting writes some rows twice (at least once delivery). Each folder has one writer at a time. Per session_id and
position, the row with the latest `written_at` is the play: a play that became a skip has two rows.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
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
from service.sessions.redis_errors import store_errors
from service.sessions.store import erasures_of, lists_of, preferences_of, stream_of
from service.telemetry import Telemetry
from service.threads import BlockingCalls

_log = structlog.get_logger()

SCHEMA: Final[dict[str, pl.DataType]] = {
    "session_id": pl.String(),  # <id>@<start of the session in ms since 1970>: a reused id is a new session
    "position": pl.Int64(),  # index of the play in its session
    "track_id": pl.String(),
    "skipped": pl.Boolean(),
    "timestamp": pl.Datetime("ms", "UTC"),
    "ms_played": pl.Int64(),
    "written_at": pl.Datetime("us", "UTC"),  # from the entry id of the stream, which never decreases
}
PREFERENCE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "session_id": pl.String(),  # as above
    "position": pl.Int64(),  # index of the latest play of the session at that time, -1 for none
    "type": pl.String(),  # of the event, such as like
    "track_id": pl.String(),
    "timestamp": pl.Datetime("ms", "UTC"),
    "written_at": pl.Datetime("us", "UTC"),
}
LIST_SCHEMA: Final[dict[str, pl.DataType]] = {
    "session_id": pl.String(),  # as above
    "position": pl.Int64(),  # of the next play of the session at that time
    "timestamp": pl.Datetime("ms", "UTC"),  # of the answer
    "release": pl.String(),
    "arm": pl.String(),  # of a running A/B test: current or second; null without one
    "policy": pl.String(),  # null without one
    "source": pl.String(),  # model or popularity
    "track_ids": pl.List(pl.String()),  # in order
    "propensities": pl.List(pl.Float64()),  # of each track at its rank, given the ranks above it
    "explored": pl.List(pl.Boolean()),  # whether exploration drew the track
    "written_at": pl.Datetime("us", "UTC"),
}
_MAX_ROWS: Final = 100_000  # per file
_TRACK_IDS: Final = list(LIST_SCHEMA).index("track_ids")
_TRACKS_PER_ROW: Final = 10  # tracks of lists that count as one row
# Entries read, and rows passed to Polars, per step. A step blocks the event loop or the GIL for a few milliseconds.
_CHUNK_SIZE: Final = 500
_UNFINISHED: Final = ".unfinished"
_DIGITS: Final = 32  # of the content's sha256, in the file name
_EVENTS, _PREFERENCES, _LISTS = "events", "preferences", "lists"  # the kinds of files
_SCHEMAS: Final = {_EVENTS: SCHEMA, _PREFERENCES: PREFERENCE_SCHEMA, _LISTS: LIST_SCHEMA}
_NAME: Final = re.compile(rf"(?:events|preferences|lists)-\d{{8}}T\d{{6}}-([0-9a-f]{{{_DIGITS}}})\.parquet")

Entry: TypeAlias = tuple[str, dict[str, str]]


@dataclass(slots=True)
class _Batch:
    """Events and erasures read from Redis in one pass."""

    read_to: dict[str, str] = field(default_factory=dict)  # stream -> id of the last entry read
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    preferences: list[tuple[Any, ...]] = field(default_factory=list)
    lists: list[tuple[Any, ...]] = field(default_factory=list)
    listed: int = 0  # tracks of the lists
    erasures: dict[str, list[str]] = field(default_factory=dict)  # key of the erasure set -> its marks
    oldest_us: int | None = None
    full: bool = False  # whether the streams may contain more

    def add(self, stream: str, entries: Sequence[Entry]) -> None:
        self.read_to[stream] = entries[-1][0]
        for entry_id, fields in entries:
            written_us = _written_us(entry_id)
            self.oldest_us = min(self.oldest_us or written_us, written_us)
            if "tracks" in fields:
                row = served_list(fields, written_us)
                self.lists.append(row)
                self.listed += len(row[_TRACK_IDS])
            elif "type" in fields:
                self.preferences.append(_preference(fields, written_us))
            else:
                self.rows.append(_row(fields, written_us))
        size = len(self.rows) + len(self.preferences) + self.listed // _TRACKS_PER_ROW
        self.full = size >= _MAX_ROWS


class EventLog:
    """Moves events from the streams to the files of one folder, while it has the folder's lock."""

    def __init__(self, client: "Redis | RedisCluster", folder: Path, flush_s: float, telemetry: Telemetry) -> None:
        self._client = client
        self._folder = folder
        self._flush_s = flush_s
        self._telemetry = telemetry
        self._lock: IO[str] | None = None
        # No time limit: an abandoned call could still write while the next one runs.
        self._disk_calls = BlockingCalls("the event log")

    async def run(self, stopping: asyncio.Event) -> None:
        """Flush every `flush_s` seconds until `stopping` is set, then once more."""
        while not stopping.is_set():
            await self._try_flush()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self._flush_s)
        await self._try_flush()
        if self._lock is not None:
            self._lock.close()

    async def flush(self) -> int:
        """Move all events to files. Returns the number of plays written, 0 if another process is the writer."""
        if not self._is_writer():
            return 0
        rows = 0
        while True:
            batch = await self._read()
            now_us = time.time_ns() // 1000
            self._telemetry.log_lag.set((now_us - (batch.oldest_us or now_us)) / 1e6)
            if batch.erasures:
                marks = [mark for marks in batch.erasures.values() for mark in marks]
                await self._disk_calls(erase_from_files, self._folder, marks)
            if batch.rows:
                await self._disk_calls(write_file, self._folder, batch.rows)
            if batch.preferences:
                await self._disk_calls(write_file, self._folder, batch.preferences, _PREFERENCES)
            if batch.lists:
                await self._disk_calls(write_file, self._folder, batch.lists, _LISTS)
            await self._delete(batch)
            rows += len(batch.rows)
            self._telemetry.logged_plays.inc(len(batch.rows))
            self._telemetry.logged_lists.inc(len(batch.lists))
            if not batch.full:
                return rows

    async def _try_flush(self) -> None:
        try:
            rows = await self.flush()
        except (StoreUnavailable, OSError, pl.exceptions.PolarsError) as error:
            # The events stay in their streams until the next flush.
            self._telemetry.log_failures.inc()
            reason = error.reason if isinstance(error, StoreUnavailable) else str(error).partition("\n")[0][:200]
            _log.error("event_log_write_failed", folder=str(self._folder), reason=reason)
        except Exception:  # noqa: BLE001 (see below)
            # Nothing awaits this background task: it must survive unexpected errors.
            self._telemetry.log_failures.inc()
            _log.exception("event_log_error", folder=str(self._folder))
        else:
            if rows:
                _log.info("event_log_written", folder=str(self._folder), rows=rows)

    def _is_writer(self) -> bool:
        """Try to take the folder's lock. Returns False if another process has it. The kernel releases it at exit."""
        if self._lock is not None:
            return True
        lock = private_file(self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        for unfinished in self._folder.glob(f".*{_UNFINISHED}"):
            unfinished.unlink()
        return True

    async def _read(self) -> _Batch:
        batch = _Batch()
        with store_errors():
            batch.erasures = await self._erasures()  # before the streams: a later erasure is left to the next flush
            for stream in await self._streams_with_entries():
                start = "-"
                while entries := await self._entries(stream, start):
                    batch.add(stream, entries)
                    start = "(" + entries[-1][0]
                    if batch.full:
                        return batch
                    if len(entries) < _CHUNK_SIZE:
                        break
        return batch

    async def _entries(self, stream: str, start: str) -> list[Entry]:
        entries: Any = await self._client.xrange(stream, start, count=_CHUNK_SIZE)
        return list(entries)

    async def _streams_with_entries(self) -> list[str]:
        streams = [key_of(bucket) for key_of in (stream_of, preferences_of, lists_of) for bucket in range(BUCKETS)]
        pipeline = self._client.pipeline(transaction=False)
        for stream in streams:
            pipeline.xlen(stream)
        return [stream for stream, length in zip(streams, await pipeline.execute(), strict=True) if length]

    async def _erasures(self) -> dict[str, list[str]]:
        keys = [erasures_of(bucket) for bucket in range(BUCKETS)]
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.smembers(key)
        return {key: sorted(marks) for key, marks in zip(keys, await pipeline.execute(), strict=True) if marks}

    async def _delete(self, batch: _Batch) -> None:
        """Delete the entries and marks of a batch. Entry ids increase, so entries added since then are kept."""
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
    """Create the folder if needed, and close it to other users. Raises BadOption if it is not writable."""
    try:
        own = (*(f"{kind}-*.parquet" for kind in _SCHEMAS), f".*{_UNFINISHED}", "lock")
        close_to_others(folder, own=own)  # it may contain other files
        private_file(folder / "lock")
    except OSError as error:
        raise BadOption(f"the event log folder {folder} cannot be written: {error.strerror}; choose another") from error
    return folder


def write_file(folder: Path, rows: Sequence[tuple[Any, ...]], kind: str = _EVENTS) -> Path:
    """Atomically write rows to a new file. Returns its path.

    `kind` is `events`, with columns in the order of SCHEMA, `preferences`, in the order of PREFERENCE_SCHEMA, or
    `lists`, in the order of LIST_SCHEMA.
    """
    chunks = [rows[start : start + _CHUNK_SIZE] for start in range(0, len(rows), _CHUNK_SIZE)]
    frame = pl.concat([pl.DataFrame(chunk, schema=_SCHEMAS[kind], orient="row") for chunk in chunks])
    return _write_atomically(frame, folder, f"{kind}-{datetime.now(UTC):%Y%m%dT%H%M%S}")


def erase_from_files(folder: Path, marks: Sequence[str]) -> None:
    """Remove the rows of erased sessions from the folder's files of every kind. A changed file gets a new name.

    A mark `<id>@<ms>` erases the sessions with that id that started until then. Damaged files are skipped, because they
    must not block the events that are written after the erasure.
    """
    until: dict[str, int] = {}
    for session_id, _, ms in (mark.rpartition("@") for mark in marks):
        until[session_id] = max(int(ms), until.get(session_id, 0))
    session, start_ms = (pl.col("session_id").str.extract(pattern, 1) for pattern in ("^(.*)@", "@([0-9]+)$"))
    is_erased = start_ms.cast(pl.Int64) <= session.replace_strict(until, default=-1, return_dtype=pl.Int64)
    for path in sorted(path for kind in _SCHEMAS for path in folder.glob(f"{kind}-*.parquet")):
        try:
            _check_digest(path)
            check_footer(path)
            if not pl.scan_parquet(path).select(is_erased.any()).collect().item():
                continue
            kept = pl.read_parquet(path, memory_map=False).filter(~is_erased)
        except UNREADABLE as error:
            _log.error("event_log_file_corrupt", file=str(path), reason=str(error).partition("\n")[0][:200])
            continue
        if len(kept) and _write_atomically(kept, folder, path.name.rpartition("-")[0]) == path:
            continue
        path.unlink()  # after a crash before this line, the mark is still in Redis and the erasure is repeated
        _flush_to_disk(folder)


def _check_digest(path: Path) -> None:
    """Raise DamagedFile if the content does not match the digest in the file name.

    Polars must not read such a file: some damaged bytes make it allocate 2^61 bytes, which aborts the process.
    """
    match = _NAME.fullmatch(path.name)  # files of earlier versions have no digest in their names
    if match is not None and _digest(path) != match[1]:
        raise DamagedFile("its content does not match the sha256 in its name")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:_DIGITS]


def _write_atomically(frame: pl.DataFrame, folder: Path, stem: str) -> Path:
    """Write a new file atomically. Its name ends with the digest of its content."""
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
    """Convert an entry id `<ms>-<number within the ms>` to microseconds. Never decreases as the id increases."""
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


def _preference(fields: Mapping[str, str], written_us: int) -> tuple[Any, ...]:
    return (
        fields["session_id"],
        int(fields["position"]),
        fields["type"],
        fields["track_id"],
        int(fields["at"]),
        written_us,
    )


def list_fields(
    track_ids: Sequence[str],
    propensities: Sequence[float] | None,
    explored: Sequence[bool] | None,
    *,
    release: str,
    arm: str,
    policy: str,
    source: str,
) -> dict[str, str]:
    """Return the fields of a served list in its stream. No propensities: each is 1. `arm` and `policy`: '' for none."""
    return {
        "release": release,
        "arm": arm,
        "policy": policy,
        "source": source,
        "tracks": json.dumps(list(track_ids)),
        "propensities": json.dumps(list(propensities or ())),
        "explored": "".join("01"[one] for one in explored or ()),
    }


def served_list(fields: Mapping[str, str], written_us: int) -> tuple[Any, ...]:
    """Return the row of a served list, in the order of LIST_SCHEMA. `fields` are those of its entry in the stream."""
    track_ids = json.loads(fields["tracks"])
    propensities, explored = json.loads(fields["propensities"]), fields["explored"]
    return (
        fields["session_id"],
        int(fields["position"]),
        int(fields["at"]),
        fields["release"],
        fields["arm"] or None,
        fields["policy"] or None,
        fields["source"],
        track_ids,
        propensities or [1.0] * len(track_ids),
        [one == "1" for one in explored] if explored else [False] * len(track_ids),
        written_us,
    )
