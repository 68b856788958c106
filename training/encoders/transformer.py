"""Self-attentive encoder blocks (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Multi-head self-attention and a position-wise feed-forward layer, each with dropout, residual and layer norm.

    The norm comes after the residual sum (post-norm), as in the authors' public code.
    """

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_input = nn.Linear(dimension, 3 * dimension)
        self.attention_output = nn.Linear(dimension, dimension)
        self.attention_norm = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, dimension)
        self.contract = nn.Linear(dimension, dimension)
        self.feed_forward_norm = nn.LayerNorm(dimension)

    def forward(self, states: Tensor, attends: Tensor) -> Tensor:
        """States [batch, window, dimension] and attends [batch, 1, window, window] bool -> states of the same shape."""
        states = self.attention_norm(states + self._drop(self._attend(states, attends)))
        changed = self.contract(self._drop(F.relu(self.expand(states))))
        normed: Tensor = self.feed_forward_norm(states + self._drop(changed))
        return normed

    def _attend(self, states: Tensor, attends: Tensor) -> Tensor:
        batch, window, dimension = states.shape
        shape = (batch, window, 3, self.heads, dimension // self.heads)
        query, key, value = self.attention_input(states).reshape(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attends, dropout_p=self.dropout if self.training else 0.0
        )
        attended: Tensor = self.attention_output(mixed.transpose(1, 2).reshape(batch, window, dimension))
        return attended

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)


def causal_attention(real: Tensor) -> Tensor:
    """Which step attends to which: real steps up to itself. [batch, window] bool -> [batch, 1, window, window] bool.

    Every step attends to itself, padding too, so that no row of the softmax is empty.
    """
    window = real.shape[1]
    causal = torch.ones(window, window, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(window, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | itself)[:, None]
