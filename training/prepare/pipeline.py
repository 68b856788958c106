"""`segue prepare`: make a dataset of listening logs, and report the lines that could not be read.

This module puts the steps together. The columns of a log are in training.prepare.formats, the session rules in
training.prepare.sessionize. The rules are applied in this order, and the report has the plays left after each of them:

1. Malformed lines (a wrong number of fields; no user, session or track; an unreadable time, position or skip flag) are
   dropped and counted, and the report shows the first five. A line is a record: a quoted field ends on its line.
2. Repeated reports of one play (same session, same position) are merged. The newest by `written_at` remains, or the
   last in the order of files and lines if the log has no such column. So a log may be delivered more than once, and
   a play may be reported again after it was skipped. Sessions without positions are ordered by `timestamp`, and none
   of their plays are merged.
3. The plays of a user are split into sessions at idle gaps, and skips are inferred. Logs of whole sessions (MSSD, and
   events with a session_id) keep their sessions.
4. Plays of tracks with fewer than `min_track_plays` plays are dropped. Plays are counted after step 3.
5. Sessions longer than `max_session_plays` are split. Then sessions and remainders with fewer plays than
   `min_session_plays` are dropped.
6. Sessions are sampled: `sample_half_skips`, then `max_sessions`.

Sessions are ordered by the id of their user or session in the log, then by time. Sessions of users are numbered
(`s00000001`), so no id of a user enters a dataset. Whole sessions keep their ids. If one is split, its second piece has
`~2` after the id, its third `~3`.

The work consists of tasks, in the manner of MapReduce:

    read each input split -> merge the tracks of each partition -> sessions of each partition -> filters

Read tasks distribute lines to partitions by their owner (user or session), and tracks by their key. All lines of an
owner are in one partition. Blocks are merged in the order of their splits, so results that depend on the order of the
log do not change. Between the tasks this process counts, orders, samples and writes. It needs a few integers per play
and the catalogue, but no lines of the log. A `TaskRunner` runs the tasks: in memory here, on disk
(training.prepare.disk_engine) or on Ray (training.prepare.ray_engine). In memory there is one partition. All engines
give the same dataset, byte for byte.
"""

import functools
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import polars as pl

from segue.arrays import Int
from segue.safe_files import check_output_free
from training.data.dataset import FACTS_FILE, Dataset, RawInteractions, write_listening
from training.prepare.columns import TRACK_NAMES, EncodedLines, encode, first_names, partitioned, played_tracks, recode
from training.prepare.formats import (
    NO_EFFECT,
    LogFormat,
    LogReader,
    PrepareOptions,
    check_same_format,
    options_of_kind,
    prepare_options,
)
from training.prepare.sessionize import (
    FilteredPartition,
    FilterStep,
    OrderedSessions,
    Plays,
    filter_sessions,
    in_order,
    record_step,
    sample_sessions,
    session_ids,
    sessionize,
    start_times,
    summed_steps,
)
from training.prepare.sources import InputSplit, LinesRead, LogKind, MalformedLine, find_files, input_splits

__all__ = ["PrepareJob", "PrepareOptions", "PrepareReport", "PrepareResult", "prepare", "prepare_options"]

OnProgress: TypeAlias = Callable[[str, int, int], None]  # what is done, finished steps, all steps
_MEMORY_SPLIT_BYTES: Final = 256 << 20  # in memory, a file is never sliced: this is the step of the progress bar


class PrepareJob(NamedTuple):
    """The input of an engine."""

    kind: LogKind
    files: Sequence[Path]
    options: PrepareOptions
    scratch: Path  # a folder on the disk of the new dataset, with room for copies
    on_progress: OnProgress  # of len(files) + 2 steps: one per file, then sessions, then writing


class PrepareResult(NamedTuple):
    """The output of an engine."""

    read: LinesRead
    interactions: RawInteractions
    steps: list[FilterStep]


