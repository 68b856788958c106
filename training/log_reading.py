"""The files of a log in memory, with integer codes for texts, and an account of the lines that could not be read.

Knows neither what a line of a kind looks like (training.log_formats) nor what becomes of it (training.listening_logs).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from segue.errors import BadLog
from segue.parquet_footer import UNREADABLE
from training.log_formats import LINE_COLUMNS, PROBLEMS, LogLines, SkipFlag, read_lines
from training.log_sources import LogKind, uncompressed

_EXAMPLES: Final = 5
_EXAMPLE_CHARACTERS: Final = 120
_CODED: Final = ("owner", "track", "title", "artist")


class MalformedLine(NamedTuple):
    """A line that could not be read."""

    file: Path
    reason: str
    text: str  # its first 120 characters


@dataclass
class LogReader:
    """Files read so far, their texts as integer codes."""

    kind: LogKind
    skip_flag: SkipFlag
    played_ratio_pct: int
    scratch: Path  # where compressed files are unpacked, one at a time
    lines: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[MalformedLine] = field(default_factory=list)
    frames: list[pl.DataFrame] = field(default_factory=list)
    forms: list[LogLines] = field(default_factory=list)

    def __post_init__(self) -> None:
        # One dictionary for each column and run: codes are the same in all files, and exact, as hashes are not.
        self.codings = {name: pl.Categorical(pl.Categories.random()) for name in _CODED}

    @property
    def malformed(self) -> int:
        """Lines that could not be read."""
        return self.reasons.total()

    @property
    def form(self) -> LogLines:
        """The first file, whose form the others share."""
        return self.forms[0]

    def read(self, file: Path) -> None:
        """Add a file. Raises BadLog where it cannot be read at all."""
        with uncompressed(file, self.scratch) as plain:
            log = read_lines(
                self.kind, plain, name=str(file), skip_flag=self.skip_flag, played_ratio_pct=self.played_ratio_pct
            )
            self.forms.append(log)
            if (log.whole_sessions, log.by_position) != (self.form.whole_sessions, self.form.by_position):
                raise BadLog(f"{file} has other columns than the first file: give logs of one form at a time")
            columns = [pl.col(name).cast(self.codings.get(name, dtype)) for name, dtype in LINE_COLUMNS.items()]
            try:
                frame = log.frame.select("problem", *columns).collect(engine="streaming")
                self._note_malformed(file, log, frame["problem"])
            except UNREADABLE as error:
                raise BadLog(f"{file} cannot be read: {str(error).strip().splitlines()[0]}") from error
        self.lines += len(frame)
        if frame["problem"].max():
            frame = frame.filter(pl.col("problem") == 0)
        self.frames.append(frame.drop("problem", *(c.name for c in frame if c.null_count() == len(frame))))

    def _note_malformed(self, file: Path, log: LogLines, problem: pl.Series) -> None:
        numbers = (problem > 0).arg_true()
        self.reasons.update(
            {PROBLEMS[code]: count for code, count in problem.gather(numbers).value_counts().iter_rows()}
        )
        shown = numbers.head(_EXAMPLES - len(self.examples))
        if shown.is_empty():
            return
        last = int(shown[-1])
        texts = log.frame.select("text").head(last + 1).collect(engine="streaming")["text"].gather(shown)
        for code, text in zip(problem.gather(shown), texts, strict=True):
            self.examples.append(MalformedLine(file, PROBLEMS[code], (text or "")[:_EXAMPLE_CHARACTERS]))

    def result(self) -> pl.DataFrame:
        """All good lines in the order of the files. Raises BadLog where there is none."""
        if self.lines == 0:
            raise BadLog(f"no line in {len(self.frames):,} files: expected a log of kind {self.kind}")
        if self.malformed == self.lines:
            first = self.examples[0]
            raise BadLog(
                f"none of {self.lines:,} lines can be read as {self.kind}: {first.reason} in {first.text!r} "
                f"({first.file}): check the kind of log"
            )
        lines = pl.concat(self.frames, how="diagonal")
        self.frames.clear()
        return lines
