"""The process that trains: what a training step asks of the other processes, and the answers if there are none.

This module does not import torch, so a model without tensors trains without it.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from training.data.splits import Examples
from training.options import NeuralOptions

if TYPE_CHECKING:
    from torch import Tensor

    from training.data.loader import Batch
    from training.losses import Terms
    from training.models.encoders.encoder import SessionEncoder

StepTerms: TypeAlias = "Callable[[Batch, Tensor], Terms]"


class Processes:
    """One process alone. `training.distributed.DistributedProcesses` is its counterpart for several."""

    rank = 0
    world = 1
    sharded = False  # whether each holds a part of the item embeddings alone

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes, and shows how it goes."""
        return self.rank == 0

    def check(self, options: NeuralOptions) -> None:
        """Raise BadOption for what cannot be done by so many processes."""

    def agree(self, facts: Mapping[str, object]) -> None:
        """Raise BadOption where the processes were given different facts."""

    def together(self, encoder: "SessionEncoder", terms: "StepTerms") -> "StepTerms":  # noqa: ARG002 (one alone needs none)
        """`terms`, so that its backward pass adds the gradients of all up: of all weights but the item embeddings."""
        return terms

    def share(self, batch: "Batch") -> "Batch":
        """The share of a batch that is this process's: a session without plays where there are fewer than processes."""
        return batch

    def share_of(self, validation: Examples) -> Examples:
        """The validation targets that are this process's."""
        return validation

    def total(self, count: "Tensor") -> "Tensor":
        """A number of steps added up over the processes."""
        return count

    def add_up(self, tensor: "Tensor") -> None:
        """Add a tensor up over the processes, in place."""

    def sums(self, values: Mapping[str, "Tensor"]) -> dict[str, float]:
        """Scalars added up over the processes."""
        if self.device == "cpu":
            return {name: value.item() for name, value in values.items()}
        import torch

        together = torch.stack([value.detach() for value in values.values()])  # a GPU is waited for once
        return dict(zip(values, together.tolist(), strict=True))

    def score(self, score: tuple[float, float], targets: int) -> tuple[float, float]:  # noqa: ARG002 (as above)
        """The means over all targets of means over those of each process."""
        return score

    def agreed(self, due: bool) -> bool:
        """What the leader's clock says, where all must act on it."""
        return due

    def any(self, asked: bool) -> bool:
        """Whether it holds in one of the processes."""
        return asked

    def wait(self) -> None:
        """Until all processes have come here."""


def is_distributed() -> bool:
    """Whether this process was started as one of several (by torchrun, or with its variables set)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
