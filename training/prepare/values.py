"""Read the values of a column: ids, times, whole numbers and flags, and say which of them cannot be read."""

from typing import Final, NamedTuple

import polars as pl

TIMES_ACCEPTED: Final = (
    "ISO 8601 (Z, +hh:mm, or no zone for UTC), or seconds, ms, us or ns since 1970; --time-format for others"
)
FLAGS_ACCEPTED: Final = "true or false, t or f, yes or no, y or n, 1 or 0"
NUMBERS_ACCEPTED: Final = "a whole number"


class Fault(NamedTuple):
    """What can be wrong with a value. A message reads: COLUMN: VALUE REASON (NOTE); accepted: ACCEPTED."""

    where: pl.Expr  # Boolean, never null: whether the value of a line has this fault
    reason: str  # such as "is no time"
    column: str
    accepted: str
    note: pl.Expr | None = None  # String: what the value was read as, for an example


class Value(NamedTuple):
    """The values of a column, read as one type."""

    value: pl.Expr  # null where the value is missing or at fault
    faults: tuple[Fault, ...] = ()  # of values that are present; a line has at most one of them
