"""The pipeline of `segue prepare`: convert listening logs to a dataset, and report the lines that cannot be parsed.

The columns of a log are defined in training.prepare.formats, and the session rules in training.prepare.sessionize. The
pipeline applies these rules in order. The report contains the number of remaining plays after each rule:

1. Malformed lines are dropped and counted, and the report shows the first five. Rows of other kinds are ignored and
   counted. A log with more malformed lines than `max_malformed_pct` is refused.
2. The lines of an owner (user, or session where the log has sessions) are ordered, and several lines that describe the
   same play are merged (training.prepare.play_order). So a log can contain a play twice, also in different files, and
   later corrections such as a skip flag.
3. The plays of a user are split into sessions at idle gaps. A log with session ids keeps its sessions.
4. A play has the outcome that the log gives: a flag, the reason why it ended, or the played duration. Where the log
   gives none, it is inferred from the start of the next play (training.prepare.sessionize).
5. Plays of tracks with fewer than `min_track_plays` plays are dropped. Plays are counted after rule 4.
6. Sessions with more than `max_session_plays` plays are split into pieces. Afterwards, sessions and pieces with fewer
   than `min_session_plays` plays are dropped.
7. Sessions are sampled, first by `sample_half_skips` and second by `max_sessions`.

Sessions are sorted by the id of their user in the log, next by their session id in the log, and next by time. If the
log has no session ids, the sessions are numbered (`s00000001`), so a dataset never contains user ids. Session ids of
the log are kept, with the suffix `#2`, `#3` and so on if several users have the same one. If a session is split, the
second piece has the suffix `~2`, the third piece `~3`, and so on.

The pipeline consists of tasks, similar to MapReduce:
    read each input split -> merge the tracks of each partition -> sessions of each partition -> filters

Read tasks partition the lines by owner (user or session) and the tracks by track key. All lines of an owner are in
the same partition. Blocks are merged in the order of the splits, so the result does not depend on the number of
splits. Between the tasks, the main process counts, sorts, samples and writes. The main process stores a few integers
per play and the catalogue, but no lines of the log. A `TaskRunner` runs the tasks: in memory (this module), on disk
(training.prepare.disk_engine) or on Ray (training.prepare.ray_engine). The in-memory engine uses one partition. All
engines give byte-identical datasets.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import polars as pl

from segue.arrays import Int
from segue.errors import BadLog, BadOption
from segue.safe_files import check_output_free
from training.data.dataset import FACTS_FILE, Dataset, RawInteractions, write_listening
from training.data.log_facts import LogFacts, PrepareStep
from training.prepare.finding import find_files, scratch_folder
from training.prepare.findings import log_facts
from training.prepare.formats import LogFormat
from training.prepare.ids import EncodedLines, first_names, played_tracks, recode
from training.prepare.options import NO_EFFECT, LogKind, PrepareOptions, options_of_kind, prepare_options
from training.prepare.reading import LinesRead, MalformedLine, ReadStats, check_same_format, read_split
from training.prepare.report import Steps, log_counts, plausible
from training.prepare.session_filters import (
    FilteredPartition,
    Partition,
    filter_sessions,
    in_order,
    sample_sessions,
    session_ids,
    start_times,
)
from training.prepare.sessionize import Counts, is_skip, last_known, sessionize, time_facts
from training.prepare.sources import InputSplit, LogFile, input_splits
from training.prepare.track_file import read_tracks, told, with_attributes

__all__ = ["PrepareJob", "PrepareOptions", "PrepareReport", "PrepareResult", "prepare", "prepare_options"]

OnProgress: TypeAlias = Callable[[str, int, int], None]  # description of the current step, finished steps, total steps
_MEMORY_SPLIT_BYTES: Final = 256 << 20  # the in-memory engine does not slice files; one split is one progress step


class PrepareJob(NamedTuple):
    """The input of an engine: the log files, the options and a folder for temporary files."""

    kind: LogKind
    files: Sequence[LogFile]
    options: PrepareOptions
    scratch: Path  # a folder for temporary copies, on the same disk as the new dataset
    on_progress: OnProgress  # the total is len(files) + 2 steps: one per file, one for sessions, one for writing


class PrepareResult(NamedTuple):
    """The output of an engine: line counts, the interactions, and facts about the log."""

    read: LinesRead
    interactions: RawInteractions
    log: LogFacts


Engine: TypeAlias = Callable[[PrepareJob], PrepareResult]


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`: line counts, facts about the log, and the dataset."""

    kind: LogKind
    files: int
    lines: int  # includes malformed lines, excludes blank lines and headers
    malformed: int
    malformed_reasons: dict[str, int]
    malformed_examples: tuple[MalformedLine, ...]  # the first five malformed lines
    not_read: tuple[str, ...]  # a line for each group of files in `sources` that were not read, and why
    dataset: Dataset

    @property
    def log(self) -> LogFacts:
        """What was found in the log."""
        assert self.dataset.facts.log is not None
        return self.dataset.facts.log

    @property
    def steps(self) -> list[PrepareStep]:
        """What each rule removed, and what remained."""
        return self.log.steps


