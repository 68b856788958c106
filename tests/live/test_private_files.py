"""What a running service keeps of its listeners is closed to other users of the machine."""

import contextlib
import stat
from collections.abc import Collection
from pathlib import Path

import pytest

from segue.release import Release
from tests.conftest import ServiceProcess
from tests.stopwatch import until


def wait_for_files(folder: Path, number: int, other_than: Collection[Path] = ()) -> set[Path]:
    """The event log's files, once there are so many and some of them are not the given ones."""
    files: set[Path] = set()

    def written() -> bool:
        nonlocal files
        files = set(folder.glob("*.parquet"))
        return len(files) >= number and files != other_than

    until(written)
    return files


def open_to_others(folder: Path) -> list[str]:
    """What others may read, write or enter, with its mode."""
    found = []
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # the service replaces and renames files
            mode = path.stat().st_mode
            if mode & 0o077:
                found.append(f"{path.relative_to(folder)} {stat.S_IMODE(mode):o}")
    return found


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "folders and files of an earlier version"])
def test_nothing_in_the_data_folder_is_open_to_others(tiny_release: Release, tmp_path: Path, *, existing: bool) -> None:
    """With the most generous umask, through flushes, an erasure that rewrites a file, and a restart."""
    data = tmp_path / "data"
    if existing:
        for folder in (data, data / "events", data / "redis"):
            folder.mkdir()
            folder.chmod(0o755)
        for file in (data / "events" / "lock", data / "redis" / "redis.log"):
            file.touch()
            file.chmod(0o644)
        data.chmod(0o700)  # a folder that was there is the operator's: it holds the two others and nothing else
    for turn in range(2):
        service = ServiceProcess(tiny_release.path, data, prelude="import os; os.umask(0)", event_log_flush_s=0.2)
        try:
            with service.client() as client:
                events = {"events": [{"type": "play", "track_id": "g0-t00"}]}
                for name in ("kept", "erased"):
                    assert client.post(f"/sessions/{name}-{turn}/events", json=events).status_code == 200
                files = wait_for_files(data / "events", turn + 1)
                assert open_to_others(data) == []
                assert client.delete(f"/sessions/erased-{turn}").status_code == 204
                wait_for_files(data / "events", turn + 1, other_than=files)
                assert open_to_others(data) == []
        finally:
            service.stop()
    assert open_to_others(data) == []
    closed = [line for line in service.output if "folder_closed_to_others" in line]
    assert closed == [], "the second start finds nothing to close"
