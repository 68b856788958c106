"""Leave out lines of a log by the values of a column: the options `where` and `where_not`."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from training.prepare.content import printable
from training.prepare.options import PrepareOptions
from training.prepare.tables import LogTable
from training.prepare.values import without_missing

FILTER: Final = "--where"  # begins the name of each filter among the reasons to ignore lines
VALUES_OF: Final = "values of "  # begins the name of the number of values of a field of JSON

_SHOWN: Final = 3


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
            more = f" and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
            found[" ".join(shown[:_SHOWN]) + more] = ~named if option == FILTER else named
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