def prepare(  # noqa: PLR0913 (options of the command)
    kind: LogKind,
    sources: Sequence[Path | str],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    progress: OnProgress | None = None,
    engine: Engine | None = None,
    tracks: Path | Sequence[Path] | None = None,
) -> PrepareReport:
    """Convert the logs in `sources` (files, folders and globs) to a dataset in the folder `out`.

    `tracks` are files of titles, artists and attributes (training.prepare.track_file). Later files take precedence.
    The default engine needs about 100 bytes of memory per line, and memory for the distinct ids and names.

    Raises:
        BadLog: The log is missing, damaged or of another kind, or no play remains after the rules.
        BadOption, InputError: An option is invalid; `out` exists and `overwrite` is false, or it is not a dataset.

    """
    options = options_of_kind(kind, PrepareOptions() if options is None else options)
    check_output_free(out, overwrite=overwrite, marker=FACTS_FILE)
    given = [(path, read_tracks(path)) for path in ([tracks] if isinstance(tracks, Path) else tracks or ())]
    on_progress = progress or (lambda _what, _finished, _steps: None)
    with scratch_folder(out) as scratch:
        files, not_read = find_files(kind, sources, scratch)
        job = PrepareJob(kind, files, options, scratch, on_progress)
        read, interactions, log = (engine or in_memory_engine)(job)
    on_progress("writing the dataset", len(files) + 1, len(files) + 2)
    for path, of_file in given:
        log = log.model_copy(update={"notes": [*log.notes, told(path, interactions.tracks, of_file)]})
        interactions = replace(interactions, tracks=with_attributes(interactions.tracks, of_file, path))
    settings = options.model_dump(exclude=set(NO_EFFECT[kind]))
    dataset = write_listening(
        out, interactions, kind, settings, malformed_lines=read.malformed, log=log, overwrite=overwrite
    )
    on_progress("done", len(files) + 2, len(files) + 2)
    return PrepareReport(
        kind=kind,
        files=len(files),
        lines=read.lines,
        malformed=read.malformed,
        malformed_reasons=dict(read.reasons),
        malformed_examples=tuple(read.examples),
        not_read=tuple(not_read),
        dataset=dataset,
    )


class TaskRunner(Protocol):
    """Runs functions, possibly in parallel and in other processes."""

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """Schedule a call. Return references to its `returns` results, which can be arguments of other calls."""
        ...

    def share(self, value: Any) -> Any:
        """Return a reference to `value`, which can be an argument of many calls."""
        ...

    def result(self, reference: Any) -> Any:
        """Wait for the value of a reference and return the value. If the function raised an error, raise the error."""
        ...


@dataclass(eq=False)
class Reference:
    """A reference of `SerialTasks`. `run` computes `value` and is None after the call."""

    value: Any = None
    run: Callable[[], None] | None = None


