"""Divide the files of a log into input splits, and open them without compression and in UTF-8.

An input split is either one slice of a large file or several small files. A slice of a text file contains the header
and all lines that begin in a range of bytes. A slice of a Parquet file is a range of rows. Compressed files, arrays of
JSON, exports of services and text in which a quoted field spans lines are never sliced. The slices of a file, read in
order, give the same lines as the whole file. This module does not interpret the columns of a log (see
training.prepare.formats).
"""

import codecs
import contextlib
import mmap
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.errors import BadLog
from training.prepare.archives import COPY_BYTES, Head, copy, damage_told, head_of, unpacked
from training.prepare.content import (
    HEAD_BYTES,
    Content,
    PlainFile,
    TextForm,
    archive_of,
    content_of,
    head_as_utf8,
    is_lfm1b,
    printable,
    text_form,
    why_unreadable,
)
from training.prepare.options import EXPORTS, LogKind

_MAX_FILES_PER_SPLIT: Final = 1000
_WITHOUT_HEADER: Final[tuple[LogKind, ...]] = ("lfm1k",)
_WITH_QUOTES: Final[tuple[LogKind, ...]] = ("events",)
_BEFORE_FIELDS: Final = np.frombuffer(b",;|\t", np.uint8)
# A field that begins with a quote and does not end on its line, or a closing quote that looks like it.
_OPEN_QUOTE: Final = re.compile(rb'(?:^|[,;|\t])"[^"\n]*+(?:""[^"\n]*+)*+(?:\n|\Z)', re.M)


class LogFile(NamedTuple):
    """A file of a log. Its text form is its name for messages, without control characters."""

    path: Path
    shown: str = ""  # the name for messages of a copy, such as `logs.zip: 2024/plays.csv`

    @property
    def name(self) -> str:
        """The last part of the name."""
        return str(self).rpartition("/")[2]

    def size(self) -> int:
        """Return the size in bytes."""
        return self.path.stat().st_size

    def head(self) -> Head:
        """Return how the file begins. Raises BadLog."""
        return head_of(self.path, str(self))

    def first_bytes(self) -> bytes:
        """Return the first HEAD_BYTES bytes without compression. Raises BadLog."""
        return self.head().content

    def __str__(self) -> str:
        return printable(self.shown or str(self.path))


class FileSlice(NamedTuple):
    """One slice of a file. `number` is the index of the slice from 0, and `of` is the number of slices."""

    file: LogFile
    number: int = 0
    of: int = 1
    file_number: int | None = None  # the index of the file in the log from 0, None in a log of one file
    size: int | None = None  # bytes of the file when it was divided: a log may grow while it is read


InputSplit: TypeAlias = tuple[FileSlice, ...]


class _Form(NamedTuple):
    """How a file is stored."""

    content: Content
    compressed: bool
    text: TextForm  # UTF-8 if the file is no text
    is_lfm1b: bool

    @property
    def is_plain(self) -> bool:
        """Whether the file can be read as it is."""
        return not self.compressed and self.text.is_plain

    def has_header(self, kind: LogKind) -> bool:
        """Whether the first line is that of a header, which each slice needs."""
        headless = kind in _WITHOUT_HEADER or (kind == "lfm2b" and self.is_lfm1b)
        return self.content == "text" and not headless


def _form_of(file: LogFile, encoding: str) -> _Form:
    """How a file is stored. Raises BadLog if no kind of log can be read from it."""
    compression, head = file.head()
    if archive_of(head) is not None:
        raise BadLog(f"{file} is an archive that was changed meanwhile, or is compressed twice: unpack it first")
    text = TextForm("utf-8", 0) if head.startswith(b"PAR1") else text_form(head, encoding or None)
    head = head_as_utf8(head, text)
    if (reason := why_unreadable(head)) is not None:
        raise BadLog(f"{file} {reason}")
    return _Form(content_of(head), compression is not None, text, is_lfm1b(head))


