"""Self-attentive encoder blocks (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762)."""

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.models.encoders.dropout import dropout, kept
from training.models.encoders.packed_attention import Places
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

    def packed(self, states: Tensor, places: Places) -> Tensor:
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
