"""Item embeddings while they are trained: a step reads and changes the rows of its tracks, not the whole table.

Adam that is lazy: a row's weights and moments stay as they are in a step that does not touch it, where dense Adam
would go on moving it by its old gradients. A row that every step touches, and any row's first step, are as in dense
Adam. With `rows` None every row takes part in every step, which is dense Adam.

Sparse updates as in torch.optim.SparseAdam.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.data.batches import Batch
from training.models.encoders.tensor_ops import put
from training.optimizer import Moments, adam


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

    def end(self) -> None:
        """From here on the encoder holds a whole table, for weights to be loaded into: here it does so always."""


def gradient_of(lent: Tensor) -> Tensor:
    """The gradient of rows that were lent, after the backward pass."""
    assert lent.grad is not None, "no loss has reached the item embeddings"
    return lent.grad


def touched_rows(batch: Batch, negatives: Tensor) -> Tensor:
    """The rows that a step reads, rising, PAD_ROW the first of them. [n] int64, all on a CPU."""
    return torch.from_numpy(np.unique(np.concatenate([[PAD_ROW], batch.plays.numpy().ravel(), negatives.numpy()])))


def renumbered(batch: Batch, negatives: Tensor, rows: Tensor) -> tuple[Batch, Tensor]:
    """The batch and the negatives with places in `rows` instead of rows; PAD_ROW stays PAD_ROW. All on a CPU."""
    flags = {name: getattr(batch, name) for name in ("plays_skipped",)}
    tracks = {name: tensor for name, tensor in batch._asdict().items() if name not in flags}
    places = {name: _places(tensor, rows) for name, tensor in tracks.items()}
    return Batch(**places, **flags), _places(negatives, rows)


def _places(tracks: Tensor, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.searchsorted(rows.numpy(), tracks.numpy()))
