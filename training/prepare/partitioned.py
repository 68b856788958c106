"""`segue prepare` in tasks, and the engine `disk`, which runs them one after another with results on disk.

    read each split -> tracks of each partition -> sessions of each partition -> filtered sessions of each partition

Between the tasks, this process counts, orders, samples and writes. It holds a few integers per play and the catalogue,
never a line of the log. The result is identical, to the byte, to that of training.prepare.pipeline in memory. A
`TaskRunner` runs the tasks: `disk` here, or Ray (training.prepare.ray_engine).

The engine `disk` stores what one task passes to another as array and Arrow files in a folder beside the new dataset,
and deletes them when nothing refers to them. It needs memory for one split or one partition, for the distinct names
and, at the end, for some tens of bytes per play to put all plays in order.
"""

import dataclasses
import itertools
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Int
from training.data.dataset import RawInteractions
from training.prepare.columns import named
from training.prepare.partition_tasks import (
    FilteredPartition,
    ReadStats,
    add_reading,
    read_portion,
    selected_of_partition,
    sessions_of_partition,
    total,
    tracks_of_partition,
)
from training.prepare.pipeline import Engine, PrepareJob, PrepareResult, check_same_format, steps_of_reading
from training.prepare.sessionize import (
    Plays,
    Step,
    drawn,
    note,
    session_filters,
    session_ids,
    times_of_starts,
)
from training.prepare.sources import InputSplit, portions_of

PORTION_BYTES: Final = 64 << 20
_PORTIONS_AT_MOST: Final = 1000  # of a log whose files can be parted: there are as many partitions, and pieces of both


class TaskRunner(Protocol):
    """Runs functions, at the same time and elsewhere perhaps."""

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """Start a function of this distribution; references to what it will return, which may be arguments."""
        ...

    def share(self, value: Any) -> Any:
        """A reference to a value that many tasks are given."""
        ...

    def result(self, reference: Any) -> Any:
        """What a reference stands for, waited for. Raises what the task raised."""
        ...


class _Sessions(NamedTuple):
    """All sessions that the rules by session leave, in the order of a dataset."""

    plays: Plays  # `owner` is the session's own number here, `at` is not known
    owner: Int  # [sessions], positions in `owners`
    owners: pl.Series
    starts: Int | None  # [sessions]


