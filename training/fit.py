"""The training loop: L = alpha * NLL + beta * NCE, Adam, early stopping on validation HR@10, exact resume."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from segue.catalogue import FIRST_TRACK_ROW
from segue.window import Sessions
from training.averaging import MovingAverage
from training.batches import Batch, epoch_batches, trainable
from training.checkpoint import Checkpoints, Progress
from training.encoders.contract import SessionEncoder
from training.epoch_order import epoch_order
from training.item_rows import ItemRows, renumbered, touched_rows
from training.objective import Terms, step_terms
from training.session_views import SessionViews
from training.splits import Examples
from training.validation import encoder_score

CHECKPOINT_EVERY_S: Final = 60.0


class Reporter(Protocol):
    """Is told how training goes."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """A step was taken; `terms` are means over the epoch so far."""

    def epoch(self, line: dict[str, float]) -> None:
        """An epoch ended; `line` holds epoch, loss, nll, nce, HR@10 (validation), sessions_per_s."""


@dataclass
class Fitted:
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
    device: str = "cpu",
) -> Fitted:
    """Train `encoder` in place and return it with the weights of its best epoch.

    `training` and `validation` hold rows of the encoder's item embeddings. Resumes from `checkpoints` where there is
    one: the weights are then the same, to the bit on a CPU, as without the interruption.
    """
    shown = training.played() if encoder.options.plays == "played" else training
    with _deterministic(device):
        return _Run(encoder, trainable(shown, encoder.options.window), validation, checkpoints, device).go(reporter)


class _Run:
    """One call of `fit`: what it holds while it goes."""

    def __init__(
        self,
        encoder: SessionEncoder,
        training: SessionViews,
        validation: Examples,
        checkpoints: Checkpoints,
        device: str,
    ) -> None:
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device)
        self.options = encoder.options
        self.training = training
        self.validation = validation
        self.checkpoints = checkpoints
        self.items = ItemRows(encoder.item_embeddings, self.options.weight_decay)
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in encoder.parameters() if parameter is not self.items.table],
            lr=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
            fused=True,
        )
        self.average = MovingAverage(encoder, self.options.averaging) if self.options.averaging else None
        self.progress = Progress()
        self._resume()

    def go(self, reporter: Reporter) -> Fitted:
        while self.progress.epoch < self.options.epochs and not self._stale():
            self._epoch(reporter)
        self.encoder.load_state_dict(self.checkpoints.best())
        self.encoder.eval()
        progress = self.progress
        return Fitted(self.encoder, progress.history, progress.best_epoch, progress.best[0], progress.seconds)

    def _stale(self) -> bool:
        return self.progress.epoch - 1 - self.progress.best_epoch >= self.options.patience

    def _epoch(self, reporter: Reporter) -> None:
        progress, options = self.progress, self.options
        order = epoch_order(options.seed, progress.epoch, len(self.training), len(self.training.whole.rows))
        remaining = order[progress.step * options.batch_size :]
        started, saved, done_before = time.monotonic(), time.monotonic(), len(order) - len(remaining)
        done = done_before
        batches = epoch_batches(self.training, options.batch_size, options.window, options.objective, remaining)
        for batch in batches:
            terms = self._step(batch.to(self.device))
            progress.step += 1
            done += len(batch.tracks)
            for name, value in terms._asdict().items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value.item()
            reporter.step(progress.epoch, done, len(order), self._means())
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                self._save()
                saved = time.monotonic()
        rate = (done - done_before) / max(time.monotonic() - started, 1e-9)
        line = self._finish_epoch(rate)
        progress.seconds += time.monotonic() - started
        self._save()
        reporter.epoch(line)

    def _finish_epoch(self, sessions_per_s: float) -> dict[str, float]:
        progress = self.progress
        candidate = self._candidate()
        score = encoder_score(candidate, self.validation, str(self.device))
        line = {
            "epoch": progress.epoch + 1,
            **self._means(),
            "HR@10": score[0],
            "MRR@10": score[1],
            "sessions_per_s": round(sessions_per_s, 1),
        }
        progress.history.append(line)
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            self.checkpoints.save_best(candidate.state_dict())
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        return line

    def _step(self, batch: Batch) -> Terms:
        seed = np.random.SeedSequence((self.options.seed, self.progress.epoch, self.progress.step)).generate_state(1)
        torch.manual_seed(int(seed[0]))  # dropout and negatives of this step
        rate = self._learning_rate()
        self.encoder.train()
        negatives = torch.randint(
            FIRST_TRACK_ROW, self.encoder.item_embeddings.num_embeddings, (self.options.negatives,)
        ).to(self.device)
        rows = touched_rows(batch, negatives) if self.options.updates == "touched" else None
        if rows is not None:
            batch, negatives = renumbered(batch, negatives, rows)
        with self.items.lent(rows) as lent:
            self.encoder.zero_grad(set_to_none=True)
            with _multiplying_in(self.options.precision):
                with record_function("segue: loss"):
                    terms = step_terms(self.encoder, batch, negatives, self.options)
                with record_function("segue: backward"):
                    terms.loss.backward()  # type: ignore[no-untyped-call]
            with record_function("segue: update"):
                self._update(rows, lent, rate)
        return terms

    def _update(self, rows: Tensor | None, lent: Tensor, rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.options.gradient_clip)
        before = None if self.average is None or rows is None else lent.detach().clone()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.items.update(rows, lent, rate)
        if self.average is not None:
            self.average.update(self.encoder, rows, before)

    def _candidate(self) -> SessionEncoder:
        """The encoder whose weights would be kept now."""
        return self.encoder if self.average is None else self.average.settled(self.encoder)

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
        self.checkpoints.save(self.progress, {name: part.state_dict() for name, part in self._parts().items()})

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is not None:
            self.progress, state = found
            for name, part in self._parts().items():
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        """What changes with every step."""
        parts: dict[str, Any] = {"encoder": self.encoder, "items": self.items, "optimizer": self.optimizer}
        return parts if self.average is None else parts | {"average": self.average}


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Same seed, same bits: no kernel that adds in a changing order. On a GPU torch offers that for fewer kernels.

    torch would also fill all new memory to find reads of unwritten values; there are none, and it takes 5 % of a step.
    """
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
