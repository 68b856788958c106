"""GRU4Rec: a recurrent network over the session (Hidasi et al., ICLR 2016, https://arxiv.org/abs/1511.06939).

One layer of gated recurrent units as in the original, trained with the paper's loss (section 4.1.1) instead of the
original's ranking losses.
"""

from torch import Tensor, nn

from training.models.encoders.encoder import CausalEncoder, dropout
from training.options import Gru4RecOptions


class Gru4Rec(CausalEncoder):
    """Item and skip embeddings, gated recurrent units, and a linear map into the item space."""

    def __init__(self, num_rows: int, options: Gru4RecOptions) -> None:
        super().__init__(num_rows, options)
        self.recurrent = nn.GRU(options.dimension, options.dimension, options.layers, batch_first=True)
        self.output = nn.Linear(options.dimension, options.dimension)

    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Predict the next track at every step, [batch, window, dimension] float32; padding is a zero input."""
        states = dropout(self.embed(tracks, skipped), self.options.dropout, self.training)
        states, _ = self.recurrent(states)
        predicted: Tensor = self.output(dropout(states, self.options.dropout, self.training))
        return predicted
