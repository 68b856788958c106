"""Read the values of a column: ids, whole numbers and flags, and say which of them cannot be read.

Times are read in training.prepare.times.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import polars as pl

from segue.errors import BadLog

# What databases, pandas and R write for a missing value.
MISSING_WORDS: Final = ("", "\\N", "NULL", "null", "None", "NaN", "nan", "NA", "<NA>")

FLAGS_ACCEPTED: Final = "true or false, t or f, yes or no, y or n, 1 or 0"

EXACT: Final = 1 << 53  # whole numbers from here on are not exact as floating-point numbers

_TRUE: Final = ("true", "t", "yes", "y", "1", "1.0", "ja", "oui", "si", "sí", "sì", "sim")
_FALSE: Final = ("false", "f", "no", "n", "0", "0.0", "nein", "non", "não", "nao")
_USUAL_FLAGS: Final = (("true", "1", "True"), ("false", "0", "False"))


class Fault(NamedTuple):
    """What can be wrong with a value. A message reads: COLUMN: VALUE REASON (NOTE); accepted: ACCEPTED."""

    where: pl.Expr  # Boolean, never null: whether the value of a line has this fault
    reason: str  # such as "is no time"
    column: str  # empty if the line as a whole cannot be read
    accepted: str
    note: pl.Expr | None = None  # String: a remark on an example, such as the time that it was read as


class Value(NamedTuple):
    """The values of a column, read as one type."""

    value: pl.Expr  # null where the value is missing or at fault
    faults: tuple[Fault, ...] = ()  # of values that are present; a line has at most one of them


def without_missing(text: pl.Expr) -> pl.Expr:
    """The texts, null instead of MISSING_WORDS."""
    return pl.when(~text.is_in(MISSING_WORDS)).then(text)


def id_of_text(name: str) -> Value:
    """Ids that are text or categories."""
    return Value(without_missing(pl.col(name).cast(pl.String)))


def id_of_binary(name: str, file: str) -> Value:
    """Ids that are UTF-8 in a column of bytes. The expression raises BadLog for other bytes."""

    def read(values: pl.Series) -> pl.Series:
        try:
            return values.cast(pl.String)
        except pl.exceptions.ComputeError as error:
            raise BadLog(f"{file}: column {name} has bytes that are no UTF-8 text") from error

    return Value(without_missing(pl.col(name).map_batches(read, return_dtype=pl.String, is_elementwise=True)))


def id_of_float(name: str, dtype: pl.DataType) -> Value:
    """Ids that a program has stored as floating-point numbers: 1.0 is the id 1. In JSON, other ids may be text."""
    text = without_missing(pl.col(name)) if dtype == pl.String else None
    number = pl.col(name).cast(pl.Float64) if text is None else text.cast(pl.Float64, strict=False)
    exact = (number.abs() < EXACT) & (number == number.round())
    where = (exact.not_() & number.is_not_nan()).fill_null(value=False)
    accepted = "text or integers; ids in a floating-point column are exact only if they are whole and below 2^53"
    read = pl.when(exact).then(number).cast(pl.Int64).cast(pl.String) if text is None else pl.when(~where).then(text)
    return Value(read, (Fault(where, "is no exact id", name, accepted),))


def id_of_decimal(name: str) -> Value:
    """Ids that are decimal numbers without a fraction."""
    text = pl.col(name).cast(pl.String).str.replace(r"\.0+$", "")
    where = text.str.contains(".", literal=True).fill_null(value=False)
    accepted = "text or whole numbers"
    return Value(pl.when(~where).then(text), (Fault(where, "is no whole number", name, accepted),))


def whole_number_of(name: str, dtype: pl.DataType) -> pl.Expr:
    """Whole numbers as int64, null where the value is missing or none."""
    column = pl.col(name)
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if dtype == pl.String:
        number = column.cast(pl.Int64, strict=False)
        return pl.map_batches([column, number], _with_whole_floats, return_dtype=pl.Int64, is_elementwise=True)
    return _exact(column.cast(pl.Float64))


def _with_whole_floats(columns: Sequence[pl.Series]) -> pl.Series:
    text, number = columns
    if number.null_count() == text.null_count():
        return number
    text = text.str.strip_chars()
    real = pl.lit(text.cast(pl.Float64, strict=False))
    return pl.select(pl.coalesce(number, text.cast(pl.Int64, strict=False), _exact(real))).to_series()


def _exact(real: pl.Expr) -> pl.Expr:
    return pl.when((real.abs() < EXACT) & (real == real.round())).then(real).cast(pl.Int64)


def flag_of(name: str, dtype: pl.DataType) -> pl.Expr:
    """Flags as Booleans, null where the value is missing or none."""
    column = pl.col(name)
    if dtype == pl.Boolean:
        return column
    if dtype == pl.String:
        # Comparisons are much faster than changing capitals.
        true, false = (pl.any_horizontal(column == word for word in words) for words in _USUAL_FLAGS)
        flag = pl.when(true).then(True).when(false).then(False)
        return pl.map_batches([column, flag], _with_other_flags, return_dtype=pl.Boolean, is_elementwise=True)
    return pl.when(column == 1).then(True).when(column == 0).then(False)


def _with_other_flags(columns: Sequence[pl.Series]) -> pl.Series:
    text, flag = columns
    if flag.null_count() == text.null_count():
        return flag
    word = text.str.strip_chars().str.to_lowercase()
    found = pl.when(word.is_in(_TRUE)).then(True).when(word.is_in(_FALSE)).then(False)
    return pl.select(found).to_series()


def is_unreadable(name: str, value: pl.Expr) -> pl.Expr:
    """Whether a column has a value of which `value`, what was read of it, is null. Never null."""
    return pl.map_batches([pl.col(name), value], _are_unreadable, return_dtype=pl.Boolean, is_elementwise=True)


def _are_unreadable(columns: Sequence[pl.Series]) -> pl.Series:
    given, read = columns
    if read.null_count() == given.null_count():
        return pl.repeat(value=False, n=len(given), eager=True)
    unread = read.is_null() & given.is_not_null()
    if given.dtype == pl.String:
        return unread & ~given.str.strip_chars().is_in(MISSING_WORDS).fill_null(value=True)
    return unread & given.is_not_nan().fill_null(value=False) if given.dtype.is_float() else unread
