"""Training by several processes: two take the steps that one would take, and one that is killed is made good."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

torch = pytest.importorskip("torch")

from segue.cli import main  # noqa: E402 (after the check that torch is there)
from segue.errors import BadOption  # noqa: E402
from tests.fit_together import CASES, SESSIONS, SIZES, fitted  # noqa: E402
from training.distributed import check_gpus_distinct, init_distributed  # noqa: E402
from training.processes import Processes  # noqa: E402
from training.trainer import FitResult  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EXACT = [name for name, case in CASES.items() if case.dtype == torch.float64]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they trained."""
    folder = tmp_path_factory.mktemp("by-two")
    script = str(Path(__file__).with_name("fit_together.py"))
    subprocess.run([*TORCHRUN, script, str(folder)], check=True, env=environment(), timeout=200)
    return folder


def curve(history: list[dict[str, float]], term: str = "loss") -> list[float]:
    return [line[term] for line in history]


def assert_equal(history: list[dict[str, float]], weights: dict[str, Any], alone: FitResult) -> None:
    for term in ("loss", "nll", "nce", "HR@10", "MRR@10"):
        assert curve(history, term) == pytest.approx(curve(alone.history, term), rel=1e-9, abs=1e-12)
    for name, value in alone.encoder.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-9)


class TestTwoProcesses:
    def test_the_last_step_has_fewer_sessions_than_there_are_processes(self) -> None:
        assert SESSIONS % SIZES["batch_size"] == 1

    @pytest.mark.parametrize("name", [*EXACT, "resumed", "sharded", "made whole"])
    def test_give_the_loss_curve_and_the_weights_of_one(self, name: str, by_two: Path, tmp_path: Path) -> None:
        alone = fitted(CASES.get(name, CASES["sasrec"]), tmp_path, Processes())
        history = json.loads((by_two / f"{name}.json").read_text())
        assert len(history) == SIZES["epochs"]
        assert_equal(history, torch.load(by_two / f"{name}.pt", weights_only=True), alone)

    def test_leave_a_checkpoint_that_one_goes_on_from(self, by_two: Path, tmp_path: Path) -> None:
        gone_on = fitted(CASES["sasrec"], by_two / "handed on.training", Processes())
        alone = fitted(CASES["sasrec"], tmp_path, Processes())
        assert_equal(gone_on.history, gone_on.encoder.state_dict(), alone)

    def test_give_the_loss_curve_of_one_within_the_noise_of_float32(self, by_two: Path, tmp_path: Path) -> None:
        alone = fitted(CASES["float32"], tmp_path, Processes())
        assert curve(json.loads((by_two / "float32.json").read_text())) == pytest.approx(curve(alone.history), rel=1e-4)

    def test_drop_other_activations_and_learn_alike(self, by_two: Path, tmp_path: Path) -> None:
        alone, together = (
            curve(fitted(CASES["dropout"], tmp_path, Processes()).history),
            curve(json.loads((by_two / "dropout.json").read_text())),
        )
        assert together == pytest.approx(alone, rel=0.1)
        assert together != pytest.approx(alone, rel=1e-6)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_that_were_given_other_options_are_both_told(self, by_two: Path, rank: int) -> None:
        refusals = json.loads((by_two / f"refusals-{rank}.json").read_text())
        assert refusals["other options"].startswith("the processes differ in their dataset or options: give all")

    @pytest.mark.parametrize("rank", [0, 1])
    def test_refuse_a_loss_over_sessions_of_the_whole_batch(self, by_two: Path, rank: int) -> None:
        refusals = json.loads((by_two / f"refusals-{rank}.json").read_text())
        assert refusals["published"].startswith(
            "negative_pairing=published contrasts sessions of the whole batch, but each of 2 processes"
        )

    @pytest.mark.parametrize("rank", [0, 1])
    def test_refuse_to_share_a_table_that_is_needed_whole(self, by_two: Path, rank: int) -> None:
        refusals = json.loads((by_two / f"refusals-{rank}.json").read_text())
        assert refusals["sharded"].startswith("--sharded needs updates=touched and ema_decay=0")


