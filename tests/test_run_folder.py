"""What is kept of a training beside its release, on disk and for TensorBoard, and how the command ends early."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

torch = pytest.importorskip("torch")

from segue.cli import main  # noqa: E402 (after the check that torch is there)
from segue.release import open_release  # noqa: E402
from training import trainer as training_fit  # noqa: E402
from training.data.dataset import Dataset  # noqa: E402
from training.data.synthetic import simulate  # noqa: E402
from training.run_log import (  # noqa: E402
    RunFolder,
    curves,
    environment,
)

SETTINGS = ("epochs=3", "dimension=8", "heads=2", "negatives=20", "window=6", "batch_size=32")
LINE = {"loss": 2.5, "nll": 2.0, "nce": 1.0, "HR@10": 0.25, "MRR@10": 0.125, "sessions_per_s": 100.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate(1000, 120, tmp_path_factory.mktemp("run") / "dataset")


def command(dataset: Dataset, out: Path, *more: object) -> list[str]:
    settings = [f"--set={setting}" for setting in SETTINGS]
    return ["train", str(dataset.path), "--out", str(out), *settings, *map(str, more)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupting(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """SIGINT at a step of the next training; those after it are left alone."""
    plain, left = training_fit._Run._step, [steps]

    def step(run: Any, batch: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(run, batch)

    monkeypatch.setattr(training_fit._Run, "_step", step)


def test_an_interrupted_command_says_so_in_one_line_and_resume_goes_on_to_the_same_release(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(dataset, tmp_path / "r", "--resume")) == 2
    said = capsys.readouterr().err
    assert said == (
        f"segue: --resume: {tmp_path}/r.training holds no checkpoint: leave --resume out to train from the start\n"
    )
    assert list(tmp_path.iterdir()) == []

    interrupting(monkeypatch, 18)
    board = tmp_path / "board"
    assert main(command(dataset, tmp_path / "r", "--tensorboard", board)) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("segue: interrupted in epoch 2 of 3: ")
    assert [line["epoch"] for line in lines(tmp_path / "r.run")] == [1]
    assert not (tmp_path / "r").exists()

    assert main(command(dataset, tmp_path / "r", "--resume", "--tensorboard", board)) == 0
    assert main(command(dataset, tmp_path / "whole")) == 0
    release = open_release(tmp_path / "r")
    assert release.name == open_release(tmp_path / "whole").name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board", "r", "r.run", "whole", "whole.run"]

    run = json.loads((tmp_path / "r.run" / "run.json").read_text())
    assert run["release"] == release.name
    assert {name: run[name] for name in release.manifest.options} == release.manifest.options
    assert len(run["starts"]) == 2
    assert lines(tmp_path / "r.run") == release.manifest.evaluation["history"]
    assert [line["epoch"] for line in lines(tmp_path / "r.run")] == [1, 2, 3]
    check_board(board, lines(tmp_path / "r.run"))


def check_board(folder: Path, epochs: list[dict[str, Any]]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    for tag, name in (("loss/nce", "nce"), ("validation/HR_at_10", "HR@10"), ("speed/sessions_per_s", None)):
        events = found.Scalars(tag)
        assert [event.step for event in events] == [1, 2, 3]
        if name is not None:
            assert [event.value for event in events] == pytest.approx([line[name] for line in epochs])


def test_tensorboard_that_is_not_installed_is_one_line_before_anything_is_trained(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['tensorboard'] = None; from segue.cli import main;"
        f"sys.exit(main(['train', 'nowhere', '--out', 'r', '--tensorboard', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "segue: tensorboard is not installed: in your clone of Segue, run `pip install '.[tensorboard]'`\n"
    )


def test_a_training_without_memory_ends_with_advice_and_its_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = training_fit._Run._step

    def step(run: Any, batch: Any) -> Any:
        if run.progress.epoch == 1:
            torch.empty(2**50)
        return plain(run, batch)

    monkeypatch.setattr(training_fit._Run, "_step", step)
    assert main(command(dataset, tmp_path / "r")) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(
        "segue: out of memory (4,194,304.0 GiB more were requested): lower batch_size (now 32), "
    )
    assert f"the checkpoint stays in {tmp_path}/r.training" in said[-1]
    assert not any("Traceback" in line for line in said)
    assert (tmp_path / "r.training" / "checkpoint.pt").is_file()


class TestFolder:
    def test_says_on_what_a_training_ran(self) -> None:
        found = environment()
        assert found["versions"]["torch"] == torch.__version__
        assert found["threads"] == torch.get_num_threads()
        assert found["machine"]["memory_bytes"] > 2**20
        assert found["at"].endswith("+00:00")
        json.dumps(found)

    def test_has_an_epoch_once_when_it_is_told_of_again_and_all_of_them_at_the_end(self, tmp_path: Path) -> None:
        first = RunFolder(tmp_path, {"model": "a"}, {"commit": "1"}, resumed=False)
        for epoch in (1, 2):
            first.epoch({"epoch": epoch} | LINE)
        second = RunFolder(tmp_path, {"model": "a"}, {"commit": "2"}, resumed=True)
        second.epoch({"epoch": 2, **LINE, "loss": float("nan")})
        assert [(line["epoch"], line["loss"]) for line in lines(tmp_path)] == [(1, 2.5), (2, None)]
        history = [{"epoch": epoch} | LINE for epoch in (1, 2, 3)]
        second.finish("a-1", history)
        assert lines(tmp_path) == history
        run = json.loads((tmp_path / "run.json").read_text())
        assert (run["release"], [start["commit"] for start in run["starts"]]) == ("a-1", ["1", "2"])

    def test_of_a_training_that_begins_again_has_nothing_of_the_one_before(self, tmp_path: Path) -> None:
        RunFolder(tmp_path, {}, {"commit": "1"}, resumed=False).epoch({"epoch": 1} | LINE)
        (tmp_path / "notes.txt").write_text("mine")
        RunFolder(tmp_path, {}, {"commit": "2"}, resumed=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "run.json"]
        assert [start["commit"] for start in json.loads((tmp_path / "run.json").read_text())["starts"]] == ["2"]

    def test_that_was_damaged_stops_no_training(self, tmp_path: Path) -> None:
        for name in ("run.json", "metrics.jsonl"):
            (tmp_path / name).write_text("{")
        RunFolder(tmp_path, {}, {"commit": "1"}, resumed=True).epoch({"epoch": 5} | LINE)
        assert [line["epoch"] for line in lines(tmp_path)] == [5]


class TestCurves:
    def test_are_a_file_that_a_browser_reads_with_a_mark_for_every_figure(self) -> None:
        history = [{"epoch": epoch, **LINE, "loss": 2.5 / epoch} for epoch in (1, 2, 3)]
        root = ElementTree.fromstring(curves(history))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == 3 * 5
        assert "loss 1.2500, epoch 2" in titles

    def test_of_one_epoch_or_of_what_is_no_number_are_drawn_as_well(self) -> None:
        ElementTree.fromstring(curves([{"epoch": 1} | LINE]))
        root = ElementTree.fromstring(curves([{"epoch": 1, **LINE, "loss": float("nan"), "nce": float("inf")}]))
        assert len(list(root.iter("{http://www.w3.org/2000/svg}title"))) == 3
