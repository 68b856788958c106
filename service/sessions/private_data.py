"""The folders of the service that hold listening data: closed to other users of the machine at every start."""

from collections.abc import Sequence
from pathlib import Path

import structlog

from segue.safe_files import private_folder

_log = structlog.get_logger()


def close_to_others(folder: Path, *, shareable: bool = True, own: Sequence[str] = ("*",)) -> None:
    """Make the folder if need be, and close it to other users. Raises OSError where it cannot be made or read.

    A log line says so where other users could read an existing folder, and where they still can, since it belongs to
    somebody else. See segue/safe_files.py for `shareable` and `own`.
    """
    try:
        was_open = private_folder(folder, shareable=shareable, own=own)
    except PermissionError:
        if not folder.is_dir():
            raise
        _log.warning("folder_open_to_others", folder=str(folder), remedy="its owner must run chmod o-rwx on it")
        return
    if was_open:
        _log.warning("folder_closed_to_others", folder=str(folder), remedy="see File permissions in docs/operations.md")