def input_splits(
    files: Sequence[LogFile], split_bytes: int, kind: LogKind, encoding: str = "", *, slice_files: bool = True
) -> list[InputSplit]:
    """Divide files into splits of at most about `split_bytes` bytes, and keep the order of the files.

    If `slice_files` is false, no file is sliced. A file that is not sliced can be larger than `split_bytes`. The
    `encoding` is that of `opened`. Raises BadLog if a large file cannot be read.
    """
    splits: list[InputSplit] = []
    small: list[FileSlice] = []
    small_bytes = 0
    for place, file in enumerate(files):
        file_number = place if len(files) > 1 else None
        size = file.size()
        sliced = slice_files and size > split_bytes and _can_be_sliced(file, kind, encoding)
        slices = -(-size // split_bytes) if sliced else 1
        if small and (slices > 1 or small_bytes + size > split_bytes or len(small) == _MAX_FILES_PER_SPLIT):
            splits.append(tuple(small))
            small, small_bytes = [], 0
        if slices > 1:
            splits.extend((FileSlice(file, number, slices, file_number, size),) for number in range(slices))
        else:
            small.append(FileSlice(file, file_number=file_number))
            small_bytes += size
    return [*splits, tuple(small)] if small else splits


def _can_be_sliced(file: LogFile, kind: LogKind, encoding: str) -> bool:
    form = _form_of(file, encoding)
    if form.content == "parquet":
        return not form.compressed
    if form.compressed or not form.text.has_line_feeds or form.content == "json":
        return False
    if form.content == "json_lines":
        return True
    return kind not in EXPORTS and not (kind in _WITH_QUOTES and _quoted_field_spans_lines(file))


def _quoted_field_spans_lines(file: LogFile) -> bool:
    with _mapped(file) as text:
        start = 0
        while (found := text.find(b'"', start)) >= 0:
            start = text.rfind(b"\n", 0, found) + 1
            end = _line_from(text, min(start + COPY_BYTES, len(text)))
            lines = text[start:end]
            if _may_open_quotes(np.frombuffer(lines, np.uint8)) and _OPEN_QUOTE.search(lines) is not None:
                return True
            start = end
    return False


def _may_open_quotes(lines: NDArray[np.uint8]) -> bool:
    """Whether a quoted field may not end on its line. This is false for most lines with quotes, and much faster.

    If the last quoted field of a line remains open, either an even number of quotes is before its first quote, and the
    line has an odd number of them, or an odd number of quotes is before its first quote, which follows a separator.
    """
    quotes, ends = np.flatnonzero(lines == ord('"')), np.flatnonzero(lines == ord("\n"))
    line = np.searchsorted(ends, quotes)
    counts = np.bincount(line)
    after_an_odd_number = (np.arange(len(quotes)) - (np.cumsum(counts) - counts)[line]) % 2 == 1
    follows_separator = np.isin(lines[quotes - 1], _BEFORE_FIELDS) & (quotes > 0)
    return bool((counts % 2).any() or (after_an_odd_number & follows_separator).any())


@contextlib.contextmanager
def opened(slice_: FileSlice, kind: LogKind, scratch: Path, encoding: str = "") -> Iterator[PlainFile]:
    """Yield a file with the lines of a slice, without compression and in UTF-8.

    For a Parquet file, yield the whole file; `rows_of_slice` selects the rows of the slice. Temporary copies are
    written to the folder `scratch` and deleted at the end. `encoding` is that of text without a byte order mark, by
    default UTF-8. Bytes that are not UTF-8 in such text are left to the reader.

    Raises:
        BadLog: The file cannot be read, is damaged, is no log, is not in the encoding, or is not what was divided.

    """
    file, name = slice_.file, str(slice_.file)
    form = _form_of(file, encoding)
    sliced = slice_.of > 1 and form.content != "parquet"
    if slice_.size is not None and (file.size() < slice_.size or (not sliced and file.size() != slice_.size)):
        raise BadLog(f"{name} was replaced while it was read: run the command again after the writer has ended")
    if form.is_plain and not sliced:
        yield PlainFile(file.path, form.content, name, form.is_lfm1b)
        return
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".log-") as folder:
        path = Path(folder) / "log"
        plain = PlainFile(path, form.content, name, form.is_lfm1b)
        with path.open("wb") as out:
            if sliced:
                plain = plain._replace(line_in_log=partial(_line_in_log, slice_, kind, encoding))
                if form.content == "json_lines":
                    plain = plain._replace(first_lines=_first_lines(file, form.text))
                writer = _Utf8Writer(out, form.text._replace(mark_bytes=0), plain)
                _copy_lines(slice_, form, writer.write, headed=form.has_header(kind))
            else:
                writer = _Utf8Writer(out, form.text, plain)
                with damage_told(name, packed=form.compressed), file.path.open("rb") as stream:
                    copy(unpacked(stream), writer.write, scratch, name)
            writer.end()
        if path.stat().st_size == 0 and not sliced:
            raise BadLog(f"{name} holds nothing{' once uncompressed' * form.compressed}: expected a log")
        yield plain


