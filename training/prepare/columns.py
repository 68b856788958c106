"""Columns of one log file, text or Parquet: parsing of times, numbers and flags, and the track ids of a catalogue.

Knows no log format: training.prepare.formats says what each column means.

Ids in a catalogue have at most 256 characters and no control characters (segue.sessions). An id of the log that
satisfies this is used unchanged. A track that has only an artist and a title (its key is `artist`, tab, `title`) is called
`artist — title`. If that is too long, contains control characters or is also the name of another track, it is shortened
and ends in ` #` and 16 hexadecimal digits of the key's hash: distinct tracks never share an id.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.errors import BadLog
from segue.safe_files import UNREADABLE, check_footer
from segue.sessions import CONTROL_CHARACTERS, MAX_ID_LENGTH

_HASH_DIGITS: Final = 16
_CONTROL: Final = f"[{CONTROL_CHARACTERS}]"


def track_table(lines: pl.DataFrame, codes: NDArray[np.uint32]) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """The tracks that `codes` names (`track_id`, `title`, `artist`), and `codes` as positions in that frame.

    `lines` has the categorical columns `track` and, where known, `title` and `artist`; `codes` are codes of `track`.
    A track's title and artist are the first ones given for it in the order of the lines.
    """
    code_of_line = lines["track"].to_physical().to_numpy()
    count = int(code_of_line.max()) + 1
    used = np.flatnonzero(np.bincount(codes, minlength=count))
    position = np.zeros(count, dtype=np.int64)
    position[used] = np.arange(len(used))
    keys = _first_given(lines["track"], code_of_line, used)
    names: dict[str, pl.Series] = {
        name: _first_given(lines[name], code_of_line, used) for name in ("title", "artist") if name in lines.columns
    }
    return named(keys, names), position[codes]


def named(keys: pl.Series, names: Mapping[str, pl.Series]) -> pl.DataFrame:
    """`track_id` of distinct keys, and `title` and `artist` where `names` has them."""
    return pl.DataFrame({"track_id": track_ids(keys), **{name: printable(texts) for name, texts in names.items()}})


def track_ids(keys: pl.Series) -> pl.Series:
    """Distinct ids for distinct keys, as this module's docstring says."""
    readable = keys.str.strip_prefix("\t").str.replace("\t", " — ", literal=True)
    ids = printable(readable)
    unfit = (ids != readable) | (ids.str.len_chars() > MAX_ID_LENGTH) | ids.is_duplicated()
    which = unfit.arg_true()
    if which.is_empty():
        return ids
    kept = MAX_ID_LENGTH - _HASH_DIGITS - 2
    # Few tracks come here: a loop is quick enough, and blake2b is the same on every machine, as polars' hash is not.
    digests = [hashlib.blake2b(key.encode(), digest_size=_HASH_DIGITS // 2).hexdigest() for key in keys.gather(which)]
    return ids.scatter(which, ids.gather(which).str.head(kept) + " #" + pl.Series(digests))


def printable(texts: pl.Series) -> pl.Series:
    """The texts with a blank for every control character."""
    return texts.str.replace_all(_CONTROL, " ")


def _first_given(column: pl.Series, code_of_line: NDArray[Any], used: NDArray[np.int64]) -> pl.Series:
    """For each of the codes `used`, the first text of `column` on a line with that code, null where there is none."""
    given = np.flatnonzero(column.is_not_null().to_numpy())[::-1]
    first = np.full(int(code_of_line.max()) + 1, -1, dtype=np.int64)
    first[code_of_line[given]] = given  # backwards, so that the first line is the last to be written
    lines = pl.Series(first[used])
    return column.gather(lines.set(lines < 0, None)).cast(pl.String)


# Names that no column of a log has.
_LINE, _PARTS, _COMPLETE, _OVERFLOW = "\x00line", "\x00parts", "\x00complete", "\x00overflow"
_HEADER_BYTES: Final = 1 << 20

# An epoch is in seconds, ms, us or ns; each limit is beyond the year 5000 in its unit and before 1975 in the next.
_EPOCH_LIMITS: Final = ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3))


