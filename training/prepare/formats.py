"""The canonical columns of a log, and the lines that the options `where` and `where_not` leave out.

A parser says what the columns of its format mean (`Fields`), and `lines_of` makes the canonical columns of them. Each
line has a `problem`: 0 for a play, the number of its first fault, or, from IGNORED on, the reason why it is no play.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import polars as pl

from training.prepare.content import printable
from training.prepare.options import PrepareOptions
from training.prepare.tables import LogTable
from training.prepare.values import Fault, without_missing

LINE_COLUMNS: Final = {
    "owner": pl.String,  # of the user; in a log with sessions, of the session: its id, or its id, tab, id of the user
    "at": pl.Int64,  # start of the play, milliseconds since 1970-01-01 UTC, null where unknown
    "end": pl.Int64,  # end of the play, milliseconds since 1970-01-01 UTC, null where unknown
    "position": pl.Int64,  # of the play in its session, null where unknown
    "track": pl.String,  # the key of the track: its id or, if it has none, artist, tab, title
    "skipped": pl.Boolean,  # null where it must be inferred from time
    "evidence": pl.UInt8,  # position in EVIDENCE of what `skipped` comes from, null where it must be inferred
    "title": pl.String,
    "artist": pl.String,
    "written_at": pl.Int64,  # microseconds since 1970-01-01 UTC; the newest report of a play counts
    "detail": pl.UInt32,  # other values of the line, where two plays of a track can have the same time
    "file": pl.UInt32,  # number of the file in the log, null in a log of one file
}

EVIDENCE: Final = ("", "flag", "end reason", "played duration")
FLAG, END_REASON, DURATION = 1, 2, 3

IGNORED: Final = 128  # problems from here on are reasons to ignore a line
MISSING: Final = "is missing"
HIDDEN_OUTCOMES: Final = "plays without an outcome (log_input)"  # a reason to ignore lines of MSSD
NOTED: Final = "note: "  # begins the name of a number of Fields.counted that the report tells

Rule = tuple[pl.Expr, bool, int]  # where the rule applies, whether the play was skipped, position in EVIDENCE

EARLIEST_MS: Final = 631_152_000_000  # 1990-01-01

FILTER: Final = "--where"  # begins the name of each filter among the reasons to ignore lines
VALUES_OF: Final = "values of "  # begins the name of the number of values of a field of JSON
_MOST_SHOWN: Final = 3


class LogFormat(NamedTuple):
    """Facts that are true for all lines of a log."""

    sessions_given: bool  # owners are sessions
    by_position: bool  # plays have positions in their session
    by_end: bool = False  # plays are in the order of their ends: their starts are less exact


@dataclass(frozen=True)
class Fields:
    """What the rows of a table mean, as expressions over its columns."""

    owner: pl.Expr
    track: pl.Expr
    at: pl.Expr | None = None
    end: pl.Expr | None = None
    position: pl.Expr | None = None
    skipped: pl.Expr | None = None
    evidence: pl.Expr | None = None  # None: a flag wherever `skipped` is known
    title: pl.Expr | None = None
    artist: pl.Expr | None = None
    written_at: pl.Expr | None = None
    detail: pl.Expr | None = None
    complete: pl.Expr | None = None  # whether a row has all fields; None: as the table says
    faults: Sequence[Fault] = ()
    checks: Sequence[Fault] = ()  # faults that are judged after `faults`, over LINE_COLUMNS
    ignored: dict[str, pl.Expr] = field(default_factory=dict)  # rows that are no plays, by the reason
    counted: dict[str, pl.Expr] = field(default_factory=dict)  # numbers to sum over all rows
    columns: dict[str, str] = field(default_factory=dict)  # the column of each role, for the report
    also_used: Sequence[str] = ()  # columns without a role that were used
    notes: Sequence[str] = ()  # how values were understood, one sentence each


class Problem(NamedTuple):
    """A fault of a line, for messages."""

    reason: str
    column: str = ""  # empty if the line as a whole cannot be read
    accepted: str = ""


@dataclass(frozen=True)
class LogLines:
    """The lines of one file."""

    frame: pl.LazyFrame  # LINE_COLUMNS, problem (uint8), value and note (string), and the names of `counted`
    form: LogFormat
    table: LogTable
    problems: tuple[Problem, ...]  # the meaning of `problem`, from 1 on
    ignored: tuple[str, ...] = ()  # the meaning of `problem`, from IGNORED on
    counted: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    unused_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def missing(line_column: str, column: str, accepted: str = "") -> Fault:
    """The fault of a line without a value in one of LINE_COLUMNS, for `Fields.checks`. `column` is that of the log."""
    value = pl.col(line_column)
    empty = value.is_null() | (value == "") if LINE_COLUMNS[line_column] == pl.String else value.is_null()
    return Fault(empty, MISSING, column, accepted)


def outcome_of(rules: Sequence[Rule]) -> tuple[pl.Expr, pl.Expr]:
    """Whether a play was skipped, and its evidence: what the first rule that applies says. Null where none applies."""
    known = [(where.fill_null(value=False), skipped, evidence) for where, skipped, evidence in rules]
    skipped = [pl.when(where).then(pl.lit(skip)) for where, skip, _ in known]
    evidence = [pl.when(where).then(pl.lit(code, dtype=pl.UInt8)) for where, _, code in known]
    return pl.coalesce(*skipped, pl.lit(None, dtype=pl.Boolean)), pl.coalesce(*evidence, pl.lit(None, dtype=pl.UInt8))


def lines_of(table: LogTable, fields: Fields, form: LogFormat, frame: pl.LazyFrame | None = None) -> LogLines:
    """The canonical columns of a table. `frame` replaces that of the table, if there are more columns."""
    columns = {
        name: pl.lit(None, dtype=dtype) if (found := getattr(fields, name, None)) is None else found.cast(dtype)
        for name, dtype in LINE_COLUMNS.items()
    }
    if fields.skipped is not None and fields.evidence is None:
        columns["evidence"] = pl.when(fields.skipped.is_not_null()).then(pl.lit(FLAG, dtype=pl.UInt8))
    for name in ("title", "artist"):
        columns[name] = pl.when(columns[name] != "").then(columns[name])
    complete = table.complete if fields.complete is None else fields.complete
    incomplete = pl.lit(value=False) if complete is None else ~complete
    whole_line = Fault(incomplete, "wrong number of fields", "", f"{len(table.schema)} fields")
    if table.plain is not None and table.plain.content != "text":
        whole_line = Fault(incomplete, "is no JSON object", "", "")
    faults = (whole_line, *table.faults, *fields.faults, *fields.checks)
    of_lines = 1 + len(table.faults)
    of_table = len(faults) - len(fields.checks)
    where = {f"\x00fault{number}": fault.where for number, fault in enumerate(faults[:of_table])}
    ignored = {
        f"\x00ignored{number}": found.fill_null(value=False) for number, found in enumerate(fields.ignored.values())
    }
    codes = [
        *((pl.col(name), 1 + number) for number, name in enumerate(list(where)[:of_lines])),
        *((pl.col(name), IGNORED + number) for number, name in enumerate(ignored)),
        *((pl.col(name), 1 + of_lines + number) for number, name in enumerate(list(where)[of_lines:])),
        *((fault.where, 1 + of_table + number) for number, fault in enumerate(fields.checks)),
    ]
    found = pl.coalesce(*(pl.when(at).then(pl.lit(code, dtype=pl.UInt8)) for at, code in codes)).fill_null(0)
    shown = {f"\x00value{number}": _shown(table, fault) for number, fault in enumerate(faults)}
    notes = {f"\x00note{number}": fault.note for number, fault in enumerate(faults) if fault.note is not None}
    rows = (table.frame if frame is None else frame).select(
        **columns, **where, **ignored, **shown, **notes, **fields.counted
    )
    problem = pl.col("problem")
    lines = rows.with_columns(problem=found).select(
        *LINE_COLUMNS,
        "problem",
        *fields.counted,
        value=_chosen(problem, {int(name.removeprefix("\x00value")): name for name in shown}),
        note=_chosen(problem, {int(name.removeprefix("\x00note")): name for name in notes}),
    )
    used = {*fields.columns.values(), *fields.also_used}
    return LogLines(
        frame=lines,
        form=form,
        table=table,
        problems=tuple(Problem(fault.reason, table.as_written(fault.column), fault.accepted) for fault in faults),
        ignored=tuple(fields.ignored),
        counted=tuple(fields.counted),
        columns=fields.columns,
        unused_columns=tuple(name for name in table.schema if fields.columns and name not in used),
        notes=tuple(fields.notes),
    )


def _shown(table: LogTable, fault: Fault) -> pl.Expr:
    """The value at fault as text, for a message."""
    dtype = table.schema.get(fault.column)
    if dtype is None or dtype.is_nested() or dtype == pl.Binary:
        return pl.lit(None, dtype=pl.String)
    value = pl.col(fault.column)
    return (value.dt.total_milliseconds() if isinstance(dtype, pl.Duration) else value).cast(pl.String)


def _chosen(problem: pl.Expr, names: dict[int, str]) -> pl.Expr:
    return pl.coalesce(
        pl.lit(None, dtype=pl.String), *(pl.when(problem == number + 1).then(name) for number, name in names.items())
    )


def columns_and_values(conditions: Sequence[str]) -> dict[str, list[str]]:
    """The values of each column in texts such as `event=play`."""
    found: dict[str, list[str]] = {}
    for condition in conditions:
        column, _, value = condition.partition("=")
        found.setdefault(column.strip(), []).append(value)
    return found


def named_columns(options: PrepareOptions) -> list[str]:
    """The columns that the options name."""
    return list(columns_and_values((*options.where, *options.where_not)))


def filtered_lines(table: LogTable, options: PrepareOptions) -> dict[str, pl.Expr]:
    """The lines to leave out, by the options as they are written. Raises BadLog for a column that is not there."""
    found: dict[str, pl.Expr] = {}
    for option, conditions in ((FILTER, options.where), (f"{FILTER}-not", options.where_not)):
        for column, values in columns_and_values(conditions).items():
            shown = [f"{option} {printable(column)}={printable(value)}" for value in values]
            name, text = column.lower(), shown[0]
            if name not in table.schema:
                raise table.expected_column(printable(column), text)
            named = _is_one_of(table, name, values)
            more = f" and {len(shown) - _MOST_SHOWN:,} more" if len(shown) > _MOST_SHOWN else ""
            found[" ".join(shown[:_MOST_SHOWN]) + more] = ~named if option == FILTER else named
    return found


def counted_values(table: LogTable, options: PrepareOptions) -> dict[str, pl.Expr]:
    """Numbers to sum, which tell whether any line of JSON has the columns: their names are not in one place there."""
    if table.plain.content not in ("json", "json_lines"):
        return {}
    names = named_columns(options)
    return {f"{VALUES_OF}{name}": pl.col(name.lower()).is_not_null().cast(pl.Int64) for name in names}


def _is_one_of(table: LogTable, name: str, values: Sequence[str]) -> pl.Expr:
    """Whether a column has one of these values. Never null. An empty text stands for a missing value."""
    dtype, text = table.schema[name], table.text(name).value
    if dtype.is_float() or dtype.is_decimal():
        text = text.str.replace(r"\.0+$", "")
    text = without_missing(text)
    found = text.is_in(values).fill_null(value=False)
    return found | text.is_null() if "" in values else found
