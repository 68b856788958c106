"""BERT4Rec: bidirectional attention over a session with masked plays (Sun et al., CIKM 2019).

Source: https://arxiv.org/abs/1904.06690. A mask token appended to the window asks for the next track (paper, section
4.1.1). Training replaces the last play with that token, and other plays with probability `masking`. Each step has
`duplication_factor` copies of a session, each truncated after a different play, so that the model learns to predict
after every play. Early copies are short and fill only part of the window, so they cost less.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.data.loader import Batch
from training.models.encoders.encoder import SessionEncoder, dropout
from training.models.encoders.transformer import Block, build_attention_mask
from training.options import Bert4RecOptions

WIDENING = 4  # of the feed-forward layer, as in the original


class _Masked(NamedTuple):
    """A batch whose masked plays are replaced by mask tokens."""

    batch: Batch
    masked: Tensor  # [batch, window + 1] bool


class Bert4Rec(SessionEncoder):
    """Item, position, skip and mask embeddings, self-attention in both directions, and a projection."""

    def __init__(self, num_rows: int, options: Bert4RecOptions) -> None:
        super().__init__(num_rows, options)
        self.masking, self.copies = options.masking, options.duplication_factor
        self.mask_token = nn.Parameter(torch.zeros(1, options.dimension))
        self.positions = nn.Embedding(options.window + 1, options.dimension)
        self.input_norm = nn.LayerNorm(options.dimension)
        self.blocks = nn.ModuleList(Block(options, WIDENING) for _ in range(options.blocks))
        self.projection = nn.Linear(options.dimension, options.dimension)
        self.projection_norm = nn.LayerNorm(options.dimension)

    def forward(self, tracks: Tensor, skipped: Tensor, masked: Tensor, *, newest: bool = False) -> Tensor:
        """Predict the track behind every mask token.

        Args:
            tracks: [batch, n] int64 rows, PAD_ROW on the left; n is at most window + 1.
            skipped: [batch, n] bool.
            masked: [batch, n] bool, True where the encoder sees neither the track nor the outcome.
            newest: return only the last column, [batch, 1, dimension].

        Returns:
            [batch, n, dimension] float32, a prediction only where `masked`.

        """
        states = torch.where(masked[..., None], self.mask_token, self.embed(tracks, skipped))
        states = self.input_norm(states + self.positions.weight[-tracks.shape[1] :])
        states = dropout(states, self.options.dropout, self.training)
        attention_mask = build_attention_mask((tracks != PAD_ROW) | masked, causal=False)
        for block in self.blocks:
            states = block(states, attention_mask, newest=newest and block is self.blocks[-1])
        projected: Tensor = self.projection_norm(F.gelu(self.projection(states)))
        return projected

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the prediction for a mask token appended to the window. [batch, dimension] float32."""
        tracks, skipped = F.pad(tracks, (0, 1), value=PAD_ROW), F.pad(skipped, (0, 1))
        length = tracks.shape[1]
        masked = (torch.arange(length, device=tracks.device) == length - 1).expand_as(tracks)
        return self(tracks, skipped, masked, newest=True)[:, -1]  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Predict masked plays from the plays before and after them, in `copies` truncated copies of the batch."""
        predicted, asked = zip(
            *(self._predict(random_truncate(batch, i, self.copies)) for i in range(self.copies)), strict=True
        )
        return torch.cat(predicted), Batch(*(torch.cat(tensors) for tensors in zip(*asked, strict=True)))

    def _predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        hidden, masked = self._mask(batch)
        empty = int((hidden.plays == PAD_ROW).all(dim=0).sum())  # columns, all on the left
        seen = (hidden.plays[:, empty:], hidden.plays_skipped[:, empty:], masked[:, empty:])
        return F.pad(self(*seen), (0, 0, empty, 0))[:, 1:], hidden

    def _mask(self, batch: Batch) -> _Masked:
        """Mask the last play and a random share of the others, but never a session's first play."""
        maskable = batch.targets != PAD_ROW  # [batch, window], of the plays from the second column on
        chosen = torch.rand(maskable.shape, device=maskable.device) < self.masking
        chosen[:, -1] = True
        chosen = chosen & maskable
        # The next played track after a masked play is visible, except at the end: only there is it a positive.
        last = torch.zeros_like(chosen)
        last[:, -1] = True
        shown_alone = batch._replace(
            targets=torch.where(chosen, batch.targets, PAD_ROW), positives=torch.where(last, batch.positives, PAD_ROW)
        )
        return _Masked(shown_alone, F.pad(chosen, (1, 0)))


def random_truncate(batch: Batch, part: int, parts: int) -> Batch:
    """Truncate every session after a random play, drawn uniformly from one of `parts` equal parts of its plays.

    `part` counts from 0. The session's first play is never drawn; over all parts, all others are equally likely.
    """
    window = batch.targets.shape[1]
    steps = (batch.plays[:, 1:] != PAD_ROW).logical_and(batch.plays[:, :-1] != PAD_ROW).sum(dim=1, keepdim=True)
    share = (part + torch.rand(steps.shape, device=steps.device)) / parts  # share of the steps to keep, below 1
    dropped = steps - 1 - (share * steps).long().clamp(max=steps - 1)  # newest plays removed
    source = torch.arange(window + 1, device=steps.device) - dropped.clamp(min=0)  # the source of each column
    inside = source >= 0

    def shifted(tensor: Tensor, fill: int) -> Tensor:
        return torch.where(inside, tensor.gather(1, source.clamp(min=0)), fill)

    return batch._replace(
        plays=shifted(batch.plays, PAD_ROW),
        plays_skipped=shifted(batch.plays_skipped.long(), 0).bool(),
        targets=shifted(F.pad(batch.targets, (1, 0), value=PAD_ROW), PAD_ROW)[:, 1:],
        positives=shifted(F.pad(batch.positives, (1, 0), value=PAD_ROW), PAD_ROW)[:, 1:],
    )
