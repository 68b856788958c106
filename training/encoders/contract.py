"""What every encoder is: tracks and skip flags in, a predicted item embedding at every step out.

A new encoder subclasses SessionEncoder, adds a line to the table in training/models.py and a three-line test.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.options import NeuralOptions


class SessionEncoder(nn.Module, ABC):
    """Base of all encoders; owns the item embeddings, which are both input and output (tied)."""

    def __init__(self, num_rows: int, options: NeuralOptions) -> None:
        super().__init__()
        self.options = options
        self.item_embeddings = nn.Embedding(num_rows, options.dimension, padding_idx=PAD_ROW)

    @abstractmethod
    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Predict the embedding of the next track at every step.

        Args:
            tracks: [batch, window] int64 rows, PAD_ROW on the left.
            skipped: [batch, window] bool.

        Returns:
            [batch, window, dimension] float32; column t sees the plays up to t alone. Padding columns hold anything.

        """

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """The query vector of each window: the prediction at the newest play. [batch, dimension] float32."""
        return self(tracks, skipped)[:, -1]  # type: ignore[no-any-return]

    def initialise(self, generator: torch.Generator) -> None:
        """Draw weights: normal(0, 1) truncated to [-0.02, 0.02] (paper, section 4.1.2); biases 0, scales 1."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    truncated_normal(parameter, generator)
                elif name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.fill_(1.0)
            self.item_embeddings.weight[PAD_ROW] = 0.0


def truncated_normal(parameter: Tensor, generator: torch.Generator) -> None:
    """Fill in place with normal(0, 1) truncated to [-0.02, 0.02], by the inverse of the distribution function."""
    bound = 0.02
    edge = torch.special.ndtr(torch.tensor(bound, dtype=torch.float64)).item()
    uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
    parameter.copy_(torch.special.ndtri((1 - edge) + (2 * edge - 1) * uniform.double()).float())