class SerialTasks:
    """Runs functions in this process one after another, when their results are needed. Results are stored in memory."""

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Reference]:
        """Return references to the `returns` results of a function call. The call runs when a result is needed."""
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
        """Return a reference to `value`."""
        return Reference(self.stored(value))

    def result(self, reference: Any) -> Any:
        """Return the value of `reference`, after its call if necessary; return any other value unchanged."""
        if not isinstance(reference, Reference):
            return reference
        if reference.run is not None:
            reference.run()
        return self.loaded(reference.value)

    def stored(self, value: Any) -> Any:
        """Return the object to store for a result. Subclasses can write the result to disk."""
        return value

    def loaded(self, value: Any) -> Any:
        """Return the result for a stored object. This method is the inverse of `stored`."""
        return value


def in_memory_engine(job: PrepareJob) -> PrepareResult:
    """Run all tasks in the memory of this process, with one partition."""
    splits = input_splits(job.files, _MEMORY_SPLIT_BYTES, job.kind, job.options.encoding, slice_files=False)
    return run_tasks(SerialTasks(), job, splits, partitions=1, scratch=job.scratch)


def run_tasks(
    tasks: TaskRunner, job: PrepareJob, splits: Sequence[InputSplit], partitions: int, scratch: Path | None
) -> PrepareResult:
    """Apply rules 1 to 7 to a log and return the interactions of the dataset.

    Tasks write temporary copies to `scratch`, or to the temporary folder of their machine if it is None. Raises BadLog.

    """
    log, blocks, track_blocks = _read(tasks, job, splits, partitions, scratch)
    merged = [tasks.start(merge_tracks, *given, returns=2) for given in zip(*track_blocks, strict=True)]
    keys = [key for key, _ in merged]
    shared = tasks.share(log)
    made = [
        tasks.start(make_sessions, shared, job.options, len(splits), *given, *keys, returns=2)
        for given in zip(*blocks, strict=True)
    ]
    del blocks, track_blocks  # free each result as soon as no task needs it
    track_plays = None
    if job.options.min_track_plays > 1:
        counted = _results(tasks, job, [count for _, count in made], "counting plays")
        track_plays = tasks.share(functools.reduce(np.add, (count for count in counted if count is not None)))
    filtered = [
        tasks.start(filter_partition, log.form, job.options, partition, track_plays)[0] for partition, _ in made
    ]
    del made
    found = [one for one in _results(tasks, job, filtered, "making sessions") if one is not None]
    del filtered
    steps = Steps(log.read, job.options)
    steps.add_partitions([one.steps for one in found])
    counts = [one.counts for one in found]
    tracks = [tasks.result(tracks) for _, tracks in merged]
    return _sampled(job, log, found, tracks, counts, steps)


def _sampled(
    job: PrepareJob,
    log: ReadStats,
    found: list[FilteredPartition],
    all_tracks: Sequence[pl.DataFrame],
    counts: Sequence[Counts],
    steps: Steps,
) -> PrepareResult:
    """Order the sessions and apply rule 7. Return the remaining sessions with their ids and tracks."""
    sessions = in_order(found)
    found.clear()
    plays = sessions.plays
    for step, sampled in sample_sessions(plays, job.options):
        steps.add(step)
        plays = sampled
    tracks, codes = played_tracks(all_tracks, plays.track)
    kept = plays.owner
    starts = None if sessions.starts is None else sessions.starts[kept]
    interactions = RawInteractions(
        tracks=tracks,
        codes=codes,
        skipped=is_skip(plays.outcome),
        offsets=plays.offsets,
        session_ids=session_ids(
            sessions.owner[kept], plays.piece, sessions.owners if log.form.sessions_given else None
        ),
        started_at=None if starts is None else start_times(starts, plausible(starts)),
        last_known=last_known(plays),
    )
    files = [file.name for file in job.files]
    all_counts = log_counts(log, counts, plays, starts, sessions.owners, files, job.options)
    facts = log_facts(job.kind, job.options, log.read, all_counts, steps, tracks["track_id"])
    return PrepareResult(log.read, interactions, facts)


