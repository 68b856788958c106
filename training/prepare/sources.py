"""Find the files of a log, decompress them, divide them into input splits, and count the lines.

An input split is either one slice of a large file or several small files. A slice of a text file contains the header
and all lines that begin in a range of bytes. A slice of a Parquet file is a range of rows. Compressed files are never
sliced. The slices of a file, read in order, give the same lines as the whole file. This module does not interpret the
columns of a log (see training.prepare.formats).
"""

import bz2
import contextlib
import fnmatch
import glob
import gzip
import mmap
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import polars as pl
import zstandard

from segue.errors import BadLog
from training.prepare.content import HEAD_BYTES, PlainFile, content_of
from training.prepare.options import LogKind

COMPRESSIONS: Final = (".gz", ".bz2", ".zst")
_COPY_BYTES: Final = 1 << 20

# File name patterns of log files. The folders of published datasets also contain other tables.
_IN_FOLDERS: Final[dict[LogKind, tuple[str, ...]]] = {
    "mssd": ("*.csv",),
    "lfm1k": ("*.tsv",),
    "lfm2b": ("*listening*events*.tsv", "*listening*events*.csv"),
    "yambda": ("*listens*.parquet",),
    "events": ("*.csv", "*.tsv", "*.parquet"),
}
_NOT_IN_FOLDERS: Final[dict[LogKind, str]] = {"mssd": "tf_*", "lfm1k": "userid-profile*"}


class LogFile(NamedTuple):
    """A file of a log. Its text form is its name for messages, without control characters."""

    path: Path
    member: str = ""  # the name inside a zip or tar archive
    shown: str = ""  # the name for messages, if it is not that of the path and member
    stated_bytes: int | None = None  # the uncompressed size that an archive states

    @property
    def name(self) -> str:
        """The last part of the name."""
        return str(self).rpartition("/")[2]

    def size(self) -> int:
        """Return the size in bytes: for a member of an archive, the size that the archive states."""
        return self.path.stat().st_size if self.stated_bytes is None else self.stated_bytes

    def __str__(self) -> str:
        return printable(self.shown or (f"{self.path}: {self.member}" if self.member else str(self.path)))


class FoundFiles(NamedTuple):
    """The files of a log, and what was found beside them."""

    files: list[LogFile]
    notes: list[str]  # a line for each group of files that are not read, and why


def printable(text: str) -> str:
    """Return text with its control characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def find_files(kind: LogKind, sources: Sequence[Path | str], scratch: Path) -> FoundFiles:
    """Return the distinct files in `sources`, which are files, folders and globs.

    The files of a folder or glob are sorted by name. In a folder, hidden files and files without a log name of this
    `kind` are ignored. Copies of files that cannot be read where they are remain in the folder `scratch`.

    Raises:
        BadLog: A source does not exist or contains no log, or a file is empty.

    """
    del scratch
    if not sources:
        raise BadLog("no log is named: name at least one file or folder")
    unique: dict[Path, Path] = {}
    for source in sources:
        for file in _files_of(kind, source):
            unique.setdefault(file.resolve(), file)
    for file in unique.values():
        if file.stat().st_size == 0:
            raise BadLog(f"{file} is empty: expected a log of kind {kind}")
    return FoundFiles([LogFile(file) for file in unique.values()], [])


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`, which need not exist yet, and delete the folder at the end."""
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(dir=above, prefix=".log-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def uncompressed(file: Path, scratch: Path) -> Iterator[Path]:
    """Yield `file` if it is not compressed, else the path of an uncompressed copy.

    The copy is written to the folder `scratch` and deleted at the end. Decompression needs a few MB of memory for
    files of any size.

    Raises:
        BadLog: The compressed data is damaged or empty.

    """
    compression = file.suffix.lower()
    if compression not in COMPRESSIONS:
        yield file
        return
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".log-") as folder:
        plain = Path(folder) / _inner_name(file).name
        try:
            with plain.open("wb") as copy:
                for block in _blocks(file, compression):
                    copy.write(block)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise BadLog(f"{file} cannot be uncompressed: {error}: fetch the file again") from error
        except OSError as error:  # bz2 raises OSError without an errno for damaged data
            reason = "damaged data" if error.errno is None else error.strerror
            raise BadLog(f"{file} cannot be uncompressed: {reason}: fetch the file again") from error
        if plain.stat().st_size == 0:
            raise BadLog(f"{file} holds nothing once uncompressed: expected a log")
        yield plain


