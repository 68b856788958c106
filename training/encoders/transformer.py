"""Self-attentive encoder blocks (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762)."""

import math
from typing import Literal, Self

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
        steps = states[:, -1:] if newest else states
        if self.pre_norm:
            steps = steps + self._drop(self._attend(self.attention_norm(states), attends, newest=newest))
            return steps + self._drop(self._feed(self.feed_forward_norm(steps)))
        states = self.attention_norm(steps + self._drop(self._attend(states, attends, newest=newest)))
        normed: Tensor = self.feed_forward_norm(states + self._drop(self._feed(states)))
        return normed

    def _feed(self, states: Tensor) -> Tensor:
        changed: Tensor = self.contract(self._drop(self.activation(self.expand(states))))
        return changed

    def _attend(self, states: Tensor, attends: Tensor, *, newest: bool) -> Tensor:
        batch, length, dimension = states.shape
        if newest:
            weight, bias = self.attention_input.weight, self.attention_input.bias
            shape = (batch, length, 2, self.heads, dimension // self.heads)
            key, value = F.linear(states, weight[dimension:], bias[dimension:]).reshape(shape).permute(2, 0, 3, 1, 4)
            query = (
                F.linear(states[:, -1:], weight[:dimension], bias[:dimension])
                .reshape(batch, 1, *shape[3:])
                .transpose(1, 2)
            )
            attends, length = attends[:, :, -1:], 1
        else:
            shape = (batch, length, 3, self.heads, dimension // self.heads)
            query, key, value = self.attention_input(states).reshape(shape).permute(2, 0, 3, 1, 4)
        if self.training and self.dropout:
            weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            mixed = self._drop(weights.masked_fill(~attends, -torch.inf).softmax(dim=-1)) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attends)
        attended: Tensor = self.attention_output(mixed.transpose(1, 2).reshape(batch, length, dimension))
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
