"""BERT4Rec: bidirectional attention over a session with masked plays (Sun et al., CIKM 2019).

Source: https://arxiv.org/abs/1904.06690. A mask token appended to the window asks for the next track (paper, section
4.1.1). Training hides the last play behind that token, and others with probability `masking`. Each session takes part
`duplication_factor` times a step, each time truncated after another play, so that the appended token is asked after
every play. Early truncations fill only a part of the window and cost less.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.data.loader import Batch
from training.models.encoders.encoder import SessionEncoder
from training.models.encoders.tensor_ops import dropout
from training.models.encoders.transformer import Block, attention
from training.options import Bert4RecOptions

WIDENING = 4  # of the feed-forward layer, as in the original


class _Hidden(NamedTuple):
    """A batch with plays hidden behind mask tokens."""

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
            masked: [batch, n] bool, True where the play is hidden: neither track nor outcome is seen.
            newest: whether the last column alone is wanted, [batch, 1, dimension].

        Returns:
            [batch, n, dimension] float32, of use where `masked`.

        """
        states = torch.where(masked[..., None], self.mask_token, self.embed(tracks, skipped))
        states = self.input_norm(states + self.positions.weight[-tracks.shape[1] :])
        states = dropout(states, self.options.dropout, self.training)
        attends = attention((tracks != PAD_ROW) | masked, causal=False)
        for block in self.blocks:
            states = block(states, attends, newest=newest and block is self.blocks[-1])
        projected: Tensor = self.projection_norm(F.gelu(self.projection(states)))
        return projected

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """The prediction behind a mask token that follows the window."""
        tracks, skipped = F.pad(tracks, (0, 1), value=PAD_ROW), F.pad(skipped, (0, 1))
        length = tracks.shape[1]
        masked = (torch.arange(length, device=tracks.device) == length - 1).expand_as(tracks)
        return self(tracks, skipped, masked, newest=True)[:, -1]  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        """See SessionEncoder: hidden plays are predicted from those before and after them."""
        predicted, asked = zip(
            *(self._predict(random_truncate(batch, i, self.copies)) for i in range(self.copies)), strict=True
        )
        return torch.cat(predicted), Batch(*(torch.cat(tensors) for tensors in zip(*asked, strict=True)))

    def _predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        hidden, masked = self._hide(batch)
        empty = int((hidden.plays == PAD_ROW).all(dim=0).sum())  # columns, all on the left
        seen = (hidden.plays[:, empty:], hidden.plays_skipped[:, empty:], masked[:, empty:])
        return F.pad(self(*seen), (0, 0, empty, 0))[:, 1:], hidden

    def _hide(self, batch: Batch) -> _Hidden:
        """Hide the last play and a share of the others; a session's first play, which no play leads to, stays."""
        hideable = batch.targets != PAD_ROW  # [batch, window], of the plays from the second column on
        chosen = torch.rand(hideable.shape, device=hideable.device) < self.masking
        chosen[:, -1] = True
        chosen = chosen & hideable
        # Plays after a hidden one are seen, the next played track among them: only at the end is it still to be found.
        last = torch.zeros_like(chosen)
        last[:, -1] = True
        shown_alone = batch._replace(
            targets=torch.where(chosen, batch.targets, PAD_ROW), positives=torch.where(last, batch.positives, PAD_ROW)
        )
        return _Hidden(shown_alone, F.pad(chosen, (1, 0)))


def random_truncate(batch: Batch, part: int, parts: int) -> Batch:
    """Every session ended after a play drawn uniformly from a part of its plays, its second one being the first.

    `part` counts from 0; over all `parts` of them, each play is as likely as any other.
    """
    window = batch.targets.shape[1]
    steps = (batch.plays[:, 1:] != PAD_ROW).logical_and(batch.plays[:, :-1] != PAD_ROW).sum(dim=1, keepdim=True)
    share = (part + torch.rand(steps.shape, device=steps.device)) / parts  # of the steps that are kept, below 1
    dropped = steps - 1 - (share * steps).long().clamp(max=steps - 1)  # newest plays left out
    source = torch.arange(window + 1, device=steps.device) - dropped.clamp(min=0)  # where each column is filled from
    inside = source >= 0

    def shifted(tensor: Tensor, fill: int) -> Tensor:
        return torch.where(inside, tensor.gather(1, source.clamp(min=0)), fill)

    return batch._replace(
        plays=shifted(batch.plays, PAD_ROW),
        plays_skipped=shifted(batch.plays_skipped.long(), 0).bool(),
        targets=shifted(F.pad(batch.targets, (1, 0), value=PAD_ROW), PAD_ROW)[:, 1:],
        positives=shifted(F.pad(batch.positives, (1, 0), value=PAD_ROW), PAD_ROW)[:, 1:],
    )
