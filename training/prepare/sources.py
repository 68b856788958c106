"""Sources of a log: find its files in folders and globs, decompress them, and cut them into splits of about equal size.

A split is a part of a large file, or several small files. A part of a text file is the lines that begin in a range of
its bytes, with the header; a part of a Parquet file is a range of its rows; a compressed file has one part. Read part
by part, a file gives the same lines in the same order. Knows nothing of what the lines contain.
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
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

import polars as pl
import zstandard

from segue.errors import BadLog

LogKind: TypeAlias = Literal["mssd", "lfm1k", "lfm2b", "yambda", "events"]
KINDS: Final[tuple[LogKind, ...]] = get_args(LogKind)

COMPRESSIONS: Final = (".gz", ".bz2", ".zst")
_COPY_BYTES: Final = 1 << 20

# What of a folder belongs to a log: the published folders hold other tables beside it.
_IN_FOLDERS: Final[dict[LogKind, tuple[str, ...]]] = {
    "mssd": ("*.csv",),
    "lfm1k": ("*.tsv",),
    "lfm2b": ("*listening*events*.tsv", "*listening*events*.csv"),
    "yambda": ("*listens*.parquet",),
    "events": ("*.csv", "*.tsv", "*.parquet"),
}
_NOT_IN_FOLDERS: Final[dict[LogKind, str]] = {"mssd": "tf_*", "lfm1k": "userid-profile*"}


def find_files(kind: LogKind, sources: Sequence[Path | str]) -> list[Path]:
    """The files that `sources` (files, folders, globs) name, each once; those of a folder or glob in order of name.

    Below a folder, only files named as the kind's logs are, none that is hidden. Raises BadLog.
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
    """The suffix without that of the compression, in small letters: `.csv` for `log.csv.gz`."""
    return _inner_name(file).suffix.lower()


@contextlib.contextmanager
def uncompressed(file: Path, scratch: Path) -> Iterator[Path]:
    """Yield `file` itself, or an uncompressed copy in the folder `scratch` that is gone afterwards.

    Takes a few MB of memory whatever the size. Raises BadLog where the compressed data is damaged.
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
        except OSError as error:  # bz2 reports damage as a plain OSError without a number
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
    # glob.glob, for Path.glob takes no absolute pattern.
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
    """The uncompressed bytes, a block at a time."""
    if compression == ".zst":
        yield from _zst_blocks(file)
        return
    with gzip.open(file) if compression == ".gz" else bz2.open(file) as stream:
        while block := stream.read(_COPY_BYTES):
            yield block


def _zst_blocks(file: Path) -> Iterator[bytes]:
    # zstandard.open takes the end of a file that was cut short for the end of the data: here that is an error.
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


_FILES_AT_MOST: Final = 1000
_WITHOUT_HEADER: Final[tuple[LogKind, ...]] = ("lfm1k",)


class FileSlice(NamedTuple):
    """Part `number` of `of` parts of a file."""

    file: Path
    number: int = 0
    of: int = 1


InputSplit: TypeAlias = tuple[FileSlice, ...]


def portions_of(files: Sequence[Path], portion_bytes: int) -> list[InputSplit]:
    """All files in their order, in portions of at most about so many bytes; compressed files are never parted."""
    portions: list[InputSplit] = []
    small: list[FileSlice] = []
    held = 0
    for file in files:
        size = file.stat().st_size
        parts = 1 if file.suffix.lower() in COMPRESSIONS else -(-size // portion_bytes)
        if small and (parts > 1 or held + size > portion_bytes or len(small) == _FILES_AT_MOST):
            portions.append(tuple(small))
            small, held = [], 0
        if parts > 1:
            portions.extend((FileSlice(file, number, parts),) for number in range(parts))
        else:
            small.append(FileSlice(file))
            held += size
    return [*portions, tuple(small)] if small else portions


@contextlib.contextmanager
def opened(part: FileSlice, kind: LogKind, scratch: Path) -> Iterator[Path]:
    """Yield an uncompressed file with the lines of a part; of a Parquet file, the whole (`rows_of_part`).

    Copies lie in the folder `scratch` and are gone afterwards. Raises BadLog.
    """
    if part.of == 1:
        with uncompressed(part.file, scratch) as plain:
            yield plain
    elif _is_parquet(part):
        yield part.file
    else:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".log-") as folder:
            copy = Path(folder) / part.file.name
            _copy_lines(part, copy, headed=kind not in _WITHOUT_HEADER)
            yield copy


def rows_of_part(part: FileSlice, lines: pl.LazyFrame) -> pl.LazyFrame:
    """Of the lines of what `opened` yielded, those of the part."""
    if part.of == 1 or not _is_parquet(part):
        return lines
    rows = int(lines.select(pl.len()).collect().item())
    start = rows * part.number // part.of
    return lines.slice(start, rows * (part.number + 1) // part.of - start)


def _is_parquet(part: FileSlice) -> bool:
    return inner_suffix(part.file) == ".parquet"


def _copy_lines(part: FileSlice, copy: Path, *, headed: bool) -> None:
    try:
        with (
            part.file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text,
            copy.open("wb") as out,
        ):
            first = _line_from(text, 1) if headed else 0
            _copy_bytes(text, 0, first, out.write)
            start = max(first, _line_from(text, len(text) * part.number // part.of))
            end = max(first, _line_from(text, len(text) * (part.number + 1) // part.of))
            _copy_bytes(text, start, end, out.write)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise BadLog(f"{part.file} cannot be read: {error}: was it changed meanwhile?") from error


def _line_from(text: mmap.mmap, place: int) -> int:
    """Where the first line begins that does not begin before `place`."""
    if place == 0:
        return 0
    found = text.find(b"\n", place - 1)
    return len(text) if found < 0 else found + 1


def _copy_bytes(text: mmap.mmap, start: int, end: int, write: Callable[[bytes], object]) -> None:
    for place in range(start, end, _COPY_BYTES):
        write(text[place : min(place + _COPY_BYTES, end)])
