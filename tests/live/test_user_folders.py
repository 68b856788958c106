"""Commands in a folder where the user has packages named `training`, `service`, `index` and `tests`.

None of these packages may be imported. A command is started as `python -m segue`, or as pip's script `segue`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest

from segue.cli import main

NAMES = ("training", "service", "index", "tests")
LEAVES_A_TRACE = "import pathlib; pathlib.Path({trace!r}).touch()\n"
PIPS_SCRIPT = (
    "import sys\nfrom {module} import main\nif __name__ == '__main__':\n    sys.exit(main())\n"  # pip writes such
)
SMALL = [f"--set={option}" for option in ("epochs=2", "dimension=16", "heads=2", "negatives=50", "dropout=0")]
Command = list[str]

folders_and_files = pytest.mark.parametrize("folder", ["folders", "files"], indirect=True)
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra `training`")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The current folder of the commands: it holds packages, or files where a test says so."""
    here, trace = tmp_path / "project", tmp_path / "the user's package was imported"
    for name in NAMES:
        place = here / f"{name}.py" if getattr(request, "param", "") == "files" else here / name / "__init__.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(LEAVES_A_TRACE.format(trace=str(trace)))
    yield here
    assert not trace.exists()


MODULE, SCRIPT = "python -m segue", "segue"
script_only = pytest.mark.parametrize("segue", [SCRIPT], indirect=True)
module_only = pytest.mark.parametrize("segue", [MODULE], indirect=True)


@pytest.fixture(params=[MODULE, SCRIPT])
def segue(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """How a command begins."""
    if request.param == SCRIPT:
        return [sys.executable, str(script(tmp_path, "segue", "segue.cli"))]
    return [sys.executable, "-m", "segue"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("simulated") / "data"
    assert main(["simulate", "--tracks", "1000", "--sessions", "300", "--out", str(made)]) == 0
    return made


def script(tmp_path: Path, name: str, module: str) -> Path:
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / name
    path.write_text(PIPS_SCRIPT.format(module=module))
    return path


def environment(**settings: object) -> dict[str, str]:
    """The environment of a user who has set nothing for Python, and only these settings of Segue."""
    given = {f"SEGUE_{name.upper()}": str(value) for name, value in settings.items()}
    return given | {
        name: value for name, value in os.environ.items() if not name.startswith(("SEGUE_", "PYTHONSAFEPATH"))
    }


def run(folder: Path, command: Command, *arguments: object) -> str:
    """Run a command in the folder; what it prints."""
    words = [*command, *map(str, arguments)]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def write_log(folder: Path) -> None:
    plays = [
        f"s{session},t{track},{position},false" for session in range(40) for position, track in enumerate(range(6))
    ]
    (folder / "plays.csv").write_text("\n".join(["session_id,track_id,position,skipped", *plays, ""]))


@folders_and_files
def test_data_is_simulated(folder: Path, segue: Command) -> None:
    run(folder, segue, "simulate", "--tracks", 1000, "--sessions", 50, "--out", "data")
    assert (folder / "data" / "dataset.json").is_file()


@pytest.mark.parametrize("engine", ["polars", "disk"])
def test_a_log_is_prepared_from_a_relative_path(folder: Path, segue: Command, engine: str) -> None:
    prepare(folder, segue, engine)


@script_only  # Ray starts the same processes, however it was started
@needs_ray
@pytest.mark.slow
def test_a_log_is_prepared_on_ray(folder: Path, segue: Command) -> None:
    prepare(folder, segue, "ray")


def prepare(folder: Path, segue: Command, engine: str) -> None:
    write_log(folder)
    run(folder, segue, "prepare", "events", "plays.csv", "--out", "data", "--engine", engine)
    assert (folder / "data" / "dataset.json").is_file()


@module_only  # which puts the folder on the path; the next two tests start processes
@needs_torch
@pytest.mark.slow
def test_a_model_is_trained_and_evaluated(folder: Path, segue: Command, dataset: Path) -> None:
    run(folder, segue, "train", dataset, "--out", "release", *SMALL)
    run(folder, segue, "evaluate", "release", dataset, "--output", "result.json")
    assert (folder / "result.json").is_file()


@needs_torch
@pytest.mark.slow
def test_a_model_is_trained_by_two_processes_one_of_which_is_restarted(
    folder: Path, dataset: Path, tmp_path: Path
) -> None:
    torchrun = [sys.executable, str(script(tmp_path, "torchrun", "torch.distributed.run"))]
    torchrun += ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "-m", "segue"]
    words = [*torchrun, "train", str(dataset), "--out", "release", *SMALL]
    with subprocess.Popen(words, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch 1/2"):
                second = [one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1"]
                second[0].kill()
    assert process.returncode == 0, "".join(said)
    assert (folder / "release" / "manifest.json").is_file()


@script_only
@needs_torch
@pytest.mark.slow
def test_a_study_is_reproduced(folder: Path, segue: Command, dataset: Path) -> None:
    run(folder, segue, "reproduce", dataset, "--system", "popularity", "--seeds", 1, "--out", "study")
    assert list(folder.glob("study/**/popularity-0*.json"))


@contextmanager
def serving(folder: Path, command: Command, releases: Path, workers: int) -> Iterator[str]:
    """The address of a service that is started in the folder."""
    words = [*command, "serve", str(releases / "first"), "--workers", str(workers), "--port", "0"]
    given = environment(releases_dir=releases)
    with subprocess.Popen(words, cwd=folder, env=given, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("segue", "folder", "workers"),
    [
        (MODULE, "folders", 1),
        (SCRIPT, "files", 1),
        pytest.param(MODULE, "files", 2, marks=pytest.mark.slow),
        pytest.param(SCRIPT, "folders", 2, marks=pytest.mark.slow),
    ],
    indirect=["segue", "folder"],
)
def test_a_release_is_served_and_swapped(folder: Path, segue: Command, releases_dir: Path, workers: int) -> None:
    pytest.importorskip("faiss")
    with (
        serving(folder, segue, releases_dir, workers) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=30) as client,
    ):
        answer = client.put("/releases/current", json={"name": "second"})
        assert answer.status_code == 200, answer.text


def test_children_are_told_and_the_process_that_called_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert main(["--version"]) == 0
    assert "PYTHONSAFEPATH" not in os.environ
