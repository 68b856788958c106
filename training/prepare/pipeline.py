"""`segue prepare`: read listening logs and write a dataset, with an account of the lines that could not be read.

Knows neither the columns of a log format (training.prepare.formats) nor how sessions are built
(training.prepare.sessionize). Texts are integer codes while they are in memory.

The rules are applied in this order, and the report says what each one left:

1. Malformed lines (a wrong number of fields, no listener, session or track, an unreadable time, position or skip
   flag) are left out, counted, and the first five shown. A line is a record: a field in quotes ends on its line.
2. Of several reports of one play (same session, same position) one remains: the newest by `written_at`, where the
   log has that column, otherwise the last in the order of the files and their lines. A log may so be delivered more
   than once, and a play that was later skipped reported again. Sessions without positions are ordered by
   `timestamp`, and nothing is merged in them.
3. Listeners' plays are cut into sessions at idle gaps, and skips inferred (training.prepare.sessionize); logs of
   whole sessions (MSSD, events with a session_id) keep theirs.
4. Plays of tracks with fewer than `min_track_plays` plays are dropped, counted after step 3.
5. Sessions longer than `max_session_plays` are cut, then sessions and remainders under `min_session_plays` dropped.
6. Sampling: `sample_half_skips`, then `max_sessions`.

Sessions are ordered by the log's name of the listener or session, then by time. Listeners' sessions are numbered
(`s00000001`): no name of a listener enters a dataset. Whole sessions keep their ids; the further pieces of one that
was cut have `~2`, `~3` behind it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import polars as pl

from segue.errors import BadLog
from segue.safe_files import UNREADABLE, check_output_free
from training.data.dataset import FACTS_FILE, Dataset, RawInteractions, write_listening
from training.prepare.columns import track_table
from training.prepare.formats import (
    LINE_COLUMNS,
    NO_EFFECT,
    PROBLEMS,
    LogFormat,
    PrepareOptions,
    SkipFlag,
    options_of_kind,
    prepare_options,
    read_lines,
)
from training.prepare.sessionize import (
    Step,
    kept,
    owners_of,
    session_ids,
    sessionize,
    starts_of,
    times_of_starts,
)
from training.prepare.sources import FileSlice, LogKind, find_files, opened, rows_of_part

_EXAMPLES: Final = 5
_EXAMPLE_CHARACTERS: Final = 120
_CODED: Final = ("owner", "track", "title", "artist")


class MalformedLine(NamedTuple):
    """A line that could not be read."""

    file: Path
    reason: str
    text: str  # its first 120 characters


@dataclass
class LinesRead:
    """How many lines were read, and which of them could not be."""

    lines: int = 0  # malformed ones included, blank ones and headers not
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[MalformedLine] = field(default_factory=list)  # the first five

    @property
    def malformed(self) -> int:
        """Lines that could not be read."""
        return self.reasons.total()

    def add(self, later: "LinesRead") -> None:
        """Count the lines of files that come later, too."""
        self.lines += later.lines
        self.reasons.update(later.reasons)
        self.examples.extend(later.examples[: _EXAMPLES - len(self.examples)])

    def require_lines(self, kind: LogKind, files: int) -> None:
        """Raise BadLog where there is no line that could be read."""
        if self.lines == 0:
            raise BadLog(f"no line in {files:,} files: expected a log of kind {kind}")
        if self.malformed == self.lines:
            first = self.examples[0]
            raise BadLog(
                f"none of {self.lines:,} lines can be read as {kind}: {first.reason} in {first.text!r} "
                f"({first.file}): check the kind of log"
            )


def steps_of_reading(read: LinesRead) -> list[Step]:
    """What reading left."""
    steps = [Step("lines read", read.lines, None)]
    if read.malformed:
        steps.append(Step("malformed lines left out", read.lines - read.malformed, None))
    return steps


@dataclass
class LogReader:
    """Files read so far, their texts as integer codes."""

    kind: LogKind
    skip_flag: SkipFlag
    played_ratio_pct: int
    scratch: Path  # where compressed files are unpacked, one at a time
    account: LinesRead = field(default_factory=LinesRead)
    frames: list[pl.DataFrame] = field(default_factory=list)
    forms: list[LogFormat] = field(default_factory=list)

    def __post_init__(self) -> None:
        # One dictionary for each column and run: codes are the same in all files, and exact, as hashes are not.
        self.codings = {name: pl.Categorical(pl.Categories.random()) for name in _CODED}

    @property
    def form(self) -> LogFormat:
        """That of the first file, which the others share."""
        return self.forms[0]

    def read(self, part: FileSlice) -> None:
        """Add a file, or part of one. Raises BadLog where it cannot be read at all."""
        file = part.file
        with opened(part, self.kind, self.scratch) as plain:
            log = read_lines(
                self.kind, plain, name=str(file), skip_flag=self.skip_flag, played_ratio_pct=self.played_ratio_pct
            )
            self.forms.append(log.form)
            check_same_format(file, log.form, self.form)
            columns = [pl.col(name).cast(self.codings.get(name, dtype)) for name, dtype in LINE_COLUMNS.items()]
            try:
                lines = rows_of_part(part, log.frame)
                frame = lines.select("problem", *columns).collect(engine="streaming")
                self._note_malformed(file, lines, frame["problem"])
            except UNREADABLE as error:
                raise BadLog(f"{file} cannot be read: {str(error).strip().splitlines()[0]}") from error
        self.account.lines += len(frame)
        if frame["problem"].max():
            frame = frame.filter(pl.col("problem") == 0)
        self.frames.append(frame.drop("problem", *(c.name for c in frame if c.null_count() == len(frame))))

    def _note_malformed(self, file: Path, lines: pl.LazyFrame, problem: pl.Series) -> None:
        numbers = (problem > 0).arg_true()
        account = self.account
        account.reasons.update(
            {PROBLEMS[code]: count for code, count in problem.gather(numbers).value_counts().iter_rows()}
        )
        shown = numbers.head(_EXAMPLES - len(account.examples))
        if shown.is_empty():
            return
        last = int(shown[-1])
        texts = lines.select("text").head(last + 1).collect(engine="streaming")["text"].gather(shown)
        for code, text in zip(problem.gather(shown), texts, strict=True):
            account.examples.append(MalformedLine(file, PROBLEMS[code], (text or "")[:_EXAMPLE_CHARACTERS]))

    def result(self) -> pl.DataFrame:
        """All good lines in the order of the files. Raises BadLog where there is none."""
        self.account.require_lines(self.kind, len(self.frames))
        lines = pl.concat(self.frames, how="diagonal")
        self.frames.clear()
        return lines


def check_same_format(file: Path, form: LogFormat, first: LogFormat) -> None:
    """Raise BadLog where a file is of another form than the first one."""
    if form != first:
        raise BadLog(f"{file} has other columns than the first file: give logs of one form at a time")


__all__ = ["PrepareJob", "PrepareOptions", "PrepareReport", "PrepareResult", "Step", "prepare", "prepare_options"]

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done, steps finished, steps in all


class PrepareJob(NamedTuple):
    """What an engine is to make sessions of."""

    kind: LogKind
    files: Sequence[Path]
    options: PrepareOptions
    scratch: Path  # the folder where the dataset will be: there is room for copies
    tell: Progress  # of len(files) + 2 steps, the first len(files) are reading, and one is making sessions


class PrepareResult(NamedTuple):
    """What an engine made of them."""

    read: LinesRead
    listening: RawInteractions
    steps: list[Step]


Engine: TypeAlias = Callable[[PrepareJob], PrepareResult]


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` read, what each rule left, and the dataset that came out."""

    kind: LogKind
    files: int
    lines: int  # read, malformed ones included, blank ones and headers not
    malformed: int
    malformed_reasons: dict[str, int]
    malformed_examples: tuple[MalformedLine, ...]  # the first five
    steps: tuple[Step, ...]
    dataset: Dataset