Engine: TypeAlias = Callable[[PrepareJob], PrepareResult]


@dataclass(frozen=True)
class PrepareReport:
    """The lines that `prepare` read, what remains after each rule, and the dataset."""

    kind: LogKind
    files: int
    lines: int  # with malformed lines, without blank lines and headers
    malformed: int
    malformed_reasons: dict[str, int]
    malformed_examples: tuple[MalformedLine, ...]  # the first five
    steps: tuple[FilterStep, ...]
    dataset: Dataset


def prepare(
    kind: LogKind,
    sources: Sequence[Path | str],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> PrepareReport:
    """Write the dataset `out` from the logs that `sources` (files, folders, globs) name.

    The default engine works in the memory of this process. It needs memory for the integer columns (at most about 100
    bytes per line) and for the distinct ids and names, but not for the text of the log.
    Raises BadLog, BadOption, and InputError if `out` exists.
    """
    options = options_of_kind(kind, PrepareOptions() if options is None else options)
    check_output_free(out, overwrite=overwrite, marker=FACTS_FILE)
    files = find_files(kind, sources)
    on_progress = progress or (lambda _what, _finished, _steps: None)
    out.parent.mkdir(parents=True, exist_ok=True)
    read, interactions, steps = (engine or in_memory_engine)(PrepareJob(kind, files, options, out.parent, on_progress))
    on_progress("writing the dataset", len(files) + 1, len(files) + 2)
    settings = options.model_dump(exclude=set(NO_EFFECT[kind]))
    dataset = write_listening(out, interactions, kind, settings, malformed_lines=read.malformed, overwrite=overwrite)
    on_progress("done", len(files) + 2, len(files) + 2)
    return PrepareReport(
        kind=kind,
        files=len(files),
        lines=read.lines,
        malformed=read.malformed,
        malformed_reasons=dict(read.reasons),
        malformed_examples=tuple(read.examples),
        steps=tuple(steps),
        dataset=dataset,
    )


class TaskRunner(Protocol):
    """Runs functions, possibly at the same time and in other processes."""

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """Start a function. Returns references to its results, which may be arguments of other functions."""
        ...

    def share(self, value: Any) -> Any:
        """Return a reference to a value that is an argument of many functions."""
        ...

    def result(self, reference: Any) -> Any:
        """Wait for the value of a reference. Raises the exception of its function."""
        ...


@dataclass(eq=False)
class Reference:
    """A reference of `SerialTasks`: a value, or the function call that sets it."""

    value: Any = None
    run: Callable[[], None] | None = None


class SerialTasks:
    """Runs functions in this process, one after another, when a result is needed. Results stay in memory."""

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Reference]:
        """See TaskRunner. A result is freed with its reference, the arguments are freed after the call."""
        references = [Reference() for _ in range(returns)]
        needed = [weakref.ref(reference) for reference in references]

        def run() -> None:
            found = function(*map(self.result, arguments))
            for weak, value in zip(needed, (found,) if returns == 1 else found, strict=True):
                if (reference := weak()) is not None:
                    reference.value, reference.run = self.stored(value), None

        for reference in references:
            reference.run = run
        return references

    def share(self, value: Any) -> Reference:
        """See TaskRunner."""
        return Reference(self.stored(value))

    def result(self, reference: Any) -> Any:
        """See TaskRunner."""
        if not isinstance(reference, Reference):
            return reference
        if reference.run is not None:
            reference.run()
        return self.loaded(reference.value)

    def stored(self, value: Any) -> Any:
        """The form in which a result waits."""
        return value

    def loaded(self, value: Any) -> Any:
        """The result of that form."""
        return value


def in_memory_engine(job: PrepareJob) -> PrepareResult:
    """Run all tasks in this process, with one partition."""
    splits = input_splits(job.files, _MEMORY_SPLIT_BYTES, slice_files=False)
    return run_tasks(SerialTasks(), job, splits, partitions=1, scratch=job.scratch)


