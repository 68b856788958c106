"""Optimizers: Adam over lists of weights, lazy Adam for rows of item embeddings, and a moving average of the weights.

A step has some thirty small tensors, and torch's optimizers spend as much time on bookkeeping as on arithmetic. This
module calls the functions below them.

Lazy Adam leaves a row's weights and moments unchanged in a step that does not touch it; dense Adam would keep moving
the row by its old gradients. For a row that every step touches, and for the first step of any row, both are equal. With
`rows` None, every row takes part, which is dense Adam. Sparse updates are those of torch.optim.SparseAdam.

The moving average of an encoder's weights is validated and stored in their place (Polyak and Juditsky, 1992). Rows that
a step does not touch do not change, so their average is updated exactly when they are next touched: after k such steps
it has come closer to the weights by decay ** k.

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

from training.models.encoders.encoder import RankCounts, SessionEncoder
from training.models.encoders.tensor_ops import put

_BETAS = 0.9, 0.999  # those of torch.optim.AdamW
_EPSILON = 1e-8
_FUSED_ON = "cpu"  # elsewhere the numbers of steps would have to be on the device too: the list is one call there


class Moments(NamedTuple):
    """Adam's state of some weights."""

    first: list[Tensor]  # like the weights, float32
    second: list[Tensor]
    steps: list[Tensor]  # one for each, scalar float32 on the CPU


def adam(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Moments,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """One step of AdamW on weights, in place."""
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


def clip(gradients: list[Tensor], most: float) -> None:
    """Scale gradients down together, in place, to a Euclidean norm of `most` where it is greater."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.device.type != "cpu" or not norm <= most:  # a GPU is not waited for, and what is no number is passed on
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp_(max=1.0))


class DenseWeights:
    """Weights that every step changes as a whole, and Adam's state of them."""

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.moments = Moments(
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros((), dtype=torch.float32) for _ in parameters],
        )

    def gradients(self) -> list[Tensor]:
        """Those that the backward pass has reached."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def update(self, learning_rate: float) -> None:
        """Take one step by the gradients; weights without one stay as they are."""
        reached = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        moments = Moments(*([part[i] for i in reached] for part in self.moments))
        adam([self.parameters[i] for i in reached], self.gradients(), moments, learning_rate, self.weight_decay)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The optimiser's state."""
        return self.moments._asdict()

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from a state."""
        for name, tensors in self.state_dict().items():
            for tensor, value in zip(tensors, state[name], strict=True):
                tensor.copy_(value)


class ItemRows:
    """The table of an encoder's item embeddings and its optimiser's state."""

    def __init__(self, embedding: nn.Embedding, weight_decay: float) -> None:
        self.embedding = embedding
        self.weight_decay = weight_decay
        self.table = embedding.weight
        self.first = torch.zeros_like(self.table, requires_grad=False)  # moments, [rows, dimension] float32
        self.second = torch.zeros_like(self.table, requires_grad=False)
        self.steps = torch.zeros((), dtype=torch.float32)

    @contextmanager
    def lent(self, rows: Tensor | None) -> Iterator[Tensor]:
        """Within, the encoder's item embeddings are those of `rows` [n] int64 alone, in their order; None: all."""
        lent = self._lent(rows)
        self.embedding.weight = lent
        try:
            yield lent
        finally:
            self.embedding.weight = self.table

    def _lent(self, rows: Tensor | None) -> Tensor:
        return self.table if rows is None else nn.Parameter(self.table.detach().index_select(0, rows))

    def update(self, rows: Tensor | None, lent: Tensor, learning_rate: float) -> None:
        """Take one step of Adam on the rows that were lent, by their gradient, and put them back."""
        gradient = gradient_of(lent)
        first = self.first if rows is None else self.first.index_select(0, rows)
        second = self.second if rows is None else self.second.index_select(0, rows)
        adam([lent], [gradient], Moments([first], [second], [self.steps]), learning_rate, self.weight_decay)
        if rows is not None:
            put(self.table.detach(), rows, lent.detach())
            put(self.first, rows, first)
            put(self.second, rows, second)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's state; the table is among the encoder's weights."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def whole(self, weights: dict[str, Any]) -> dict[str, Any]:
        """An encoder's weights with the whole table among them: here they have it."""
        return weights

    def kept(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Of an encoder's weights keep what is held here; what is left is the encoder's to load: here all of it."""
        return weights

    @property
    def sharded_counts(self) -> RankCounts | None:
        """How validation compares targets with the rows that this process owns; None: the encoder has all rows."""
        return None

    def end(self) -> None:
        """From here on the encoder holds a whole table, for weights to be loaded into: here it does so always."""


def gradient_of(lent: Tensor) -> Tensor:
    """The gradient of rows that were lent, after the backward pass."""
    assert lent.grad is not None, "no loss has reached the item embeddings"
    return lent.grad


_ROWS_AT_ONCE: Final = 65_536


class MovingAverage:
    """The average and, for each row of item embeddings, the step that it stands at."""

    def __init__(self, encoder: SessionEncoder, decay: float) -> None:
        self.decay = decay
        self.encoder = copy.deepcopy(encoder)
        self.encoder.requires_grad_(requires_grad=False)
        self.table = self.encoder.item_embeddings.weight
        self.steps = 0
        self.last_updated = torch.zeros(len(self.table), dtype=torch.int64, device=self.table.device)

    def update(self, encoder: SessionEncoder, rows: Tensor | None, before: Tensor | None) -> None:
        """Take in the weights after a step. `before` [n, dimension] float32: what `rows` were before it; None: all."""
        self.steps += 1
        share = 1.0 if self.steps == 1 else 1.0 - self.decay  # the first step's weights start the average
        ours, theirs = self._others(self.encoder), self._others(encoder)
        torch._foreach_lerp_(ours, theirs, share)
        weights = encoder.item_embeddings.weight.detach()
        if rows is None or before is None:
            self.table.lerp_(weights, share)
            self.last_updated.fill_(self.steps)
            return
        average = self._settled(self.table.index_select(0, rows), before, self.last_updated[rows], self.steps - 1)
        put(self.table, rows, average.lerp_(weights.index_select(0, rows), share))
        self.last_updated.index_fill_(0, rows, self.steps)

    def materialize(self, encoder: SessionEncoder) -> SessionEncoder:
        """The encoder with averaged weights, all rows brought up to date."""
        weights = encoder.item_embeddings.weight.detach()
        for start in range(0, len(self.table), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self.table[part] = self._settled(self.table[part], weights[part], self.last_updated[part], self.steps)
        self.last_updated.fill_(self.steps)
        return self.encoder

    def state_dict(self) -> dict[str, object]:
        """All of it."""
        return {"encoder": self.encoder.state_dict(), "steps": self.steps, "last_updated": self.last_updated}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state."""
        self.encoder.load_state_dict(state["encoder"])  # type: ignore[arg-type]
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        self.last_updated.copy_(state["last_updated"])  # type: ignore[arg-type]

    def _settled(self, average: Tensor, weights: Tensor, last_updated: Tensor, until: int) -> Tensor:
        missed = (until - last_updated).clamp(min=0)
        powers = torch.pow(torch.tensor(self.decay, dtype=torch.float64), missed)
        kept = torch.where(missed == 0, 1.0, powers).to(weights.dtype)
        return torch.lerp(weights, average, kept[:, None])

    def _others(self, encoder: SessionEncoder) -> list[Tensor]:
        table = encoder.item_embeddings.weight
        return [parameter.detach() for parameter in encoder.parameters() if parameter is not table]