@dataclass(frozen=True)
class Table:
    """The columns of one file, by their names in small letters."""

    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    text: pl.Expr
    name: str
    complete: pl.Expr | None = None

    @classmethod
    def of_parquet(cls, file: Path, name: str) -> "Table":
        """A Parquet file; nothing but its schema is read. Raises BadLog."""
        try:
            check_footer(file)
            frame = pl.scan_parquet(file, glob=False)
            columns = frame.collect_schema()
        except UNREADABLE as error:
            raise BadLog(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        small = {column: column.strip().lower() for column in columns}
        if len(set(small.values())) < len(small):
            raise BadLog(f"{name} has columns whose names differ in capitals alone, expected every name once")
        frame = frame.rename(small)
        schema = {column.strip().lower(): dtype for column, dtype in columns.items()}
        plain = [column for column, dtype in schema.items() if not dtype.is_nested() and dtype != pl.Binary]
        text = pl.concat_str([pl.col(column).cast(pl.String) for column in plain], separator=" ", ignore_nulls=True)
        return cls(frame, schema, text, name)

    @classmethod
    def of_text(cls, file: Path, name: str, *, quoted: bool) -> "Table":
        """A text with a header; tabs or commas separate. `quoted`: fields may stand in double quotes, on one line."""
        header, separator = _header(file, name)
        split = split_quoted_lines if quoted and _holds_quotes(file) else split_lines
        frame, complete, text = split(file, separator, header, skip_lines=1)
        return cls(frame, dict.fromkeys(header, pl.String()), text, name, complete)

    def require(self, *names: str) -> None:
        """Raise BadLog unless all these columns are there."""
        missing = [name for name in names if name not in self.schema]
        if missing:
            raise BadLog(self.expected(f"{', '.join(names)}; missing are {', '.join(missing)}"))

    def one_of(self, names: Sequence[str]) -> str:
        """The first of these columns that is there. Raises BadLog."""
        for name in names:
            if name in self.schema:
                return name
        raise BadLog(self.expected(" or ".join(names)))

    def expected(self, what: str) -> str:
        """The message that names the columns found and those expected."""
        found = ", ".join(repr(name)[1:-1] for name in self.schema)
        return f"{self.name} has the columns {found[:300]}; expected {what}"

    def text_of(self, name: str) -> pl.Expr | None:
        """A column as text, empty for none; None where the file has no such column."""
        return pl.col(name).cast(pl.String).fill_null("") if name in self.schema else None

    def given(self, name: str) -> pl.Expr:
        """Whether a line has anything in the column."""
        column = pl.col(name)
        return column.fill_null("").str.strip_chars() != "" if self.schema[name] == pl.String else column.is_not_null()

    def time_ms(self, name: str) -> pl.Expr:
        """A time in milliseconds since 1970: date-time text or type (UTC where no zone is named), or an epoch."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            return _time_of_text(column)
        if dtype == pl.Date or isinstance(dtype, pl.Datetime):
            return column.cast(pl.Datetime("ms")).cast(pl.Int64) if dtype == pl.Date else column.dt.epoch("ms")
        if dtype.is_numeric():
            return _time_of_epoch(column.cast(pl.Float64))
        raise BadLog(f"{self.name}: {name} is of type {dtype}, expected a date-time, text or a number")

    def whole_number(self, name: str) -> pl.Expr:
        """A whole number, null where the text is none."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            return column.str.strip_chars().cast(pl.Int64, strict=False)
        if dtype.is_numeric():
            return _whole(column)
        raise BadLog(f"{self.name}: {name} is of type {dtype}, expected a whole number")

    def flag(self, name: str) -> pl.Expr:
        """True for true and 1, False for false and 0, in any letters; otherwise null."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.Boolean:
            return column
        if dtype.is_numeric():
            column = _whole(column).cast(pl.String)
        elif dtype != pl.String:
            raise BadLog(f"{self.name}: {name} is of type {dtype}, expected true or false")
        column = column.str.strip_chars().str.to_lowercase()
        return pl.when(column.is_in(["true", "1"])).then(True).when(column.is_in(["false", "0"])).then(False)


def _whole(column: pl.Expr) -> pl.Expr:
    """Numbers as whole ones, null where they are none."""
    number = column.cast(pl.Int64, strict=False)
    return pl.when(number == column).then(number)


def split_lines(
    file: Path, separator: str, names: Sequence[str], *, skip_lines: int
) -> tuple[pl.LazyFrame, pl.Expr, pl.Expr]:
    """The fields of lines without quoting; whether their number is right; and the text of the line."""
    # Split here and not by the CSV reader: it fills up short lines, which then cannot be told from empty fields.
    fields = pl.col(_LINE).str.split_exact(separator, len(names)).struct.rename_fields([*names, _OVERFLOW])
    complete = pl.col(names[-1]).is_not_null() & pl.col(_OVERFLOW).is_null()
    return _lines(file, skip_lines).select(_LINE, fields.alias("fields")).unnest("fields"), complete, pl.col(_LINE)


def split_quoted_lines(
    file: Path, separator: str, names: Sequence[str], *, skip_lines: int
) -> tuple[pl.LazyFrame, pl.Expr, pl.Expr]:
    """The same for lines whose fields may stand in double quotes, a quote within them doubled (RFC 4180).

    A line is a record: a quoted field ends on its line, or the line is malformed.
    """
    # Split here and not by the CSV reader: to that, one title such as 12" mix makes the rest of the file one field.
    line, parts = pl.col(_LINE), pl.col(_PARTS)
    field = f'{separator}(?:"(?:[^"]|"")*"|[^"{separator}][^{separator}]*|)'
    found = _lines(file, skip_lines).with_columns((pl.lit(separator) + line).str.extract_all(field).alias(_PARTS))
    # Behind a closing quote nothing but a separator may follow: what is left over belongs to no field.
    complete = (parts.list.len() == len(names)) & (parts.list.join("").str.len_bytes() == line.str.len_bytes() + 1)
    fields = [_unquoted(parts.list.get(place, null_on_oob=True), separator) for place in range(len(names))]
    named = [value.alias(name) for value, name in zip(fields, names, strict=True)]
    return found.select(_LINE, complete.alias(_COMPLETE), *named), pl.col(_COMPLETE), line


def _unquoted(part: pl.Expr, separator: str) -> pl.Expr:
    value = part.str.strip_prefix(separator)
    inner = value.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    return pl.when(value.str.starts_with('"')).then(inner).otherwise(value)


def _lines(file: Path, skip_lines: int) -> pl.LazyFrame:
    """The lines of a text that are not blank; bytes that are no UTF-8 are replaced."""
    return pl.scan_csv(
        file,
        has_header=False,
        skip_lines=skip_lines,
        separator="\x01",  # stands in no log: a line is one field
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
        stream.readline(_HEADER_BYTES)  # read by itself
        return any(b'"' in block for block in iter(lambda: stream.read(_HEADER_BYTES), b""))


def _header(file: Path, name: str) -> tuple[list[str], str]:
    with file.open("rb") as stream:
        line = stream.readline(_HEADER_BYTES)
    text = line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    separator = "\t" if "\t" in text else ","
    try:
        header = [column.strip().lower() for column in next(csv.reader([text], delimiter=separator), [])]
    except csv.Error:  # a line within the line, or a name of 128 KiB
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
