"""BERT4Rec: bidirectional self-attention over a session with masked plays (Sun et al., CIKM 2019).

To predict the next track, the encoder appends a mask token to the window (paper, section 4.1.1). In training, the mask
token replaces the last play, and each other play with probability `masking`. The first play of a session is never
masked. A training step uses `duplication_factor` copies of each session, truncated after different plays. The model
therefore learns to predict after early and late plays. Truncated copies are shorter, which reduces their cost.

Source: https://arxiv.org/abs/1904.06690
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.data.loader import Batch
from training.models.encoders.encoder import SessionEncoder, dropout
from training.models.encoders.sasrec import Block, build_attention_mask
from training.options import Bert4RecOptions

WIDENING = 4  # width of the feed-forward layer relative to `dimension`, as in the original


class _Masked(NamedTuple):
    """A batch with masked plays as its only targets."""

    batch: Batch
    masked: Tensor  # [batch, window + 1] bool, True for the masked plays


class Bert4Rec(SessionEncoder):
    """Bidirectional self-attention over item, position, skip and mask embeddings, followed by a projection."""

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
        """Return the predicted embedding of every masked track.

        Args:
            tracks: [batch, n] int64 rows, PAD_ROW on the left. n is at most window + 1.
            skipped: [batch, n] bool.
            masked: [batch, n] bool, True for plays whose track and outcome are hidden from the encoder.
            newest: Whether to return only the last column, [batch, 1, dimension].

        Returns:
            [batch, n, dimension] float32. Only the columns in `masked` are predictions.

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
        """Predict masked plays in `duplication_factor` truncated copies of the batch.

        Returns the predicted embeddings, [copies * batch, window, dimension] float32, and the concatenated copies.
        """
        predicted, asked = zip(
            *(self._predict(random_truncate(batch, i, self.copies)) for i in range(self.copies)), strict=True
        )
        return torch.cat(predicted), Batch(*(torch.cat(tensors) for tensors in zip(*asked, strict=True)))

    def _predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        hidden, masked = self._mask(batch)
        empty = int(
            (hidden.plays == PAD_ROW).all(dim=0).sum()
        )  # number of columns on the left with padding in all sessions
        seen = (hidden.plays[:, empty:], hidden.plays_skipped[:, empty:], masked[:, empty:])
        return F.pad(self(*seen), (0, 0, empty, 0))[:, 1:], hidden

    def _mask(self, batch: Batch) -> _Masked:
        """Mask the last play of each session and a random share of the other plays, but never the first play."""
        maskable = batch.targets != PAD_ROW  # [batch, window], for the plays from the second column on
        chosen = torch.rand(maskable.shape, device=maskable.device) < self.masking
        chosen[:, -1] = True
        chosen = chosen & maskable
        # The encoder can see the next played track after a masked play, except at the end of the session. Only the last
        # column therefore has a positive.
        last = torch.zeros_like(chosen)
        last[:, -1] = True
        shown_alone = batch._replace(
            targets=torch.where(chosen, batch.targets, PAD_ROW), positives=torch.where(last, batch.positives, PAD_ROW)
        )
        return _Masked(shown_alone, F.pad(chosen, (1, 0)))


def random_truncate(batch: Batch, part: int, parts: int) -> Batch:
    """Truncate every session after a random play.

    The plays of a session are divided into `parts` equal parts. The play is drawn uniformly from the part with the
    index `part`, from 0 to `parts` - 1. The first play of a session is never drawn. Over all parts, all other plays are
    equally likely.
    """
    window = batch.targets.shape[1]
    steps = (batch.plays[:, 1:] != PAD_ROW).logical_and(batch.plays[:, :-1] != PAD_ROW).sum(dim=1, keepdim=True)
    share = (part + torch.rand(steps.shape, device=steps.device)) / parts  # random share of the steps to keep, below 1
    dropped = steps - 1 - (share * steps).long().clamp(max=steps - 1)  # number of newest plays to remove
    source = torch.arange(window + 1, device=steps.device) - dropped.clamp(min=0)  # source column of each column
    inside = source >= 0

    def shifted(tensor: Tensor, fill: int) -> Tensor:
        return torch.where(inside, tensor.gather(1, source.clamp(min=0)), fill)

    return batch._replace(
        plays=shifted(batch.plays, PAD_ROW),
        plays_skipped=shifted(batch.plays_skipped.long(), 0).bool(),
        targets=shifted(F.pad(batch.targets, (1, 0), value=PAD_ROW), PAD_ROW)[:, 1:],
        positives=shifted(F.pad(batch.positives, (1, 0), value=PAD_ROW), PAD_ROW)[:, 1:],
    )
