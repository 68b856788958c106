"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781)."""

from typing import cast

from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.models.encoders.encoder import CausalEncoder
from training.models.encoders.tensor_ops import dropout
from training.models.encoders.transformer import Block, PackedLayout, attention
from training.options import SasRecOptions


class SasRec(CausalEncoder):
    """Item, position and skip embeddings, then causal self-attention."""

    def __init__(self, num_rows: int, options: SasRecOptions) -> None:
        super().__init__(num_rows, options)
        self.heads = options.heads
        self.positions = nn.Embedding(options.window, options.dimension)
        self.input_norm = nn.LayerNorm(options.dimension)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.blocks))

    def forward(self, tracks: Tensor, skipped: Tensor, *, newest: bool = False) -> Tensor:
        """See CausalEncoder; with `newest` the last step alone, [batch, 1, dimension]."""
        if self.training:
            return self._of_real(tracks, skipped)
        states: Tensor = self.input_norm(self.embed(tracks, skipped) + self.positions.weight)
        attends = attention(tracks != PAD_ROW, causal=True)
        for block in self.blocks:
            states = block(states, attends, newest=newest and block is self.blocks[-1])
        return states

    def _of_real(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """The same by real steps alone: a third of the columns is padding where lengths differ by as much."""
        window = tracks.shape[1]
        real = tracks != PAD_ROW
        places = PackedLayout(real, attention(real, causal=True), self.heads)
        inputs = self.embed(tracks.flatten()[places.of_real], skipped.flatten()[places.of_real])
        states: Tensor = self.input_norm(inputs + self.positions(places.of_real % window))
        states = dropout(states, self.options.dropout, self.training)
        for block in cast("list[Block]", list(self.blocks)):
            states = block.packed(states, places)
        return places.scatter_to_padded(states).view(*tracks.shape, -1)

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """See SessionEncoder."""
        return self(tracks, skipped, newest=True)[:, -1]  # type: ignore[no-any-return]
