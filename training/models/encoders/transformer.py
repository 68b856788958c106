"""Transformer blocks (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762) on sessions without padding.

The steps of all sessions are concatenated, [steps, width]. Attention itself needs sessions padded to the longest one,
by heads: one gather builds them and one scatter returns the steps. The gradient is written by hand, so no intermediate
of these is stored, copied or filled with zeros; on a CPU these took as long as the matrix products.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.encoders.tensor_ops import dropout, kept, scatter_to_padded
from training.options import TransformerOptions

_PARTS = 3  # query, key, value


class PackedLayout:
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

    def scatter_to_padded(self, lines: Tensor) -> Tensor:
        """[steps, width] -> [batch * n, width]: padding holds anything, and nothing may depend on it."""
        return scatter_to_padded(lines, self.sources, self.of_real)

    def mixed(self, inputs: Tensor, share: float) -> Tensor:
        """What each step takes from those it attends to. Query, key and value [steps, 3 * width] -> [steps, width].

        `share` of the attention's weights is dropped.
        """
        found: Tensor = _Mixed.apply(inputs, self, share)  # type: ignore[no-untyped-call]
        return found


class _Mixed(torch.autograd.Function):
    """softmax(query key^T / sqrt(width) + hidden) value, of every head (Vaswani et al., 2017, equation 1)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, places: PackedLayout, share: float) -> Tensor:
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


class Block(nn.Module):
    """Multi-head self-attention and a position-wise feed-forward layer, each with dropout, residual and layer norm.

    The feed-forward layer is as wide as the states, with ReLU (SASRec), or `widening` times as wide, with GELU
    (BERT4Rec). Pre-norm: https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, options: TransformerOptions, widening: int = 1) -> None:
        super().__init__()
        dimension = options.dimension
        self.heads = options.heads
        self.dropout = options.dropout
        self.pre_norm = options.norm == "pre"
        self.activation = F.relu if widening == 1 else F.gelu
        self.attention_input = nn.Linear(dimension, 3 * dimension)
        self.attention_output = nn.Linear(dimension, dimension)
        self.attention_norm = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, widening * dimension)
        self.contract = nn.Linear(widening * dimension, dimension)
        self.feed_forward_norm = nn.LayerNorm(dimension)

    def forward(self, states: Tensor, attends: Tensor, *, newest: bool = False) -> Tensor:
        """States [batch, n, dimension] and attends [batch, 1, n, n] bool -> states of the same shape.

        With `newest` the last state alone, [batch, 1, dimension], at a fraction of the work: it is all that a query
        takes from the last block.
        """
        return self._around(
            states[:, -1:] if newest else states, states, lambda seen: self._attend(seen, attends, newest=newest)
        )

    def packed(self, states: Tensor, places: PackedLayout) -> Tensor:
        """The same for real steps alone, [steps, dimension]."""
        share = self.dropout if self.training else 0.0
        return self._around(states, states, lambda seen: self._out(places.mixed(self.attention_input(seen), share)))

    def _around(self, steps: Tensor, states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            steps = self._added(steps, attend(self.attention_norm(states)))
            return self._added(steps, self._feed(self.feed_forward_norm(steps)))
        states = self.attention_norm(self._added(steps, attend(states)))
        normed: Tensor = self.feed_forward_norm(self._added(states, self._feed(states)))
        return normed

    def _added(self, steps: Tensor, change: Tensor) -> Tensor:
        """The residual sum, of what dropout leaves of the change."""
        factors = kept(change, self.dropout) if self.training else None
        return steps + change if factors is None else torch.addcmul(steps, change, factors)

    def _feed(self, states: Tensor) -> Tensor:
        changed: Tensor = self.contract(self._drop(self.activation(self.expand(states))))
        return changed

    def _attend(self, states: Tensor, attends: Tensor, *, newest: bool) -> Tensor:
        if not newest:
            return self._out(self._mix(self._by_heads(self.attention_input(states)), attends))
        weight, bias, dimension = self.attention_input.weight, self.attention_input.bias, states.shape[-1]
        (query,) = self._by_heads(F.linear(states[:, -1:], weight[:dimension], bias[:dimension]))
        key_and_value = self._by_heads(F.linear(states, weight[dimension:], bias[dimension:]))
        return self._out(self._mix([query, *key_and_value], attends[:, :, -1:]))

    def _by_heads(self, inputs: Tensor) -> list[Tensor]:
        """[batch, n, k * dimension] -> k of [batch, heads, n, dimension / heads]."""
        parts = torch.split(inputs, self.attention_output.in_features, dim=-1)
        return [part.view(*part.shape[:-1], self.heads, -1).transpose(1, 2) for part in parts]

    def _mix(self, parts: list[Tensor], attends: Tensor) -> Tensor:
        """Attention itself, of query, key and value by heads. [batch, n, dimension]."""
        query, key, value = parts
        if self.training and self.dropout:
            # Scaled and masked by the product itself: three passes over the weights less, and as many backwards.
            hidden = torch.where(attends, query.new_zeros(()), -torch.inf).expand(-1, self.heads, -1, -1)
            query, key = query.flatten(0, 1), key.flatten(0, 1)
            scale = 1 / math.sqrt(query.shape[-1])
            weights = torch.baddbmm(hidden.flatten(0, 1), query, key.transpose(1, 2), alpha=scale).softmax(dim=-1)
            mixed = self._drop(weights).view(*value.shape[:2], *weights.shape[1:]) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attends)
        return mixed.transpose(1, 2).flatten(2)

    def _out(self, mixed: Tensor) -> Tensor:
        attended: Tensor = self.attention_output(mixed)
        return attended

    def _drop(self, states: Tensor) -> Tensor:
        return dropout(states, self.dropout, self.training)


def attention(real: Tensor, *, causal: bool) -> Tensor:
    """Which step attends to which real step: up to itself, or to all. [batch, n] bool -> [batch, 1, n, n] bool.

    Every step attends to itself, padding too, so that no row of the softmax is empty.
    """
    length = real.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=real.device)
    reach = torch.ones(length, length, dtype=torch.bool, device=real.device)
    return (((reach.tril() if causal else reach) & real[:, None, :]) | itself)[:, None]
