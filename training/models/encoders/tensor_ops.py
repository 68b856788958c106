"""Tensor operations with their own gradients: gather and scatter of rows, and dropout by random bytes.

torch's gather sums gradients, because a row may be gathered twice. Here each row is gathered at most once, so the
gradient is a plain copy, which is much faster.

Dropout (Srivastava et al., JMLR 2014) draws one random byte per activation on a CPU. torch draws a float and takes ten
times as long, which was a sixth of a training step. A byte resolves the rate to 1/256; the scale compensates the
rounding exactly, so the expected activation is unchanged.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