def first_line(slice_: FileSlice, kind: LogKind, encoding: str = "") -> int:
    """Return the number in its file of the first line of a slice after the header, or of its first row in Parquet.

    Numbers count from 1. This reads the part of the file before the slice.
    """
    form = _form_of(slice_.file, encoding)
    if form.content == "parquet":
        if slice_.number == 0:
            return 1
        rows = int(pl.scan_parquet(slice_.file.path, glob=False).select(pl.len()).collect().item())
        return 1 + (rows * slice_.number // slice_.of)
    headed = form.has_header(kind)
    if slice_.number == 0:
        return 1 + int(headed)
    with _mapped(slice_.file) as text:
        start, _ = _range_of(slice_, text, headed=headed)
        blocks = range(0, start, COPY_BYTES)
        return 1 + sum(text[place : min(place + COPY_BYTES, start)].count(b"\n") for place in blocks)


def _line_in_log(slice_: FileSlice, kind: LogKind, encoding: str, line: int) -> int:
    """Return the number in its file of a line of the copy of a slice, which has the header before its lines."""
    first = first_line(slice_._replace(number=0), kind, encoding)
    return line if line < first else line - first + first_line(slice_, kind, encoding)


def _first_lines(file: LogFile, form: TextForm) -> bytes:
    with _mapped(file) as text:
        return head_as_utf8(text[: _line_from(text, HEAD_BYTES)], form)


def rows_of_slice(slice_: FileSlice, lines: pl.LazyFrame) -> pl.LazyFrame:
    """Return the lines of `slice_` from `lines`, which are the lines of the file that `opened` yielded."""
    if slice_.of == 1 or not slice_.file.first_bytes().startswith(b"PAR1"):
        return lines
    rows = int(lines.select(pl.len()).collect().item())
    start = rows * slice_.number // slice_.of
    return lines.slice(start, rows * (slice_.number + 1) // slice_.of - start)


class _Utf8Writer:
    """Writes text of any encoding as UTF-8 without its byte order mark."""

    def __init__(self, out: BinaryIO, form: TextForm, plain: PlainFile) -> None:
        self._out = out
        self._encoding = form.encoding
        self._mark = form.mark_bytes
        self._plain = plain
        self._decoder = None if form.encoding == "utf-8" else codecs.getincrementaldecoder(form.encoding)()
        self._lines = 0  # line feeds in what was written

    def write(self, block: bytes) -> None:
        """Write bytes. Raises BadLog if they are not in the encoding."""
        block, self._mark = block[self._mark :], max(0, self._mark - len(block))
        if self._decoder is None:
            self._out.write(block)
        else:
            self._write_decoded(block, end=False)

    def end(self) -> None:
        """Write what remains. Raises BadLog if the bytes end within a character."""
        if self._decoder is not None:
            self._write_decoded(b"", end=True)

    def _write_decoded(self, block: bytes, *, end: bool) -> None:
        assert self._decoder is not None
        try:
            text = self._decoder.decode(block, end)
            self._out.write(text.encode())
        except UnicodeError as error:
            line = self._lines + 1
            what = "the text"
            if isinstance(error, UnicodeDecodeError):
                before = error.object[: error.start].decode(self._encoding, errors="ignore")
                line += before.count("\n")
                what = f"byte 0x{error.object[error.start]:02x}"
            raise BadLog(
                f"{self._plain.name}, line {self._plain.line_in_log(line):,}: {what} is not in the encoding "
                f"{self._encoding}: name that of the file with --encoding, such as utf-8, latin-1 or cp1252"
            ) from error
        self._lines += text.count("\n")


@contextlib.contextmanager
def _mapped(file: LogFile) -> Iterator[mmap.mmap]:
    try:
        with file.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            yield text
    except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file
        raise BadLog(f"{file} cannot be read: {printable(str(error))}: was it changed meanwhile?") from error


def _copy_lines(slice_: FileSlice, form: _Form, write: Callable[[bytes], object], *, headed: bool) -> None:
    with _mapped(slice_.file) as text:
        mark = form.text.mark_bytes
        first = _line_from(text, 1) if headed else 0
        start, end = _range_of(slice_, text, headed=headed)
        for block_start, block_end in ((mark, first), (max(mark, start), end)):
            for place in range(block_start, block_end, COPY_BYTES):
                write(text[place : min(place + COPY_BYTES, block_end)])


def _range_of(slice_: FileSlice, text: mmap.mmap, *, headed: bool) -> tuple[int, int]:
    """Return the byte positions of the begin and the end of the lines of a slice.

    Lines that were appended after the file was divided are in no slice.
    """
    size = len(text) if slice_.size is None else slice_.size
    first = _line_from(text, 1) if headed else 0
    start = max(first, _line_from(text, size * slice_.number // slice_.of))
    return start, max(first, _line_from(text, size * (slice_.number + 1) // slice_.of))


def _line_from(text: mmap.mmap, place: int) -> int:
    """Return the byte position of the first line that begins at `place` or later."""
    if place == 0:
        return 0
    found = text.find(b"\n", place - 1)
    return len(text) if found < 0 else found + 1
