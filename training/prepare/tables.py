"""Parse the columns of one file.

Log formats are not known here: training.prepare.formats says what each column means.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from segue.errors import BadLog
from segue.safe_files import UNREADABLE, check_footer
from training.prepare.content import PlainFile
from training.prepare.values import FLAGS_ACCEPTED, NUMBERS_ACCEPTED, TIMES_ACCEPTED, Fault, Value

# No column of a log has these names.
_LINE, _PARTS, _COMPLETE, _OVERFLOW = "\x00line", "\x00parts", "\x00complete", "\x00overflow"
_HEADER_BYTES: Final = 1 << 20

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
        header, separator = (list(names), "\t") if names else _header(file, name)
        split = split_quoted_lines if quoted and _holds_quotes(file) else split_lines
        frame, complete, text = split(file, separator, header, skip_lines=0 if names else 1)
        return cls(frame, dict.fromkeys(header, pl.String()), text, name, complete)

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

    def line_of(self, rows: Sequence[int]) -> list[int]:
        """The numbers, from 1, of the lines at which rows of the frame begin. In Parquet, those of the rows."""
        return [row + 2 for row in rows]

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


def split_lines(
    file: Path, separator: str, names: Sequence[str], *, skip_lines: int
) -> tuple[pl.LazyFrame, pl.Expr, pl.Expr]:
    """The fields of lines without quotes, whether a line has all of them, and the text of the line."""
    # The CSV reader pads short lines, and padding cannot be distinguished from empty fields.
    fields = pl.col(_LINE).str.split_exact(separator, len(names)).struct.rename_fields([*names, _OVERFLOW])
    complete = pl.col(names[-1]).is_not_null() & pl.col(_OVERFLOW).is_null()
    return _lines(file, skip_lines).select(_LINE, fields.alias("fields")).unnest("fields"), complete, pl.col(_LINE)


def split_quoted_lines(
    file: Path, separator: str, names: Sequence[str], *, skip_lines: int
) -> tuple[pl.LazyFrame, pl.Expr, pl.Expr]:
    """The same for lines whose fields may be in double quotes, with quotes inside them doubled (RFC 4180).

    A line is a record. If a quoted field does not end on its line, the line is malformed.
    """
    # The CSV reader would read the rest of the file as one field after a title such as 12" mix.
    line, parts = pl.col(_LINE), pl.col(_PARTS)
    field = f'{separator}(?:"(?:[^"]|"")*"|[^"{separator}][^{separator}]*|)'
    found = _lines(file, skip_lines).with_columns((pl.lit(separator) + line).str.extract_all(field).alias(_PARTS))
    # After a closing quote only a separator may follow. Other text belongs to no field, so the lengths differ.
    complete = (parts.list.len() == len(names)) & (parts.list.join("").str.len_bytes() == line.str.len_bytes() + 1)
    fields = [_unquoted(parts.list.get(place, null_on_oob=True), separator) for place in range(len(names))]
    named = [value.alias(name) for value, name in zip(fields, names, strict=True)]
    return found.select(_LINE, complete.alias(_COMPLETE), *named), pl.col(_COMPLETE), line


def _unquoted(part: pl.Expr, separator: str) -> pl.Expr:
    value = part.str.strip_prefix(separator)
    inner = value.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    return pl.when(value.str.starts_with('"')).then(inner).otherwise(value)


def _lines(file: Path, skip_lines: int) -> pl.LazyFrame:
    """The lines of a text file that are not blank. Bytes that are not UTF-8 are replaced."""
    return pl.scan_csv(
        file,
        has_header=False,
        skip_lines=skip_lines,
        separator="\x01",  # occurs in no log, so a line is one field
        quote_char=None,
        schema={_LINE: pl.String},
        encoding="utf8-lossy",
        empty_string_is_null=False,
        extra_columns="ignore",
        missing_columns="insert",
        raise_if_empty=False,
        glob=False,
    ).filter(pl.col(_LINE) != "")


def _holds_quotes(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.readline(_HEADER_BYTES)  # the header is parsed by `_header`
        return any(b'"' in block for block in iter(lambda: stream.read(_HEADER_BYTES), b""))


def _header(file: Path, name: str) -> tuple[list[str], str]:
    with file.open("rb") as stream:
        line = stream.readline(_HEADER_BYTES)
    text = line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    separator = "\t" if "\t" in text else ","
    try:
        header = [column.strip().lower() for column in next(csv.reader([text], delimiter=separator), [])]
    except csv.Error:  # a line break within the line, or a name of 128 KiB
        header = [""]
    if len(set(header)) < len(header) or "" in header:
        raise BadLog(f"{name} begins with {text[:120]!r}, expected a header that names every column once")
    return header, separator


def _time_of_text(text: pl.Expr) -> pl.Expr:
    text = text.str.strip_chars()
    zoned = pl.when(text.str.contains(r"(?:[Zz]|[+-]\d\d:?\d\d)$")).then(text).otherwise(text + "Z")
    parsed = zoned.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False).dt.epoch("ms")
    return pl.coalesce(_time_of_epoch(text.cast(pl.Float64, strict=False)), parsed)


def _time_of_epoch(number: pl.Expr) -> pl.Expr:
    scaled = [pl.when(number.abs() < limit).then(number * factor) for limit, factor in _EPOCH_LIMITS]
    return pl.coalesce(*scaled, number * 1e-6).cast(pl.Int64, strict=False)
