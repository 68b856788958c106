"""What every encoder is: tracks and skip flags in, a query vector in the item space out.

    Encoder          what a release exports and serves; WRMF and BPR, which fold a session in, are encoders too
    SessionEncoder   a neural one, trained by training/trainer.py: says what it predicts in a training batch
    CausalEncoder    one that predicts after every play from the plays up to it: SASRec, GRU4Rec, Caser

A new encoder subclasses one of the last two, adds a line to the table in training/registry.py and a three-line test.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.data.loader import Batch
from training.options import NeuralOptions, Options

_ROWS_AT_ONCE = 65_536


class Encoder(nn.Module, ABC):
    """A window of plays in, a query vector out, compared with the item embeddings by inner product."""

    options: Options
    item_embeddings: nn.Embedding  # [num_rows, dimension] float32, row PAD_ROW zero

    @abstractmethod
    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """The query vector of each window.

        Args:
            tracks: [batch, window] int64 rows, PAD_ROW on the left.
            skipped: [batch, window] bool.

        Returns:
            [batch, dimension] float32.

        """


# (encoder, tracks [batch, window], skipped [batch, window], targets [batch]) -> [2, batch] int64: how many tracks score
# higher than the target, and how many score the same, the target included.
RankCounts: TypeAlias = Callable[[Encoder, Tensor, Tensor, Tensor], Tensor]


class SessionEncoder(Encoder):
    """Base of all neural encoders; its item embeddings are both input and output (tied)."""

    options: NeuralOptions

    def __init__(self, num_rows: int, options: NeuralOptions) -> None:
        super().__init__()
        self.options = options
        self.item_embeddings = nn.Embedding(num_rows, options.dimension, padding_idx=PAD_ROW)
        self.skip_embedding = nn.Parameter(torch.zeros(1, options.dimension)) if options.skip_input else None

    @abstractmethod
    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """What follows the newest play of each window; shapes as in `query`."""

    @abstractmethod
    def predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Predicted embeddings [batch, window, dimension] and the batch whose targets and positives they belong to.

        That batch may hold more or other lines than the one given; a step that predicts nothing has PAD_ROW for both.
        """

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """See Encoder."""
        if self.options.plays == "played":
            tracks, skipped = drop_skipped(tracks, skipped)
        return self.encode(tracks, skipped)

    def embed(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Item embeddings, with the skip embedding added where a play was skipped. [batch, n, dimension] float32."""
        states: Tensor = self.item_embeddings(tracks)
        if self.skip_embedding is not None:
            states = states + skipped[..., None].to(states.dtype) * self.skip_embedding
        return states

    def initialise(self, generator: torch.Generator) -> None:
        """Draw weights: a truncated normal, to [-0.02, 0.02] in the paper (section 4.1.2); biases 0, scales 1."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    truncated_normal(parameter, self.options.init_scale, generator)
                elif "bias" in name.rpartition(".")[2]:
                    parameter.zero_()
                else:
                    parameter.fill_(1.0)
            self.item_embeddings.weight[PAD_ROW] = 0.0


class CausalEncoder(SessionEncoder):
    """An encoder whose prediction after a play depends on the plays up to it alone."""

    @abstractmethod
    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Predict the embedding of the next track at every step.

        Args:
            tracks: [batch, window] int64 rows, PAD_ROW on the left.
            skipped: [batch, window] bool.

        Returns:
            [batch, window, dimension] float32; column t sees the plays up to t alone. Padding columns hold anything.

        """

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """The prediction at the newest play."""
        return self(tracks, skipped)[:, -1]  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        """See SessionEncoder: every play predicts what follows it."""
        return self(batch.tracks, batch.skipped), batch


def drop_skipped(tracks: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """The windows without their skipped plays, padded anew on the left. Shapes stay as they are."""
    window = tracks.shape[1]
    kept = (tracks != PAD_ROW) & ~skipped
    order = (torch.arange(window, device=tracks.device) + window * kept.to(torch.int64)).argsort(dim=1)
    return torch.where(kept, tracks, PAD_ROW).gather(1, order), torch.zeros_like(skipped)


def truncated_normal(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill in place with normal(0, 1) truncated to +-bound, by the inverse of the distribution function."""
    edge = torch.special.ndtr(torch.tensor(bound, dtype=torch.float64)).item()
    # By parts: float64 of a whole table of item embeddings would be held beside it.
    for part in torch.split(parameter, _ROWS_AT_ONCE):
        uniform = torch.rand(part.shape, generator=generator, dtype=torch.float32)
        part.copy_(torch.special.ndtri((1 - edge) + (2 * edge - 1) * uniform.double()).float())
