"""Read compressed files and archives, and copy what is in them.

Memory holds a few MB for data of any size, and a copy never fills the disk. Members of archives are copied to files
whose names do not come from the archive.
"""

import bz2
import contextlib
import gzip
import io
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import zstandard

from segue.errors import BadLog
from training.prepare.content import HEAD_BYTES, Compression, archive_of, compression_of, printable

COPY_BYTES: Final = 1 << 20
MAX_MEMBERS: Final = 100_000
_FREE_BYTES: Final = 256 << 20  # a copy leaves as much of the disk free
_CHECKED_BYTES: Final = 64 << 20  # after as many bytes the free space is checked again
_MAX_LAYERS: Final = 2  # such as log.csv.gz, once more compressed
_ZSTD_STEP_BYTES: Final = 1 << 12  # a piece of compressed data that gives at most some 100 MB
_MAX_TAR_HEADER: Final = 1 << 20  # the longest header of a tar that is read, such as a name
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_DAMAGE: Final = (
    *(EOFError, OSError, ValueError, ArithmeticError, LookupError, RuntimeError),  # of the modules of Python
    *(struct.error, zlib.error, zstandard.ZstdError, tarfile.TarError, zipfile.BadZipFile),
)

Stream: TypeAlias = io.BufferedReader


class Readable(Protocol):
    """What can be read in blocks, until one is empty."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes."""
        ...


class Member(NamedTuple):
    """A file in an archive. Only the member that the archive gave last can be opened, and only once."""

    name: str
    open: Callable[[], Stream]


@contextlib.contextmanager
def damage_told(name: str, *, packed: bool = True) -> Iterator[None]:
    """Raise BadLog for the errors of damaged or unreadable data. `name` is that of the file, for the message."""
    try:
        yield
    except _DAMAGE as error:
        what = "uncompressed" if packed else "read"
        if isinstance(error, OSError) and error.errno is not None:
            raise BadLog(f"{name} cannot be {what}: {error.strerror}") from error
        reason = printable(str(error).strip().partition("\n")[0][:200]) or "damaged data"
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            reason = "damaged data"  # bz2 gives no reason
        raise BadLog(f"{name} cannot be {what}: {reason}: fetch the file again") from error


class Head(NamedTuple):
    """How a file begins."""

    compression: Compression | None
    content: bytes  # the first HEAD_BYTES bytes without compression; nothing, if the data are damaged there


def head_of(path: Path, name: str) -> Head:
    """Return how a file begins. Raises BadLog if it cannot be opened."""
    with damage_told(name, packed=False):
        stream: Stream = io.BufferedReader(path.open("rb", buffering=0), HEAD_BYTES)
    with stream:
        with damage_told(name, packed=False):
            compression = compression_of(stream.peek(HEAD_BYTES))
        content = b""
        with contextlib.suppress(*_DAMAGE):  # told when the file is read
            content = unpacked(stream).peek(HEAD_BYTES)[:HEAD_BYTES]
        return Head(compression, content)


def unpacked(stream: Stream) -> Stream:
    """Return the uncompressed data of a stream, which is the stream itself if it is not compressed."""
    for _ in range(_MAX_LAYERS):
        compression = compression_of(stream.peek(HEAD_BYTES))
        if compression is None:
            break
        if compression == "gzip":
            stream = _buffered(gzip.GzipFile(fileobj=stream, mode="rb").read)
        elif compression == "bzip2":
            stream = _buffered(bz2.BZ2File(stream).read)
        else:
            stream = _buffered(_ZstdFile(stream.read).read)
    return stream


def copy(stream: Readable, write: Callable[[bytes], object], folder: Path, name: str) -> int:
    """Write a stream to a file in `folder`, and return the number of bytes. Raises BadLog.

    `name` is that of the log's file, for messages.
    """
    written, checked = 0, 0
    while True:
        with damage_told(name):
            block = stream.read(COPY_BYTES)
        if not block:
            return written
        if written >= checked:
            checked += _CHECKED_BYTES
            if shutil.disk_usage(folder).free < _FREE_BYTES + _CHECKED_BYTES:
                raise BadLog(f"{name} is too large to be unpacked in {folder}: free disk space, or use another disk")
        try:
            write(block)
        except OSError as error:
            raise BadLog(f"{name} cannot be unpacked in {folder}: {error.strerror}") from error
        written += len(block)