class TestJoining:
    def test_a_process_that_was_started_alone_is_alone(self) -> None:
        with init_distributed("cpu") as processes:
            assert type(processes) is Processes
            assert (processes.rank, processes.world, processes.is_main) == (0, 1, True)

    def test_one_process_alone_has_nobody_to_share_a_table_with(self) -> None:
        with pytest.raises(BadOption, match="--sharded: one process alone"), init_distributed("cpu", sharded=True):
            pass

    @pytest.mark.parametrize(
        ("gpus", "refused"),
        [
            (["a", "a"], {0: "0 and 1", 1: "0 and 1"}),
            (["a", "b", "a"], {0: "0 and 2", 2: "0 and 2"}),
            (["a", "b", "c"], {}),
            (["a"] * 3, dict.fromkeys(range(3), "0 and 1 and 2")),
        ],
    )
    def test_processes_that_share_a_gpu_are_all_told_and_no_others(
        self, gpus: list[str], refused: dict[int, str]
    ) -> None:
        store = torch.distributed.HashStore()

        def join(rank: int) -> str:
            try:
                check_gpus_distinct(store, rank, len(gpus), gpus[rank])
            except BadOption as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(len(gpus)) as threads:
            said = list(threads.map(join, range(len(gpus))))
        for rank, line in enumerate(said):
            expected = f"processes {refused[rank]} use the same GPU (a): each needs its own" if rank in refused else ""
            assert line.startswith(expected)
            assert bool(line) == bool(expected)

    def test_sums_taken_at_once_are_those_taken_one_by_one(self) -> None:
        values = {"loss": torch.tensor(0.1), "nll": torch.tensor(3.0, requires_grad=True)}
        assert Processes("cuda").all_reduce_scalars(values) == Processes("cpu").all_reduce_scalars(values)

    def test_more_processes_than_gpus_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98"}.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(BadOption, match="more processes than this machine has GPUs: start at most"),
            init_distributed("cuda"),
        ):
            pass


def command(data: Path, out: Path) -> list[str]:
    settings = ("epochs=3", "dimension=16", "heads=2", "negatives=100", "patience=3", "dropout=0")
    return ["tests.preloaded", "train", str(data), "--out", str(out), *(f"--set={setting}" for setting in settings)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "data"
    assert main(["simulate", "--tracks", "1000", "--sessions", "1500", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on two idle cores
class TestCommand:
    def test_a_process_that_is_killed_is_started_anew_and_they_go_on(self, data: Path, tmp_path: Path) -> None:
        """As an undisturbed training by two, to the bit: both add up in the same order."""
        start = [*TORCHRUN, "--max-restarts", "3", "-m"]
        subprocess.run([*start, *command(data, tmp_path / "whole")], check=True, env=environment())
        started = [*start, *command(data, tmp_path / "killed")]
        with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if line.startswith("epoch 1/3"):
                    os.kill(worker(process.pid, "1"), signal.SIGKILL)
        assert process.returncode == 0, "".join(told)
        epochs = [line.split()[1] for line in told if line.startswith("epoch ")]
        assert epochs == ["1/3", "2/3", "3/3"]  # the first is not done again
        whole, killed = (np.load(tmp_path / out / "item_embeddings.npy") for out in ("whole", "killed"))
        assert whole.tobytes() == killed.tobytes()
        assert not (tmp_path / "killed.training").exists()

    def test_ctrl_c_ends_both_and_the_same_command_goes_on(self, data: Path, tmp_path: Path) -> None:
        started = [*TORCHRUN, "-m", *command(data, tmp_path / "out")]
        with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stderr is not None
            seen = next((line for line in process.stderr if line.startswith("epoch 1/3")), "")
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert seen
        assert process.returncode != 0
        assert rest.count("segue: interrupted") == 2, rest
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        ended = subprocess.run(started, check=False, env=environment(), stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "epoch 1/3" not in ended.stderr
        assert (tmp_path / "out" / "manifest.json").is_file()

    def test_a_model_without_steps_is_refused(self, data: Path, tmp_path: Path) -> None:
        started = [*TORCHRUN, "-m", "segue", "train", str(data), "--model", "wrmf", "--out", str(tmp_path / "out")]
        ended = subprocess.run(started, check=False, env=environment(), stderr=subprocess.PIPE, text=True)
        assert "segue: --model wrmf is trained by one process: start it without torchrun" in ended.stderr


def worker(torchrun: int, rank: str) -> int:
    """The process id of a training process."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for child in psutil.Process(torchrun).children(recursive=True):
            if child.environ().get("RANK") == rank:
                return child.pid
    raise AssertionError(f"torchrun {torchrun} has no process of rank {rank}")
