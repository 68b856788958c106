"""Folders that appear whole or not at all, and folders that other users cannot read.

Listening data is private: `private_folder` and `new_folder(private=True)` give folders the mode 0700 and files the mode
0600, whatever the umask is. A folder with the set-group-ID bit (`chmod g+s`) is shared with its group: its mode is
2750, and its files have 0640. Folders that are made in it inherit the bit.
"""

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

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


def refuse_existing(path: Path, *, overwrite: bool, marker: str) -> None:
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
    refuse_existing(path, overwrite=overwrite, marker=marker)
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
