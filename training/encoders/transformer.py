"""Self-attentive encoder blocks (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762)."""

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.encoders.dropout import dropout
from training.options import NeuralOptions


class TransformerOptions(NeuralOptions):
    """Sizes of a stack of blocks; the defaults are the paper's (section 4.1.2)."""

    blocks: int = Field(default=2, ge=1, description="Self-attentive encoder blocks")
    heads: int = Field(default=8, ge=1, description="Attention heads of a block; they divide the dimension")
    norm: Literal["post", "pre"] = Field(
        default="post",
        description="Layer norm after each residual sum, as in the authors' public code, or before each layer, which "
        "learns from the first step on without a warm-up (Xiong et al., 2020)",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dimension % self.heads:
            raise ValueError(f"{self.heads} heads do not divide dimension {self.dimension}: choose a divisor")
        return self


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

    def packed(self, states: Tensor, attends: Tensor, places: Tensor) -> Tensor:
        """The same for real steps alone, [steps, dimension], `places` [steps] int64 in the lines of `attends`."""
        batch, _, length, _ = attends.shape

        def attend(seen: Tensor) -> Tensor:
            inputs = unpacked(self.attention_input(seen), places, batch * length).view(batch, length, -1)
            return self._out(packed(self._mix(self._by_heads(inputs), attends).flatten(0, 1), places))

        return self._around(states, states, attend)

    def _around(self, steps: Tensor, states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            steps = steps + self._drop(attend(self.attention_norm(states)))
            return steps + self._drop(self._feed(self.feed_forward_norm(steps)))
        states = self.attention_norm(steps + self._drop(attend(states)))
        normed: Tensor = self.feed_forward_norm(states + self._drop(self._feed(states)))
        return normed

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
            weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            mixed = self._drop(weights.masked_fill(~attends, -torch.inf).softmax(dim=-1)) @ value
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


def packed(lines: Tensor, places: Tensor) -> Tensor:
    """The lines at these places, each of which is named once. [n, width] and [steps] int64 -> [steps, width]."""
    found: Tensor = _Packed.apply(lines, places)  # type: ignore[no-untyped-call]
    return found


def unpacked(lines: Tensor, places: Tensor, count: int) -> Tensor:
    """The lines put to their places among `count`, zeros elsewhere. [steps, width] -> [count, width]."""
    found: Tensor = _Unpacked.apply(lines, places, count)  # type: ignore[no-untyped-call]
    return found


class _Packed(torch.autograd.Function):
    """Its gradient is `unpacked`: autograd's own, which reckons with places named twice, takes far longer."""

    @staticmethod
    def forward(ctx: Any, lines: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(lines)
        return lines.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,), gradient = ctx.saved_tensors, gradients[0]
        return gradient.new_zeros(ctx.count, gradient.shape[1]).index_copy_(0, places, gradient), None


class _Unpacked(torch.autograd.Function):
    """Its gradient is `packed`."""

    @staticmethod
    def forward(ctx: Any, lines: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        return lines.new_zeros(count, lines.shape[1]).index_copy_(0, places, lines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None
