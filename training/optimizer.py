"""Optimizers: Adam over lists of weights, lazy Adam for rows of item embeddings, and a moving average of the weights.

This module calls the optimizer functions of torch directly. A step updates about thirty small tensors. For tensors of
this size, torch's optimizer classes spend as much time on bookkeeping as on arithmetic.

Lazy Adam does not change the weights and moments of a row in a step that does not touch the row. Dense Adam would
continue to move the row by its old gradients. Both are equal for a row that every step touches, and for the first
update of any row. The update rule is the rule of torch.optim.SparseAdam. With `rows` None, every row is updated, as in
dense Adam.

If a moving average of the weights is enabled, validation and releases use the averaged weights (Polyak and Juditsky,
1992). A step does not change the untouched rows, so their average is updated later, when they are next touched. The
late update is exact: after k steps without change, the distance between average and weights has shrunk by decay ** k.

Sources: Kingma and Ba, "Adam", ICLR 2015, https://arxiv.org/abs/1412.6980; for decoupled weight decay, Loshchilov and
Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from training.models.encoders.encoder import RankCounts, SessionEncoder, scatter_rows

_BETAS = 0.9, 0.999  # the defaults of torch.optim.AdamW
_EPSILON = 1e-8
_FUSED_ON = "cpu"  # on a GPU, fused Adam would need the step counts on the device, so foreach Adam is used


class Moments(NamedTuple):
    """The Adam state of a list of weights."""

    first: list[Tensor]  # first moment of each weight, same shape as the weight, float32
    second: list[Tensor]  # second moment of each weight, same shape as the weight, float32
    steps: list[Tensor]  # step count of each weight, scalar float32 on the CPU


def adam(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Moments,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Take one AdamW step. Updates `weights` and `moments` in place.

    `gradients` are float32 and have the shapes of `weights`.
    """
    fused = weights[0].device.type == _FUSED_ON
    with torch.no_grad():
        adamw(
            list(weights),
            list(gradients),
            moments.first,
            moments.second,
            [],
            moments.steps,
            fused=fused,
            foreach=not fused,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=_EPSILON,
            maximize=False,
        )


def clip_grad_norm_(gradients: list[Tensor], max_norm: float) -> None:
    """Scale all gradients in place so that their joint Euclidean norm is at most `max_norm`."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if (
        norm.device.type != "cpu" or not norm <= max_norm
    ):  # on a GPU, a branch would wait for the norm; `not` lets NaN propagate
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp_(max=1.0))


class DenseWeights:
    """Weights that every step updates completely, with their Adam state."""

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.moments = Moments(
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros((), dtype=torch.float32) for _ in parameters],
        )

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the weights that have one after the last backward pass."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def update(self, learning_rate: float) -> None:
        """Take one Adam step. Weights without a gradient stay unchanged."""
        reached = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        moments = Moments(*([part[i] for i in reached] for part in self.moments))
        adam([self.parameters[i] for i in reached], self.gradients(), moments, learning_rate, self.weight_decay)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return the moments and step counts by name."""
        return self.moments._asdict()

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore a state that `state_dict` returned."""
        for name, tensors in self.state_dict().items():
            for tensor, value in zip(tensors, state[name], strict=True):
                tensor.copy_(value)


class ItemRows:
    """The table of an encoder's item embeddings, with its Adam state."""

    def __init__(self, embedding: nn.Embedding, weight_decay: float) -> None:
        self.embedding = embedding
        self.weight_decay = weight_decay
        self.table = embedding.weight
        # The first and second moments are [rows, dimension] float32 each.
        self.first = torch.zeros_like(self.table, requires_grad=False)
        self.second = torch.zeros_like(self.table, requires_grad=False)
        self.steps = torch.zeros((), dtype=torch.float32)

    @contextmanager
    def gathered_rows(self, rows: Tensor | None) -> Iterator[Tensor]:
        """Replace the encoder's item embedding table with the rows `rows` [n] int64 of it, inside the `with` block.

        Yields the gathered rows, [n, dimension] float32. With `rows` None, the encoder keeps the whole table.
        """
        gathered = self._gather(rows)
        self.embedding.weight = gathered
        try:
            yield gathered
        finally:
            self.embedding.weight = self.table

    def _gather(self, rows: Tensor | None) -> Tensor:
        return self.table if rows is None else nn.Parameter(self.table.detach().index_select(0, rows))

    def update(self, rows: Tensor | None, gathered: Tensor, learning_rate: float) -> None:
        """Take one Adam step on the gathered rows, and scatter the new values into the table.

        `rows` [n] int64 are the indices of `gathered` [n, dimension] float32, or None for the whole table.
        """
        gradient = gradient_of(gathered)
        first = self.first if rows is None else self.first.index_select(0, rows)
        second = self.second if rows is None else self.second.index_select(0, rows)
        adam([gathered], [gradient], Moments([first], [second], [self.steps]), learning_rate, self.weight_decay)
        if rows is not None:
            scatter_rows(self.table.detach(), rows, gathered.detach())
            scatter_rows(self.first, rows, first)
            scatter_rows(self.second, rows, second)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments and the step count by name. The table is part of the encoder's weights instead."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state that `state_dict` returned."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def full_state_dict(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the encoder's state dict with the full table. `weights` already contains the full table here."""
        return weights

    def load_shard(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Load this process's shard of the table, and return the state dict for the encoder to load.

        Without sharding, the result is `weights`.
        """
        return weights

    @property
    def sharded_counts(self) -> RankCounts | None:
        """Return a function that ranks validation targets among the rows of all shards.

        Return None without sharding, because the encoder has all rows.
        """
        return None

    def finalize(self) -> None:
        """Give the encoder a full table after training, into which weights can be loaded.

        Without sharding, the encoder already has a full table.
        """


