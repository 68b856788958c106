"""Safe reading and writing of files: atomic and private folders, strict JSON, and a check of Parquet footers.

A new folder appears complete or not at all. Listening data is private: `private_folder` and `new_folder(private=True)`
give folders the mode 0700 and files the mode 0600, whatever the umask is. A folder with the set-group-ID bit
(`chmod g+s`) is shared with its group: its mode is 2750, its files have 0640, and new folders in it inherit the bit.

`read_json` rejects JSON that parsers could read in two ways.

`check_footer` runs before Polars opens a Parquet file that may be damaged. A footer states how many columns and row
groups follow. Polars allocates memory for that number before it reads them, and if the memory is not there, it ends the
process instead of raising. One damaged byte in a file of the event log could so end every service that reads it. The
check walks the footer (Thrift's compact protocol) and compares each number of elements with the bytes that remain, as
every element takes at least one byte.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md (2026)
"""

import contextlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import polars as pl

from segue.errors import InputError

CHECKPOINT_SUFFIX: Final = ".training"  # of the folder beside a release to be that holds its checkpoint
RUN_SUFFIX: Final = ".run"  # of the folder beside a release that says how it was trained


_PRIVATE: Final = 0o700
_OF_A_GROUP: Final = 0o2750


def private_folder(path: Path, *, shareable: bool = True, own: Sequence[str] = ("*",)) -> bool:
    """Make the folder, with those above it that are missing, and close it and its files to other users.

    Answers whether an existing folder could be entered by others before. Raises PermissionError where it belongs to
    somebody else and they can enter it. With `shareable=False`, the set-group-ID bit does not count. Only files whose
    names match one of `own` are closed. Raises InputError for a folder that all users of the machine share.
    """
    if path.is_dir() and path.stat().st_mode & stat.S_ISVTX:
        raise InputError(f"{path} is shared by all users of this machine: choose a folder of its own")
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process has made it
            folder.mkdir(mode=_PRIVATE)
        _close(folder)
    was_open = _close(path, shareable=shareable)
    for file in path.iterdir():
        if any(file.match(name) for name in own) and file.is_file() and not file.is_symlink():
            with contextlib.suppress(FileNotFoundError, PermissionError):  # the folder keeps others out of it
                _set_mode(file, file_mode(path))
    return was_open


def file_mode(folder: Path) -> int:
    """The mode of files in a private folder."""
    return 0o640 if folder.stat().st_mode & stat.S_ISGID else 0o600


def private_file(path: Path) -> Path:
    """Create the file if it is missing, and give it the mode of files in a private folder."""
    mode = file_mode(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, mode)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:  # by the umask, or as the file was there
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return path


def _close(folder: Path, *, shareable: bool = True) -> bool:
    """Let nobody in but the owner, and the group of a shared folder; answers whether others could enter."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    shared = shareable and mode & stat.S_ISGID
    wanted = _OF_A_GROUP | (mode & stat.S_IWGRP) if shared else _PRIVATE
    _set_mode(folder, wanted)
    return bool(mode & 0o077 & ~wanted)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def check_output_free(path: Path, *, overwrite: bool, marker: str) -> None:
    """Raise InputError if `path` is taken; with `overwrite`, only a folder that holds the file `marker` may go."""
    if not path.exists():
        return
    if not overwrite:
        raise InputError(f"{path} already exists: choose another name for --out, or replace it with --overwrite")
    if not (path / marker).is_file():
        raise InputError(f"{path} holds no {marker}, so it is not replaced: choose another name for --out")


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False, marker: str, private: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes the name `path` when the block ends without an error.

    `marker` is the file that tells a folder of this kind (`dataset.json`, `manifest.json`): with `overwrite`, only
    a folder that holds it is replaced. `private` is for what holds sessions of listeners.
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
                _flush(file)
        if path.exists():
            replaced = path.parent / f".{path.name}.{token}.replaced"
            path.rename(replaced)
            unfinished.rename(path)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _close_files(folder: Path) -> None:
    for found in folder.rglob("*"):
        if found.is_dir():
            _close(found)
        else:
            _set_mode(found, file_mode(found.parent))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


MOST_BYTES: Final = 16 * 2**20


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError with one line.

    Refused are links, files over MOST_BYTES, a name that an object holds twice (of which readers take the first or the
    last), numbers that JSON does not know, and what is nested too deeply.
    """
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
        return json.loads(path.read_bytes(), object_pairs_hook=_without_repetition, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object holds {twice[:80]!r} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


_MAGIC: Final = b"PAR1"
_TAIL: Final = 8  # the footer's length, and the magic again
_DEEPEST: Final = 64
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_VARINTS: Final = (4, 5, 6)
_FIXED: Final = {_BYTE: 1, _DOUBLE: 8}


class DamagedFile(ValueError):
    """A file that is not to be given to Polars."""


# What a damaged Parquet or Arrow file may raise: Polars' errors, a panic of its own included, and those of this module.
UNREADABLE: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, DamagedFile)


def check_footer(path: Path) -> None:
    """Raise DamagedFile where Polars would follow the footer of `path` too far; what else is wrong, it says itself.

    Raises OSError for a file that cannot be read.
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
    """Goes through values without keeping any."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def value(self, kind: int, depth: int) -> None:
        """One value of a type."""
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
                self._varint()  # the field's number
            if head & 15 not in (_TRUE, _FALSE):  # which are in the head itself
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
