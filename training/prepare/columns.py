"""Columns of a log: parse the columns of one file, encode ids as integers, and make the track ids of a catalogue.

Log formats are not known here: training.prepare.formats says what each column means.

**Track ids.** Ids in a catalogue have at most 256 characters and no control characters (segue.sessions). An id of the
log that satisfies this is used unchanged. A track that has only an artist and a title (its key is `artist`, tab,
`title`) gets the id `artist — title`. An id that is too long, contains control characters or is also the id of
another track is shortened and ends in ` #` and 16 hexadecimal digits of the key's hash. So distinct tracks never
share an id.
"""

import csv
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.errors import BadLog
from segue.safe_files import UNREADABLE, check_footer
from segue.sessions import CONTROL_CHARACTERS, MAX_ID_LENGTH

_HASH_DIGITS: Final = 16
_CONTROL: Final = f"[{CONTROL_CHARACTERS}]"
TRACK_NAMES: Final = ("title", "artist")


def assign_track_ids(tracks: pl.DataFrame) -> pl.DataFrame:
    """`track_id` of distinct tracks, with their `title` and `artist` where the frame has these columns."""
    names = {name: strip_control_chars(tracks[name]) for name in TRACK_NAMES if name in tracks.columns}
    return pl.DataFrame({"track_id": track_ids(tracks["track"])} | names)


def played_tracks(tracks: Sequence[pl.DataFrame], track: NDArray[np.uint32]) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """The tracks with plays, and `track` [plays] as positions in them.

    `track` are positions in all tracks, which are frames of `first_names`, one after another.
    """
    known = pl.concat(tracks, how="diagonal")
    used = np.flatnonzero(np.bincount(track, minlength=len(known)))
    position = np.zeros(len(known), dtype=np.int64)
    position[used] = np.arange(len(used))
    return assign_track_ids(known[used]), position[track]


def track_ids(keys: pl.Series) -> pl.Series:
    """Distinct ids for distinct keys, as the docstring of this module describes. [tracks] string."""
    readable = keys.str.strip_prefix("\t").str.replace("\t", " — ", literal=True)
    ids = strip_control_chars(readable)
    unfit = (ids != readable) | (ids.str.len_chars() > MAX_ID_LENGTH) | ids.is_duplicated()
    which = unfit.arg_true()
    if which.is_empty():
        return ids
    kept = MAX_ID_LENGTH - _HASH_DIGITS - 2
    # Only few tracks need it, so a loop is fast enough. Unlike polars' hash, blake2b is the same on every machine.
    digests = [hashlib.blake2b(key.encode(), digest_size=_HASH_DIGITS // 2).hexdigest() for key in keys.gather(which)]
    return ids.scatter(which, ids.gather(which).str.head(kept) + " #" + pl.Series(digests))


def strip_control_chars(texts: pl.Series) -> pl.Series:
    """The texts with a blank instead of every control character."""
    return texts.str.replace_all(_CONTROL, " ")


# No column of a log has these names.
_LINE, _PARTS, _COMPLETE, _OVERFLOW = "\x00line", "\x00parts", "\x00complete", "\x00overflow"
_HEADER_BYTES: Final = 1 << 20

# An epoch is in s, ms, us or ns. Each limit is after the year 5000 in its unit and before 1975 in the next one.
_EPOCH_LIMITS: Final = ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3))


@dataclass(frozen=True)
class LogTable:
    """The columns of one file, by their names in lower case."""

    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    text: pl.Expr
    name: str
    complete: pl.Expr | None = None

    @classmethod
    def of_parquet(cls, file: Path, name: str) -> "LogTable":
        """A Parquet file. Only its schema is read. Raises BadLog."""
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
    def of_text(cls, file: Path, name: str, *, quoted: bool) -> "LogTable":
        """A tab- or comma-separated text file with a header. `quoted`: a field may be in double quotes, on one line."""
        header, separator = _header(file, name)
        split = split_quoted_lines if quoted and _holds_quotes(file) else split_lines
        frame, complete, text = split(file, separator, header, skip_lines=1)
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

    def text_of(self, name: str) -> pl.Expr | None:
        """A column as text, empty where a value is missing; None if the file has no such column."""
        return pl.col(name).cast(pl.String).fill_null("") if name in self.schema else None

    def is_present(self, name: str) -> pl.Expr:
        """Whether a line has a value in the column."""
        column = pl.col(name)
        return column.fill_null("").str.strip_chars() != "" if self.schema[name] == pl.String else column.is_not_null()

    def time_ms(self, name: str) -> pl.Expr:
        """A time in milliseconds since 1970, from a date-time (UTC unless it has a zone) or an epoch."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            return _time_of_text(column)
        if dtype == pl.Date or isinstance(dtype, pl.Datetime):
            return column.cast(pl.Datetime("ms")).cast(pl.Int64) if dtype == pl.Date else column.dt.epoch("ms")
        if dtype.is_numeric():
            return _time_of_epoch(column.cast(pl.Float64))
        raise BadLog(f"{self.name}: {name} is of type {dtype}, expected a date-time, text or a number")

    def whole_number(self, name: str) -> pl.Expr:
        """A whole number, null where the value is not one."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            return column.str.strip_chars().cast(pl.Int64, strict=False)
        if dtype.is_numeric():
            return _whole(column)
        raise BadLog(f"{self.name}: {name} is of type {dtype}, expected a whole number")

    def parse_bool(self, name: str) -> pl.Expr:
        """True for true and 1, False for false and 0, in upper or lower case; otherwise null."""
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