def gradient_of(gathered: Tensor) -> Tensor:
    """Return the gradient of `gathered` after the backward pass. [n, dimension] float32."""
    assert gathered.grad is not None, "the backward pass did not reach the item embeddings"
    return gathered.grad


_ROWS_AT_ONCE: Final = 65_536


class MovingAverage:
    """Exponential moving average of an encoder's weights, with lazy updates of the item embeddings.

    For each row of the item embeddings, `last_updated` records the step of the last update.
    """

    def __init__(self, encoder: SessionEncoder, decay: float) -> None:
        self.decay = decay
        self.encoder = copy.deepcopy(encoder)
        self.encoder.requires_grad_(requires_grad=False)
        self.table = self.encoder.item_embeddings.weight
        self.steps = 0
        self.last_updated = torch.zeros(len(self.table), dtype=torch.int64, device=self.table.device)

    def update(self, encoder: SessionEncoder, rows: Tensor | None, before: Tensor | None) -> None:
        """Update the average after a training step.

        Args:
            encoder: The encoder after the step.
            rows: [n] int64, the rows of the item embeddings that the step changed, or None for all rows.
            before: [n, dimension] float32, the values of `rows` before the step, or None for all rows.

        """
        self.steps += 1
        share = 1.0 if self.steps == 1 else 1.0 - self.decay  # the average starts as the weights after the first step
        averages, new = self._others(self.encoder), self._others(encoder)
        torch._foreach_lerp_(averages, new, share)
        weights = encoder.item_embeddings.weight.detach()
        if rows is None or before is None:
            self.table.lerp_(weights, share)
            self.last_updated.fill_(self.steps)
            return
        average = self._decayed(self.table.index_select(0, rows), before, self.last_updated[rows], self.steps - 1)
        scatter_rows(self.table, rows, average.lerp_(weights.index_select(0, rows), share))
        self.last_updated.index_fill_(0, rows, self.steps)

    def materialize(self, encoder: SessionEncoder) -> SessionEncoder:
        """Return an encoder with the averaged weights, after all pending updates of item rows.

        `encoder` is the encoder in training.
        """
        weights = encoder.item_embeddings.weight.detach()
        for start in range(0, len(self.table), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self.table[part] = self._decayed(self.table[part], weights[part], self.last_updated[part], self.steps)
        self.last_updated.fill_(self.steps)
        return self.encoder

    def state_dict(self) -> dict[str, object]:
        """Return the averaged weights, the step count and the step of the last update of each row."""
        return {"encoder": self.encoder.state_dict(), "steps": self.steps, "last_updated": self.last_updated}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state that `state_dict` returned."""
        self.encoder.load_state_dict(state["encoder"])  # type: ignore[arg-type]
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        self.last_updated.copy_(state["last_updated"])  # type: ignore[arg-type]

    def _decayed(self, average: Tensor, weights: Tensor, last_updated: Tensor, until: int) -> Tensor:
        missed = (until - last_updated).clamp(min=0)
        powers = torch.pow(torch.tensor(self.decay, dtype=torch.float64), missed)
        kept = torch.where(missed == 0, 1.0, powers).to(weights.dtype)
        return torch.lerp(weights, average, kept[:, None])

    def _others(self, encoder: SessionEncoder) -> list[Tensor]:
        table = encoder.item_embeddings.weight
        return [parameter.detach() for parameter in encoder.parameters() if parameter is not table]
