"""Read the lines of an input split, and count those that cannot be parsed."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from segue.errors import BadLog
from segue.safe_files import UNREADABLE
from training.prepare.content import PlainFile, printable
from training.prepare.events import read_events
from training.prepare.exports import read_export
from training.prepare.formats import (
    FILTER,
    HIDDEN_OUTCOMES,
    IGNORED,
    LINE_COLUMNS,
    MISSING,
    NOTED,
    VALUES_OF,
    LogFormat,
    LogLines,
    Problem,
)
from training.prepare.ids import TRACK_NAMES, encode, first_names, partitioned
from training.prepare.options import EXPORTS, LogKind, PrepareOptions
from training.prepare.published import read_published
from training.prepare.sources import FileSlice, InputSplit, LogFile, first_line, opened, rows_of_slice
from training.prepare.tables import unreadable

MAX_EXAMPLES: Final = 5

# Names of LinesRead.counted: times without a zone, and those of them with the hours 0 and 13 to 23.
CLOCK_TIMES: Final = "times without a zone"
AFTERNOON: Final = "times without a zone in the hours that no 12-hour clock has"


class MalformedLine(NamedTuple):
    """A line that could not be parsed. Texts of the log are in `value` and `note` alone, and are shortened."""

    file: str
    number: int  # of the line in its file, or of the row, from 1
    unit: str  # "line" or "row"
    problem: Problem
    value: str | None
    note: str | None

    @property
    def reason(self) -> str:
        """What is wrong, without the value."""
        return f"{self.problem.column} {self.problem.reason}".strip()

    def __str__(self) -> str:
        """Return a line for people, without control characters."""
        reason, column, accepted = self.problem
        where = f"{self.file}, {self.unit} {self.number:,}"
        if not column:
            return f"{where}: {reason}" + (f"; accepted: {accepted}" if accepted else "")
        value = None if self.value is None or not self.value.strip() else f"'{printable(self.value)}'"
        what = f"{value} {reason}" if value else "no value"
        if value and reason == MISSING:
            what = f"{value} stands for a missing value"
        note = f" ({printable(self.note)})" if self.note else ""
        return f"{where}, {printable(column)}: {what}{note}" + (f"; accepted: {accepted}" if accepted else "")


@dataclass
class LinesRead:
    """The number of lines read, and the lines that could not be parsed."""

    lines: int = 0  # includes malformed lines, excludes blank lines and headers
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[MalformedLine] = field(default_factory=list)  # the first MAX_EXAMPLES malformed lines
    ignored: Counter[str] = field(default_factory=Counter)  # lines of other kinds, by what they are
    columns: dict[str, str] = field(default_factory=dict)  # the column that was read for each role
    unused_columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how values were understood, one sentence each
    counted: Counter[str] = field(default_factory=Counter)  # sums over all lines, by name

    @property
    def all_notes(self) -> list[str]:
        """Return `notes`, and those of `counted` with their numbers."""
        useless = [name for name, number in self.ignored.items() if name.startswith(FILTER) and not number]
        counted = [
            (name.removeprefix(NOTED), number) for name, number in self.counted.items() if name.startswith(NOTED)
        ]
        return [
            *self.notes,
            *(f"{name}: {number:,}" for name, number in counted if number),
            *(f"{name} left out no line: values are compared exactly" for name in useless),
        ]

    @property
    def malformed(self) -> int:
        """Return the number of malformed lines."""
        return self.reasons.total()

    def add(self, later: "LinesRead") -> None:
        """Add the counts of later lines of the log in place."""
        self.lines += later.lines
        self.reasons.update(later.reasons)
        self.examples.extend(later.examples[: MAX_EXAMPLES - len(self.examples)])
        self.ignored.update(later.ignored)
        self.columns = later.columns | self.columns
        self.unused_columns.extend(name for name in later.unused_columns if name not in self.unused_columns)
        self.notes.extend(note for note in later.notes if note not in self.notes)
        self.counted.update(later.counted)

    def require_lines(self, kind: LogKind, files: Sequence[LogFile], max_malformed_pct: float) -> None:
        """Check that enough lines could be parsed. `files` are those of the log, for the error message.

        Raises:
            BadLog: There are no plays, or more than `max_malformed_pct` percent of the lines are malformed.

        """
        if self.lines == 0:
            where = f"{files[0]}" if len(files) == 1 else f"{len(files):,} files, such as {files[0]}"
            raise BadLog(f"no line in {where}: expected a log of kind {kind}")
        self._require_named_columns()
        kept = self.lines - self.ignored.total()
        if self.ignored[HIDDEN_OUTCOMES] == self.lines:
            raise BadLog(
                f"none of {self.lines:,} lines has an outcome: log_input holds the last plays of sessions without "
                "outcomes. Name log_prehistory too, which holds the first plays of these sessions"
            )
        if kept == 0 and any(name.startswith(FILTER) for name in self.ignored):
            left_out = ", ".join(f"{name}: {number:,}" for name, number in self.ignored.items())
            raise BadLog(f"all of {self.lines:,} lines are left out ({left_out}): values are compared exactly")
        if kept == 0:
            ignored = ", ".join(f"{printable(name)}: {number:,}" for name, number in self.ignored.items())
            raise BadLog(f"none of {self.lines:,} lines is a play ({ignored}): expected a log of kind {kind}")
        if self.malformed == kept:
            raise BadLog(f"none of {kept:,} lines can be read as {kind}; {self.examples[0]}")
        if self.malformed * 100 > max_malformed_pct * kept:
            limit = f"more than --max-malformed {max_malformed_pct:g} % allows"
            raise BadLog(f"{self.malformed:,} of {kept:,} lines cannot be read, {limit}; {self.examples[0]}")
        self._note_parts_of_sessions()

    def _require_named_columns(self) -> None:
        for name, number in self.counted.items():
            if name.startswith(VALUES_OF) and not number:
                column = name.removeprefix(VALUES_OF)
                known = [one for one in (*self.columns.values(), *self.unused_columns) if one != column.lower()]
                fields = printable(", ".join(known))[:300]
                raise BadLog(f"no line has the field {printable(column)}, named by {FILTER}; found are {fields}")

    def _note_parts_of_sessions(self) -> None:
        """Tell how many sessions of the log are longer than what it has of them."""
        begun, ended = self.counted["sessions begun"], self.counted["sessions ended"]
        if begun != ended:
            self.notes.append(
                f"{abs(begun - ended):,} of {max(begun, ended):,} sessions lack their "
                f"{'last' if begun > ended else 'first'} plays (session_length), as the halves of sessions in test_set "
                "do: the dataset has the other plays"
            )


_VALUE_CHARACTERS: Final = 60
_HOUR_MS: Final = 3_600_000
_TIMES_A_BLOCK: Final = 1 << 16


_ENCODED: Final = ("owner", "track", "title", "artist")


class FileTimes(NamedTuple):
    """The times of a file or of several files."""

    resolution_ms: int = 0  # the greatest common divisor of all times; 1000 if it is smaller, 0 if all times are 0
    times: int = 0  # the number of times

    def add(self, other: "FileTimes") -> "FileTimes":
        """Return the times of both."""
        if self.times == 0 or other.times == 0:
            return self if other.times == 0 else other
        resolution = math.gcd(self.resolution_ms, other.resolution_ms)
        return FileTimes(max(resolution, 1000) if resolution else 0, self.times + other.times)


def times_of(at: pl.Series) -> FileTimes:
    """The resolution of times in ms since 1970."""
    known = at.drop_nulls().to_numpy()
    resolution = 0
    for start in range(0, len(known), _TIMES_A_BLOCK):
        resolution = math.gcd(resolution, int(np.gcd.reduce(known[start : start + _TIMES_A_BLOCK])))
        if 0 < resolution <= 1000:  # most logs end here: the rest cannot make it coarser
            return FileTimes(1000, len(known))
    return FileTimes(resolution, len(known))


@dataclass
class LogReader:
    """Reads the files of one input split. Texts become categorical columns, so memory holds each of them once."""

    kind: LogKind
    options: PrepareOptions
    scratch: Path  # the folder for temporary copies, one at a time
    counts: LinesRead = field(default_factory=LinesRead)
    frames: list[pl.DataFrame] = field(default_factory=list)
    forms: list[LogFormat] = field(default_factory=list)
    times: dict[int, FileTimes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One set of categories per column and split: all its files share the codes. Unlike hashes, codes are exact.
        self.categories = {name: pl.Categorical(pl.Categories.random()) for name in _ENCODED}

    def read(self, slice_: FileSlice) -> None:
        """Add the lines of a file or slice. Raises BadLog if it cannot be read."""
        file = slice_.file
        with opened(slice_, self.kind, self.scratch, self.options.encoding) as plain:
            log = parsed(self.kind, plain, self.options)
            self.forms.append(log.form)
            check_same_format(file, log.form, self.forms[0])
            columns = [pl.col(name).cast(self.categories.get(name, dtype)) for name, dtype in LINE_COLUMNS.items()]
            columns[list(LINE_COLUMNS).index("file")] = pl.lit(slice_.file_number, dtype=pl.UInt32).alias("file")
            try:
                lines = rows_of_slice(slice_, log.frame)
                frame = lines.select("problem", *log.counted, *columns).collect(engine="streaming")
                self._count(slice_, log, lines, frame)
            except BadLog as error:  # of a value; Polars adds the expression in further lines
                raise BadLog(str(error).splitlines()[0]) from error
            except UNREADABLE as error:
                raise unreadable(plain, error) from error
        frame = frame.drop(log.counted)
        if frame["problem"].max():
            frame = frame.filter(pl.col("problem") == 0)
        number = slice_.file_number or 0
        self.times[number] = self.times.get(number, FileTimes()).add(
            times_of(frame["end" if log.form.by_end else "at"])
        )
        self.frames.append(frame.drop("problem", *(c.name for c in frame if c.null_count() == len(frame))))

    def result(self) -> pl.DataFrame:
        """The good lines of all files in their order. A column without any value is missing."""
        lines = pl.concat(self.frames, how="diagonal")
        self.frames.clear()
        return lines

    def _count(self, slice_: FileSlice, log: LogLines, lines: pl.LazyFrame, frame: pl.DataFrame) -> None:
        """Add what was found in a file to `counts`. `lines` are those of `frame`, with values for examples."""
        counts, problem = self.counts, frame["problem"]
        found = LinesRead(
            lines=len(frame),
            columns=dict(log.columns),
            unused_columns=list(log.unused_columns),
            notes=list(log.notes),
            ignored=Counter({name: 0 for name in log.ignored if name.startswith(FILTER)}),
            counted=Counter({name: int(frame[name].sum() or 0) for name in log.counted}),
        )
        if log.table.no_zone:
            found.notes.append("times without a zone were read as UTC: --time-zone names another zone")
            hours = frame["end" if log.form.by_end else "at"].drop_nulls() // _HOUR_MS % 24
            found.counted[CLOCK_TIMES] = len(hours)
            found.counted[AFTERNOON] = int((~hours.is_between(1, 12)).sum())
        if problem.max():
            for code, number in problem.filter(problem > 0).value_counts().iter_rows():
                if code >= IGNORED:
                    found.ignored[log.ignored[code - IGNORED]] += number
                else:
                    one = log.problems[code - 1]
                    found.reasons[f"{one.column} {one.reason}".strip()] += number
            if len(counts.examples) < MAX_EXAMPLES:
                found.examples = list(self._examples(slice_, log, lines, problem))
        counts.add(found)

    def _examples(
        self, slice_: FileSlice, log: LogLines, lines: pl.LazyFrame, problem: pl.Series
    ) -> Iterator[MalformedLine]:
        shown = ((problem > 0) & (problem < IGNORED)).arg_true().head(MAX_EXAMPLES - len(self.counts.examples))
        if shown.is_empty():
            return
        texts = lines.select("value", "note").head(int(shown[-1]) + 1).collect(engine="streaming")[shown]
        before = 0
        if slice_.number:
            first = first_line(slice_._replace(number=0), self.kind, self.options.encoding)
            before = first_line(slice_, self.kind, self.options.encoding) - first
        numbers = log.table.line_of(shown.to_list())
        for code, number, (value, note) in zip(problem.gather(shown), numbers, texts.iter_rows(), strict=True):
            yield MalformedLine(
                file=str(slice_.file),
                number=number + before,
                unit=log.table.unit,
                problem=log.problems[code - 1],
                value=None if value is None else value[:_VALUE_CHARACTERS],
                note=note,
            )


def parsed(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file. Raises BadLog."""
    if kind == "events":
        return read_events(plain, options)
    return read_export(kind, plain, options) if kind in EXPORTS else read_published(kind, plain, options)