class EncodedLines(NamedTuple):
    """Lines of a log with ids as integers."""

    owners: pl.Series  # string, distinct
    tracks: pl.Series  # string, distinct
    lines: pl.DataFrame  # `owner` and `track` uint32, positions in `owners` and `tracks`; other columns unchanged


def encode(lines: pl.DataFrame) -> EncodedLines:
    """Encode the categorical columns `owner` and `track`."""
    owners, owner = _distinct(lines["owner"])
    tracks, track = _distinct(lines["track"])
    return EncodedLines(owners, tracks, lines.with_columns(owner=pl.Series(owner), track=pl.Series(track)))


def partitioned(rows: pl.DataFrame, key: str, partitions: int) -> list[pl.DataFrame | None]:
    """The rows of each partition in their order, None if there are none. The texts of the column `key` decide."""
    if partitions == 1:
        return [rows]
    texts = rows[key]
    if texts.dtype == pl.String:
        partition = partitions_of(texts, partitions)
    else:
        distinct, position = _distinct(texts)
        partition = partitions_of(distinct, partitions)[position]
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    ordered = rows[order]
    return [ordered[int(start) : int(end)] if end > start else None for start, end in pairwise(bounds)]


def partitions_of(texts: pl.Series, partitions: int) -> NDArray[np.uint32]:
    """The partition of each text, the same on every machine. [texts] uint32."""
    # crc32, because polars' hash depends on its version and on the processor.
    return np.fromiter((zlib.crc32(text.encode()) % partitions for text in texts), dtype=np.uint32, count=len(texts))


def recode(blocks: Sequence[EncodedLines], owners: pl.Series, tracks: pl.Series) -> pl.DataFrame:
    """The lines of all blocks, one after another, with positions in `owners` and `tracks`, which have all their ids."""
    owner = _positions([block.owners for block in blocks], owners)
    track = _positions([block.tracks for block in blocks], tracks)
    lines = [
        block.lines.with_columns(
            owner=pl.Series(owner_of[block.lines["owner"].to_numpy()]),
            track=pl.Series(track_of[block.lines["track"].to_numpy()]),
        )
        for block, owner_of, track_of in zip(blocks, owner, track, strict=True)
    ]
    return pl.concat(lines, how="diagonal")


def first_names(lines: pl.DataFrame) -> pl.DataFrame:
    """The distinct tracks of the categorical column `track`, each with the first title and artist given for it.

    All columns of the result are strings. Titles and artists are null where no line has one.
    """
    tracks, track = _distinct(lines["track"])
    found = {"track": tracks}
    for name in TRACK_NAMES:
        if name in lines.columns:
            given = np.flatnonzero(lines[name].is_not_null().to_numpy())[::-1]
            first = np.full(len(tracks), -1, dtype=np.int64)
            first[track[given]] = given  # in reverse order, so the first line is written last
            places = pl.Series(first)
            found[name] = lines[name].gather(places.set(places < 0, None)).cast(pl.String)
    return pl.DataFrame(found)


def _distinct(texts: pl.Series) -> tuple[pl.Series, NDArray[np.uint32]]:
    """The distinct values of a categorical column as strings, and the position of each value. [texts] uint32."""
    codes = texts.to_physical().to_numpy()
    size = int(codes.max()) + 1
    if size > len(codes):  # sorting few values is faster than a table of all codes
        _, first, position = np.unique(codes, return_index=True, return_inverse=True)
        return texts.gather(first).cast(pl.String), position.astype(np.uint32)
    line = np.full(size, -1, dtype=np.int64)
    line[codes] = np.arange(len(codes))
    used = np.flatnonzero(line >= 0)
    names = texts.gather(line[used]).cast(pl.String)
    if len(used) == size:
        return names, codes
    position = np.zeros(size, dtype=np.uint32)
    position[used] = np.arange(len(used), dtype=np.uint32)
    return names, position[codes]


def _positions(texts: Sequence[pl.Series], table: pl.Series) -> list[NDArray[np.uint32]]:
    """The position of each text in `table`."""
    if len(texts) == 1 and texts[0].equals(table):  # one split in one partition
        return [np.arange(len(table), dtype=np.uint32)]
    numbered = pl.DataFrame({"text": table, "position": pl.int_range(len(table), dtype=pl.UInt32, eager=True)})
    wanted = pl.concat([column.alias("text") for column in texts]).to_frame()
    found = wanted.join(numbered, on="text", how="left", maintain_order="left")["position"].to_numpy()
    return np.split(found, np.cumsum([len(column) for column in texts])[:-1])
