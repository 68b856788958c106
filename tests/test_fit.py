"""Training: reproducible to the bit, resumed as if never killed, early stopping, and what it learns on toy data."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segue.errors import BadOption  # noqa: E402 (after the check that torch is there)
from segue.window import Sessions, SessionViews  # noqa: E402
from tests.preloaded import COMMANDS, SEGUE, preloaded, segue  # noqa: E402
from tests.stopped_training import Killed, KilledAfter, Silent  # noqa: E402
from training import losses as objective  # noqa: E402
from training import trainer as training_fit  # noqa: E402
from training.checkpoint import Checkpoints, Interrupted  # noqa: E402
from training.data.splits import Examples  # noqa: E402
from training.models.encoders.sasrec import SasRec  # noqa: E402
from training.options import SasRecOptions  # noqa: E402
from training.processes import Processes  # noqa: E402
from training.trainer import FitResult, fit  # noqa: E402

OPTIONS = SasRecOptions(dimension=16, heads=2, window=6, epochs=3, batch_size=8, negatives=20, learning_rate=0.01)
TRACKS = 12


def planted(count: int = 60, seed: int = 0) -> Sessions:
    """After track t comes t + 1 (in a ring); every third track is always skipped."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(0, TRACKS, (count, 1)) + np.arange(6)) % TRACKS + 1
    return Sessions(rows.ravel(), rows.ravel() % 3 == 0, np.arange(0, 6 * count + 1, 6))


def asked(sessions: Sessions) -> Examples:
    ends = sessions.offsets[1:] - 1
    inputs = SessionViews(sessions, sessions.offsets[:-1], ends)
    return Examples(inputs, sessions.rows[ends], sessions.skipped[ends], np.arange(len(ends)))


def run(
    folder: Path, options: SasRecOptions = OPTIONS, reporter: Silent | None = None, device: str = "cpu"
) -> FitResult:
    encoder = SasRec(TRACKS + 1, options)
    encoder.initialise(torch.Generator().manual_seed(options.seed))
    checkpoints = Checkpoints(folder, options.model_dump())
    told = (planted(), asked(planted(20, seed=1)), checkpoints, reporter or Silent())
    return fit(encoder, *told, Processes(device))


