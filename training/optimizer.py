"""Optimizers: Adam over lists of weights, lazy Adam for rows of item embeddings, and a moving average of the weights.

A step updates about thirty small tensors, and torch's optimizer classes spend as much time on bookkeeping as on
arithmetic. This module calls torch's optimizer functions directly.

Lazy Adam leaves a row's weights and moments unchanged in a step that does not touch it; dense Adam would keep moving
the row by its old gradients. For a row that every step touches, and for the first step of any row, both are equal. With
`rows` None, every row takes part, which is dense Adam. Sparse updates are those of torch.optim.SparseAdam.

The moving average of an encoder's weights is validated and stored in their place (Polyak and Juditsky, 1992). Rows that
a step does not touch do not change, so their average is updated exactly when they are next touched: after k such steps
its distance from the weights has shrunk by decay ** k.

Source: Kingma and Ba, "Adam", ICLR 2015, https://arxiv.org/abs/1412.6980; decoupled weight decay: Loshchilov and
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
_FUSED_ON = "cpu"  # on a GPU the fused call needs the step counts on the device; there foreach is one call


class Moments(NamedTuple):
    """Adam's state of a list of weights."""

    first: list[Tensor]  # like the weights, float32
    second: list[Tensor]
    steps: list[Tensor]  # step count of each weight, scalar float32 on the CPU


def adam(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Moments,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Take one AdamW step in place on `weights` and `moments`; `gradients` have the shapes of `weights`, float32."""
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
    if norm.device.type != "cpu" or not norm <= max_norm:  # do not wait for a GPU; let NaN propagate
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
        """Return the gradients of the weights that the last backward pass reached."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def update(self, learning_rate: float) -> None:
        """Take one Adam step; weights without a gradient stay unchanged."""
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
        self.first = torch.zeros_like(self.table, requires_grad=False)  # moments, [rows, dimension] float32
        self.second = torch.zeros_like(self.table, requires_grad=False)
        self.steps = torch.zeros((), dtype=torch.float32)

    @contextmanager
    def gathered_rows(self, rows: Tensor | None) -> Iterator[Tensor]:
        """Replace the encoder's item embeddings with those of `rows` [n] int64, in that order, inside the `with` block.

        Yields the gathered rows, [n, dimension] float32; with `rows` None, the whole table.
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
        """Take one Adam step on the gathered rows and scatter them back into the table."""
        gradient = gradient_of(gathered)
        first = self.first if rows is None else self.first.index_select(0, rows)
        second = self.second if rows is None else self.second.index_select(0, rows)
        adam([gathered], [gradient], Moments([first], [second], [self.steps]), learning_rate, self.weight_decay)
        if rows is not None:
            scatter_rows(self.table.detach(), rows, gathered.detach())
            scatter_rows(self.first, rows, first)
            scatter_rows(self.second, rows, second)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments and step count by name; the table itself belongs to the encoder's weights."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state that `state_dict` returned."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def full_state_dict(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return an encoder's weights with the full table; here they contain it already."""
        return weights

    def load_shard(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Load this process's shard of an encoder's weights; return those for the encoder to load, here all."""
        return weights

    @property
    def sharded_counts(self) -> RankCounts | None:
        """A function that ranks validation targets among this process's rows; None if the encoder has all rows."""
        return None

    def finalize(self) -> None:
        """Give the encoder a full table after training, so that weights can be loaded; here it has one already."""


def gradient_of(gathered: Tensor) -> Tensor:
    """Return the gradient of gathered rows after the backward pass. [n, dimension] float32."""
    assert gathered.grad is not None, "the backward pass did not reach the item embeddings"
    return gathered.grad


_ROWS_AT_ONCE: Final = 65_536


class MovingAverage:
    """Moving average of an encoder's weights, with the step of the last update of each item row."""

    def __init__(self, encoder: SessionEncoder, decay: float) -> None:
        self.decay = decay
        self.encoder = copy.deepcopy(encoder)
        self.encoder.requires_grad_(requires_grad=False)
        self.table = self.encoder.item_embeddings.weight
        self.steps = 0
        self.last_updated = torch.zeros(len(self.table), dtype=torch.int64, device=self.table.device)

    def update(self, encoder: SessionEncoder, rows: Tensor | None, before: Tensor | None) -> None:
        """Update the average after a step.

        `rows` [n] int64 were changed by the step and had the values `before` [n, dimension] float32; None: all rows.
        """
        self.steps += 1
        share = 1.0 if self.steps == 1 else 1.0 - self.decay  # the first step's weights start the average
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
        """Return the encoder with averaged weights, after updating the rows that recent steps did not touch."""
        weights = encoder.item_embeddings.weight.detach()
        for start in range(0, len(self.table), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self.table[part] = self._decayed(self.table[part], weights[part], self.last_updated[part], self.steps)
        self.last_updated.fill_(self.steps)
        return self.encoder

    def state_dict(self) -> dict[str, object]:
        """Return the averaged weights, the step count and the last update of each row."""
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
