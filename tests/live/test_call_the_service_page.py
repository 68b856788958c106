"""docs/how-to/call-the-service.md: its examples in Python, JavaScript and curl work against the service."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from segue import client
from tests import conftest
from tests.conftest import ServiceProcess

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "call-the-service.md"
if not PAGE.exists():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service of the tiny release with the tutorial's tracks."""
    folder = tmp_path_factory.mktemp("page")
    with (ROOT / "docs" / "plays.csv").open(encoding="utf-8") as log:
        ids = sorted({row["track_id"] for row in csv.DictReader(log)})
    half = conftest.GENRES * conftest.TRACKS_OF_A_GENRE // 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conftest, "track_ids", lambda: ids[:half] + ids[-half:])
        release = conftest.write_tiny_release(folder / "release").path
    process = ServiceProcess(release, folder / "data")
    try:
        with process.client() as client:
            yield client
    finally:
        process.stop()


def blocks(language: str, service: httpx.Client) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return [block.replace(ADDRESS, str(service.base_url).rstrip("/")) for block in found]


def test_the_python_examples_run(service: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = blocks("python", service)
    exec(compile(first, PAGE.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[3] == "['folk-31', 'techno-23', 'new-song'] unknown: ['new-song']"
    assert lines[4] == "5 tracks for a hypothetical session"
    exec(compile(second, PAGE.name, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == "5 5\n"


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_javascript_example_runs(service: httpx.Client, tmp_path: Path) -> None:
    [program] = blocks("js", service)
    (tmp_path / "segue.mjs").write_text(program)
    done = subprocess.run(["node", tmp_path / "segue.mjs"], capture_output=True, text=True, timeout=60, check=True)
    listed, ranked = done.stdout.splitlines()
    assert len(listed.split()) == 3
    assert ranked == "folk-31"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_run(service: httpx.Client, tmp_path: Path) -> None:
    [block] = blocks("console", service)
    answers = []
    for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        done = subprocess.run(["bash", "-ec", command], cwd=tmp_path, capture_output=True, timeout=60, check=True)
        answers.append(json.loads(done.stdout))
    reported, listed, ranked, batch = answers
    assert (reported["length"], len(reported["recommendations"]["items"])) == (2, 3)
    assert "folk-11" not in {item["track_id"] for item in listed["items"]}
    assert ranked["unknown"] == ["new-song"]
    assert [list(one) for one in batch["results"]] == [["recommendations"]] * 2


def test_it_names_every_method_and_error() -> None:
    methods = {name for name, value in vars(client._Methods).items() if isinstance(value, client._Method)}
    assert methods == set(re.findall(r"`(\w+)\(", TEXT.partition("| method |")[2].partition("\n\n")[0]))
    errors = {kind.__name__ for kind in client.ServiceError.__subclasses__()}
    assert errors == set(re.findall(r"^\| `(\w+)` \|", TEXT.partition("| error |")[2], re.MULTILINE))
