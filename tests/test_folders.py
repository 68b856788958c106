"""Folders that hold listening data are closed to other users, whatever the umask, unless a group shares them."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from segue.errors import InputError
from segue.safe_files import new_file, new_folder, private_file, private_folder
from training.data.dataset import open_dataset
from training.data.sessions_parquet import FLAT_FOLDER, mapped_sessions
from training.prepare.pipeline import prepare


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=lambda umask: f"umask {umask:03o}", autouse=True)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The mode of everything below a folder."""
    return {str(path.relative_to(folder)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.rglob("*")}


def write(path: Path) -> None:
    private_file(path).write_text("x")


def test_a_new_folder_and_those_above_it_are_private(tmp_path: Path) -> None:
    assert not private_folder(tmp_path / "data" / "events")
    write(tmp_path / "data" / "events" / "file")
    assert modes(tmp_path) == {"data": "700", "data/events": "700", "data/events/file": "600"}


def test_an_existing_folder_and_its_files_are_closed(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0o755)
    (folder / "file").chmod(0o644)
    assert private_folder(folder)
    assert not private_folder(folder), "it was closed before"
    (folder / "file").chmod(0o644)
    write(folder / "file")
    assert modes(tmp_path) == {"events": "700", "events/file": "600"}


@pytest.mark.parametrize(("given", "kept"), [(0o2777, "2770"), (0o2755, "2750"), (0o2700, "2750")])
def test_a_folder_with_the_set_group_id_bit_is_shared_with_its_group(tmp_path: Path, given: int, kept: str) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    folder.chmod(given)
    private_folder(folder)
    private_folder(folder / "new")
    write(folder / "file")
    assert modes(tmp_path) == {"events": kept, "events/new": "2750", "events/file": "640"}
    private_folder(folder, shareable=False)
    assert modes(tmp_path)["events"] == "700"


def test_a_link_in_a_folder_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "other").chmod(0o644)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "link").symlink_to(tmp_path / "other")
    private_folder(tmp_path / "events")
    assert modes(tmp_path)["other"] == "644"


def test_a_folder_written_whole_is_private_from_its_first_moment(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", marker="marker", private=True) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch()
        (folder / "marker").touch()
    assert modes(tmp_path) == {"out": "700", "out/inner": "700", "out/inner/file": "600", "out/marker": "600"}


def test_what_another_process_wrote_meanwhile_is_not_replaced_and_the_result_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write_folder(theirs: str, *, overwrite: bool) -> None:
        with new_folder(out, overwrite=overwrite, marker="marker") as folder:
            (folder / "marker").write_text("mine")
            out.mkdir()
            (out / theirs).write_text("theirs")

    def write_file(*, overwrite: bool) -> None:
        with new_file(out, overwrite=overwrite) as file:
            file.write_text("mine")
            out.write_text("theirs")

    out.symlink_to(tmp_path / "nothing")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="already exists" if not overwrite else "holds no marker"):
            write_folder("marker", overwrite=overwrite)
    with pytest.raises(InputError, match="already exists"):
        write_file(overwrite=False)
    out.unlink()
    for overwrite, theirs in ((False, "marker"), (True, "something else")):
        with pytest.raises(InputError, match="was created meanwhile") as caught:
            write_folder(theirs, overwrite=overwrite)
        assert (out / theirs).read_text() == "theirs"
        kept = Path(str(caught.value).rpartition(" ")[2])
        assert (kept / "marker").read_text() == "mine"
        shutil.rmtree(kept)
        shutil.rmtree(out)
    with pytest.raises(InputError, match="was created meanwhile") as caught:
        write_file(overwrite=False)
    assert out.read_text() == "theirs"
    assert Path(str(caught.value).rpartition(" ")[2]).read_text() == "mine"
    write_file(overwrite=True)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(("group", "folders", "files"), [(False, "700", "600"), (True, "2750", "640")])
def test_a_prepared_dataset_is_private_and_a_group_may_share_it(
    tmp_path: Path, *, group: bool, folders: str, files: str
) -> None:
    tmp_path.chmod(0o2777 if group else 0o777)
    log = tmp_path / "log.csv"
    lines = [f"s{session},{position},t{position},0" for session in range(3) for position in range(6)]
    log.write_text("\n".join(["session_id,position,track_id,skipped", *lines]) + "\n")
    out = tmp_path / "out"
    prepare("events", [log], out)
    mapped_sessions(out / "sessions.parquet")
    assert f"{stat.S_IMODE(out.stat().st_mode):o}" == folders
    found = modes(out)
    assert {"sessions.parquet", FLAT_FOLDER} < set(found)
    assert {name: mode for name, mode in found.items() if mode != (folders if (out / name).is_dir() else files)} == {}
    assert len(open_dataset(out).sessions) == 3


def test_files_of_others_and_folders_that_all_share_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").touch(mode=0o644)
    (tmp_path / "run.sh").touch(mode=0o755)
    (tmp_path / "run.sh").chmod(0o755)
    private_folder(tmp_path, own=("*.parquet",))
    assert (tmp_path / "mine.parquet").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run.sh").stat().st_mode & 0o777 == 0o755
    tmp_path.chmod(0o1777)
    with pytest.raises(InputError, match="shared by all users"):
        private_folder(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
