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

    def packed(self, states: Tensor, attends: Tensor, places: "Places") -> Tensor:
        """The same for real steps alone, [steps, dimension]."""
        batch, _, length, _ = attends.shape

        def attend(seen: Tensor) -> Tensor:
            inputs = places.spread(self.attention_input(seen)).view(batch, length, -1)
            return self._out(places.packed(self._mix(self._by_heads(inputs), attends).flatten(0, 1)))

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


class Places:
    """Where the real steps of a batch are among its steps. `real` is [batch, n] bool."""

    def __init__(self, real: Tensor) -> None:
        flat = real.flatten()
        self.of_real = flat.nonzero()[:, 0]  # [steps] int64
        self.sources = (flat.cumsum(0) - 1).clamp_(min=0)  # [batch * n] int64, of padding some real step or other

    def packed(self, lines: Tensor) -> Tensor:
        """The real steps' lines. [batch * n, width] -> [steps, width]."""
        found: Tensor = _Packed.apply(lines, self.of_real)  # type: ignore[no-untyped-call]
        return found

    def spread(self, lines: Tensor) -> Tensor:
        """Its inverse, [steps, width] -> [batch * n, width]: padding holds anything, and nothing may depend on it."""
        found: Tensor = _Spread.apply(lines, self.sources, self.of_real)  # type: ignore[no-untyped-call]
        return found


class _Packed(torch.autograd.Function):
    """Each line goes to one place at most, which autograd's own gradient does not know: that takes far longer."""

    @staticmethod
    def forward(ctx: Any, lines: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(lines)
        return lines.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,), gradient = ctx.saved_tensors, gradients[0]
        return gradient.new_zeros(ctx.count, gradient.shape[1]).index_copy_(0, places, gradient), None


class _Spread(torch.autograd.Function):
    """As nothing depends on padding, its gradient is that of the real steps alone."""

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
