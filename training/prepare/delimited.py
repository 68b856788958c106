"""Split the lines of a text file into fields: separators and headers are told from the data.

A field may be in double quotes, with quotes inside it doubled and with line breaks (RFC 4180). Not every quote is such
one: a title such as 12" mix, or one that only begins with a quote, must not take the lines after it into its field.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl
from polars.io.plugins import register_io_source

from segue.errors import BadLog
from training.prepare.content import PlainFile

# No column of a log has these names. A column without a name has one that begins with UNNAMED.
COMPLETE: Final = "\x00complete"
UNNAMED: Final = "\x00unnamed"
_LINE, _NUMBER, _PARTS, _OVERFLOW = "\x00line", "\x00number", "\x00parts", "\x00overflow"

_SEPARATORS: Final = ("\t", ",", ";", "|")
_SAMPLE_BYTES: Final = 1 << 20
_SAMPLE_LINES: Final = 200

_BLOCK_BYTES: Final = 4 << 20
_MAX_RECORD_LINES: Final = 64
_MAX_RECORD: Final = 1 << 16  # in characters

_SUFFIX: Final = re.compile(r":(?:token|float)(?:_seq)?$")  # the types in the headers of RecBole
_VALUE: Final = re.compile(
    r"[-+]?[0-9]+(?:[.,][0-9]+)?(?:[eE][-+]?[0-9]+)?|[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}(?:\W.*|T.*)?"
    r"|[0-9]{1,2} [A-Za-z]{3,9} [0-9]{4}(?:\W.*)?"
)


def not_utf8(plain: PlainFile) -> BadLog:
    """The error for a file with bytes that are no UTF-8, with the first line that has some."""
    with plain.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02X}"
                return BadLog(
                    f"{plain.name}, line {plain.line_in_log(number):,}: byte {byte} is no UTF-8: name the encoding of "
                    f"the file, such as --encoding latin-1 or --encoding cp1252"
                )
    return BadLog(f"{plain.name} is no UTF-8: name its encoding with --encoding")


def scan_blocks(
    plain: PlainFile, schema: dict[str, Any], blocks: Callable[[list[str], bool], Iterator[pl.DataFrame]]
) -> pl.LazyFrame:
    """The rows of a text file, read block by block.

    Args:
        plain: The file, for the error message.
        schema: The columns, with their types.
        blocks: A function that yields the rows. It is given the names of the columns that are needed, which each block
            must have, and whether only the first rows are needed. It may raise UnicodeDecodeError.

    """

    def read(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        names = with_columns or list(schema)
        try:
            for block in blocks(names, n_rows is not None):
                frame = block.select(names)
                if n_rows is not None:
                    frame = frame.head(n_rows)
                    n_rows -= len(frame)
                yield frame if predicate is None else frame.filter(predicate)
                if n_rows == 0:
                    return
        except UnicodeDecodeError as error:
            raise not_utf8(plain) from error

    return register_io_source(read, schema=schema)


class Layout(NamedTuple):
    """How the lines of a text file are divided."""

    names: tuple[str, ...]  # of all fields of a line, in lower case
    separator: str
    skip_lines: int  # before the first line of data
    header: tuple[str, ...] = ()  # the names as they are in the file


@dataclass(frozen=True)
class Fields:
    """The fields of the lines of a text file."""

    frame: pl.LazyFrame  # the columns of the layout, all of them text; blank lines are ignored
    complete: pl.Expr  # Boolean: whether a line has as many fields as the layout
    numbered: bool = False  # whether the frame has the numbers of the lines


def layout_of(plain: PlainFile, *, quoted: bool, names: Sequence[str] = ()) -> Layout:
    """How the lines of a file are divided, told from its first ones.

    Args:
        plain: The file.
        quoted: Whether a field may be in double quotes.
        names: The names of the columns of a file that need not have a header, in their order.

    Raises:
        BadLog: The file has no header although `names` are not given, or names a column twice.

    """
    with plain.path.open("rb") as stream:
        data = stream.read(_SAMPLE_BYTES + 1)
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        lines = data.decode("utf-8-sig", errors="replace").split("\n")  # reading the lines tells which one it is
        if not names and "\ufffd" in next((line for line in lines if line.strip()), ""):
            raise not_utf8(plain) from None
    if len(lines) > 1 and len(data) > _SAMPLE_BYTES:
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines[:_SAMPLE_LINES]]
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    separators: Sequence[str] = _SEPARATORS
    if hint := re.fullmatch(r"sep=([\t,;|])", lines[start]):  # the first line of some files of spreadsheets
        separators, start = hint[1], min(start + 1, len(lines) - 1)
    rows = {sep: [_fields(line, sep, quoted=quoted) for line in lines[start:] if line] for sep in separators}
    if names:
        return _layout_without_header(rows, names, start)
    separator = max(separators, key=lambda sep: _fit(rows[sep]))
    header = rows[separator][0] if rows[separator] else [""]
    if data_field := next((field for field in header if _VALUE.fullmatch(field.strip())), ""):
        raise _no_header(plain, header, data_field)
    header = [_SUFFIX.sub("", name.strip()) for name in header]
    written = _with_unnamed(header, rows[separator][1:])
    columns = tuple(name if name.startswith(UNNAMED) else _SUFFIX.sub("", name.lower()) for name in written)
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise BadLog(f"{plain.name} has two columns named {twice[0][:60]!r}, expected a header that names each once")
    return Layout(columns, separator, start + 1, written)


def _fields(line: str, separator: str, *, quoted: bool) -> list[str]:
    if not quoted or '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [line])
    except csv.Error:  # a carriage return within the line, or a field of 128 KiB
        return line.split(separator)


def _fit(rows: list[list[str]]) -> tuple[bool, int]:
    """How well a separator fits: whether most lines have as many fields as the header, and how many these are."""
    width = len(rows[0]) if rows else 0
    # One more or less: a column without a name, or a separator at the end of each line.
    usual, lines = Counter(map(len, rows[1:])).most_common(1)[0] if rows[1:] else (width, 0)
    return width > 1 and abs(usual - width) <= 1 and 2 * lines >= len(rows) - 1, width


def _layout_without_header(rows: dict[str, list[list[str]]], names: Sequence[str], start: int) -> Layout:
    separator = max(rows, key=lambda sep: sum(len(row) == len(names) for row in rows[sep]))
    first = rows[separator][0] if rows[separator] else []
    headed = len(first) == len(names) and not any(_VALUE.fullmatch(field.strip()) for field in first)
    return Layout(tuple(names), separator, start + headed)


def _with_unnamed(header: list[str], rows: list[list[str]]) -> tuple[str, ...]:
    """The header, with a name for each field of a line."""
    widths = Counter(map(len, rows))
    width = widths.most_common(1)[0][0] if widths else len(header)
    rows = [row for row in rows if len(row) == width]
    if width == len(header) - 1 and not header[-1]:
        header = header[:-1]
    elif width == len(header) + 1 and not any(row[-1] for row in rows):  # lines end with a separator
        header = [*header, ""]
    elif width == len(header) + 1 and _are_row_numbers([row[0] for row in rows]):  # R names no column for them
        header = ["", *header]
    return tuple(name or f"{UNNAMED}{place}" for place, name in enumerate(header))


def _are_row_numbers(fields: list[str]) -> bool:
    if not all(field.isascii() and field.isdigit() for field in fields):
        return False
    numbers = [int(field) for field in fields]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _no_header(plain: PlainFile, fields: list[str], data_field: str) -> BadLog:
    if len(fields) == 5 and all(field.strip().isdigit() for field in fields):
        return BadLog(
            f"{plain.name} has no header and looks like LFM-1b (user, artist, album, track, time): put a line with the "
            "names user_id, artist_id, album_id, track_id, timestamp first, and read it with segue prepare events"
        )
    return BadLog(
        f"{plain.name} has no header: the first line has the value {data_field[:60]!r}, expected names of columns"
    )


def split(plain: PlainFile, layout: Layout, *, quoted: bool) -> Fields:
    """The fields of a file. With `quoted`, a field may be in double quotes."""
    quotes = _quotes(plain.path, layout) if quoted else "none"
    if quotes == "none":
        return _split_lines(plain.path, layout)
    if quotes == "paired":
        lines = _lines(plain.path, layout).with_columns(_parts(layout).alias(_PARTS))
        return Fields(lines.select(_LINE, *_quoted_fields(layout)), pl.col(COMPLETE))
    return _split_records(plain, layout)


def line_numbers(plain: PlainFile, layout: Layout, fields: Fields, rows: Sequence[int]) -> list[int]:
    """The numbers of the lines, from 1, at which rows of the frame begin."""
    if not rows:
        return []
    if fields.numbered:
        numbers = fields.frame.select(_NUMBER)
    else:
        lines = pl.scan_lines(plain.path, name=_LINE, row_index_name=_NUMBER, row_index_offset=1, glob=False)
        numbers = lines.slice(layout.skip_lines).filter(pl.col(_LINE) != "").select(_NUMBER)
    return numbers.head(max(rows) + 1).collect(engine="streaming").to_series().gather(list(rows)).to_list()


def _lines(file: Path, layout: Layout) -> pl.LazyFrame:
    lines = pl.scan_lines(file, name=_LINE, glob=False)
    return (lines.slice(layout.skip_lines) if layout.skip_lines else lines).filter(pl.col(_LINE) != "")


def _split_lines(file: Path, layout: Layout) -> Fields:
    # The CSV reader pads short lines, and padding cannot be distinguished from empty fields.
    split = pl.col(_LINE).str.split_exact(layout.separator, len(layout.names))
    fields = split.struct.rename_fields([*layout.names, _OVERFLOW])
    complete = pl.col(layout.names[-1]).is_not_null() & pl.col(_OVERFLOW).is_null()
    return Fields(_lines(file, layout).select(_LINE, fields.alias("fields")).unnest("fields"), complete)


def _parts(layout: Layout) -> pl.Expr:
    """The fields of a line that may be in quotes, with the separator before each."""
    # The CSV reader would read the rest of the file as one field after a title such as 12" mix.
    separator = re.escape(layout.separator)
    field = f'{separator}(?:"(?:[^"]|"")*"|[^"{separator}][^{separator}]*|)'
    return (pl.lit(layout.separator) + pl.col(_LINE)).str.extract_all(field)


def _quoted_fields(layout: Layout) -> list[pl.Expr]:
    """The columns from the parts of a line, and COMPLETE."""
    parts, line = pl.col(_PARTS), pl.col(_LINE)
    # After a closing quote only a separator may follow. Other text belongs to no field, so the lengths differ.
    whole = parts.list.join("").str.len_bytes() == line.str.len_bytes() + 1
    complete = (parts.list.len() == len(layout.names)) & whole
    fields = []
    for place, name in enumerate(layout.names):
        value = parts.list.get(place, null_on_oob=True).str.strip_prefix(layout.separator)
        inner = value.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
        fields.append(pl.when(value.str.starts_with('"')).then(inner).otherwise(value).alias(name))
    return [complete.alias(COMPLETE), *fields]


def _quotes(file: Path, layout: Layout) -> str:
    """Whether the lines of data have quotes: none, paired in each line, or unpaired (a field may have line breaks)."""
    with file.open("rb") as stream:
        for _ in range(layout.skip_lines):
            stream.readline(_SAMPLE_BYTES)
        if not any(b'"' in block for block in iter(lambda: stream.read(_SAMPLE_BYTES), b"")):
            return "none"
    odd = pl.col(_LINE).str.count_matches('"', literal=True) % 2 == 1
    try:
        found = _lines(file, layout).select(odd.any()).collect(engine="streaming").item()
    except pl.exceptions.ComputeError:  # no UTF-8: told when the lines are read
        return "paired"
    return "unpaired" if found else "paired"


def _split_records(plain: PlainFile, layout: Layout) -> Fields:
    """The fields of records, of which some have line breaks in quotes."""
    schema: dict[str, Any] = {
        _LINE: pl.String,
        _NUMBER: pl.UInt32,
        COMPLETE: pl.Boolean,
        **dict.fromkeys(layout.names, pl.String),
    }

    frame = scan_blocks(plain, schema, lambda _names, _first: _records(plain.path, layout))
    return Fields(frame, pl.col(COMPLETE), numbered=True)


def _records(file: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    """Blocks of records."""
    with file.open("rb") as stream:
        number = layout.skip_lines + 1
        for _ in range(layout.skip_lines):
            stream.readline()
        rest: list[str] = []
        while True:
            block = stream.read(_BLOCK_BYTES)
            block += stream.readline()
            lines = rest + [line.removesuffix("\r") for line in block.decode().split("\n")]
            if block.endswith(b"\n"):
                lines.pop()
            frame, used = _block_of_records(lines, layout, number, at_end=not block)
            yield frame
            if not block:
                return
            rest, number = lines[used:], number + used


def _block_of_records(lines: list[str], layout: Layout, number: int, *, at_end: bool) -> tuple[pl.DataFrame, int]:
    """The records in lines, and the number of lines used: the last record may go on in the next block."""
    numbers = pl.int_range(number, number + len(lines), dtype=pl.UInt32, eager=True)
    frame = pl.DataFrame({_LINE: pl.Series(lines, dtype=pl.String), _NUMBER: numbers})
    frame = frame.with_columns(_parts(layout).alias(_PARTS)).select(_LINE, _NUMBER, *_quoted_fields(layout))
    complete = frame[COMPLETE].to_list()
    joined: dict[int, list[str]] = {}
    keep = [line != "" for line in lines]
    used, place = len(lines), 0
    for place in (~frame[COMPLETE] & frame[_LINE].str.contains('"', literal=True)).arg_true():
        if not keep[place]:
            continue
        fields, end = _record(lines, place, complete, layout)
        if not fields and end == len(lines) and not at_end:
            used = place
            break
        if fields:
            joined[place] = fields
            keep[place:end] = [False] * (end - place)
    kept = frame.filter(pl.Series(keep, dtype=pl.Boolean)).filter(pl.col(_NUMBER) < number + used)
    if not joined:
        return kept, used
    records = pl.DataFrame(
        [(lines[place], number + place, True, *fields) for place, fields in joined.items()],
        schema=frame.schema,
        orient="row",
    )
    return pl.concat([kept, records]).sort(_NUMBER), used


def _record(lines: list[str], place: int, complete: list[bool], layout: Layout) -> tuple[list[str], int]:
    """The fields of the record of several lines that begins at `place`, empty if none does, and the line after it."""
    end, size = place, 0

    def following() -> Iterator[str]:
        nonlocal end, size
        while end < len(lines) and end < place + _MAX_RECORD_LINES and size < _MAX_RECORD:
            # A line that is a record of its own is no part of another, unless every line with a separator would be one.
            if end > place and complete[end] and len(layout.names) > 2 and '"' not in lines[end]:
                return
            size += len(lines[end]) + 1
            end += 1
            yield lines[end - 1] + "\n"

    try:
        fields = next(csv.reader(following(), delimiter=layout.separator, strict=True), [])
    except csv.Error:
        return [], end
    return (fields, end) if end > place + 1 and len(fields) == len(layout.names) else ([], place + 1)