def prepare(
    kind: LogKind,
    sources: Sequence[Path | str],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PrepareReport:
    """Make the dataset `out` of the logs that `sources` (files, folders, globs) name.

    `engine` makes the sessions: this process (the default), or others (training.prepare.ray_engine); the dataset is the
    same.
    Raises BadLog, BadOption, and InputError where `out` is taken. Takes memory for the integer columns (some 100 bytes
    a line at the worst moment) and for the distinct names, never for the text of the log.
    """
    options = options_of_kind(kind, PrepareOptions() if options is None else options)
    check_output_free(out, overwrite=overwrite, marker=FACTS_FILE)
    files = find_files(kind, sources)
    tell = progress or _silent
    out.parent.mkdir(parents=True, exist_ok=True)
    read, listening, steps = (engine or in_memory_engine)(PrepareJob(kind, files, options, out.parent, tell))
    tell("writing the dataset", len(files) + 1, len(files) + 2)
    settings = options.model_dump(exclude=set(NO_EFFECT[kind]))
    dataset = write_listening(out, listening, kind, settings, malformed_lines=read.malformed, overwrite=overwrite)
    tell("done", len(files) + 2, len(files) + 2)
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


def in_memory_engine(work: PrepareJob) -> PrepareResult:
    """Read all files into this process and make sessions of their lines."""
    log = LogReader(work.kind, work.options.skip_flag, work.options.played_ratio_pct, scratch=work.scratch)
    for number, file in enumerate(work.files):
        work.tell(f"reading {file.name}", number, len(work.files) + 2)
        log.read(FileSlice(file))
    work.tell("making sessions", len(work.files), len(work.files) + 2)
    lines, form = log.result(), log.form
    steps = steps_of_reading(log.account)
    owners = owners_of(lines)
    plays = kept(sessionize(lines, owners, form, work.options, steps), work.options, steps)
    tracks, codes = track_table(lines, plays.track)
    listening = RawInteractions(
        tracks=tracks,
        codes=codes,
        skipped=plays.skipped,
        offsets=plays.offsets,
        session_ids=session_ids(plays.owner, plays.piece, owners["owner"] if form.whole_sessions else None),
        started_at=times_of_starts(starts_of(plays)),
    )
    return PrepareResult(log.account, listening, steps)


def _silent(_what: str, _finished: int, _steps: int) -> None:
    """Nobody watches."""