def run_tasks(
    tasks: TaskRunner, job: PrepareJob, splits: Sequence[InputSplit], partitions: int, scratch: Path | None
) -> PrepareResult:
    """Make sessions of a log: rules 1 to 6. Raises BadLog.

    Tasks put temporary copies into the folder `scratch`, or into the temporary folder of their machine if it is None.
    """
    log, blocks, track_blocks = _read(tasks, job, splits, partitions, scratch)
    merged = [tasks.start(merge_tracks, *given, returns=2) for given in zip(*track_blocks, strict=True)]
    keys = [key for key, _ in merged]
    shared = tasks.share(log)
    made = [
        tasks.start(make_sessions, shared, job.options, len(splits), *given, *keys, returns=2)
        for given in zip(*blocks, strict=True)
    ]
    del blocks, track_blocks  # a result is freed when nothing refers to it
    track_plays = None
    if job.options.min_track_plays > 1:
        counted = _results(tasks, job, [count for _, count in made], "counting plays")
        track_plays = tasks.share(functools.reduce(np.add, (count for count in counted if count is not None)))
    filtered = [tasks.start(filter_partition, job.options, partition, track_plays)[0] for partition, _ in made]
    del made
    found = [one for one in _results(tasks, job, filtered, "making sessions") if one is not None]
    del filtered
    steps = summed_steps(log.read, found)
    sessions = in_order(found)
    del found
    tracks = [tasks.result(tracks) for _, tracks in merged]
    return PrepareResult(log.read, _sampled(sessions, tracks, job.options, log.form, steps), steps)


def _sampled(
    sessions: OrderedSessions,
    all_tracks: Sequence[pl.DataFrame],
    options: PrepareOptions,
    form: LogFormat,
    steps: list[FilterStep],
) -> RawInteractions:
    """Rule 6, and the ids of the sessions and tracks that remain. Adds to `steps`."""
    plays = sessions.plays
    for rule, sampled in sample_sessions(plays, options):
        record_step(steps, FilterStep(rule, len(sampled.track), len(sampled)))
        plays = sampled
    kept = plays.owner
    tracks, codes = played_tracks(all_tracks, plays.track)
    return RawInteractions(
        tracks=tracks,
        codes=codes,
        skipped=plays.skipped,
        offsets=plays.offsets,
        session_ids=session_ids(sessions.owner[kept], plays.piece, sessions.owners if form.whole_sessions else None),
        started_at=start_times(None if sessions.starts is None else sessions.starts[kept]),
    )


