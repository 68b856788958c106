"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781)."""

from typing import cast

from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.models.encoders.encoder import CausalEncoder, dropout
from training.models.encoders.transformer import Block, PackedLayout, build_attention_mask
from training.options import SasRecOptions


class SasRec(CausalEncoder):
    """Causal self-attention over the sum of item, position and skip embeddings."""

    def __init__(self, num_rows: int, options: SasRecOptions) -> None:
        super().__init__(num_rows, options)
        self.heads = options.heads
        self.positions = nn.Embedding(options.window, options.dimension)
        self.input_norm = nn.LayerNorm(options.dimension)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.blocks))

    def forward(self, tracks: Tensor, skipped: Tensor, *, newest: bool = False) -> Tensor:
        """Return the predicted embedding of the next track at every step. [batch, window, dimension] float32.

        `tracks` [batch, window] int64, `skipped` [batch, window] bool. With `newest`, only the prediction at the last
        step is returned, [batch, 1, dimension]. In training mode, `newest` is ignored.
        """
        if self.training:
            return self._packed(tracks, skipped)
        states: Tensor = self.input_norm(self.embed(tracks, skipped) + self.positions.weight)
        attention_mask = build_attention_mask(tracks != PAD_ROW, causal=True)
        for block in self.blocks:
            states = block(states, attention_mask, newest=newest and block is self.blocks[-1])
        return states

    def _packed(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Compute `forward` in training mode. [batch, window, dimension] float32.

        The non-padding steps of all sessions are concatenated, because up to a third of the columns can be padding.
        """
        window = tracks.shape[1]
        non_padding = tracks != PAD_ROW
        layout = PackedLayout(non_padding, build_attention_mask(non_padding, causal=True), self.heads)
        inputs = self.embed(tracks.flatten()[layout.of_real], skipped.flatten()[layout.of_real])
        states: Tensor = self.input_norm(inputs + self.positions(layout.of_real % window))
        states = dropout(states, self.options.dropout, self.training)
        for block in cast("list[Block]", list(self.blocks)):
            states = block.packed(states, layout)
        return layout.scatter_to_padded(states).view(*tracks.shape, -1)

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the predicted embedding of the next track after the newest play. [batch, dimension] float32."""
        return self(tracks, skipped, newest=True)[:, -1]  # type: ignore[no-any-return]
