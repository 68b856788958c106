"""The training loop for neural encoders.

The loss is L = alpha * NLL + beta * NCE. The optimizer is Adam. Training stops early on validation HR@10 and can resume
exactly from a checkpoint.
"""

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
from training.distributed import ShardedRows
from training.losses import Terms, step_terms
from training.models.encoders.encoder import SessionEncoder
from training.optimizer import DenseWeights, ItemRows, MovingAverage, clip_grad_norm_, gradient_of
from training.processes import Processes
from training.validation import encoder_score

CHECKPOINT_EVERY_S: Final = 60.0
_DROPOUT: Final = 2  # part of the seed; separates the random stream of dropout from that of the negatives


class Reporter(Protocol):
    """Receives the progress of training."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Report a finished step.

        `sessions_done` of `sessions` training sessions of this epoch are finished. `terms` contains the mean loss
        terms of the epoch so far.
        """

    def epoch(self, line: dict[str, float]) -> None:
        """Report a finished epoch.

        `line` has the keys epoch, loss, nll, nce, HR@10, MRR@10 and sessions_per_s. HR@10 and MRR@10 are validation
        metrics.
        """


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
    """Train `encoder` in place and return the encoder with the weights of its best epoch.

    `training` and `validation` contain rows of the encoder's item embeddings. Training resumes from `checkpoints` if
    there is a checkpoint. On a CPU with the same number of threads, resumed and uninterrupted training give
    bit-identical weights.

    With several `processes`, every process calls this function with the same arguments. The main process writes the
    checkpoints and returns the best weights. The other processes return the weights of their last step.

    If `continued` is true, the encoder is already trained. Its initial weights are returned if no epoch improves the
    validation score; `best_epoch` is -1 in this case.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived. Training wrote a checkpoint before the error.

    """
    processes = processes or Processes()
    shown = training.played() if encoder.options.plays == "played" else training
    with _deterministic(processes.device), stopping_on_signals() as stop:
        sessions = trainable(shown, encoder.options.window)
        run = _Run(encoder, sessions, validation, checkpoints, processes)
        run.stop = stop
        if continued:
            run.score_initial_weights()
        return run.run(reporter)


