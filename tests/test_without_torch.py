"""Commands that need no tensors run without torch: each in a child process that refuses to import it."""

import subprocess
import sys
from pathlib import Path

import pytest

# Polars looks whether torch is installed, which is no import: the loader refuses, not the finder.
REFUSING = """
import importlib.util
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "torch" else None

    def create_module(self, spec):
        raise AssertionError("torch is imported")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Refuse())
from segue.cli import main

sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: object) -> None:
    command = [sys.executable, "-c", REFUSING, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("without") / "dataset"
    run("simulate", "--tracks", 1000, "--sessions", 100, "--out", out)
    return out


def test_the_hook_refuses_torch() -> None:
    code = REFUSING.replace("from segue.cli import main", "import torch")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch is imported" in done.stderr


def test_a_dataset_is_described(dataset: Path, tmp_path: Path) -> None:
    run("describe", dataset, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


def test_rankers_without_vectors_are_trained_evaluated_and_compared(dataset: Path, tmp_path: Path) -> None:
    results = []
    for model in ("popularity", "markov", "vmis-knn"):
        run("train", dataset, "--model", model, "--out", tmp_path / model)
        results.append(tmp_path / f"{model}.json")
        run("evaluate", tmp_path / model, dataset, "--output", results[-1])
    run("compare", *results, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("engine", ["memory", "disk"])
def test_a_log_is_prepared(tmp_path: Path, engine: str) -> None:
    lines = [f"u{user},t{play % 9},{1_600_000_000 + 100 * play}" for user in range(20) for play in range(12)]
    log = tmp_path / "log.csv"
    log.write_text("user_id,track_id,timestamp\n" + "\n".join(lines) + "\n")
    engine_flags = [] if engine == "memory" else ["--engine", engine]
    run("prepare", "events", log, "--out", tmp_path / "dataset", *engine_flags)
