"""What the rows of an export mean, and how to read the columns of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from training.prepare.formats import MISSING, Rule
from training.prepare.tables import LogTable
from training.prepare.values import Fault

PLAYED_S: Final = 30  # a play heard for less is a skip where an export has no other sign of one


@dataclass(frozen=True)
class ExportRows:
    """What the rows of an export mean, as expressions over the columns of `frame`."""

    frame: pl.LazyFrame
    track: pl.Expr  # the key of the track
    title: pl.Expr
    artist: pl.Expr
    at: pl.Expr  # start of the play, ms since 1970
    end: pl.Expr | None = None
    outcome: Sequence[Rule] = ()  # the first rule that applies counts
    faults: tuple[Fault, ...] = ()
    ignored: dict[str, pl.Expr] = field(default_factory=dict)  # rows that are no plays, by their reason
    noted: dict[str, pl.Expr] = field(default_factory=dict)  # plays that the report counts, by what they are
    notes: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)  # the column of each role, for the report
    also_used: tuple[str, ...] = ()  # other columns that were used
    ordered_by_end: bool = False  # the ends of plays are exact in order, the starts are not
    complete: pl.Expr | None = None  # whether a row has all fields


def text_of(table: LogTable, *names: str) -> pl.Expr:
    """The first of these columns that the file has as text, null where it is missing or empty."""
    for name in names:
        if name in table.schema and table.schema[name] != pl.Null:
            text = pl.col(name).cast(pl.String)
            return pl.when(text.str.strip_chars() != "").then(text)
    return pl.lit(None, dtype=pl.String)


def number_of(table: LogTable, name: str) -> pl.Expr:
    """A column of whole numbers, null where one is missing or cannot be read."""
    return table.whole_number(name).value if name in table.schema else pl.lit(None, dtype=pl.Int64)


def flag_of(table: LogTable, name: str) -> pl.Expr:
    """A column of flags, null where one is missing or cannot be read."""
    known = name in table.schema and table.schema[name] != pl.Null
    return table.parse_bool(name).value if known else pl.lit(None, dtype=pl.Boolean)


def any_given(table: LogTable, *names: str) -> pl.Expr:
    """Whether a row has a value in one of these columns. Columns that the file lacks have none."""
    return pl.any_horizontal(text_of(table, name).is_not_null() for name in names)


def described(artist: pl.Expr, title: pl.Expr) -> pl.Expr:
    """The key of a track without an id."""
    return pl.concat_str(artist.fill_null("").str.replace_all("\t", " ", literal=True), title, separator="\t")


def missing(table: LogTable, *names: str) -> tuple[Fault, ...]:
    """The faults of rows without a value in columns that every play needs."""
    return tuple(Fault(~any_given(table, name), MISSING, name, "") for name in names if name in table.schema)


def negative(value: pl.Expr, column: str) -> Fault:
    """The fault of a duration below 0."""
    return Fault((value < 0).fill_null(value=False), "is negative", column, "a whole number of milliseconds")
