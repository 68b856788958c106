"""docs/architecture.md names exactly the files that a request, a training step and a preparation pass, in order."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trips import ROOT

pytest.importorskip("torch")
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def documented(heading: str) -> list[str]:
    """The files of the table below a heading."""
    section = PAGE.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("kind", ["request", "step", "prepare"])
def test_the_page_lists_the_files_of_a_trip_in_order(kind: str, tmp_path: Path) -> None:
    # In a process of its own, as the interpreter's profiler slows down everything.
    done = subprocess.run(
        [sys.executable, "-m", "tests.trips", kind, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trips = json.loads(done.stdout[done.stdout.index("{") :])
    assert trips
    for trip, passed in trips.items():
        listed = documented(f"`{trip}`" if kind != "step" else trip)
        assert sorted(passed) == sorted(listed)
        assert passed == listed


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:segue|service|training|index)/[\w/.]+\.\w+)`", PAGE))))
def test_files_that_the_page_names_exist(path: str) -> None:
    assert (ROOT / path).is_file()


def test_no_product_file_is_longer_than_400_lines() -> None:
    files = [
        path
        for package in ("segue", "service", "training", "index")
        for path in sorted((ROOT / package).rglob("*"))
        if path.suffix in (".py", ".js", ".lua")
    ]
    assert len(files) > 100
    assert {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400} == {}