def _read(
    tasks: TaskRunner, job: PrepareJob, splits: Sequence[InputSplit], partitions: int, scratch: Path | None
) -> tuple["ReadStats", list[list[Any]], list[list[Any]]]:
    """Rule 1. The facts about all lines, and for each split references to the lines and tracks of each partition."""
    started = [
        tasks.start(read_split, split, job.kind, job.options, scratch, partitions, returns=1 + 2 * partitions)
        for split in splits
    ]
    log: ReadStats | None = None
    files = len(job.files)
    for number, (split, (reference, *_)) in enumerate(zip(splits, started, strict=True)):
        job.on_progress(f"reading {split[0].file.name}", number * files // len(splits), files + 2)
        stats: ReadStats = tasks.result(reference)
        check_same_format(stats.first_file, stats.form, stats.form if log is None else log.form)
        log = stats if log is None else log.add(stats)
    assert log is not None
    log.read.require_lines(job.kind, files)
    return log, [given[1 : 1 + partitions] for given in started], [given[1 + partitions :] for given in started]


def _results(tasks: TaskRunner, job: PrepareJob, references: Sequence[Any], what: str) -> Iterator[Any]:
    """The results of the references, one after another."""
    for number, reference in enumerate(references):
        job.on_progress(f"{what}, {number} of {len(references)}", len(job.files), len(job.files) + 2)
        yield tasks.result(reference)


class ReadStats(NamedTuple):
    """Facts about the lines of a split, or of the whole log."""

    read: LinesRead
    first_file: Path
    form: LogFormat
    columns: frozenset[str]  # columns with a value on at least one good line
    has_skips: bool  # every good line says whether its play was skipped

    def add(self, later: "ReadStats") -> "ReadStats":
        """With the lines of the next split. Changes `read` in place."""
        self.read.add(later.read)
        return self._replace(columns=self.columns | later.columns, has_skips=self.has_skips and later.has_skips)


def read_split(
    split: InputSplit, kind: LogKind, options: PrepareOptions, scratch: Path | None, partitions: int
) -> tuple[Any, ...]:
    """Task: read a split. Returns its ReadStats, then the lines of each partition, then the tracks of each partition.

    Lines are EncodedLines, tracks a frame of `first_names`. Both are None for a partition without any.
    """
    log = LogReader(kind, options, scratch=scratch or Path(tempfile.gettempdir()))
    for slice_ in split:
        log.read(slice_)
    lines = log.result()
    stats = ReadStats(
        read=log.counts,
        first_file=split[0].file,
        form=log.forms[0],
        columns=frozenset(lines.columns),
        has_skips=lines.is_empty() or ("skipped" in lines.columns and lines["skipped"].null_count() == 0),
    )
    if lines.is_empty():
        return (stats, *[None] * (2 * partitions))
    tracks = first_names(lines)
    lines = lines.drop(TRACK_NAMES, strict=False)
    blocks = [None if part is None else encode(part) for part in partitioned(lines, "owner", partitions)]
    return (stats, *blocks, *partitioned(tracks, "track", partitions))


def merge_tracks(*blocks: pl.DataFrame | None) -> tuple[pl.Series, pl.DataFrame]:
    """Task: the distinct tracks of a partition, by their keys and with the first title and artist in the log."""
    given = [block for block in blocks if block is not None]
    tracks = given[0] if given else pl.DataFrame(schema={"track": pl.String})
    if len(given) > 1:
        tracks = first_names(pl.concat(given, how="diagonal").cast({"track": pl.Categorical(pl.Categories.random())}))
    return tracks["track"], tracks


class Partition(NamedTuple):
    """The sessions of some owners before the filters. `plays.owner` are positions in `owners`."""

    owners: pl.Series  # string, sorted
    plays: Plays


def make_sessions(
    log: ReadStats, options: PrepareOptions, splits: int, *blocks_and_keys: Any
) -> tuple[Partition | None, Int | None]:
    """Task: rules 2 and 3 for a partition. Returns it and, if `min_track_plays` is set, the plays of each track.

    The arguments after `splits` are the lines of the partition in each split, then the track keys of every partition.
    A partition without lines gives None.
    """
    blocks: list[EncodedLines] = [block for block in blocks_and_keys[:splits] if block is not None]
    if not blocks:
        return None, None
    tracks = pl.concat(blocks_and_keys[splits:])
    owners = pl.concat([block.owners for block in blocks]).unique().sort()
    lines = recode(blocks, owners, tracks)
    if "at" in log.columns and "at" not in lines.columns:
        lines = lines.with_columns(at=pl.lit(None, pl.Int64))
    plays = sessionize(lines, log.form, options, has_skips=log.has_skips)
    track_plays = np.bincount(plays.track, minlength=len(tracks)) if options.min_track_plays > 1 else None
    return Partition(owners, plays), track_plays


def filter_partition(
    options: PrepareOptions, partition: Partition | None, track_plays: Int | None
) -> FilteredPartition | None:
    """Task: rules 4 and 5 for a partition. `track_plays` [tracks] are the plays of each track in the whole log."""
    return None if partition is None else filter_sessions(partition.owners, partition.plays, options, track_plays)