def _read(
    tasks: TaskRunner, job: PrepareJob, splits: Sequence[InputSplit], partitions: int, scratch: Path | None
) -> tuple["ReadStats", list[list[Any]], list[list[Any]]]:
    """Apply rule 1. Return statistics of all lines, and references to lines and tracks by split and partition."""
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
    log.read.require_lines(job.kind, job.files, job.options.max_malformed_pct)
    _check_outcomes(log, job.options)
    return log, [given[1 : 1 + partitions] for given in started], [given[1 + partitions :] for given in started]


def _check_outcomes(log: ReadStats, options: PrepareOptions) -> None:
    """Refuse options that contradict the log, and a log that gives no outcomes and none can be inferred from."""
    if log.form.by_position and options.merge_within_s:
        raise BadOption(
            f"--merge-within {options.merge_within_s:g} has no effect on a log with positions, which tell its plays "
            "apart: omit it"
        )
    if not options.no_skips and not {"skipped", "at"} & log.columns:
        raise BadLog(
            f"{log.first_file} has neither skips nor times to infer them from: name the column with --columns "
            "skipped=COLUMN, or count every play as played with --no-skips"
        )


def _results(tasks: TaskRunner, job: PrepareJob, references: Sequence[Any], what: str) -> Iterator[Any]:
    """Yield the results of `references` in order, and report progress. `what` describes the current step."""
    for number, reference in enumerate(references):
        job.on_progress(f"{what}, {number} of {len(references)}", len(job.files), len(job.files) + 2)
        yield tasks.result(reference)


def merge_tracks(*blocks: pl.DataFrame | None) -> tuple[pl.Series, pl.DataFrame]:
    """Merge the tracks of a partition from all splits. This function is a task.

    Return the distinct track keys, and a data frame with the first title and artist in the log for each track.
    """
    given = [block for block in blocks if block is not None]
    tracks = given[0] if given else pl.DataFrame(schema={"track": pl.String})
    if len(given) > 1:
        tracks = first_names(pl.concat(given, how="diagonal").cast({"track": pl.Categorical(pl.Categories.random())}))
    return tracks["track"], tracks


def make_sessions(
    log: ReadStats, options: PrepareOptions, splits: int, *blocks_and_keys: Any
) -> tuple[Partition | None, Int | None]:
    """Apply rules 2 to 4 to a partition. This function is a task.

    `blocks_and_keys` contains the lines of the partition from each of the `splits` splits, followed by the track keys
    of every partition. Return the sessions of the partition and the number of plays of each track [tracks] int64. The
    second value is None if `min_track_plays` is 1. Both values are None for a partition without lines.
    """
    blocks: list[EncodedLines] = [block for block in blocks_and_keys[:splits] if block is not None]
    if not blocks:
        return None, None
    tracks = pl.concat(blocks_and_keys[splits:])
    owners = pl.concat([block.owners for block in blocks]).unique().sort()
    lines = recode(blocks, owners, tracks)
    if "at" in log.columns and "at" not in lines.columns:
        lines = lines.with_columns(at=pl.lit(None, pl.Int64))
    times = time_facts(log.times, options) if "at" in log.columns else None
    plays, counts = sessionize(lines, log.form, options, times)
    track_plays = np.bincount(plays.track, minlength=len(tracks)) if options.min_track_plays > 1 else None
    return Partition(owners, plays, counts), track_plays


def filter_partition(
    form: LogFormat, options: PrepareOptions, partition: Partition | None, track_plays: Int | None
) -> FilteredPartition | None:
    """Apply rules 5 and 6 to a partition. This function is a task.

    `track_plays` [tracks] int64 is the number of plays of each track in the whole log, or None to keep all tracks.
    Return None if `partition` is None.
    """
    return None if partition is None else filter_sessions(partition, form, options, track_plays)
