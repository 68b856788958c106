"""Tensor operations with their own gradients: gather and scatter of rows, and dropout by random bytes.

The gradient of torch's gather adds up, because a row may be gathered twice. Here each row is gathered at most once, and
its gradient is a plain copy, which takes far less time.

Dropout (Srivastava et al., JMLR 2014) draws one random byte per activation on a CPU. torch draws a float and takes ten
times as long, which was a sixth of a training step. A byte resolves the rate to 1/256; the scale compensates the
rounding exactly, so the expected activation is unchanged.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_rows(lines: Tensor, places: Tensor) -> Tensor:
    """The lines at `places` [n] int64, which are distinct. [m, width] -> [n, width]."""
    found: Tensor = _Picked.apply(lines, places)  # type: ignore[no-untyped-call]
    return found


def scatter_to_padded(lines: Tensor, sources: Tensor, places: Tensor) -> Tensor:
    """The lines put where they were picked from. [n, width] -> [m, width].

    Args:
        lines: [n, width].
        sources: [m] int64, which line each of the m gets; those not at `places` get anything, on which nothing depends.
        places: [n] int64, where the lines belong.

    """
    found: Tensor = _Spread.apply(lines, sources, places)  # type: ignore[no-untyped-call]
    return found


def put(table: Tensor, places: Tensor, lines: Tensor) -> None:
    """Write `lines` [n, width] over those of `table` [m, width] at `places` [n] int64, which are distinct.

    Both are of one type that NumPy has, and autograd does not see it. On a CPU NumPy does it, which copies a line at a
    time; torch goes by columns there, and takes more than twice as long.
    """
    assert lines.shape == (len(places), table.shape[1]), (lines.shape, len(places), table.shape)
    if table.device.type == "cpu":
        table.numpy()[places.numpy()] = lines.numpy()
    else:
        table.index_copy_(0, places, lines)


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lines: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(lines)
        return lines.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,), gradient = ctx.saved_tensors, gradients[0]
        by_lines = gradient.new_zeros(ctx.count, gradient.shape[1])
        put(by_lines, places, gradient)
        return by_lines, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lines: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        if not len(lines):  # a batch, or a process's share of one, without a real step
            return lines.new_zeros(len(sources), lines.shape[1])
        return lines.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


def dropout(states: Tensor, share: float, training: bool) -> Tensor:
    """Zero a share of the activations and scale the others up, in training alone. Any shape, float."""
    if not training:
        return states
    if states.device.type != "cpu":
        return F.dropout(states, share)
    factors = kept(states, share)
    return states if factors is None else states * factors


def kept(states: Tensor, share: float) -> Tensor | None:
    """What each activation is multiplied by: 0, or the scale of those that are kept. None where nothing is dropped."""
    dropped = min(round(share * 256), 255)
    if not dropped:
        return None
    if states.device.type != "cpu":
        return F.dropout(torch.ones_like(states), share)
    words = torch.empty(math.ceil(states.numel() / 8), dtype=torch.int64).random_(-(2**63), None)
    bytes_ = words.view(torch.uint8)[: states.numel()].view(states.shape)
    # Compared as floats, which a processor does many at a time and torch's comparison of bytes does not.
    return bytes_.float().ge_(dropped).mul_(256 / (256 - dropped))
