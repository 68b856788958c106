"""Safe reading and writing of files: atomic and private folders, strict JSON, and a check of Parquet footers.

`new_folder` creates a folder atomically: other processes see the complete folder or no folder. Listening data is
private: `private_folder` and `new_folder(private=True)` set the mode 0700 for folders and 0600 for files, regardless of
the umask. A folder with the set-group-ID bit (`chmod g+s`) is shared with its group. Such a folder has the mode 2750,
its files have the mode 0640, and new subfolders inherit the bit.

`new_file` does the same for a single private file.

`read_json` rejects ambiguous JSON, which parsers may read in different ways.

`check_footer` runs before Polars opens a Parquet file that may be damaged. A Parquet footer states the number of
columns and row groups. Polars allocates memory for that number before it reads the elements. If the allocation fails,
Polars aborts the process instead of raising an exception, so one damaged byte in an event log file could crash every
service that reads the file. The check walks through the footer (Thrift's compact protocol) and compares each number of
elements with the number of remaining bytes, because each element takes at least one byte.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md (2026)
"""

import contextlib
import json
import os
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import polars as pl

from segue.errors import InputError

CHECKPOINT_SUFFIX: Final = ".training"  # suffix of the folder with the checkpoint of an unfinished release
RUN_SUFFIX: Final = ".run"  # suffix of the folder that records how a release was trained


_PRIVATE: Final = 0o700
_OF_A_GROUP: Final = 0o2750


def private_folder(path: Path, *, shareable: bool = True, own: Sequence[str] = ("*",)) -> bool:
    """Create the folder and its missing parents, and deny other users access to the folder and its files.

    Return True if the folder already existed and other users had access to it. `shareable=False` ignores the
    set-group-ID bit. Only files whose names match a pattern in `own` get a new mode. Raises PermissionError if the mode
    must change but the folder belongs to another user, and InputError for a folder with the sticky bit, such as /tmp.
    """
    if path.is_dir() and path.stat().st_mode & stat.S_ISVTX:
        raise InputError(f"{path} is shared by all users of this machine: choose a folder of its own")
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process has created the folder
            folder.mkdir(mode=_PRIVATE)
        _close(folder)
    was_open = _close(path, shareable=shareable)
    for file in path.iterdir():
        if any(file.match(name) for name in own) and file.is_file() and not file.is_symlink():
            with contextlib.suppress(FileNotFoundError, PermissionError):  # the folder denies access anyway
                _set_mode(file, file_mode(path))
    return was_open


def file_mode(folder: Path) -> int:
    """Return the mode for files in a private folder: 0640 if the folder is shared with its group, otherwise 0600."""
    return 0o640 if folder.stat().st_mode & stat.S_ISGID else 0o600


def private_file(path: Path) -> Path:
    """Create the file if it is missing, set its mode to `file_mode` of its folder, and return the path."""
    mode = file_mode(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, mode)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:  # due to the umask, or the file already existed
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return path


def _close(folder: Path, *, shareable: bool = True) -> bool:
    """Set the mode of a private folder. Return True if other users had access to the folder before."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    shared = shareable and mode & stat.S_ISGID
    wanted = _OF_A_GROUP | (mode & stat.S_IWGRP) if shared else _PRIVATE
    _set_mode(folder, wanted)
    return bool(mode & 0o077 & ~wanted)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def check_output_free(path: Path, *, overwrite: bool, marker: str) -> None:
    """Raise InputError if `path` exists. With `overwrite`, an existing folder with the file `marker` is allowed."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise InputError(f"{path} already exists: choose another name for --out, or replace it with --overwrite")
    if not (path / marker).is_file():
        raise InputError(f"{path} holds no {marker}, so it is not replaced: choose another name for --out")


