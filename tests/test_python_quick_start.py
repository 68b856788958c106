"""docs/python-quick-start.md: its program runs, and its options and failures are as described."""

import csv
import re
from pathlib import Path

import pytest

from segue.errors import BadOption, BadRelease, UnknownTrack
from segue.release import Release
from segue.sessions import Outcome, Play

pytest.importorskip("onnxruntime")
from service.releases.loaded import load_release
from tests import conftest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python-quick-start.md"
if not PAGE.exists():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)
PROGRAM, OUTPUT = re.findall(r"```(?:python|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """The tiny release with the tutorial's tracks, in the folder that the page names."""
    with (ROOT / "docs" / "plays.csv").open(encoding="utf-8") as log:
        ids = sorted({row["track_id"] for row in csv.DictReader(log)})
    half = conftest.GENRES * conftest.TRACKS_OF_A_GENRE // 2
    monkeypatch.setattr(conftest, "track_ids", lambda: ids[:half] + ids[-half:])
    monkeypatch.chdir(tmp_path)
    Path("releases").mkdir()
    return conftest.write_tiny_release(Path("releases/mine"))


def test_the_program_has_at_most_ten_lines_that_do_something() -> None:
    assert len([line for line in PROGRAM.splitlines() if line]) <= 10


def test_the_program_prints_what_the_page_shows(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PROGRAM, PAGE.name, "exec"), {})
    printed, shown = capsys.readouterr().out.splitlines(), OUTPUT.splitlines()
    assert printed[0] == shown[0] == "model: 2 played, 1 skipped"
    assert len(printed) == len(shown) == 6
    heard = {"folk-11", "folk-12", "techno-22"}
    for lines in (printed, shown):
        found = [re.fullmatch(r"(-?\d+\.\d{3})  (\S+)  [^,]+, .+", line) for line in lines[1:]]
        assert all(found), lines
        scores = [float(one[1]) for one in found if one is not None]
        assert scores == sorted(scores, reverse=True)
        assert not heard & {one[2] for one in found if one is not None}


def test_options_and_failures_are_as_described(release: Release, tmp_path: Path) -> None:
    live = load_release(release.path, threads=2)
    session = [Play("folk-11"), Play("techno-22", Outcome.SKIPPED)]
    first = live.recommend(session, k=3).tracks[0].track_id
    without = [track.track_id for track in live.recommend(session, k=3, exclude=[first]).tracks]
    assert first not in without
    for repeat, repeated in (("allow", True), ("never", False), ("after:1", True), ("after:2", False)):
        answer = live.recommend(session, k=80, repeat=repeat)
        assert ("folk-11" in [track.track_id for track in answer.tracks]) == repeated
    with pytest.raises(BadOption, match="repeat 'no': expected allow, never, or after:N"):
        live.recommend(session, k=5, repeat="no")
    assert live.unknown(["folk-11", "x"]) == ["x"]
    assert live.recommend([Play("x")], k=2).source == "popularity"
    assert len(live.similar("folk-11", 5)) == 5
    assert live.search("song", 5)
    with pytest.raises(UnknownTrack):
        live.similar("x", 5)
    (tmp_path / "other").mkdir()
    with pytest.raises(BadRelease) as caught:
        load_release(tmp_path / "other")
    assert "\n" not in str(caught.value)