def _files_of(kind: LogKind, source: Path | str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _belongs(kind, file, path))
        if not files:
            raise BadLog(f"{path} holds no log of kind {kind}: expected files {' or '.join(_IN_FOLDERS[kind])}")
        return files
    if not glob.has_magic(str(source)):
        raise BadLog(f"{path} does not exist: name a file, a folder or a glob")
    # Use glob.glob, because Path.glob does not accept absolute patterns.
    files = sorted(file for name in glob.glob(str(source), recursive=True) if (file := Path(name)).is_file())  # noqa: PTH207
    if not files:
        raise BadLog(f"no file matches {source}: name a file, a folder or a glob")
    return files


def _belongs(kind: LogKind, file: Path, folder: Path) -> bool:
    if any(part.startswith((".", "_")) for part in file.relative_to(folder).parts):
        return False
    name = _inner_name(file).name.lower()
    if kind in _NOT_IN_FOLDERS and fnmatch.fnmatch(name, _NOT_IN_FOLDERS[kind]):
        return False
    return any(fnmatch.fnmatch(name, pattern) for pattern in _IN_FOLDERS[kind])


def _inner_name(file: Path) -> Path:
    return file.with_suffix("") if file.suffix.lower() in COMPRESSIONS else file


def _blocks(file: Path, compression: str) -> Iterator[bytes]:
    """Yield the uncompressed bytes in blocks."""
    if compression == ".zst":
        yield from _zst_blocks(file)
        return
    with gzip.open(file) if compression == ".gz" else bz2.open(file) as stream:
        while block := stream.read(_COPY_BYTES):
            yield block


def _zst_blocks(file: Path) -> Iterator[bytes]:
    # zstandard.open does not report a truncated file. This function raises EOFError.
    with file.open("rb") as stream:
        rest = stream.read(_COPY_BYTES)
        while rest:
            frame = zstandard.ZstdDecompressor().decompressobj()
            while not frame.eof:
                if not rest:
                    raise EOFError("the data end within a frame")
                yield frame.decompress(rest)
                rest = stream.read(_COPY_BYTES) if not frame.eof else frame.unused_data
            rest = rest or stream.read(_COPY_BYTES)


_MAX_FILES_PER_SPLIT: Final = 1000
_WITHOUT_HEADER: Final[tuple[LogKind, ...]] = ("lfm1k",)


class FileSlice(NamedTuple):
    """One slice of a file. `number` is the index of the slice from 0, and `of` is the number of slices."""

    file: LogFile
    number: int = 0
    of: int = 1
    file_number: int | None = None  # the index of the file in the log from 0, None in a log of one file


InputSplit: TypeAlias = tuple[FileSlice, ...]


