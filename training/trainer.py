"""The training loop: L = alpha * NLL + beta * NCE, Adam, early stopping on validation HR@10, exact resume."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from segue.window import Sessions, SessionViews
from training.checkpoint import Checkpoints, Interrupted, Progress, StopSignal, stopping_on_signals
from training.data.loader import Batch, Step, epoch_order, prefetch, steps, trainable
from training.data.splits import Examples
from training.losses import Terms, step_terms
from training.models.encoders.encoder import SessionEncoder
from training.optimizer import DenseWeights, ItemRows, MovingAverage, clip, gradient_of
from training.processes import Processes
from training.sharded_embeddings import ShardedRows
from training.validation import encoder_score

CHECKPOINT_EVERY_S: Final = 60.0
_DROPOUT: Final = 2  # what tells its stream from that of the negatives


class Reporter(Protocol):
    """Is told how training goes."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """A step was taken; `terms` are means over the epoch so far."""

    def epoch(self, line: dict[str, float]) -> None:
        """An epoch ended; `line` holds epoch, loss, nll, nce, HR@10 (validation), sessions_per_s."""


@dataclass
class FitResult:
    """A trained encoder with its best weights, in evaluation mode."""

    encoder: SessionEncoder
    history: list[dict[str, float]]
    best_epoch: int
    validation_hr10: float
    seconds: float


def fit(
    encoder: SessionEncoder,
    training: Sessions | SessionViews,
    validation: Examples,
    checkpoints: Checkpoints,
    reporter: Reporter,
    processes: Processes | None = None,
    *,
    continued: bool = False,
) -> FitResult:
    """Train `encoder` in place and return it with the weights of its best epoch.

    `continued`: its weights are trained already, and kept where no epoch is better on validation (best_epoch is -1).

    `training` and `validation` hold rows of the encoder's item embeddings. Resumes from `checkpoints` where there is
    one: the weights are then the same, to the bit on a CPU with as many threads, as without the interruption. Told to
    stop by a signal, it writes a checkpoint and raises Interrupted. With several `processes` all call this alike; the
    first one alone reports, writes, and returns the best weights, the others their last ones.
    """
    processes = processes or Processes()
    shown = training.played() if encoder.options.plays == "played" else training
    with _deterministic(processes.device), stopping_on_signals() as stop:
        sessions = trainable(shown, encoder.options.window)
        run = _Run(encoder, sessions, validation, checkpoints, processes)
        run.stop = stop
        if continued:
            run.score_initial_weights()
        return run.go(reporter)


class _Run:
    """One call of `fit`: what it holds while it goes."""

    def __init__(
        self,
        encoder: SessionEncoder,
        training: SessionViews,
        validation: Examples,
        checkpoints: Checkpoints,
        processes: Processes,
    ) -> None:
        self.processes = processes
        self.device = torch.device(processes.device)
        self.encoder = encoder.to(self.device)
        self.options = encoder.options
        self.training = training
        self.validation = processes.share_of(validation)
        self.can_judge = len(validation.targets) > 0
        self.checkpoints = checkpoints
        processes.check(self.options)
        rows = ShardedRows if processes.sharded else ItemRows
        self.num_rows = encoder.item_embeddings.num_embeddings
        self.items = rows(encoder.item_embeddings, self.options.weight_decay)
        others = [parameter for parameter in encoder.parameters() if parameter is not self.items.table]
        self.others = DenseWeights(others, self.options.weight_decay)
        self.average = MovingAverage(encoder, self.options.ema_decay) if self.options.ema_decay else None
        self.progress = Progress()
        self.stop = StopSignal()
        self._resume()
        processes.agree({"dataset or options": checkpoints.identity, "checkpoint": vars(self.progress)})
        self.terms = processes.together(encoder, self._terms)

    def go(self, reporter: Reporter) -> FitResult:
        while self.progress.epoch < self.options.epochs and not self._stale():
            self._epoch(reporter)
        self.items.end()
        if self.processes.is_main:
            self.encoder.load_state_dict(self.checkpoints.best())
        self.encoder.eval()
        progress = self.progress
        return FitResult(self.encoder, progress.history, progress.best_epoch, progress.best[0], progress.seconds)

    def score_initial_weights(self) -> None:
        """Before the first step: the weights that it begins with are the first to be measured, and to be beaten."""
        if self.progress == Progress():
            self.progress.best = self._score(self.encoder)
            self._keep_best(self.encoder)

    def _keep_best(self, candidate: SessionEncoder) -> None:
        weights = self.items.whole(candidate.state_dict())
        if self.processes.is_main:
            self.checkpoints.save_best(weights)

    def _stale(self) -> bool:
        return self.progress.epoch - 1 - self.progress.best_epoch >= self.options.patience

    def _epoch(self, reporter: Reporter) -> None:
        progress, options = self.progress, self.options
        order = epoch_order(options.seed, progress.epoch, len(self.training), len(self.training.whole.rows))
        remaining = order[progress.step * options.batch_size :]
        started, saved, done_before = time.monotonic(), time.monotonic(), len(order) - len(remaining)
        done = done_before
        at = progress.epoch, progress.step
        on_cpu = self.device.type == "cpu"
        shard = self.processes.share
        made = steps(self.training, remaining, self.num_rows, options, at, shard, pinned=not on_cpu)
        for step in made if on_cpu else prefetch(made):
            terms = self._step(step.to(self.device))
            progress.step += 1
            done += step.sessions
            for name, value in self.processes.sums(terms._asdict()).items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            reporter.step(progress.epoch, done, len(order), self._means())
            stopping = self.processes.any(self.stop.asked)
            if stopping or self.processes.agreed(time.monotonic() - saved > CHECKPOINT_EVERY_S):
                self._save()
                saved = time.monotonic()
                self._leave_if(stopping)
        rate = (done - done_before) / max(time.monotonic() - started, 1e-9)
        line = self._finish_epoch(rate)
        progress.seconds += time.monotonic() - started
        self._save()
        reporter.epoch(line)
        self._leave_if(self.processes.any(self.stop.asked))

    def _leave_if(self, stopping: bool) -> None:
        if stopping:
            epoch, step, epochs = self.progress.epoch, self.progress.step, self.options.epochs
            where = f"in epoch {epoch + 1} of {epochs}" if step else f"after epoch {epoch} of {epochs}"
            raise Interrupted(
                f"interrupted {where}: {self.checkpoints.folder} holds it, the same command goes on from there"
            )

    def _finish_epoch(self, sessions_per_s: float) -> dict[str, float]:
        progress = self.progress
        candidate = self._weights_to_keep()
        score = self._score(candidate)
        line = {
            "epoch": progress.epoch + 1,
            **self._means(),
            "HR@10": score[0],
            "MRR@10": score[1],
            "sessions_per_s": round(sessions_per_s, 1),
        }
        progress.history.append(line)
        if score > progress.best or not self.can_judge:  # then the last epoch is as good as any
            progress.best, progress.best_epoch = score, progress.epoch
            self._keep_best(candidate)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        return line

    def _step(self, step: Step) -> Terms:
        batch, negatives, rows = step.batch, step.negatives, step.rows
        self._seed()
        rate = self._learning_rate()
        self.encoder.train()
        with self.items.lent(rows) as lent:
            before = None if self.average is None or rows is None else lent.detach().clone()
            self.encoder.zero_grad(set_to_none=True)
            with _multiplying_in(self.options.precision):
                with record_function("segue: loss"):
                    terms = self.terms(batch, negatives)
                with record_function("segue: backward"):
                    terms.loss.backward()  # type: ignore[no-untyped-call]
                    self.processes.add_up(gradient_of(lent))
            with record_function("segue: update"):
                self._update(rows, lent, rate)
        if self.average is not None:  # with the whole table back in its place, whose rows it asks for
            self.average.update(self.encoder, rows, before)
        return terms

    def _seed(self) -> None:
        """What is drawn in this step, as dropout is, comes from the counters alone; each process draws its own."""
        counters = self.options.seed, self.progress.epoch, self.progress.step, self.processes.rank, _DROPOUT
        seed = int(np.random.SeedSequence(counters).generate_state(1)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed asks for GPUs too, and takes long for it
        else:
            torch.manual_seed(seed)

    def _terms(self, batch: Batch, negatives: Tensor) -> Terms:
        return step_terms(self.encoder, batch, negatives, self.options, self.processes.total)

    def _update(self, rows: Tensor | None, lent: Tensor, rate: float) -> None:
        clip([*self.others.gradients(), gradient_of(lent)], self.options.gradient_clip)
        self.others.update(rate)
        self.items.update(rows, lent, rate)

    def _weights_to_keep(self) -> SessionEncoder:
        """The encoder whose weights would be kept now."""
        return self.encoder if self.average is None else self.average.materialize(self.encoder)

    def _score(self, candidate: SessionEncoder) -> tuple[float, float]:
        score = encoder_score(candidate, self.validation, str(self.device), self.items.sharded_counts)
        return self.processes.score(score, len(self.validation.targets))

    def _learning_rate(self) -> float:
        """From the counters alone, so that a resumed training has the same rate."""
        if self.options.schedule == "constant":
            return self.options.learning_rate
        steps = -(-len(self.training) // self.options.batch_size)
        done = (self.progress.epoch + self.progress.step / steps) / self.options.epochs
        return self.options.learning_rate * (1.0 - done)

    def _means(self) -> dict[str, float]:
        return {name: total / max(self.progress.step, 1) for name, total in self.progress.sums.items()}

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state["encoder"] = self.items.whole(state["encoder"])
        if self.processes.is_main:  # who goes on meanwhile waits in the next step's sums
            self.checkpoints.save(self.progress, state)

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is not None:
            self.progress, state = found
            state["encoder"] = self.items.kept(state["encoder"])
            for name, part in self._parts().items():
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        """What changes with every step."""
        parts: dict[str, Any] = {"encoder": self.encoder, "items": self.items, "others": self.others}
        return parts if self.average is None else parts | {"average": self.average}


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Same seed, same bits: no kernel that adds in a changing order. On a GPU torch offers that for fewer kernels.

    torch would also fill all new memory to find reads of unwritten values; there are none, and it takes 5 % of a step.
    """
    if device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it matrix products may differ, and warn
    memory = cast("Any", torch.utils.deterministic)
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


@contextmanager
def _multiplying_in(precision: str) -> Iterator[None]:
    """How torch multiplies float32 matrices; it holds for the whole process, so for autograd's threads too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
