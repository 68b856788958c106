"""Folders that appear whole or not at all: written beside their final name, then renamed."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segue.errors import InputError

CHECKPOINT_SUFFIX: Final = ".training"  # of the folder beside a release to be that holds its checkpoint
RUN_SUFFIX: Final = ".run"  # of the folder beside a release that says how it was trained


def refuse_existing(path: Path, *, overwrite: bool, marker: str) -> None:
    """Raise InputError if `path` is taken; with `overwrite`, only a folder that holds the file `marker` may go."""
    if not path.exists():
        return
    if not overwrite:
        raise InputError(f"{path} already exists: choose another name for --out, or replace it with --overwrite")
    if not (path / marker).is_file():
        raise InputError(f"{path} holds no {marker}, so it is not replaced: choose another name for --out")


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes the name `path` when the block ends without an error.

    `marker` is the file that tells a folder of this kind (`dataset.json`, `manifest.json`): with `overwrite`, only
    a folder that holds it is replaced.
    """
    refuse_existing(path, overwrite=overwrite, marker=marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    unfinished = path.parent / f".{path.name}.{token}.unfinished"
    unfinished.mkdir()
    try:
        yield unfinished
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
