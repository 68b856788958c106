"""Parse the columns of one file.

Log formats are not known here: training.prepare.formats says what each column means.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import polars as pl

from segue.errors import BadLog
from segue.safe_files import UNREADABLE, check_footer
from training.prepare import delimited
from training.prepare.content import PlainFile
from training.prepare.json_objects import (
    NOT_A_TEXT,
    TEXT,
    VALID,
    Shape,
    begins_with_lines,
    json_frame,
    line_numbers,
    shape_of,
)
from training.prepare.times import TimeReader, looks_like_time, time_value
from training.prepare.values import (
    FLAGS_ACCEPTED,
    Fault,
    Value,
    flag_of,
    id_of_binary,
    id_of_decimal,
    id_of_float,
    id_of_text,
    is_unreadable,
    whole_number_of,
)

_FIRST_ROWS: Final = 100


def unreadable(plain: PlainFile, error: Exception) -> BadLog:
    """The error for a file whose lines Polars cannot read."""
    reason = str(error).strip().splitlines()[0]
    if plain.content != "parquet" and re.search(r"(?i)\butf-?8\b", reason):
        return delimited.not_utf8(plain)
    return BadLog(f"{plain.name} cannot be read: {reason}")


@dataclass
class LogTable:
    """The columns of one file, by their names in lower case. Fields of JSON objects in objects have dotted names.

    The methods that give values may add columns to `frame`: take it after the last of them.
    """

    columns: pl.LazyFrame
    schema: dict[str, pl.DataType]  # of the columns that have a name
    plain: PlainFile
    complete: pl.Expr | None = None  # Boolean: whether a line can be divided into columns. None: every line can
    find_lines: Callable[[Sequence[int]], list[int]] | None = None
    faults: tuple[Fault, ...] = ()  # of whole lines that can be divided into columns
    json_types: dict[str, frozenset[type]] = field(default_factory=dict)  # of the values of each field of JSON
    written: dict[str, str] = field(default_factory=dict)  # the names as they are in the file
    _added: dict[str, pl.Expr] = field(default_factory=dict)
    _time_readers: list[TimeReader] = field(default_factory=list)

    @classmethod
    def open(
        cls, plain: PlainFile, *, quoted: bool = True, names: Sequence[str] = (), fields: Sequence[str] = ()
    ) -> "LogTable":
        """The table in a file. Its separator is told from the data. Raises BadLog.

        Args:
            plain: The file.
            quoted: Whether a field of a text file may be in double quotes.
            names: The names of the columns of a text file that need not have a header. Whether it has one is told
                from its first line. Without `names`, the first line must be a header.
            fields: The names of fields of JSON to read even if no line of the sample has them.

        """
        if plain.content == "parquet":
            return cls._of_parquet(plain)
        if plain.content != "text":
            return cls._of_json(plain, fields)
        layout = delimited.layout_of(plain, quoted=quoted, names=names)
        split = delimited.split(plain, layout, quoted=quoted)
        schema: dict[str, pl.DataType] = {
            name: pl.String() for name in layout.names if not name.startswith(delimited.UNNAMED)
        }
        find_lines = partial(delimited.line_numbers, plain, layout, split)
        written = dict(zip(layout.names, layout.header, strict=False))
        return cls(split.frame, schema, plain, split.complete, find_lines, written=written)

    @classmethod
    def _of_parquet(cls, plain: PlainFile) -> "LogTable":
        try:
            check_footer(plain.path)
            frame = pl.scan_parquet(plain.path, glob=False)
            columns = frame.collect_schema()
        except UNREADABLE as error:
            raise BadLog(f"{plain.name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        lower = {column: column.strip().lower() for column in columns}
        if len(set(lower.values())) < len(lower):
            raise BadLog(f"{plain.name} has columns whose names differ in capitals alone, expected every name once")
        schema = {lower[column]: dtype for column, dtype in columns.items()}
        written = {name: column.strip() for column, name in lower.items()}
        return cls(frame.rename(lower), schema, plain, written=written)

    @classmethod
    def _of_json(cls, plain: PlainFile, fields: Sequence[str]) -> "LogTable":
        if plain.content == "json" and begins_with_lines(plain.path):
            plain = plain._replace(content="json_lines")
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
        for field_ in fields:
            column = field_.lower()
            # A field is no object and a value at once.
            if not any(f"{known}.".startswith(f"{column}.") or column.startswith(f"{known}.") for known in columns):
                columns[column], shapes[column] = tuple(field_.split(".")), Shape()
        frame = json_frame(plain, columns)
        types = {column: frozenset(inner.types) for column, inner in shapes.items()}
        schema: dict[str, pl.DataType] = dict.fromkeys(columns, pl.String())
        find_lines = partial(line_numbers, plain.path) if plain.content == "json_lines" else None
        faults = (Fault(~pl.col(TEXT), NOT_A_TEXT, "", ""),)
        written = {column: ".".join(path).strip() for column, path in columns.items()}
        return cls(frame, schema, plain, pl.col(VALID), find_lines, faults, types, written)

    @property
    def name(self) -> str:
        """The name of the file, for messages."""
        return self.plain.name

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
        found = ", ".join(repr(self.as_written(name))[1:-1] for name in self.schema)
        return f"{self.name} has the columns {found[:300]}; expected {what}"

    def expected_column(self, column: str, option: str) -> BadLog:
        """The error for a column that an option names and the file lacks."""
        return BadLog(self.expected(f"{column}, named by {option}"))

    def as_written(self, name: str) -> str:
        """The name of a column as it is in the file, for messages."""
        return self.written.get(name, name)

    def text(self, name: str) -> Value:
        """A column as text, null where a value is missing. Raises BadLog for a column of objects."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.Binary:
            return id_of_binary(name, self.name)
        if dtype == pl.List(pl.String):
            column = column.list.join(", ")
        elif dtype.is_nested() or isinstance(dtype, pl.Duration):
            raise self._wrong_type(name, "text")
        return Value(column.cast(pl.String))

    def id(self, name: str) -> Value:
        """The ids in a column as text. Raises BadLog for a type that is no id."""
        dtype = self.schema[name]
        json_types = self.json_types.get(name, {str})
        if json_types <= {bool, list, dict}:
            raise BadLog(f"{self.name}: field {name} holds no ids, expected text or whole numbers")
        if float in json_types or dtype.is_float():
            return id_of_float(name, dtype)
        if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
            return id_of_text(name)
        if dtype.is_integer():
            return Value(pl.col(name).cast(pl.String))
        if dtype.is_decimal():
            return id_of_decimal(name)
        if dtype == pl.Binary:
            return id_of_binary(name, self.name)
        raise self._wrong_type(name, "ids: text, integers or categories")

    def time_ms(
        self, name: str, *, time_format: str | None = None, time_zone: str | None = None, plausible: bool = True
    ) -> Value:
        """Times in milliseconds since 1970 UTC. Raises BadLog and BadOption.

        Args:
            name: The column.
            time_format: The form of the times, as for strftime. Without it, all forms that are not ambiguous are read.
            time_zone: The zone of times that name none.
            plausible: Whether a time before 1990 or after tomorrow is a fault, and so is a date in digits.

        """
        dtype = self.schema[name]
        if not (dtype == pl.String or dtype.is_numeric() or dtype == pl.Date or isinstance(dtype, pl.Datetime)):
            raise self._wrong_type(name, "a date-time, text or a number")
        reader = TimeReader(time_format, time_zone, plausible)
        self._time_readers.append(reader)
        times = reader.times(name, dtype, self.first_text(name))
        shown = TimeReader(time_format, time_zone, plausible=False).times(name, dtype)
        return time_value(name, self._with_column("time", name, times), reader, shown)

    def like_times(self) -> list[str]:
        """The columns whose first value looks like a time, or like one that needs a time format."""
        found = [name for name, dtype in self.schema.items() if isinstance(dtype, pl.Datetime)]
        texts = {name: text for name in self.schema if (text := self.first_text(name))}
        return found + [name for name, text in texts.items() if looks_like_time(text)]

    def milliseconds(self, name: str) -> Value:
        """Durations in whole milliseconds. Raises BadLog."""
        if isinstance(self.schema[name], pl.Duration):
            return Value(pl.col(name).dt.total_milliseconds())
        return self.whole_number(name)

    def whole_number(self, name: str) -> Value:
        """Whole numbers as int64. Raises BadLog."""
        dtype = self.schema[name]
        if dtype != pl.String and not dtype.is_numeric():
            raise self._wrong_type(name, "whole numbers")
        number = pl.col(self._with_column("number", name, whole_number_of(name, dtype)))
        return self._value(name, number, "is no whole number", "whole numbers")

    def parse_bool(self, name: str, *, inverted: bool = False) -> Value:
        """Flags as Booleans. `inverted`: true means the opposite, such as a track that was heard. Raises BadLog."""
        dtype = self.schema[name]
        if dtype not in (pl.String, pl.Boolean) and not dtype.is_numeric():
            raise self._wrong_type(name, "true or false")
        flag = pl.col(self._with_column("flag", name, flag_of(name, dtype)))
        return self._value(name, ~flag if inverted else flag, "is no flag", FLAGS_ACCEPTED)

    @property
    def frame(self) -> pl.LazyFrame:
        """The columns of the file, and those that the values of the methods above need."""
        return self.columns.with_columns(**self._added) if self._added else self.columns

    @property
    def no_zone(self) -> bool:
        """Whether a time that was read named no zone, and was read as UTC. Known after the lines were read."""
        return any(reader.no_zone for reader in self._time_readers)

    @property
    def unit(self) -> str:
        """What `line_of` numbers: "line" or, in Parquet and JSON arrays, "row"."""
        return "line" if self.find_lines else "row"

    def line_of(self, rows: Sequence[int]) -> list[int]:
        """The numbers, from 1, of the lines at which rows of the frame begin, or of the rows where `unit` is "row".

        Rows are in ascending order.
        """
        return self.find_lines(rows) if self.find_lines else [row + 1 for row in rows]

    def first_text(self, name: str) -> str | None:
        """One of the first texts of a column, None if it has none. Raises BadLog."""
        if self.schema[name] != pl.String:
            return None
        try:
            found = self.columns.select(name).head(_FIRST_ROWS).collect(engine="streaming").to_series()
        except UNREADABLE as error:
            raise unreadable(self.plain, error) from error
        return next((text for text in found if text), None)

    def _value(self, name: str, value: pl.Expr, reason: str, accepted: str) -> Value:
        return Value(value, (Fault(is_unreadable(name, value), reason, name, accepted),))

    def _with_column(self, kind: str, name: str, values: pl.Expr) -> str:
        """The name of a column with these values, which are calculated once for all expressions that use it."""
        column = f"\x00{kind}:{len(self._added)}:{name}"
        self._added[column] = values
        return column

    def _wrong_type(self, name: str, expected: str) -> BadLog:
        return BadLog(f"{self.name}: column {name} is of type {str(self.schema[name])[:60]}, expected {expected}")
