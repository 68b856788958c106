"""The command line: help at once, one clear line and exit code 2 for a wrong input, never a traceback."""

import ast
import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from segue import cli
from segue.cli import _EXTRA_OF, main, segue
from segue.release import Release
from tests.stopwatch import Stopwatch


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(segue.commands))])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: segue {' '.join(command)}".rstrip())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["train"], "Missing argument 'DATASET'"),
        (["train", "nowhere", "--out", "r"], "nowhere"),
        (["train", "nowhere", "--out", "r", "--model", "best"], "--model 'best': expected one of hybrid, "),
        (["evaluate", "nowhere", "nowhere"], "nowhere"),
        (["index", "nowhere"], "nowhere is not a release"),
        (["serve", "nowhere"], "nowhere is not a release"),
        (["recommend", "nowhere", "--play", "x"], "nowhere is not a release"),
        (["prepare", "mssd", "nowhere", "--out", "d"], "nowhere does not exist"),
        (["prepare", "tapes", "nowhere", "--out", "d"], "'tapes': expected one of"),
        (
            ["prepare", "plays.csv"],
            "plays.csv is not a kind of log: name the kind first, as in `segue prepare events plays",
        ),
        (["prepare", "plays.csv", "--out", "d"], "plays.csv is not a kind of log"),
        (["prepare", ".", "--out", "d"], ". is not a kind of log"),
        (["compare", "."], ". is a folder, expected the file of a result: write it with `segue evaluate RELEASE"),
        (["simulate", "--tracks", "3", "--out", "d"], "3"),
        (["serve", "nowhere", "--port", "99999"], "99999"),
    ],
)
def test_a_wrong_input_is_one_line_and_code_two(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("segue: ")
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [[], ["keys"]])
def test_without_a_command_the_help_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, out, err = run(capsys, *command)
    assert (code, out) == (2, "")
    assert err.startswith(f"Usage: {' '.join(['segue', *command])} ")
    assert len(err.splitlines()) > 8


def test_a_place_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = run(capsys, "simulate", "--tracks", 1000, "--sessions", 10, "--out", file / "dataset")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("segue: ")
    assert str(file) in err


def test_a_port_that_is_taken_is_told_before_the_demo_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(capsys, "demo", "--folder", tmp_path / "demo", "--port", port, "--no-browser")
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"port {port} is in use" in err
    assert not (tmp_path / "demo").exists()


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from segue.cli import main;"
        "main(['simulate', '--tracks', '1000', '--sessions', '100', '--out', 'data']);"
        "sys.exit(main(['train', 'data', '--out', 'r']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "in your clone of Segue, run `pip install '.[training]'`" in done.stderr


def test_every_optional_package_has_its_extra() -> None:
    """Or a command that needs the package would end in a traceback."""
    base = {re.split(r"[^\w.-]", line)[0] for line in metadata.requires("segue") or [] if "extra ==" not in line}
    of_module = metadata.packages_distributions()
    imported = set()
    for package in ("segue", "service", "training", "index"):
        for file in (Path(cli.__file__).parents[2] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add((node.module or "").partition(".")[0])
    optional = {name for name in imported & of_module.keys() if not base & set(of_module[name])}
    optional -= {"segue", "service", "training", "index"}
    assert " ".join(sorted(optional - _EXTRA_OF.keys() - {"pydantic_core"})) == ""  # pydantic installs it


def test_help_imports_no_station() -> None:
    program = (
        "import sys; from segue.cli import main; main(['--help']);"
        "heavy = {'torch', 'fastapi', 'polars', 'numpy', 'onnxruntime', 'faiss', 'redis'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    with Stopwatch() as watch:
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert watch.seconds < 10


@pytest.mark.parametrize(
    ("set_by_user", "told"),
    [({}, "3000"), ({"OMP_WAIT_POLICY": "active"}, "30000000000"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_of_openmp_sleep_soon_unless_told_otherwise(set_by_user: dict[str, str], told: str) -> None:
    """As GNU OpenMP says itself when torch loads it; a wheel with another OpenMP has no such word."""
    pytest.importorskip("torch")
    others = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", "from segue.cli import main; main(['--version']); import torch"],
        env=others | set_by_user | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if not found:
        pytest.skip("torch has no GNU OpenMP here")
    assert set(found) == {told}


@pytest.mark.parametrize("option", ["--play", "--skip"])
@pytest.mark.parametrize("track_id", ["", "a\tb", "x" * 257])
def test_what_is_no_track_id_is_refused_in_one_line(
    option: str, track_id: str, tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", str(tiny_release.path), option, track_id]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"{option} {ascii(track_id)[:80]} is no track id: expected 1 to 256 characters" in line
