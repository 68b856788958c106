"""Parse the columns of one file.

Log formats are not known here: training.prepare.formats says what each column means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from segue.errors import BadLog
from segue.safe_files import UNREADABLE, check_footer
from training.prepare.content import PlainFile
from training.prepare.delimited import header, holds_quotes, split_lines, split_quoted_lines
from training.prepare.json_objects import VALID, Shape, json_frame, line_numbers, shape_of
from training.prepare.values import FLAGS_ACCEPTED, NUMBERS_ACCEPTED, TIMES_ACCEPTED, Fault, Value

# An epoch is in s, ms, us or ns. Each limit is after the year 5000 in its unit and before 1975 in the next one.
_EPOCH_LIMITS: Final = ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3))


@dataclass(frozen=True)
class LogTable:
    """The columns of one file, by their names in lower case. Fields of JSON objects in objects have dotted names.

    The methods that give values may add columns to `frame`: take it after the last of them.
    """

    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    text_line: pl.Expr
    name: str
    complete: pl.Expr | None = None
    plain: PlainFile | None = None
    json_types: dict[str, frozenset[type]] = field(default_factory=dict)  # of the values of each field of JSON

    @classmethod
    def open(cls, plain: PlainFile, *, quoted: bool = True, names: Sequence[str] = ()) -> "LogTable":
        """The table in a file. Raises BadLog.

        Args:
            plain: The file.
            quoted: Whether a field of a text file may be in double quotes. The separator of a file without quotes is
                the tab, if its first line has one.
            names: The names of the columns of a text file that need not have a header. Whether it has one is told
                from its first line. Without `names`, the first line must be a header.

        """
        if plain.content == "parquet":
            return cls._of_parquet(plain.path, plain.name)
        if plain.content != "text":
            return cls._of_json(plain)
        return cls._of_text(plain.path, plain.name, quoted=quoted, names=names)

    @classmethod
    def _of_parquet(cls, file: Path, name: str) -> "LogTable":
        try:
            check_footer(file)
            frame = pl.scan_parquet(file, glob=False)
            columns = frame.collect_schema()
        except UNREADABLE as error:
            raise BadLog(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        lower = {column: column.strip().lower() for column in columns}
        if len(set(lower.values())) < len(lower):
            raise BadLog(f"{name} has columns whose names differ in capitals alone, expected every name once")
        frame = frame.rename(lower)
        schema = {column.strip().lower(): dtype for column, dtype in columns.items()}
        plain = [column for column, dtype in schema.items() if not dtype.is_nested() and dtype != pl.Binary]
        text = pl.concat_str([pl.col(column).cast(pl.String) for column in plain], separator=" ", ignore_nulls=True)
        return cls(frame, schema, text, name)

    @classmethod
    def _of_text(cls, file: Path, name: str, *, quoted: bool, names: Sequence[str]) -> "LogTable":
        columns, separator = (list(names), "\t") if names else header(file, name)
        split = split_quoted_lines if quoted and holds_quotes(file) else split_lines
        frame, complete, text = split(file, separator, columns, skip_lines=0 if names else 1)
        return cls(frame, dict.fromkeys(columns, pl.String()), text, name, complete)

    @classmethod
    def _of_json(cls, plain: PlainFile) -> "LogTable":
        shape = shape_of(plain)
        if dict not in shape.types:
            raise BadLog(f"{plain.name} holds no JSON object, expected one for each play")
        columns: dict[str, tuple[str, ...]] = {}
        shapes: dict[str, Shape] = {}
        for path, inner in shape.leaves():
            column = ".".join(path).strip().lower()
            if column in columns and len(path) == 1:
                raise BadLog(f"{plain.name} has fields whose names differ in capitals alone, expected every name once")
            if column and column not in columns:
                columns[column], shapes[column] = path, inner
        frame = json_frame(plain, columns)
        types = {column: frozenset(inner.types) for column, inner in shapes.items()}
        schema: dict[str, pl.DataType] = dict.fromkeys(columns, pl.String())
        return cls(frame, schema, pl.lit(""), plain.name, pl.col(VALID), plain, types)

    def require(self, *names: str) -> None:
        """Raise BadLog if one of these columns is missing."""
        missing = [name for name in names if name not in self.schema]
        if missing:
            raise BadLog(self.expected(f"{', '.join(names)}; missing are {', '.join(missing)}"))

    def one_of(self, names: Sequence[str]) -> str:
        """The first of these columns that the file has. Raises BadLog if it has none."""
        for name in names:
            if name in self.schema:
                return name
        raise BadLog(self.expected(" or ".join(names)))

    def expected(self, what: str) -> str:
        """A message with the columns found and those expected."""
        found = ", ".join(repr(name)[1:-1] for name in self.schema)
        return f"{self.name} has the columns {found[:300]}; expected {what}"

    def text(self, name: str) -> Value:
        """A column as text, null where a value is missing."""
        return Value(pl.col(name).cast(pl.String))

    def id(self, name: str) -> Value:
        """The ids in a column as text, null where a value is missing. Raises BadLog for a type that is no id."""
        text = pl.col(name).cast(pl.String)
        return Value(pl.when(text != "").then(text))

    def time_ms(
        self, name: str, *, time_format: str | None = None, time_zone: str | None = None, plausible: bool = True
    ) -> Value:
        """Times in milliseconds since 1970 UTC.

        Args:
            name: The column.
            time_format: The form of the times, as for strftime. Without it, all forms that are not ambiguous are read.
            time_zone: The zone of times that name none.
            plausible: Whether a time before 1990 or after tomorrow is a fault.

        """
        del time_format, time_zone, plausible
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            value = _time_of_text(column)
        elif dtype == pl.Date or isinstance(dtype, pl.Datetime):
            value = column.cast(pl.Datetime("ms")).cast(pl.Int64) if dtype == pl.Date else column.dt.epoch("ms")
        elif dtype.is_numeric():
            value = _time_of_epoch(column.cast(pl.Float64))
        else:
            raise BadLog(f"{self.name}: {name} is of type {dtype}, expected a date-time, text or a number")
        return self._value(name, value, "is no time", TIMES_ACCEPTED)

    def whole_number(self, name: str) -> Value:
        """Whole numbers as int64."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            value = column.str.strip_chars().cast(pl.Int64, strict=False)
        elif dtype.is_numeric():
            value = _whole(column)
        else:
            raise BadLog(f"{self.name}: {name} is of type {dtype}, expected a whole number")
        return self._value(name, value, "is no whole number", NUMBERS_ACCEPTED)

    def parse_bool(self, name: str, *, inverted: bool = False) -> Value:
        """Flags as Booleans. `inverted`: true means the opposite, such as a track that was played to its end."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.Boolean:
            return Value(column ^ inverted)
        if dtype.is_numeric():
            column = _whole(column).cast(pl.String)
        elif dtype != pl.String:
            raise BadLog(f"{self.name}: {name} is of type {dtype}, expected true or false")
        column = column.str.strip_chars().str.to_lowercase()
        yes, no = column.is_in(["true", "1"]), column.is_in(["false", "0"])
        value = pl.when(yes).then(not inverted).when(no).then(inverted)
        return self._value(name, value, "is no flag", FLAGS_ACCEPTED)

    @property
    def unit(self) -> str:
        """What `line_of` numbers: "line" or, in Parquet and JSON arrays, "row"."""
        return "row" if self.complete is None or (self.plain and self.plain.content == "json") else "line"

    def line_of(self, rows: Sequence[int]) -> list[int]:
        """The numbers, from 1, of the lines at which rows of the frame begin, or of the rows where `unit` is "row".

        Rows are in ascending order.
        """
        if self.plain and self.plain.content == "json_lines":
            return line_numbers(self.plain.path, list(rows))
        return [row + (1 if self.unit == "row" else 2) for row in rows]

    def _value(self, name: str, value: pl.Expr, reason: str, accepted: str) -> Value:
        where = self._is_present(name) & value.is_null()
        return Value(value, (Fault(where, reason, name, accepted),))

    def _is_present(self, name: str) -> pl.Expr:
        column = pl.col(name)
        return column.fill_null("").str.strip_chars() != "" if self.schema[name] == pl.String else column.is_not_null()


def _whole(column: pl.Expr) -> pl.Expr:
    """Numbers as int64, null where they are not whole."""
    number = column.cast(pl.Int64, strict=False)
    return pl.when(number == column).then(number)


def _time_of_text(text: pl.Expr) -> pl.Expr:
    text = text.str.strip_chars()
    zoned = pl.when(text.str.contains(r"(?:[Zz]|[+-]\d\d:?\d\d)$")).then(text).otherwise(text + "Z")
    parsed = zoned.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False).dt.epoch("ms")
    return pl.coalesce(_time_of_epoch(text.cast(pl.Float64, strict=False)), parsed)


def _time_of_epoch(number: pl.Expr) -> pl.Expr:
    scaled = [pl.when(number.abs() < limit).then(number * factor) for limit, factor in _EPOCH_LIMITS]
    return pl.coalesce(*scaled, number * 1e-6).cast(pl.Int64, strict=False)