def portion_bytes_of(files: Sequence[Path]) -> int:
    """How large the portions of a log are to be, so that there are not too many."""
    return max(PORTION_BYTES, -(-sum(file.stat().st_size for file in files) // _PORTIONS_AT_MOST))


def prepare_in_tasks(
    tasks: TaskRunner, work: PrepareJob, portion_bytes: int, scratch: Path | None = None
) -> PrepareResult:
    """Make sessions of a log in as many partitions as it has portions. Raises BadLog.

    Tasks put copies of parts of the log into the folder `scratch` or, without one, where their machine has such.
    """
    portions = portions_of(work.files, portion_bytes)
    partitions = min(len(portions), _PORTIONS_AT_MOST)
    log, pieces, track_pieces = _read(tasks, work, portions, partitions, scratch)
    found = [tasks.start(tracks_of_partition, *given, returns=2) for given in zip(*track_pieces, strict=True)]
    keys = [key for key, _ in found]
    shared = tasks.share(log)
    made = [
        tasks.start(sessions_of_partition, shared, work.options, len(portions), *given, *keys, returns=2)
        for given in zip(*pieces, strict=True)
    ]
    del pieces, track_pieces  # what nobody refers to is forgotten where it lies
    counts = None
    if work.options.min_track_plays > 1:
        counts = tasks.share(_told(tasks, work, [count for _, count in made], "counting plays", total))
    chosen = [tasks.start(selected_of_partition, work.options, partition, counts)[0] for partition, _ in made]
    del made
    selected = _told(
        tasks, work, chosen, "making sessions", lambda results: [one for one in results if one is not None]
    )
    steps = _steps(log, selected, work)
    sessions = _ordered(selected)
    del selected, chosen
    plays = drawn(sessions.plays, work.options, steps)
    kept = plays.owner
    tracks, codes = _tracks([tasks.result(tracks) for _, tracks in found], plays.track)
    listening = RawInteractions(
        tracks=tracks,
        codes=codes,
        skipped=plays.skipped,
        offsets=plays.offsets,
        session_ids=session_ids(
            sessions.owner[kept], plays.piece, sessions.owners if log.form.whole_sessions else None
        ),
        started_at=times_of_starts(None if sessions.starts is None else sessions.starts[kept]),
    )
    return PrepareResult(log.read, listening, steps)


def _read(
    tasks: TaskRunner, work: PrepareJob, portions: Sequence[InputSplit], partitions: int, scratch: Path | None
) -> tuple[ReadStats, list[list[Any]], list[list[Any]]]:
    """What is known about the log, and references: for each portion its Piece, and its tracks, of each partition."""
    started = [
        tasks.start(read_portion, portion, work.kind, work.options, scratch, partitions, returns=1 + 2 * partitions)
        for portion in portions
    ]
    log: ReadStats | None = None
    for number, (portion, (reading, *_)) in enumerate(zip(portions, started, strict=True)):
        files = len(work.files)
        work.tell(f"reading {portion[0].file.name}", number * files // len(portions), files + 2)
        later: ReadStats = tasks.result(reading)
        check_same_format(later.first_file, later.form, later.form if log is None else log.form)
        log = add_reading(log, later)
    assert log is not None
    log.read.require_lines(work.kind, len(work.files))
    return log, [given[1 : 1 + partitions] for given in started], [given[1 + partitions :] for given in started]


def _told(
    tasks: TaskRunner, work: PrepareJob, references: Sequence[Any], what: str, put: Callable[[list[Any]], Any]
) -> Any:
    """What the results of the references come to, waited for one after another."""
    results = []
    for number, reference in enumerate(references):
        work.tell(f"{what}, {number} of {len(references)}", len(work.files), len(work.files) + 2)
        results.append(tasks.result(reference))
    return put(results)


def _steps(log: ReadStats, selected: Sequence[FilteredPartition], work: PrepareJob) -> list[Step]:
    """What each rule left, over all partitions. Raises BadLog where that is nothing."""
    steps = steps_of_reading(log.read)
    left = np.sum([one.left for one in selected], axis=0).tolist()
    plays, sessions = left[0]
    if plays < log.read.lines - log.read.malformed:
        steps.append(Step("repeated reports of one play merged", plays, None))
    steps.append(Step("sessions made", plays, sessions))
    for rule, (plays, after) in zip(session_filters(work.options), left[1:], strict=True):
        if rule.told_always or after != sessions:
            note(steps, rule.text, plays, after)
        sessions = after
    return steps


def _ordered(selected: Sequence[FilteredPartition]) -> _Sessions:
    """All sessions by the name of their owner; an owner's sessions are those of one partition, in its order."""
    owners = pl.concat([one.owners for one in selected])
    by_name = owners.arg_sort().to_numpy()
    rank = np.empty(len(owners), dtype=np.int64)
    rank[by_name] = np.arange(len(owners))
    first = np.cumsum([0, *(len(one.owners) for one in selected)])
    owner = np.concatenate([rank[start + one.owner] for start, one in zip(first[:-1], selected, strict=True)])
    order = np.argsort(owner, kind="stable")
    lengths = np.concatenate([one.lengths for one in selected]).astype(np.int64)
    begins = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.repeat(begins - offsets[:-1], lengths)
    place += np.arange(len(place))
    plays = Plays(
        track=np.concatenate([one.track for one in selected])[place],
        skipped=np.concatenate([one.skipped for one in selected])[place],
        at=None,
        offsets=offsets,
        owner=np.arange(len(order)),
        piece=np.concatenate([one.piece for one in selected])[order].astype(np.int64),
    )
    starts = [one.starts for one in selected if one.starts is not None]
    return _Sessions(plays, owner[order], owners.gather(by_name), np.concatenate(starts)[order] if starts else None)


def _tracks(tracks: Sequence[pl.DataFrame], track: NDArray[np.uint32]) -> tuple[pl.DataFrame, Int]:
    """The tracks that are played, named, and `track` [plays] as positions among them instead of among all."""
    known = pl.concat(tracks, how="diagonal")
    used = np.flatnonzero(np.bincount(track, minlength=len(known)))
    position = np.zeros(len(known), dtype=np.int64)
    position[used] = np.arange(len(used))
    played = known[used]
    return named(played["track"], {name: played[name] for name in played.columns if name != "track"}), position[track]


_PORTION_BYTES: Final = 256 << 20  # of the log at a time; a partition's lines are about as many
_SMALL_BYTES: Final = 1 << 14  # what is smaller stays in memory


def disk_engine(portion_bytes: int | None = None) -> Engine:
    """An engine for training.prepare.pipeline.prepare that reads portions of so many bytes."""

    def engine(work: PrepareJob) -> PrepareResult:
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
        return _each(reference.value, _read_result) if isinstance(reference, _Reference) else reference

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


def _read_result(value: Any) -> Any:
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
