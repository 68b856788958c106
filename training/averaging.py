"""A moving average of an encoder's weights, which is validated and kept instead of them (Polyak and Juditsky, 1992).

Rows of item embeddings that a step does not touch do not change, so their average is brought up to date when they are
next touched, exactly: after k such steps it has come closer to the weights by decay ** k.
"""

import copy
from typing import Final

import torch
from torch import Tensor

from training.models.encoders.encoder import SessionEncoder
from training.models.encoders.tensor_ops import put

_ROWS_AT_ONCE: Final = 65_536


class MovingAverage:
    """The average and, for each row of item embeddings, the step that it stands at."""

    def __init__(self, encoder: SessionEncoder, decay: float) -> None:
        self.decay = decay
        self.encoder = copy.deepcopy(encoder)
        self.encoder.requires_grad_(requires_grad=False)
        self.table = self.encoder.item_embeddings.weight
        self.steps = 0
        self.stands_at = torch.zeros(len(self.table), dtype=torch.int64, device=self.table.device)

    def update(self, encoder: SessionEncoder, rows: Tensor | None, before: Tensor | None) -> None:
        """Take in the weights after a step. `before` [n, dimension] float32: what `rows` were before it; None: all."""
        self.steps += 1
        share = 1.0 if self.steps == 1 else 1.0 - self.decay  # the first step's weights start the average
        ours, theirs = self._others(self.encoder), self._others(encoder)
        torch._foreach_lerp_(ours, theirs, share)
        weights = encoder.item_embeddings.weight.detach()
        if rows is None or before is None:
            self.table.lerp_(weights, share)
            self.stands_at.fill_(self.steps)
            return
        average = self._settled(self.table.index_select(0, rows), before, self.stands_at[rows], self.steps - 1)
        put(self.table, rows, average.lerp_(weights.index_select(0, rows), share))
        self.stands_at.index_fill_(0, rows, self.steps)

    def settled(self, encoder: SessionEncoder) -> SessionEncoder:
        """The encoder with averaged weights, all rows brought up to date."""
        weights = encoder.item_embeddings.weight.detach()
        for start in range(0, len(self.table), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            self.table[part] = self._settled(self.table[part], weights[part], self.stands_at[part], self.steps)
        self.stands_at.fill_(self.steps)
        return self.encoder

    def state_dict(self) -> dict[str, object]:
        """All of it."""
        return {"encoder": self.encoder.state_dict(), "steps": self.steps, "stands_at": self.stands_at}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state."""
        self.encoder.load_state_dict(state["encoder"])  # type: ignore[arg-type]
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        self.stands_at.copy_(state["stands_at"])  # type: ignore[arg-type]

    def _settled(self, average: Tensor, weights: Tensor, stands_at: Tensor, until: int) -> Tensor:
        missed = (until - stands_at).clamp(min=0)
        powers = torch.pow(torch.tensor(self.decay, dtype=torch.float64), missed)
        kept = torch.where(missed == 0, 1.0, powers).to(weights.dtype)
        return torch.lerp(weights, average, kept[:, None])

    def _others(self, encoder: SessionEncoder) -> list[Tensor]:
        table = encoder.item_embeddings.weight
        return [parameter.detach() for parameter in encoder.parameters() if parameter is not table]
