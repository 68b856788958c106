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


def find_files(kind: LogKind, sources: Sequence[Path | str]) -> list[Path]:
    """Return the distinct files in `sources`, which are files, folders and globs.

    The files of a folder or glob are sorted by name. In a folder, hidden files and files without a log name of this
    `kind` are ignored.

    Raises:
        BadLog: A source does not exist or contains no log, or a file is empty.

    """
    if not sources:
        raise BadLog("no log is named: name at least one file or folder")
    unique: dict[Path, Path] = {}
    for source in sources:
        for file in _files_of(kind, source):
            unique.setdefault(file.resolve(), file)
    for file in unique.values():
        if file.stat().st_size == 0:
            raise BadLog(f"{file} is empty: expected a log of kind {kind}")
    return list(unique.values())


def inner_suffix(file: Path) -> str:
    """Return the file suffix in lower case without the compression suffix, such as `.csv` for `log.csv.gz`."""
    return _inner_name(file).suffix.lower()


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

    file: Path
    number: int = 0
    of: int = 1


InputSplit: TypeAlias = tuple[FileSlice, ...]


def input_splits(files: Sequence[Path], split_bytes: int, *, slice_files: bool = True) -> list[InputSplit]:
    """Divide files into splits of at most about `split_bytes` bytes, and keep the order of the files.

    Compressed files are never sliced. If `slice_files` is false, no file is sliced. A file that is not sliced can be
    larger than `split_bytes`.
    """
    splits: list[InputSplit] = []
    small: list[FileSlice] = []
    small_bytes = 0
    for file in files:
        size = file.stat().st_size
        whole = not slice_files or file.suffix.lower() in COMPRESSIONS
        slices = 1 if whole else -(-size // split_bytes)
        if small and (slices > 1 or small_bytes + size > split_bytes or len(small) == _MAX_FILES_PER_SPLIT):
            splits.append(tuple(small))
            small, small_bytes = [], 0
        if slices > 1:
            splits.extend((FileSlice(file, number, slices),) for number in range(slices))
        else:
            small.append(FileSlice(file))
            small_bytes += size
    return [*splits, tuple(small)] if small else splits


@contextlib.contextmanager
def opened(slice_: FileSlice, kind: LogKind, scratch: Path) -> Iterator[Path]:
    """Yield the path of an uncompressed file with the lines of a slice.

    For a Parquet file, yield the whole file; `rows_of_slice` selects the rows of the slice. Temporary copies are
    written to the folder `scratch` and deleted at the end.

    Raises:
        BadLog: The file cannot be read, or the compressed data is damaged.

    """
    if slice_.of == 1:
        with uncompressed(slice_.file, scratch) as plain:
            yield plain
    elif _is_parquet(slice_):
        yield slice_.file
    else:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".log-") as folder:
            copy = Path(folder) / slice_.file.name
            _copy_lines(slice_, copy, headed=kind not in _WITHOUT_HEADER)
            yield copy


def rows_of_slice(slice_: FileSlice, lines: pl.LazyFrame) -> pl.LazyFrame:
    """Return the lines of `slice_` from `lines`, which are the lines of the file that `opened` yielded."""
    if slice_.of == 1 or not _is_parquet(slice_):
        return lines
    rows = int(lines.select(pl.len()).collect().item())
    start = rows * slice_.number // slice_.of
    return lines.slice(start, rows * (slice_.number + 1) // slice_.of - start)


def _is_parquet(slice_: FileSlice) -> bool:
    return inner_suffix(slice_.file) == ".parquet"


def _copy_lines(slice_: FileSlice, copy: Path, *, headed: bool) -> None:
    try:
        with (
            slice_.file.open("rb") as stream,
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
