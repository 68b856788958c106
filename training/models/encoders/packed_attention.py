"""Self-attention of real steps alone: sessions without their padding, one after the other, [steps, width].

Attention itself needs sessions as wide as the longest one, by heads. One gather takes the steps there and one brings
them back, in which padding is left out. With its gradient written out, no intermediate of these is kept, copied or
filled with zeros: on a CPU these took as long as the products themselves.
"""

import math
from typing import Any

import torch
from torch import Tensor

from training.models.encoders.dropout import kept
from training.models.encoders.tensor_ops import spread

_PARTS = 3  # query, key, value


class Places:
    """Where the real steps of a batch are among its steps, and which of them each attends to."""

    def __init__(self, real: Tensor, attends: Tensor, heads: int) -> None:
        """`real` is [batch, n] bool, `attends` [batch, 1, n, n] bool, by which every step attends to itself at least.

        A real step attends to real ones alone, and padding is made to attend to itself alone: what it holds, or is
        given as a gradient, then reaches nothing.
        """
        self.sessions, self.length = real.shape
        self.heads = heads
        flat = real.flatten()
        self.of_real = flat.nonzero()[:, 0]  # [steps] int64
        # Padding holds some real step or other: no real step attends to it.
        self.sources = (flat.cumsum(0) - 1).clamp_(min=0)  # [batch * n] int64
        alone = torch.eye(self.length, dtype=torch.bool, device=real.device)
        hidden = torch.where(attends & (real[:, None, :, None] | alone), 0.0, -torch.inf)
        self.hidden = hidden.expand(-1, heads, -1, -1).flatten(0, 1)  # [batch * heads, n, n], added to the scores
        head = torch.arange(heads, device=real.device)
        part = torch.arange(_PARTS, device=real.device)
        # Lines are what a head has of a step: a part each, or all of it.
        lines = self.sources.view(1, self.sessions, 1, self.length) * heads
        self.to_heads = (lines + head[:, None]).flatten()  # by session, head
        self.to_parts = (lines * _PARTS + (part[:, None] * heads + head)[:, None, :, None]).flatten()  # by part too
        session, column = self.of_real // self.length, self.of_real % self.length
        places = ((session * heads)[:, None] + head) * self.length + column[:, None]  # [steps, heads]
        self.of_heads = places.flatten()
        self.of_parts = (places[:, None, :] + part[:, None] * (self.sessions * heads * self.length)).flatten()

    def spread(self, lines: Tensor) -> Tensor:
        """[steps, width] -> [batch * n, width]: padding holds anything, and nothing may depend on it."""
        return spread(lines, self.sources, self.of_real)

    def mixed(self, inputs: Tensor, share: float) -> Tensor:
        """What each step takes from those it attends to. Query, key and value [steps, 3 * width] -> [steps, width].

        `share` of the attention's weights is dropped.
        """
        found: Tensor = _Mixed.apply(inputs, self, share)  # type: ignore[no-untyped-call]
        return found


class _Mixed(torch.autograd.Function):
    """softmax(query key^T / sqrt(width) + hidden) value, of every head (Vaswani et al., 2017, equation 1)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, places: Places, share: float) -> Tensor:
        width = inputs.shape[1] // (_PARTS * places.heads)
        if not len(inputs):  # a batch, or a process's share of one, without a real step
            ctx.places = None
            return inputs.new_zeros(0, places.heads * width)
        lines = inputs.reshape(-1, width).index_select(0, places.to_parts)
        parts = lines.view(_PARTS, -1, places.length, width)  # [3, batch * heads, n, width]
        query, key, value = parts
        scale = 1 / math.sqrt(width)
        weights = torch.baddbmm(places.hidden.to(query.dtype), query, key.mT, alpha=scale).softmax(dim=-1)
        mask = kept(weights, share)
        dropped = weights if mask is None else weights * mask
        ctx.save_for_backward(parts, weights, dropped, mask)
        ctx.places, ctx.scale = places, scale
        mixed = torch.bmm(dropped, value).view(-1, width)
        return mixed.index_select(0, places.of_heads).view(len(inputs), -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        places, gradient = ctx.places, gradients[0]
        if places is None:
            return gradient.new_zeros(0, _PARTS * gradient.shape[1]), None, None
        parts, weights, dropped, mask = ctx.saved_tensors
        query, key, value = parts
        by_mixed = gradient.reshape(-1, query.shape[-1]).index_select(0, places.to_heads).view_as(query)
        by_parts = torch.empty_like(parts)
        torch.bmm(dropped.mT, by_mixed, out=by_parts[2])
        by_weights = torch.bmm(by_mixed, value.mT)
        if mask is not None:
            by_weights.mul_(mask)
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        torch.bmm(by_scores, key, out=by_parts[0])
        torch.bmm(by_scores.mT, query, out=by_parts[1])
        lines = by_parts.view(-1, query.shape[-1]).index_select(0, places.of_parts)
        return lines.view(len(gradient), -1), None, None
