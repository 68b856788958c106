"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781)."""

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.encoders.contract import SessionEncoder
from training.encoders.transformer import Block, causal_attention
from training.options import NeuralOptions


class SasRecOptions(NeuralOptions):
    """SASRec's own sizes; the defaults are the paper's (section 4.1.2)."""

    blocks: int = Field(default=2, ge=1, description="Self-attentive encoder blocks")
    heads: int = Field(default=8, ge=1, description="Attention heads of a block; they divide the dimension")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dimension % self.heads:
            raise ValueError(f"{self.heads} heads do not divide dimension {self.dimension}: choose a divisor")
        return self


class SasRec(SessionEncoder):
    """Item, position and skip embeddings, then causal self-attention."""

    def __init__(self, num_rows: int, options: SasRecOptions) -> None:
        super().__init__(num_rows, options)
        self.positions = nn.Embedding(options.window, options.dimension)
        self.skip_embedding = nn.Parameter(torch.zeros(1, options.dimension)) if options.skip_input else None
        self.input_norm = nn.LayerNorm(options.dimension)
        self.blocks = nn.ModuleList(
            Block(options.dimension, options.heads, options.dropout) for _ in range(options.blocks)
        )

    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """See SessionEncoder."""
        states: Tensor = self.item_embeddings(tracks) + self.positions.weight
        if self.skip_embedding is not None:
            states = states + skipped[..., None].to(states.dtype) * self.skip_embedding
        states = F.dropout(self.input_norm(states), self.options.dropout, self.training)
        attends = causal_attention(tracks != PAD_ROW)
        for block in self.blocks:
            states = block(states, attends)
        return states
