"""`segue prepare --engine disk`: the tasks of training.prepare.pipeline in this process, with their results on disk.

Results are array and Arrow files in a folder beside the new dataset. A file is deleted when nothing refers to it. The
engine needs memory for one input split or one partition, for the distinct ids and names and, at the end, some tens of
bytes per play to put all plays in order.
"""

import dataclasses
import itertools
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from training.prepare.pipeline import Engine, PrepareJob, PrepareResult, SerialTasks, run_tasks
from training.prepare.sources import LogFile, input_splits

SPLIT_BYTES: Final = 64 << 20
# Also the number of splits, if all files can be sliced. The shuffle has a block for each pair of both.
MAX_PARTITIONS: Final = 1000
_DISK_SPLIT_BYTES: Final = 256 << 20  # one split is in memory at a time; a partition has about as many lines
_IN_MEMORY_BYTES: Final = 1 << 14  # smaller results stay in memory


def split_bytes_of(files: Sequence[LogFile]) -> int:
    """The size of the input splits, so that there are not too many of them."""
    return max(SPLIT_BYTES, -(-sum(file.size() for file in files) // MAX_PARTITIONS))


def disk_engine(split_bytes: int | None = None) -> Engine:
    """An engine for training.prepare.pipeline.prepare with input splits of `split_bytes`."""

    def engine(job: PrepareJob) -> PrepareResult:
        size = split_bytes or max(split_bytes_of(job.files), _DISK_SPLIT_BYTES)
        splits = input_splits(job.files, size, job.kind, job.options.encoding)
        with tempfile.TemporaryDirectory(dir=job.scratch, prefix=".log-") as folder:
            tasks = DiskTasks(Path(folder))
            return run_tasks(tasks, job, splits, min(len(splits), MAX_PARTITIONS), scratch=Path(folder))

    return engine


class DiskTasks(SerialTasks):
    """SerialTasks whose results are in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def stored(self, value: Any) -> Any:
        """The value with files instead of large arrays and tables."""
        return _each(value, self._written)

    def loaded(self, value: Any) -> Any:
        """The value with the arrays and tables of the files."""
        return _each(value, _read_file)

    def _written(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.nbytes > _IN_MEMORY_BYTES:
            file = _OnDisk(self._folder / f"{next(self._numbers)}.npy")
            np.save(file.path, value, allow_pickle=False)
            return file
        if isinstance(value, pl.Series | pl.DataFrame) and value.estimated_size() > _IN_MEMORY_BYTES:
            kind = "series" if isinstance(value, pl.Series) else "frame"
            file = _OnDisk(self._folder / f"{next(self._numbers)}.{kind}")
            (value.to_frame() if isinstance(value, pl.Series) else value).write_ipc(file.path)
            return file
        return value


class _OnDisk:
    """A file that is deleted when nothing refers to this object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, path.unlink, missing_ok=True)


def _read_file(value: Any) -> Any:
    """The content of a file; any other value unchanged."""
    if not isinstance(value, _OnDisk):
        return value
    if value.path.suffix == ".npy":
        return np.load(value.path, allow_pickle=False)
    frame = pl.read_ipc(value.path)
    return frame.to_series() if value.path.suffix == ".series" else frame


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to a value, or to each field of tuples and dataclasses."""
    if isinstance(value, tuple):
        parts = [_each(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _each(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return change(value)