def members(path: Path, name: str) -> Iterator[Member]:
    """Yield the files in a zip or tar archive, in its order. `name` is that of the archive, for messages.

    Raises:
        BadLog: The archive is damaged, is a document such as a spreadsheet, or has too many members.

    """
    with contextlib.ExitStack() as stack:
        with damage_told(name):
            stream = unpacked(stack.enter_context(path.open("rb")))
            is_zip = archive_of(stream.peek(HEAD_BYTES)) == "zip"
        found = _zip_members(path, name) if is_zip else _tar_members(stream)
        stack.callback(found.close)
        for number in range(MAX_MEMBERS + 1):
            with damage_told(name):
                member = next(found, None)
            if member is None:
                return
            if number == MAX_MEMBERS:
                raise BadLog(f"{name} holds more than {MAX_MEMBERS:,} files: unpack it first")
            yield member


def _zip_members(path: Path, name: str) -> Generator[Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if "[Content_Types].xml" in names:
            what = ".xlsx" if any(one.startswith("xl/") for one in names) else "such as .docx"
            raise BadLog(f"{name} is an Office document ({what}): export it as CSV first")
        if {"mimetype", "content.xml"} <= names:
            raise BadLog(f"{name} is an OpenDocument file, such as .ods: export it as CSV first")
        for given in sorted(names):
            entry = archive.getinfo(given)
            if not entry.is_dir():
                yield Member(given, lambda entry=entry: _zip_stream(archive, entry, name))  # type: ignore[misc]


def _zip_stream(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Stream:
    if entry.flag_bits & 1:
        raise BadLog(f"{name} is encrypted: unpack it with its password first")
    if entry.compress_type not in _ZIP_METHODS:
        raise BadLog(f"{name} is compressed with method {entry.compress_type}, which is not read: unpack it first")
    with damage_told(name):
        return _buffered(archive.open(entry).read)


def _tar_members(stream: Stream) -> Generator[Member, None, None]:
    forward = _Forward(stream)
    source: Any = forward
    with tarfile.open(fileobj=source, mode="r:") as archive:
        while (entry := archive.next()) is not None:
            if entry.isreg() and not entry.issparse():
                yield Member(entry.name, lambda size=entry.size: _buffered(forward.part(size)))  # type: ignore[misc]


class _Forward:
    """What tarfile needs of a file, over a stream that only moves forward."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> int:
        if place < self._at:
            raise tarfile.ReadError("a header points backwards")
        while self._at < place and self._advance(min(COPY_BYTES, place - self._at)):
            pass
        return self._at

    def read(self, size: int) -> bytes:
        if size > _MAX_TAR_HEADER:
            raise tarfile.ReadError(f"a header has {size:,} bytes")
        return self._advance(size)

    def part(self, size: int) -> Callable[[int], bytes]:
        """Return a function that reads the next `size` bytes in pieces."""
        end = self._at + size

        def read(most: int) -> bytes:
            block = self._advance(min(most, end - self._at))
            if not block and self._at < end:
                raise EOFError("the archive ends within a file")
            return block

        return read

    def _advance(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._at += len(block)
        return block


class _Filled(io.RawIOBase):
    """A stream over a function that reads up to a given number of bytes. It fills a buffer unless the data end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and (block := self._read(len(view) - filled)):
            view[filled : filled + len(block)] = block
            filled += len(block)
        return filled


def _buffered(read: Callable[[int], bytes]) -> Stream:
    return io.BufferedReader(_Filled(read), HEAD_BYTES)


class _ZstdFile:
    """The uncompressed data of zstd frames. zstandard.open does not report a truncated file, this raises EOFError."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._blocks = _zstd_blocks(read)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._rest = memoryview(block)
        found, self._rest = self._rest[:size], self._rest[size:]
        return bytes(found)


def _zstd_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    rest = read(_ZSTD_STEP_BYTES)
    while rest:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not rest:
                raise EOFError("the data end within a frame")
            yield frame.decompress(rest)
            rest = read(_ZSTD_STEP_BYTES) if not frame.eof else frame.unused_data
        rest = rest or read(_ZSTD_STEP_BYTES)
