"""The training loop: L = alpha * NLL + beta * NCE, Adam, early stopping on validation HR@10, exact resume."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.window import Sessions
from training.batches import Batch, epoch_batches, trainable
from training.checkpoint import Checkpoints, Progress
from training.encoders.contract import SessionEncoder
from training.losses import info_nce, info_nce_as_published, sampled_softmax, uniform_log_q
from training.options import NeuralOptions
from training.splits import Examples
from training.validation import encoder_score

CHECKPOINT_EVERY_S: Final = 60.0


class Terms(NamedTuple):
    """The loss of a step and its parts, scalars."""

    loss: Tensor
    nll: Tensor
    nce: Tensor


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
    training: Sessions,
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


def step_terms(encoder: SessionEncoder, batch: Batch, negatives: Tensor, options: NeuralOptions) -> Terms:
    """The loss of one batch. `negatives` [n] int64 are the rows of the sampled softmax's uniform negatives."""
    predicted, asked = encoder.predict(batch)  # [batch, window, dimension]
    zero = predicted.new_zeros(())
    nll = _nll(encoder, predicted, asked, negatives) if options.alpha else zero
    nce = _NCE[options.pairing](encoder, predicted, asked, options.temperature) if options.beta else zero
    return Terms(options.alpha * nll + options.beta * nce, nll, nce)


def _nll(encoder: SessionEncoder, predicted: Tensor, batch: Batch, negatives: Tensor) -> Tensor:
    """Rank each step's target alongside the session's other tracks and the uniform negatives it does not hold."""
    real = batch.targets != PAD_ROW  # [batch, window]
    session_of_step = real.nonzero()[:, 0]
    queries, targets = predicted[real], batch.targets[real]  # [steps, dimension], [steps]
    positive_scores = (queries * encoder.item_embeddings(targets)).sum(dim=-1)
    own = batch.session_tracks  # [batch, window + 1]
    own_scores = torch.einsum("bwd,bid->bwi", predicted, encoder.item_embeddings(own))[real]
    uniform_scores = queries @ encoder.item_embeddings(negatives).T  # [steps, negatives]
    if encoder.options.log_q:
        uniform_scores = uniform_scores - uniform_log_q(len(negatives), encoder.item_embeddings.num_embeddings - 1)
    unseen = ~(own[:, :, None] == negatives).any(dim=1)  # [batch, negatives]
    others = (own[session_of_step] != targets[:, None]) & (own[session_of_step] != PAD_ROW)
    return sampled_softmax(
        positive_scores,
        torch.cat([own_scores, uniform_scores], dim=1),
        torch.cat([others, unseen[session_of_step]], dim=1),
    )


def _nce(encoder: SessionEncoder, predicted: Tensor, batch: Batch, temperature: float) -> Tensor:
    skips = batch.session_skips
    other = skips[:, None, :] != batch.positives[:, :, None]  # a track is no negative of itself
    return info_nce(
        predicted,
        encoder.item_embeddings(batch.positives),
        encoder.item_embeddings(skips),
        steps=batch.positives != PAD_ROW,
        contrasts=(skips != PAD_ROW)[:, None, :] & other,
        temperature=temperature,
    )


def _published_nce(encoder: SessionEncoder, predicted: Tensor, batch: Batch, temperature: float) -> Tensor:
    first = (batch.plays != PAD_ROW).int().argmax(dim=1, keepdim=True)
    instead = batch.plays.gather(1, first).expand_as(batch.positives)
    return info_nce_as_published(
        predicted,
        encoder.item_embeddings(torch.where(batch.positives != PAD_ROW, batch.positives, instead)),
        encoder.item_embeddings(torch.where(batch.skipped, batch.tracks, PAD_ROW)),
        steps=batch.targets != PAD_ROW,
        temperature=temperature,
    )


_NCE: Final = {"session": _nce, "published": _published_nce}


class _Run:
    """One call of `fit`: what it holds while it goes."""

    def __init__(
        self, encoder: SessionEncoder, training: Sessions, validation: Examples, checkpoints: Checkpoints, device: str
    ) -> None:
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device)
        self.options = encoder.options
        self.training = training
        self.validation = validation
        self.checkpoints = checkpoints
        self.optimizer = torch.optim.AdamW(
            encoder.parameters(), lr=self.options.learning_rate, weight_decay=self.options.weight_decay
        )
        # Follows the encoder; what is validated and kept where averaging is on.
        self.average = AveragedModel(
            self.encoder,
            multi_avg_fn=get_ema_multi_avg_fn(self.options.averaging),  # type: ignore[no-untyped-call]
        )
        self.progress = Progress()
        self.best_weights = copy.deepcopy(encoder.state_dict())
        self._resume()

    def go(self, reporter: Reporter) -> Fitted:
        while self.progress.epoch < self.options.epochs and not self._stale():
            self._epoch(reporter)
        self.encoder.load_state_dict(self.best_weights)
        self.encoder.eval()
        progress = self.progress
        return Fitted(self.encoder, progress.history, progress.best_epoch, progress.best[0], progress.seconds)

    def _stale(self) -> bool:
        return self.progress.epoch - 1 - self.progress.best_epoch >= self.options.patience

    def _epoch(self, reporter: Reporter) -> None:
        progress, options = self.progress, self.options
        order = np.random.default_rng((options.seed, progress.epoch)).permutation(len(self.training))
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
            self.best_weights = copy.deepcopy(candidate.state_dict())
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        return line

    def _step(self, batch: Batch) -> Terms:
        seed = np.random.SeedSequence((self.options.seed, self.progress.epoch, self.progress.step)).generate_state(1)
        torch.manual_seed(int(seed[0]))  # dropout and negatives of this step
        self._set_learning_rate()
        self.encoder.train()
        negatives = torch.randint(
            FIRST_TRACK_ROW, self.encoder.item_embeddings.num_embeddings, (self.options.negatives,)
        ).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with _multiplying_in(self.options.precision):
            terms = step_terms(self.encoder, batch, negatives, self.options)
            terms.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.options.gradient_clip)
        self.optimizer.step()
        if self.options.averaging:
            self.average.update_parameters(self.encoder)
        return terms

    def _candidate(self) -> SessionEncoder:
        """The encoder whose weights would be kept now."""
        return cast("SessionEncoder", self.average.module) if self.options.averaging else self.encoder

    def _set_learning_rate(self) -> None:
        """From the counters alone, so that a resumed training has the same rate."""
        if self.options.schedule == "linear":
            steps = -(-len(self.training) // self.options.batch_size)
            done = (self.progress.epoch + self.progress.step / steps) / self.options.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.learning_rate * (1.0 - done)

    def _means(self) -> dict[str, float]:
        return {name: total / max(self.progress.step, 1) for name, total in self.progress.sums.items()}

    def _save(self) -> None:
        state = {
            "encoder": self.encoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best_weights,
        }
        self.checkpoints.save(self.progress, state)

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is not None:
            self.progress, state = found
            self.encoder.load_state_dict(state["encoder"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best_weights = state["best"]


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
