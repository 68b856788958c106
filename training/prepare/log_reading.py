"""The files of a log in memory, with integer codes for texts, and an account of the lines that could not be read.

Knows neither what a line of a kind looks like (training.prepare.formats) nor what becomes of it
(training.prepare.pipeline).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from segue.errors import BadLog
from segue.parquet_footer import UNREADABLE
from training.prepare.formats import LINE_COLUMNS, PROBLEMS, LogForm, SkipFlag, read_lines
from training.prepare.log_portions import Part, opened, rows_of_part
from training.prepare.sources import LogKind

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

    def refuse_nothing(self, kind: LogKind, files: int) -> None:
        """Raise BadLog where there is no line that could be read."""
        if self.lines == 0:
            raise BadLog(f"no line in {files:,} files: expected a log of kind {kind}")
        if self.malformed == self.lines:
            first = self.examples[0]
            raise BadLog(
                f"none of {self.lines:,} lines can be read as {kind}: {first.reason} in {first.text!r} "
                f"({first.file}): check the kind of log"
            )


@dataclass
class LogReader:
    """Files read so far, their texts as integer codes."""

    kind: LogKind
    skip_flag: SkipFlag
    played_ratio_pct: int
    scratch: Path  # where compressed files are unpacked, one at a time
    account: LinesRead = field(default_factory=LinesRead)
    frames: list[pl.DataFrame] = field(default_factory=list)
    forms: list[LogForm] = field(default_factory=list)

    def __post_init__(self) -> None:
        # One dictionary for each column and run: codes are the same in all files, and exact, as hashes are not.
        self.codings = {name: pl.Categorical(pl.Categories.random()) for name in _CODED}

    @property
    def form(self) -> LogForm:
        """That of the first file, which the others share."""
        return self.forms[0]

    def read(self, part: Part) -> None:
        """Add a file, or part of one. Raises BadLog where it cannot be read at all."""
        file = part.file
        with opened(part, self.kind, self.scratch) as plain:
            log = read_lines(
                self.kind, plain, name=str(file), skip_flag=self.skip_flag, played_ratio_pct=self.played_ratio_pct
            )
            self.forms.append(log.form)
            refuse_other_form(file, log.form, self.form)
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
        self.account.refuse_nothing(self.kind, len(self.frames))
        lines = pl.concat(self.frames, how="diagonal")
        self.frames.clear()
        return lines


def refuse_other_form(file: Path, form: LogForm, first: LogForm) -> None:
    """Raise BadLog where a file is of another form than the first one."""
    if form != first:
        raise BadLog(f"{file} has other columns than the first file: give logs of one form at a time")
