"""The interfaces of encoders: tracks and skip flags in, a query vector in the item space out.

    Encoder          the part of a model that a release exports and serves; WRMF and BPR are encoders too
    SessionEncoder   a neural encoder, trained by training/trainer.py; `predict` defines its training objective
    CausalEncoder    predicts after every play from the plays up to it: SASRec, GRU4Rec, Caser

Encoders share the tensor functions of this module: gather and scatter of rows, and dropout.

A new encoder subclasses one of the last two, adds a line to the table in training/registry.py and a three-line test.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.data.loader import Batch
from training.options import NeuralOptions, Options


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Gather the rows at `indices` [n] int64, which must be distinct. [m, width] -> [n, width]."""
    found: Tensor = _GatherRows.apply(rows, indices)  # type: ignore[no-untyped-call]
    return found


def scatter_to_padded(rows: Tensor, sources: Tensor, indices: Tensor) -> Tensor:
    """Scatter rows to the positions that they were gathered from. [n, width] -> [m, width].

    Args:
        rows: [n, width].
        sources: [m] int64, the row copied to each position; positions outside `indices` are padding and get any row.
        indices: [n] int64, the position of each row.

    """
    found: Tensor = _ScatterToPadded.apply(rows, sources, indices)  # type: ignore[no-untyped-call]
    return found


def scatter_rows(table: Tensor, indices: Tensor, rows: Tensor) -> None:
    """Overwrite the rows of `table` [m, width] at `indices` [n] int64 with `rows` [n, width], in place.

    `indices` must be distinct; both tensors have one dtype that NumPy supports. Autograd does not record the write.
    On a CPU NumPy writes row by row; torch goes by columns and takes more than twice as long.
    """
    assert rows.shape == (len(indices), table.shape[1]), (rows.shape, len(indices), table.shape)
    if table.device.type == "cpu":
        table.numpy()[indices.numpy()] = rows.numpy()
    else:
        table.index_copy_(0, indices, rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.count = len(rows)
        return rows.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (indices,), gradient = ctx.saved_tensors, gradients[0]
        grad_rows = gradient.new_zeros(ctx.count, gradient.shape[1])
        scatter_rows(grad_rows, indices, gradient)
        return grad_rows, None


class _ScatterToPadded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sources: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        if not len(rows):  # a batch, or a process's shard of one, without a real step
            return rows.new_zeros(len(sources), rows.shape[1])
        return rows.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return gradients[0].index_select(0, indices), None, None


def dropout(states: Tensor, share: float, training: bool) -> Tensor:
    """Zero a share of the activations and scale the others up, in training only. Any shape, float."""
    if not training:
        return states
    if states.device.type != "cpu":
        return F.dropout(states, share)
    factors = dropout_mask(states, share)
    return states if factors is None else states * factors


def dropout_mask(states: Tensor, share: float) -> Tensor | None:
    """The factor of each activation, in the shape of `states`: 0 or the scale; None if none is dropped."""
    dropped = min(round(share * 256), 255)
    if not dropped:
        return None
    if states.device.type != "cpu":
        return F.dropout(torch.ones_like(states), share)
    words = torch.empty(math.ceil(states.numel() / 8), dtype=torch.int64).random_(-(2**63), None)
    bytes_ = words.view(torch.uint8)[: states.numel()].view(states.shape)
    # Compare as floats: torch vectorises that, but not the comparison of bytes.
    return bytes_.float().ge_(dropped).mul_(256 / (256 - dropped))


_ROWS_AT_ONCE = 65_536


class Encoder(nn.Module, ABC):
    """Maps a window of plays to a query vector, which is compared with the item embeddings by inner product."""

    options: Options
    item_embeddings: nn.Embedding  # [num_rows, dimension] float32, row PAD_ROW zero

    @property
    def architecture(self) -> Hashable:
        """Encoders of equal architecture compute their queries in the same way, with other weights."""
        return type(self), self.options

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

    @property
    def architecture(self) -> Hashable:
        """As in the base class; options of the training make no difference."""
        return type(self), *(getattr(self.options, name) for name in self.options.architecture_options)

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