def weights(fitted: FitResult) -> list[bytes]:
    return [value.numpy().tobytes() for value in fitted.encoder.state_dict().values()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: training on one is not tried")
@pytest.mark.parametrize("updates", ["touched", "all"])
def test_a_gpu_learns_as_a_cpu_does(tmp_path: Path, updates: str) -> None:
    options = OPTIONS.model_copy(update={"updates": updates, "dropout": 0.0})
    there, here = run(tmp_path / "gpu", options, device="cuda"), run(tmp_path / "cpu", options)
    assert [line["loss"] for line in there.history] == pytest.approx([line["loss"] for line in here.history], rel=0.01)


class TestReproducible:
    def test_the_same_seed_gives_the_same_bits(self, tmp_path: Path) -> None:
        assert weights(run(tmp_path / "a")) == weights(run(tmp_path / "b"))

    def test_another_seed_gives_others(self, tmp_path: Path) -> None:
        other = OPTIONS.model_copy(update={"seed": 1})
        assert weights(run(tmp_path / "a")) != weights(run(tmp_path / "b", other))

    @pytest.mark.parametrize(("steps", "averaging"), [(1, 0.0), (8, 0.0), (9, 0.0), (13, 0.0), (13, 0.9)])
    def test_a_killed_training_goes_on_to_the_same_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, averaging: float
    ) -> None:
        monkeypatch.setattr("training.trainer.CHECKPOINT_EVERY_S", 0.0)  # so that mid-epoch checkpoints take part
        options = OPTIONS.model_copy(update={"ema_decay": averaging})
        whole = run(tmp_path / "whole", options)
        with pytest.raises(Killed):
            run(tmp_path / "killed", options, KilledAfter(steps))
        assert (tmp_path / "killed").exists() == (steps > 1)
        resumed = run(tmp_path / "killed", options)
        assert weights(resumed) == weights(whole)
        keys = ("epoch", "loss", "nll", "nce", "HR@10")
        assert [[line[k] for k in keys] for line in resumed.history] == [
            [line[k] for k in keys] for line in whole.history
        ]

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_precision_holds_for_steps_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
    ) -> None:
        seen: list[str] = []
        plain = objective.step_terms

        def watched(*arguments: Any) -> objective.Terms:
            seen.append(torch.get_float32_matmul_precision())
            return plain(*arguments)

        monkeypatch.setattr(training_fit, "step_terms", watched)
        fitted = run(tmp_path, OPTIONS.model_copy(update={"precision": precision}))
        assert set(seen) == {"highest" if precision == "float32" else "medium"}
        assert torch.get_float32_matmul_precision() == "highest"
        assert fitted.history[-1]["loss"] == pytest.approx(run(tmp_path / "plain").history[-1]["loss"], rel=0.02)

    def test_a_finished_training_resumes_to_its_end(self, tmp_path: Path) -> None:
        assert weights(run(tmp_path)) == weights(run(tmp_path))

    def test_a_checkpoint_of_another_training_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path)
        with pytest.raises(BadOption, match=r"another training \(beta 0.5 there, 0.1 here\): delete"):
            run(tmp_path, OPTIONS.model_copy(update={"beta": 0.1}))

    def test_a_checkpoint_of_another_version_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path)
        content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        torch.save({name: part for name, part in content.items() if name != "format"}, tmp_path / "checkpoint.pt")
        with pytest.raises(BadOption, match=r"checkpoint.pt is of another version of Segue: delete .* to train from"):
            run(tmp_path)

    def test_a_damaged_checkpoint_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path)
        (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
        with pytest.raises(BadOption, match="is damaged"):
            run(tmp_path)


class TestLearning:
    def test_it_learns_what_comes_next(self, tmp_path: Path) -> None:
        options = OPTIONS.model_copy(update={"epochs": 15, "patience": 15})
        fitted = run(tmp_path, options)
        with torch.no_grad():
            tracks = torch.tensor([[1, 2, 3, 4, 5, 6]])
            query = fitted.encoder.query(tracks, tracks % 3 == 0)
            best = (query @ fitted.encoder.item_embeddings.weight[1:].T).argmax().item() + 1
        assert best == 7

    def test_the_skip_loss_raises_what_is_played_next_against_what_is_always_skipped(self, tmp_path: Path) -> None:
        """After 5 comes 6, always skipped, then 7: the plain loss says 6. By seed the lead rises by 0.2 to 0.5."""

        def lead(beta: float) -> float:
            options = OPTIONS.model_copy(update={"epochs": 25, "patience": 25, "beta": beta, "alpha": 0.5})
            fitted = run(tmp_path / str(beta), options)
            with torch.no_grad():
                tracks = torch.tensor([[12, 1, 2, 3, 4, 5]])
                query = fitted.encoder.query(tracks, tracks % 3 == 0)[0]
                scores = torch.cosine_similarity(query[None], fitted.encoder.item_embeddings.weight, dim=1)
            return float(scores[7] - scores[6])

        plain = lead(0.0)
        assert plain < 0
        assert lead(1.0) > plain + 0.1

    @pytest.mark.parametrize(("batch_size", "negatives"), [(8, 20), (1, 1)])  # every row in every step, or few of them
    def test_averaged_weights_are_the_moving_average_of_those_of_every_step(
        self, tmp_path: Path, batch_size: int, negatives: int
    ) -> None:
        """Against a plain loop; the first step's weights start the average (Polyak and Juditsky, 1992; EMA form)."""
        seen: list[list[Any]] = []

        class Watching(SasRec):
            def train(self, mode: bool = True) -> "Watching":
                if mode:  # before each step
                    seen.append([parameter.detach().clone() for parameter in self.parameters()])
                return super().train(mode)

        changes = {"ema_decay": 0.8, "epochs": 1, "batch_size": batch_size, "negatives": negatives}
        options = OPTIONS.model_copy(update=changes)
        encoder = Watching(TRACKS + 1, options)
        encoder.initialise(torch.Generator().manual_seed(0))
        seen.clear()
        last: list[list[Any]] = []

        class Last(Silent):
            def step(self, *_: Any) -> None:
                last[:] = [[parameter.detach().clone() for parameter in encoder.parameters()]]

        fitted = fit(encoder, planted(), asked(planted(20, seed=1)), Checkpoints(tmp_path, {}), Last())
        after = seen[1:] + last  # the weights after every step
        assert len(after) == -(-60 // batch_size)
        expected = after[0]
        for weights_of_step in after[1:]:
            expected = [0.8 * mean + 0.2 * now for mean, now in zip(expected, weights_of_step, strict=True)]
        for found, wanted in zip(fitted.encoder.parameters(), expected, strict=True):
            torch.testing.assert_close(found, wanted)

    def test_it_stops_when_validation_gets_no_better(self, tmp_path: Path) -> None:
        fitted = run(tmp_path, OPTIONS.model_copy(update={"epochs": 60, "patience": 2, "learning_rate": 1e-9}))
        assert len(fitted.history) == 3
        assert fitted.best_epoch == 0


class TestContinued:
    def test_weights_that_no_epoch_improves_are_kept(self, tmp_path: Path) -> None:
        trained = run(tmp_path / "first", OPTIONS.model_copy(update={"epochs": 12, "patience": 12}))
        before = weights(trained)

        def on(epochs: int, learning_rate: float) -> FitResult:
            changes = {"epochs": epochs, "learning_rate": learning_rate, "patience": 3}
            options = OPTIONS.model_copy(update=changes)
            encoder = SasRec(TRACKS + 1, options)
            encoder.load_state_dict(trained.encoder.state_dict())
            checkpoints = Checkpoints(tmp_path / f"{epochs} {learning_rate}", options.model_dump())
            return fit(encoder, planted(), asked(planted(20, seed=1)), checkpoints, Silent(), continued=True)

        none, ruined = on(0, 0.01), on(9, 1.0)
        assert weights(none) == weights(ruined) == before
        assert none.best_epoch == ruined.best_epoch == -1
        assert none.validation_hr10 == ruined.validation_hr10 == trained.validation_hr10
        assert (len(none.history), len(ruined.history)) == (0, 3)  # and the patience of three epochs is over


class Signalling(Silent):
    """Sends this process signals after some steps."""

    def __init__(self, steps: int, *signals: int) -> None:
        self.left, self.signals, self.after = steps, signals, 0

    def step(self, *_: Any) -> None:
        self.left -= 1
        self.after += self.left < 0
        if self.left == 0:
            for number in self.signals:
                os.kill(os.getpid(), number)


class TestInterrupted:
    @pytest.mark.parametrize(
        ("number", "steps", "where"),
        [(signal.SIGINT, 3, "in epoch 1 of 3"), (signal.SIGTERM, 11, "in epoch 2 of 3"), (signal.SIGINT, 8, "")],
    )
    def test_a_signal_is_a_checkpoint_of_that_step_and_one_line(
        self, tmp_path: Path, number: int, steps: int, where: str
    ) -> None:
        handler = signal.getsignal(number)
        reporter = Signalling(steps, number)
        with pytest.raises(Interrupted, match=rf"^interrupted {where}.*: .*resume from .*stopped"):
            run(tmp_path / "stopped", reporter=reporter)
        assert reporter.after == 0
        assert signal.getsignal(number) is handler
        found = Checkpoints(tmp_path / "stopped", OPTIONS.model_dump()).load()
        assert found is not None
        assert found[0].epoch * 8 + found[0].step == steps
        assert found[0].seconds > 0  # also of an epoch that has not ended
        assert weights(run(tmp_path / "stopped")) == weights(run(tmp_path / "whole"))

    def test_a_second_signal_ends_it_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(tmp_path / "stopped", reporter=Signalling(3, signal.SIGINT, signal.SIGTERM))
        assert type(caught.value) is KeyboardInterrupt
        assert not (tmp_path / "stopped").exists()

    def test_in_another_thread_signals_are_left_to_the_main_one(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(1) as threads:
            found = threads.submit(run, tmp_path / "threaded").result()
        assert weights(found) == weights(run(tmp_path / "main"))


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_command_give_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    """The command itself, killed at several moments by SIGKILL."""
    data = tmp_path / "data"
    segue("simulate", "--tracks", 1000, "--sessions", 1500, "--out", data)
    settings = [f"--set={s}" for s in ("epochs=3", "dimension=16", "heads=2", "negatives=100", "patience=3")]
    segue("train", data, "--out", tmp_path / "whole", *settings)
    killed = ("train", data, "--out", tmp_path / "killed", *settings)
    for last_seen in ("epoch 1/3", "epoch 2/3"):  # not after a time: how fast a machine is does not matter
        process = preloaded(COMMANDS).piped(SEGUE, *killed)
        assert process.stdout is not None
        with process.stdout as said:
            seen = next((line for line in said if line.startswith(last_seen)), None)
            process.kill()
        assert seen, f"training ended before {last_seen}"
        assert process.wait(10) == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    segue(*killed)
    whole, resumed = (np.load(tmp_path / out / "item_embeddings.npy") for out in ("whole", "killed"))
    assert whole.tobytes() == resumed.tobytes()
    assert not (tmp_path / "killed.training").exists()
