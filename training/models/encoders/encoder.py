"""The interfaces of encoders: tracks and skip flags in, a query vector in the item space out.

    Encoder          the part of a model that a release exports and serves; WRMF and BPR are encoders too
    SessionEncoder   a neural encoder, trained by training/trainer.py; `predict` defines its training objective
    CausalEncoder    predicts after every play from the plays up to it: SASRec, GRU4Rec, Caser

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
    """Maps a window of plays to a query vector, which is compared with the item embeddings by inner product."""

    options: Options
    item_embeddings: nn.Embedding  # [num_rows, dimension] float32, row PAD_ROW zero

    @abstractmethod
    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the query vector of each window.

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
    """Base class of neural encoders; the item embeddings are both input and output (tied)."""

    options: NeuralOptions

    def __init__(self, num_rows: int, options: NeuralOptions) -> None:
        super().__init__()
        self.options = options
        self.item_embeddings = nn.Embedding(num_rows, options.dimension, padding_idx=PAD_ROW)
        self.skip_embedding = nn.Parameter(torch.zeros(1, options.dimension)) if options.skip_input else None

    @abstractmethod
    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Predict the track after the newest play of each window; shapes as in `query`."""

    @abstractmethod
    def predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Return predicted embeddings [n, window, dimension] and the batch that contains their targets and positives.

        The returned batch may have other sessions than `batch`. A step without a prediction has PAD_ROW for both.
        """

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the query vector of each window, without its skipped plays if `plays` is played."""
        if self.options.plays == "played":
            tracks, skipped = drop_skipped(tracks, skipped)
        return self.encode(tracks, skipped)

    def embed(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return item embeddings, plus the skip embedding for skipped plays. [batch, n, dimension] float32."""
        states: Tensor = self.item_embeddings(tracks)
        if self.skip_embedding is not None:
            states = states + skipped[..., None].to(states.dtype) * self.skip_embedding
        return states

    def initialise(self, generator: torch.Generator) -> None:
        """Initialise weights: truncated normal, [-0.02, 0.02] in the paper (section 4.1.2); biases 0, scales 1."""
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
    """An encoder whose prediction after a play depends only on the plays up to it."""

    @abstractmethod
    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Predict the embedding of the next track at every step.

        Args:
            tracks: [batch, window] int64 rows, PAD_ROW on the left.
            skipped: [batch, window] bool.

        Returns:
            [batch, window, dimension] float32; column t depends only on plays up to t. Padding columns are arbitrary.

        """

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the prediction at the newest play. [batch, dimension] float32."""
        return self(tracks, skipped)[:, -1]  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Predict the next track after every play of the batch; the returned batch is the given one."""
        return self(batch.tracks, batch.skipped), batch


def drop_skipped(tracks: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """Remove skipped plays from windows and pad them on the left. [batch, window] in and out."""
    window = tracks.shape[1]
    kept = (tracks != PAD_ROW) & ~skipped
    order = (torch.arange(window, device=tracks.device) + window * kept.to(torch.int64)).argsort(dim=1)
    return torch.where(kept, tracks, PAD_ROW).gather(1, order), torch.zeros_like(skipped)


def truncated_normal(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill in place with normal(0, 1) truncated to [-bound, bound], by inverting the distribution function."""
    edge = torch.special.ndtr(torch.tensor(bound, dtype=torch.float64)).item()
    # In parts, to avoid a float64 copy of the whole table of item embeddings.
    for part in torch.split(parameter, _ROWS_AT_ONCE):
        uniform = torch.rand(part.shape, generator=generator, dtype=torch.float32)
        part.copy_(torch.special.ndtri((1 - edge) + (2 * edge - 1) * uniform.double()).float())
