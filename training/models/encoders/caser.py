"""Caser: convolutions over the latest plays (Tang and Wang, WSDM 2018, https://arxiv.org/abs/1809.07426).

It is session-based, so it has no user vector. The original has separate item embeddings for the output layer; here they
are tied to the input embeddings, with a linear map in between.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.encoders.encoder import CausalEncoder, dropout
from training.options import CaserOptions


class Caser(CausalEncoder):
    """Item and skip embeddings, convolutions along and across them, a hidden layer, a map into the item space."""

    def __init__(self, num_rows: int, options: CaserOptions) -> None:
        super().__init__(num_rows, options)
        dimension, order = options.dimension, options.order
        self.order = order
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dimension, options.horizontal_filters, height) for height in range(1, order + 1)
        )
        self.vertical = nn.Parameter(torch.zeros(order, options.vertical_filters))
        self.hidden = nn.Linear(order * options.horizontal_filters + options.vertical_filters * dimension, dimension)
        self.output = nn.Linear(dimension, dimension)

    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Predict the next track at every step. [batch, window] -> [batch, window, dimension] float32."""
        plays = F.pad(self.embed(tracks, skipped), (0, 0, self.order - 1, 0))  # [batch, order - 1 + window, dimension]
        features = torch.cat([self._along(plays), self._across(plays)], dim=-1)
        hidden = F.relu(self.hidden(dropout(features, self.options.dropout, self.training)))
        predicted: Tensor = self.output(hidden)
        return predicted

    def _along(self, plays: Tensor) -> Tensor:
        """Max-pool each horizontal filter over the latest plays. [batch, window, filters]."""
        found = []
        for height, convolution in enumerate(self.horizontal, start=1):
            answers = F.relu(convolution(plays.transpose(1, 2)))
            found.append(F.max_pool1d(answers, kernel_size=self.order - height + 1, stride=1))
        return torch.cat(found, dim=1).transpose(1, 2)

    def _across(self, plays: Tensor) -> Tensor:
        """Weighted sums of the latest plays' embeddings. [batch, window, vertical_filters * dimension]."""
        window = plays.shape[1] - self.order + 1
        latest = torch.stack([plays[:, i : i + window] for i in range(self.order)], dim=-1)
        return (latest @ self.vertical).flatten(start_dim=2)
