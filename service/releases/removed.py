"""Removed tracks: takedowns that hold at once, for all releases, on every worker and replica, and after restarts.

The folder of releases has a file `removed-tracks.json`, an object with the removed ids and the times of their removal.
The worker that removes a track writes it before it answers. All others look for changes every POLL_S seconds. A track
stays removed in all releases until it is restored, so no swap and no training brings it back.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from segue.errors import NoReleasesFolder, ReleasesUnavailable
from service.threads import BlockingCalls

FILE: Final = "removed-tracks.json"
POLL_S: Final = 0.25
MAX_REMOVED: Final = 1_000_000

_TIMEOUT_S: Final = 5.0  # the folder may be on a network
_log = structlog.get_logger()


class RemovedTracks:
    """The removed tracks of a folder of releases. Use an instance in one event loop only."""

    def __init__(self, folder: Path | None) -> None:
        """Read the removed tracks. Raises ReleasesUnavailable if they cannot be read: a service must not start then."""
        self._folder = folder
        self._calls = BlockingCalls("the removed tracks", _TIMEOUT_S)
        self._lock = threading.Lock()  # of a read and a change, which run in different threads
        self._seen: tuple[int, int, int] | None = None
        self.since: Mapping[str, str] = {}  # id -> time of the removal
        self._read()

    async def change(self, track_id: str, *, removed: bool) -> bool:
        """Remove or restore a track, in the file as well. Return whether this changed anything.

        Raises NoReleasesFolder without a folder, and ReleasesUnavailable if the file cannot be written.
        """
        if self._folder is None:
            raise NoReleasesFolder(
                "the service has no folder of releases, in which removed tracks are stored for all workers: set "
                "SEGUE_RELEASES_DIR and restart it"
            )
        try:
            return await self._calls(lambda: self._change(track_id, removed))
        except TimeoutError as error:
            raise ReleasesUnavailable(f"{error}: check its disk") from None

    async def watch(self, leaving: asyncio.Event, on_change: Callable[[], object]) -> None:
        """Call `on_change` whenever another worker has removed or restored tracks, until `leaving` is set."""
        while self._folder is not None and not leaving.is_set():
            try:
                if await self._calls(self._read):
                    await self._calls(on_change)  # in a thread: a large number of ids takes a while
            except (ReleasesUnavailable, TimeoutError) as error:
                _log.error("removed_tracks_unreadable", reason=str(error))
            except Exception:  # noqa: BLE001 (the task must not end)
                _log.exception("removed_tracks_unreadable")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), POLL_S)

    def _change(self, track_id: str, removed: bool) -> bool:
        with self._lock:
            return self._change_file(track_id, removed)

    def _read(self) -> bool:
        with self._lock:
            return self._read_file()

    def _change_file(self, track_id: str, removed: bool) -> bool:
        assert self._folder is not None
        file = self._folder / FILE
        unfinished = self._folder / f".{FILE}.{uuid.uuid4().hex[:8]}"
        try:
            with (self._folder / f".{FILE}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._read_file()
                since = dict(self.since)
                if removed == (track_id in since):
                    return False
                if removed:
                    since[track_id] = datetime.now(UTC).isoformat(timespec="milliseconds")
                else:
                    del since[track_id]
                if len(since) > MAX_REMOVED:
                    raise ReleasesUnavailable(
                        f"{file} has {MAX_REMOVED:,} tracks already: restore some, or train again"
                    )
                with unfinished.open("w", encoding="utf-8") as stream:
                    json.dump({"removed": since}, stream, indent=0)
                    stream.flush()
                    os.fsync(stream.fileno())  # a takedown that was answered survives a power failure
                unfinished.replace(file)
                self._read_file()
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise ReleasesUnavailable(
                f"{file} cannot be written ({error.strerror}): the service must be able to write there"
            ) from error
        return True

    def _read_file(self) -> bool:
        """Read the file if it has changed. Return whether it has."""
        if self._folder is None:
            return False
        file = self._folder / FILE
        try:
            facts = file.stat()
            seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if seen == self._seen:
                return False
            since = json.loads(file.read_bytes())["removed"]
            if not isinstance(since, dict) or not all(isinstance(time, str) for time in since.values()):
                raise ValueError("expected an object of ids and times")
            "".join([*since, *since.values()]).encode()  # lone surrogates cannot be answered
        except FileNotFoundError as error:
            if self._seen is None:
                return False
            raise ReleasesUnavailable(
                f"{file} is gone: the {len(self.since):,} tracks that were removed stay removed here. Put the file back"
            ) from error
        except OSError as error:
            raise ReleasesUnavailable(f"{file} cannot be read ({error.strerror}): check its disk") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReleasesUnavailable(
                f"{file} is damaged, expected an object of removed ids: put back a copy of it"
            ) from error
        self._seen, self.since = seen, since
        return True
