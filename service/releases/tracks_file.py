"""A JSON file of the folder of releases with a value per track, which all workers and replicas share.

The worker that changes the file writes it before it answers: under a lock, durably, and by an atomic replacement. All
others look for changes every POLL_S seconds. The file belongs to no release, so its tracks outlive swaps and restarts.
A file that is lost or damaged while a service runs changes nothing there.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import orjson
import structlog

from segue.errors import NoReleasesFolder, ReleasesUnavailable, TooManyTracks
from segue.safe_files import flush
from service.threads import BlockingCalls

POLL_S: Final = 0.25

_TIMEOUT_S: Final = 5.0  # the folder may be on a network
_log = structlog.get_logger()

Value = TypeVar("Value")


class TracksFile(Generic[Value]):
    """Values of tracks by id. Use an instance in one event loop only.

    A subclass names the file. `key` is the member of its JSON object that has the tracks, and a word for messages.
    """

    file: ClassVar[str]
    key: ClassVar[str]
    most: ClassVar[int]  # maximum number of tracks
    remedy: ClassVar[str]  # what to do if there are more

    def __init__(self, folder: Path | None) -> None:
        """Read the file. Raises ReleasesUnavailable if it cannot be read: a service must not start then."""
        self._folder = folder
        self._calls = BlockingCalls(f"the {self.key} tracks", _TIMEOUT_S)
        self._editing = asyncio.Lock()  # edits wait for each other here, not in threads
        self._lock = threading.Lock()  # of a read and a change, which run in different threads
        self._seen: tuple[int, int, int] | None = None
        self.tracks: Mapping[str, Value] = {}  # replaced by a new mapping whenever the file changes
        self._read()

    @classmethod
    def read_value(cls, value: Any) -> Value:
        """Return the value of a track from its JSON. Raises ValueError, KeyError or TypeError."""
        raise NotImplementedError

    @classmethod
    def as_json(cls, value: Value) -> Any:
        """Return a value as `read_value` reads it."""
        return value

    async def edit(self, change: Callable[[dict[str, Value]], bool]) -> bool:
        """Call `change` with the tracks, and write the file if it returns True. Return what it returned.

        Raises NoReleasesFolder without a folder, TooManyTracks, and ReleasesUnavailable if the file cannot be written.
        """
        if self._folder is None:
            raise NoReleasesFolder(
                f"the service has no folder of releases, in which {self.key} tracks are stored for all workers: set "
                "SEGUE_RELEASES_DIR and restart it"
            )
        try:
            async with self._editing:
                return await self._calls(lambda: self._edit(change))
        except TimeoutError as error:
            raise ReleasesUnavailable(f"{error}: check its disk") from None

    async def watch(self, leaving: asyncio.Event, on_change: Callable[[], object]) -> None:
        """Call `on_change` with every change of the file, until `leaving` is set. A call that fails is repeated.

        The changes of this worker are among them, as the call that made one may have failed before it applied it.
        """
        followed: Mapping[str, Value] | None = None
        while self._folder is not None and not leaving.is_set():
            try:
                await self._calls(self._read)
                tracks = self.tracks
                if tracks is not followed:
                    await self._calls(on_change)  # in a thread: a large number of ids takes a while
                    followed = tracks
            except (ReleasesUnavailable, TimeoutError) as error:
                _log.error(f"{self.key}_tracks_unreadable", reason=str(error))
            except Exception:  # noqa: BLE001 (the task must not end)
                _log.exception(f"{self.key}_tracks_unreadable")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), POLL_S)

    def _edit(self, change: Callable[[dict[str, Value]], bool]) -> bool:
        with self._lock:
            return self._edit_file(change)

    def _read(self) -> bool:
        with self._lock:
            return self._read_file()

    def _edit_file(self, change: Callable[[dict[str, Value]], bool]) -> bool:
        assert self._folder is not None
        file = self._folder / self.file
        unfinished = self._folder / f".{self.file}.{uuid.uuid4().hex[:8]}"
        try:
            with (self._folder / f".{self.file}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._read_file()
                tracks = dict(self.tracks)
                if not change(tracks):
                    return False
                if len(tracks) > max(self.most, len(self.tracks)):
                    raise TooManyTracks(f"{self.most:,} tracks are {self.key} already: {self.remedy}")
                content = {self.key: {name: self.as_json(one) for name, one in tracks.items()}}
                with unfinished.open("wb") as stream:
                    stream.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))
                    stream.flush()
                    os.fsync(stream.fileno())  # a change that was answered survives a power failure
                seen = _seen(unfinished.stat())
                unfinished.replace(file)
                self._seen, self.tracks = seen, tracks
                self._flush_folder()
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise ReleasesUnavailable(
                f"{file} cannot be written ({error.strerror}): the service must be able to write there"
            ) from error
        return True

    def _flush_folder(self) -> None:
        """Write the new name to the disk. Some network file systems cannot, and the change holds without it."""
        assert self._folder is not None
        try:
            flush(self._folder)
        except OSError as error:
            _log.warning(f"{self.key}_tracks_not_flushed", folder=str(self._folder), reason=error.strerror)

    def _read_file(self) -> bool:
        """Read the file if it has changed. Return whether it has."""
        if self._folder is None:
            return False
        file = self._folder / self.file
        try:
            seen = _seen(file.stat())
            if seen == self._seen:
                return False
            content = orjson.loads(file.read_bytes())[self.key]
            if not isinstance(content, dict):
                raise ValueError("expected an object of ids")
            tracks = {track_id: self.read_value(value) for track_id, value in content.items()}
        except FileNotFoundError as error:
            if self._seen is None:
                return False
            raise ReleasesUnavailable(
                f"{file} is gone: the {len(self.tracks):,} tracks that were {self.key} stay {self.key} here. Put the "
                "file back"
            ) from error
        except OSError as error:
            raise ReleasesUnavailable(f"{file} cannot be read ({error.strerror}): check its disk") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReleasesUnavailable(
                f"{file} is damaged, expected an object of {self.key} tracks by id: put back a copy of it"
            ) from error
        self._seen, self.tracks = seen, tracks
        return True


def _seen(facts: os.stat_result) -> tuple[int, int, int]:
    """Return what tells one version of the file from the next."""
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
