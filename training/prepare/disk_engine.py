"""`segue prepare --engine disk`: a log larger than memory, prepared in this process a partition at a time.

The tasks of training.prepare.partitioned run one after another; what one leaves for another waits in a folder
beside the dataset to be, as plain array and Arrow files, and is deleted once nobody refers to it. Memory is taken for
one portion or one partition, for the distinct names, and at the end, where all plays are put in order, for some tens of
bytes a play.
"""

import dataclasses
import itertools
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from training.prepare.partitioned import portion_bytes_of, prepare_in_tasks
from training.prepare.pipeline import Engine, Made, Work

_PORTION_BYTES: Final = 256 << 20  # of the log at a time; a partition's lines are about as many
_SMALL_BYTES: Final = 1 << 14  # what is smaller stays in memory


def disk_engine(portion_bytes: int | None = None) -> Engine:
    """An engine for training.prepare.pipeline.prepare that reads portions of so many bytes."""

    def engine(work: Work) -> Made:
        size = portion_bytes or max(portion_bytes_of(work.files), _PORTION_BYTES)
        with tempfile.TemporaryDirectory(dir=work.scratch, prefix=".log-") as folder:
            return prepare_in_tasks(DiskTasks(Path(folder)), work, size, Path(folder))

    return engine


class DiskTasks:
    """See training.prepare.partitioned.Tasks: each task runs when it is started, in this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """See Tasks."""
        found = function(*map(self.result, arguments))
        return [self.share(one) for one in ((found,) if returns == 1 else found)]

    def share(self, value: Any) -> Any:
        """See Tasks."""
        return _Reference(_each(value, self._written))

    def result(self, reference: Any) -> Any:
        """See Tasks."""
        return _each(reference.value, _read) if isinstance(reference, _Reference) else reference

    def _written(self, value: Any) -> Any:
        """A table or an array as a file that holds it, unless it is small; anything else as it is."""
        if isinstance(value, np.ndarray) and value.nbytes > _SMALL_BYTES:
            file = _OnDisk(self._folder / f"{next(self._numbers)}.npy")
            np.save(file.path, value, allow_pickle=False)
            return file
        if isinstance(value, pl.Series | pl.DataFrame) and value.estimated_size() > _SMALL_BYTES:
            kind = "series" if isinstance(value, pl.Series) else "frame"
            file = _OnDisk(self._folder / f"{next(self._numbers)}.{kind}")
            (value.to_frame() if isinstance(value, pl.Series) else value).write_ipc(file.path)
            return file
        return value


class _OnDisk:
    """A file, deleted when nobody refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, path.unlink, missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What a task gave, its large parts on disk."""

    value: Any


def _read(value: Any) -> Any:
    """What a file holds; anything else as it is."""
    if not isinstance(value, _OnDisk):
        return value
    if value.path.suffix == ".npy":
        return np.load(value.path, allow_pickle=False)
    frame = pl.read_ipc(value.path)
    return frame.to_series() if value.path.suffix == ".series" else frame


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with its tables and arrays changed, those in the fields of its tuples and dataclasses too."""
    if isinstance(value, tuple):
        parts = [_each(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _each(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return change(value)
