"""Split the lines of a text file into fields."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile

# No column of a log has these names.
_LINE, _PARTS, _COMPLETE, _OVERFLOW = "\x00line", "\x00parts", "\x00complete", "\x00overflow"
_HEADER_BYTES: Final = 1 << 20


def not_utf8(plain: PlainFile) -> BadLog:
    """The error for a file with bytes that are no UTF-8, with the first line that has some."""
    with plain.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02X}"
                return BadLog(
                    f"{plain.name}, line {number:,}: byte {byte} is no UTF-8: name the encoding of the file, "
                    f"such as --encoding latin-1 or --encoding cp1252"
                )
    return BadLog(f"{plain.name} is no UTF-8: name its encoding with --encoding")


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


def holds_quotes(file: Path) -> bool:
    """Whether a line after the header has a double quote."""
    with file.open("rb") as stream:
        stream.readline(_HEADER_BYTES)  # the header is parsed by `header`
        return any(b'"' in block for block in iter(lambda: stream.read(_HEADER_BYTES), b""))


def header(file: Path, name: str) -> tuple[list[str], str]:
    """The names of the columns in lower case, and the separator. Raises BadLog."""
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