class _Run:
    """The state of one call of `fit`."""

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
        self.validation = processes.validation_shard(validation)
        self.has_validation = len(validation.targets) > 0
        self.checkpoints = checkpoints
        processes.check_options(self.options)
        rows = ShardedRows if processes.sharded else ItemRows
        self.num_rows = encoder.item_embeddings.num_embeddings
        self.items = rows(encoder.item_embeddings, self.options.weight_decay)
        others = [parameter for parameter in encoder.parameters() if parameter is not self.items.table]
        self.others = DenseWeights(others, self.options.weight_decay)
        self.average = MovingAverage(encoder, self.options.ema_decay) if self.options.ema_decay else None
        self.progress = Progress()
        self.stop = StopSignal()
        self._resume()
        processes.check_consistent({"dataset or options": checkpoints.identity, "checkpoint": vars(self.progress)})
        self.terms = processes.wrap(encoder, self._terms)

    def run(self, reporter: Reporter) -> FitResult:
        while self.progress.epoch < self.options.epochs and not self._should_stop_early():
            self._epoch(reporter)
        self.items.finalize()
        if self.processes.is_main:
            self.encoder.load_state_dict(self.checkpoints.best())
        self.encoder.eval()
        progress = self.progress
        return FitResult(self.encoder, progress.history, progress.best_epoch, progress.best[0], progress.seconds)

    def score_initial_weights(self) -> None:
        """Score the initial weights before the first step and save them as the best weights so far."""
        if self.progress == Progress():
            self.progress.best = self._score(self.encoder)
            self._keep_best(self.encoder)

    def _keep_best(self, candidate: SessionEncoder) -> None:
        weights = self.items.full_state_dict(candidate.state_dict())
        if self.processes.is_main:
            self.checkpoints.save_best(weights)

    def _should_stop_early(self) -> bool:
        return self.progress.epoch - 1 - self.progress.best_epoch >= self.options.patience

    def _epoch(self, reporter: Reporter) -> None:
        progress, options = self.progress, self.options
        order = epoch_order(options.seed, progress.epoch, len(self.training), len(self.training.whole.rows))
        remaining = order[progress.step * options.batch_size :]
        started = saved = counted = time.monotonic()
        done = done_before = len(order) - len(remaining)
        at = progress.epoch, progress.step
        on_cpu = self.device.type == "cpu"
        shard = self.processes.shard
        epoch_steps = steps(self.training, remaining, self.num_rows, options, at, shard, pinned=not on_cpu)
        for step in epoch_steps if on_cpu else prefetch(epoch_steps):
            terms = self._step(step.to(self.device))
            progress.step += 1
            done += step.sessions
            for name, value in self.processes.all_reduce_scalars(terms._asdict()).items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            reporter.step(progress.epoch, done, len(order), self._means())
            stopping = self.processes.any_process(self.stop.requested)
            if stopping or self.processes.broadcast_decision(time.monotonic() - saved > CHECKPOINT_EVERY_S):
                progress.seconds += time.monotonic() - counted
                counted = time.monotonic()
                self._save()
                saved = time.monotonic()
                self._interrupt_if(stopping)
        rate = (done - done_before) / max(time.monotonic() - started, 1e-9)
        line = self._finish_epoch(rate)
        progress.seconds += time.monotonic() - counted
        self._save()
        reporter.epoch(line)
        self._interrupt_if(self.processes.any_process(self.stop.requested))

    def _interrupt_if(self, stopping: bool) -> None:
        if stopping:
            epoch, step, epochs = self.progress.epoch, self.progress.step, self.options.epochs
            where = f"in epoch {epoch + 1} of {epochs}" if step else f"after epoch {epoch} of {epochs}"
            raise Interrupted(
                f"interrupted {where}: run the same command again to resume from {self.checkpoints.folder}"
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
        if score > progress.best or not self.has_validation:  # without validation, the last epoch is the best
            progress.best, progress.best_epoch = score, progress.epoch
            self._keep_best(candidate)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        return line

    def _step(self, step: Step) -> Terms:
        batch, negatives, rows = step.batch, step.negatives, step.rows
        self._seed()
        rate = self._learning_rate()
        self.encoder.train()
        with self.items.gathered_rows(rows) as gathered:
            before = None if self.average is None or rows is None else gathered.detach().clone()
            self.encoder.zero_grad(set_to_none=True)
            with _matmul_precision(self.options.precision):
                with record_function("segue: loss"):
                    terms = self.terms(batch, negatives)
                with record_function("segue: backward"):
                    terms.loss.backward()  # type: ignore[no-untyped-call]
                    self.processes.all_reduce_(gradient_of(gathered))
            with record_function("segue: update"):
                self._update(rows, gathered, rate)
        if self.average is not None:  # after `gathered_rows` has restored the full table, which the average reads
            self.average.update(self.encoder, rows, before)
        return terms

    def _seed(self) -> None:
        """Seed the random generator of this step, used by dropout, from the counters and the rank of the process."""
        counters = self.options.seed, self.progress.epoch, self.progress.step, self.processes.rank, _DROPOUT
        seed = int(np.random.SeedSequence(counters).generate_state(1)[0])
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also looks for GPUs, which is slow
        else:
            torch.manual_seed(seed)

    def _terms(self, batch: Batch, negatives: Tensor) -> Terms:
        return step_terms(self.encoder, batch, negatives, self.options, self.processes.all_reduce_count)

    def _update(self, rows: Tensor | None, gathered: Tensor, rate: float) -> None:
        clip_grad_norm_([*self.others.gradients(), gradient_of(gathered)], self.options.gradient_clip)
        self.others.update(rate)
        self.items.update(rows, gathered, rate)

    def _weights_to_keep(self) -> SessionEncoder:
        """Return the encoder to validate and save: the moving average of the weights if enabled, else the encoder."""
        return self.encoder if self.average is None else self.average.materialize(self.encoder)

    def _score(self, candidate: SessionEncoder) -> tuple[float, float]:
        score = encoder_score(candidate, self.validation, str(self.device), self.items.sharded_counts)
        return self.processes.mean_score(score, len(self.validation.targets))

    def _learning_rate(self) -> float:
        """Return the learning rate of this step. It depends only on the counters, so resumed runs use the same rate."""
        if self.options.schedule == "constant":
            return self.options.learning_rate
        steps = -(-len(self.training) // self.options.batch_size)
        done = (self.progress.epoch + self.progress.step / steps) / self.options.epochs
        return self.options.learning_rate * (1.0 - done)

    def _means(self) -> dict[str, float]:
        return {name: total / max(self.progress.step, 1) for name, total in self.progress.sums.items()}

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._checkpoint_state().items()}
        state["encoder"] = self.items.full_state_dict(state["encoder"])
        if self.processes.is_main:  # the other processes continue and wait in the all-reduce of the next step
            self.checkpoints.save(self.progress, state)

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is not None:
            self.progress, state = found
            state["encoder"] = self.items.load_shard(state["encoder"])
            for name, part in self._checkpoint_state().items():
                part.load_state_dict(state[name])

    def _checkpoint_state(self) -> dict[str, Any]:
        """Return the parts of the state that change with every step, by name."""
        parts: dict[str, Any] = {"encoder": self.encoder, "items": self.items, "others": self.others}
        return parts if self.average is None else parts | {"average": self.average}


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Return a context manager that enables deterministic kernels, so that the same seed gives bit-identical results.

    On a GPU, torch warns about operations without a deterministic kernel. The context also disables the filling of
    uninitialised memory, a debugging aid of torch that takes 5 % of the time of a step.
    """
    if device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without this variable
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
def _matmul_precision(precision: str) -> Iterator[None]:
    """Return a context manager that sets the precision of float32 matrix products.

    The setting applies to the whole process, including the threads of autograd.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