@contextlib.contextmanager
def new_folder(
    path: Path, *, overwrite: bool = False, marker: str, private: bool = False, keep: bool = True
) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, and rename it to `path` if the block ends without an error.

    `marker` is the file that identifies a folder of the expected kind, such as `dataset.json` or `manifest.json`.
    `overwrite` replaces an existing folder at `path` only if it contains `marker`. Set `private` for listening data.
    Raises InputError if `path` exists and must not be replaced. If another process has created it meanwhile, the
    finished folder is kept under another name, which the error states, unless `keep` is false.
    """
    check_output_free(path, overwrite=overwrite, marker=marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    unfinished = path.parent / f".{path.name}.{token}.unfinished"
    unfinished.mkdir(mode=_PRIVATE if private else 0o777)
    try:
        if private:
            _close(unfinished)
        yield unfinished
        if private:
            _close_files(unfinished)
        for file in unfinished.rglob("*"):
            if file.is_file():
                flush(file)
        _put_in_place(unfinished, path, token, marker if overwrite else None, keep=keep)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary private file next to `path`, and rename it to `path` if the block ends without an error.

    Raises InputError if `path` exists and `overwrite` is false, or if it is a folder. If another process has created it
    meanwhile, the finished file is kept under another name, which the error states.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: choose the name of a file for --out")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path} already exists: choose another name for --out, or replace it with --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    unfinished = private_file(path.parent / f".{path.name}.{token}.unfinished")
    try:
        yield unfinished
        flush(unfinished)
        if path.is_dir() or (os.path.lexists(path) and not overwrite):
            raise _kept(unfinished, path, token)
        unfinished.rename(path)
        flush(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _put_in_place(unfinished: Path, path: Path, token: str, marker: str | None, *, keep: bool) -> None:
    """Rename a folder to `path`. A folder with the file `marker` is replaced, or put back on failure."""
    replaced = path.parent / f".{path.name}.{token}.replaced"
    try:
        if marker is not None and (path / marker).is_file():
            with contextlib.suppress(FileNotFoundError):  # another process replaces it as well
                path.rename(replaced)
        unfinished.rename(path)
    except BaseException as error:
        if not os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError):
                replaced.rename(path)
        elif keep and isinstance(error, OSError):
            raise _kept(unfinished, path, token) from error
        raise
    finally:
        if os.path.lexists(path):
            shutil.rmtree(replaced, ignore_errors=True)


def _kept(unfinished: Path, path: Path, token: str) -> InputError:
    """Keep what could not be renamed to `path`: it may have taken hours."""
    kept = path.with_name(f"{path.name}.{token}")
    unfinished.rename(kept)
    flush(path.parent)
    return InputError(f"{path} was created meanwhile and is not replaced: the result of this command is in {kept}")


def _close_files(folder: Path) -> None:
    for found in folder.rglob("*"):
        if found.is_dir():
            _close(found)
        else:
            _set_mode(found, file_mode(found.parent))


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


MOST_BYTES: Final = 16 * 2**20


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError with a one-line message.

    The following are rejected: links, files larger than MOST_BYTES, duplicate names in an object, the constants NaN and
    Infinity, which are not valid JSON, and too many nested levels.
    """
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error


def parse_json(content: str | bytes | bytearray) -> Any:
    """Parse JSON as `read_json` does. Raises ValueError with a one-line message."""
    text = content if isinstance(content, str) else content.decode(json.detect_encoding(content), "surrogatepass")
    try:
        return _STRICT.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"an object holds {twice[:80]!r} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_without_repetition, parse_constant=_refuse)

_MAGIC: Final = b"PAR1"
_TAIL: Final = 8  # bytes at the end of the file: length of the footer and _MAGIC
_DEEPEST: Final = 64
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_VARINTS: Final = (4, 5, 6)
_FIXED: Final = {_BYTE: 1, _DOUBLE: 8}


class DamagedFile(ValueError):
    """A file that is unsafe to open with Polars."""


# The exceptions that reading a damaged Parquet or Arrow file may raise, including panics of Polars.
UNREADABLE: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, DamagedFile)


def check_footer(path: Path) -> None:
    """Raise DamagedFile if the footer of the Parquet file states more elements than it contains.

    Polars itself reports other damage, so this function ignores it. Raises OSError if the file cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if size < _TAIL:
            return
        stream.seek(size - _TAIL)
        tail = stream.read(_TAIL)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - _TAIL:
            return
        stream.seek(size - _TAIL - length)
        footer = stream.read(length)
    _ThriftWalker(footer).value(_STRUCT, 0)


class _ThriftWalker:
    """Walks through values in Thrift's compact protocol and checks their sizes, without decoding them."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def value(self, kind: int, depth: int) -> None:
        """Skip one value of type `kind` at nesting level `depth`. Raises DamagedFile for an invalid value."""
        if depth > _DEEPEST:
            raise DamagedFile("its footer is nested too deeply")
        if kind in _VARINTS:
            self._varint()
        elif kind in _FIXED:
            self._skip(_FIXED[kind])
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind == _STRUCT:
            self._struct(depth)
        elif kind in (_LIST, _SET):
            head = self._byte()
            self._elements(self._varint() if head >> 4 == 15 else head >> 4, (head & 15,), depth)
        elif kind == _MAP:
            count = self._varint()
            if count:
                kinds = self._byte()
                self._elements(count, (kinds >> 4, kinds & 15), depth)
        else:
            raise DamagedFile(f"its footer holds a value of the unknown type {kind}")

    def _struct(self, depth: int) -> None:
        while (head := self._byte()) != _STOP:
            if head >> 4 == 0:
                self._varint()  # the field id
            if head & 15 not in (_TRUE, _FALSE):  # a boolean is stored in the type bits of the head
                self.value(head & 15, depth + 1)

    def _elements(self, count: int, kinds: tuple[int, ...], depth: int) -> None:
        if count > len(self._content) - self._at:
            raise DamagedFile(f"its footer states {count:,} elements in {len(self._content) - self._at:,} bytes")
        for _ in range(count):
            for kind in kinds:
                self.value(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)

    def _byte(self) -> int:
        self._skip(1)
        return self._content[self._at - 1]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise DamagedFile("a number in its footer does not end")

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._content):
            raise DamagedFile("its footer ends within a value")