def check_same_format(file: LogFile, form: LogFormat, first: LogFormat) -> None:
    """Raise BadLog if the format of a file is not that of the first file."""
    for name, what in (("sessions_given", "a session_id"), ("by_position", "positions in sessions")):
        if getattr(form, name) != getattr(first, name):
            has, other = ("has", "does not") if getattr(form, name) else ("lacks", "has them")
            raise BadLog(f"{file} {has} {what}, the first file {other}: give logs of one form at a time")


class ReadStats(NamedTuple):
    """Statistics of the lines of a split or of the whole log."""

    read: LinesRead
    first_file: LogFile
    form: LogFormat
    columns: frozenset[str]  # columns with a value in at least one valid line
    times: dict[int, FileTimes]  # by the number of the file

    def add(self, later: "ReadStats") -> "ReadStats":
        """Return the statistics including the lines of the next split `later`. Change `read` in place."""
        self.read.add(later.read)
        times = dict(self.times)
        for file, found in later.times.items():
            times[file] = times.get(file, FileTimes()).add(found)
        return self._replace(columns=self.columns | later.columns, times=times)


def read_split(
    split: InputSplit, kind: LogKind, options: PrepareOptions, scratch: Path | None, partitions: int
) -> tuple[Any, ...]:
    """Read a split and partition its lines and tracks. This function is a task.

    Return a tuple of the ReadStats, the lines of each partition and the tracks of each partition. Lines are
    EncodedLines. Tracks are a data frame of `first_names`. An empty partition has None for both.
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
        times=log.times,
    )
    if lines.is_empty():
        return (stats, *[None] * (2 * partitions))
    tracks = first_names(lines)
    lines = lines.drop(TRACK_NAMES, strict=False)
    blocks = [None if part is None else encode(part) for part in partitioned(lines, "owner", partitions)]
    return (stats, *blocks, *partitioned(tracks, "track", partitions))