def input_splits(
    files: Sequence[LogFile],
    split_bytes: int,
    kind: LogKind,
    encoding: str | None = None,
    *,
    slice_files: bool = True,
) -> list[InputSplit]:
    """Divide files into splits of at most about `split_bytes` bytes, and keep the order of the files.

    Compressed files are never sliced. If `slice_files` is false, no file is sliced. A file that is not sliced can be
    larger than `split_bytes`.
    """
    del kind, encoding
    splits: list[InputSplit] = []
    small: list[FileSlice] = []
    small_bytes = 0
    for place, file in enumerate(files):
        file_number = place if len(files) > 1 else None
        size = file.size()
        whole = not slice_files or file.path.suffix.lower() in COMPRESSIONS
        slices = 1 if whole else -(-size // split_bytes)
        if small and (slices > 1 or small_bytes + size > split_bytes or len(small) == _MAX_FILES_PER_SPLIT):
            splits.append(tuple(small))
            small, small_bytes = [], 0
        if slices > 1:
            splits.extend((FileSlice(file, number, slices, file_number),) for number in range(slices))
        else:
            small.append(FileSlice(file, file_number=file_number))
            small_bytes += size
    return [*splits, tuple(small)] if small else splits


@contextlib.contextmanager
def opened(slice_: FileSlice, kind: LogKind, scratch: Path, encoding: str | None = None) -> Iterator[PlainFile]:
    """Yield an uncompressed file with the lines of a slice.

    For a Parquet file, yield the whole file; `rows_of_slice` selects the rows of the slice. Temporary copies are
    written to the folder `scratch` and deleted at the end. `encoding` is that of text without a byte order mark, UTF-8
    if it is None.

    Raises:
        BadLog: The file cannot be read, or the compressed data is damaged.

    """
    del encoding
    file = slice_.file
    if slice_.of == 1:
        with uncompressed(file.path, scratch) as path:
            yield _plain(path, str(file))
    elif _is_parquet(slice_):
        yield _plain(file.path, str(file))
    else:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".log-") as folder:
            copy = Path(folder) / file.path.name
            _copy_lines(slice_, copy, headed=kind not in _WITHOUT_HEADER)
            yield _plain(copy, str(file))


def _plain(path: Path, name: str) -> PlainFile:
    with path.open("rb") as stream:
        return PlainFile(path, content_of(stream.read(HEAD_BYTES)), name)


def first_line(slice_: FileSlice, kind: LogKind) -> int:
    """Return the number in its file of the first line of a slice after the header, or of its first row in Parquet.

    Numbers count from 1. This reads the part of the file before the slice.
    """
    if _is_parquet(slice_):
        rows = int(pl.scan_parquet(slice_.file.path, glob=False).select(pl.len()).collect().item())
        return 1 + (rows * slice_.number // slice_.of)
    headers = int(kind not in _WITHOUT_HEADER)
    if slice_.number == 0:
        return 1 + headers
    with slice_.file.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        first = _line_from(text, 1) if headers else 0
        start = max(first, _line_from(text, len(text) * slice_.number // slice_.of))
        blocks = range(0, start, _COPY_BYTES)
        return 1 + sum(text[place : min(place + _COPY_BYTES, start)].count(b"\n") for place in blocks)


def rows_of_slice(slice_: FileSlice, lines: pl.LazyFrame) -> pl.LazyFrame:
    """Return the lines of `slice_` from `lines`, which are the lines of the file that `opened` yielded."""
    if slice_.of == 1 or not _is_parquet(slice_):
        return lines
    rows = int(lines.select(pl.len()).collect().item())
    start = rows * slice_.number // slice_.of
    return lines.slice(start, rows * (slice_.number + 1) // slice_.of - start)


def _is_parquet(slice_: FileSlice) -> bool:
    if slice_.file.member:
        return False
    with slice_.file.path.open("rb") as stream:
        return content_of(stream.read(HEAD_BYTES)) == "parquet"


def _copy_lines(slice_: FileSlice, copy: Path, *, headed: bool) -> None:
    try:
        with (
            slice_.file.path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text,
            copy.open("wb") as out,
        ):
            first = _line_from(text, 1) if headed else 0
            _copy_bytes(text, 0, first, out.write)
            start = max(first, _line_from(text, len(text) * slice_.number // slice_.of))
            end = max(first, _line_from(text, len(text) * (slice_.number + 1) // slice_.of))
            _copy_bytes(text, start, end, out.write)
    except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file
        raise BadLog(f"{slice_.file} cannot be read: {error}: was it changed meanwhile?") from error


def _line_from(text: mmap.mmap, place: int) -> int:
    """Return the byte position of the first line that begins at `place` or later."""
    if place == 0:
        return 0
    found = text.find(b"\n", place - 1)
    return len(text) if found < 0 else found + 1


def _copy_bytes(text: mmap.mmap, start: int, end: int, write: Callable[[bytes], object]) -> None:
    for place in range(start, end, _COPY_BYTES):
        write(text[place : min(place + _COPY_BYTES, end)])
