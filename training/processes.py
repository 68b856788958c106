"""Collective operations of a training step, for a single process.

This module does not import torch, so models without tensors train without it.
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
    """A single process: the collective operations return their input unchanged.

    `training.distributed.DistributedProcesses` is the counterpart for several processes.
    """

    rank = 0
    world = 1
    sharded = False  # whether each process holds only a shard of the item embeddings

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def check_options(self, options: NeuralOptions) -> None:
        """Raise BadOption for options that several processes do not support."""

    def check_consistent(self, facts: Mapping[str, object]) -> None:
        """Raise BadOption if the values of `facts` differ between processes."""

    def wrap(self, encoder: "SessionEncoder", terms: "StepTerms") -> "StepTerms":  # noqa: ARG002 (a single process needs no wrapper)
        """Wrap `terms` so that its backward pass sums gradients over processes, except those of the item embeddings."""
        return terms

    def shard(self, batch: "Batch") -> "Batch":
        """Return this process's shard of a batch; an empty session if the batch has fewer sessions than processes."""
        return batch

    def validation_shard(self, validation: Examples) -> Examples:
        """Return this process's shard of the validation examples."""
        return validation

    def all_reduce_count(self, count: "Tensor") -> "Tensor":
        """Return a count summed over the processes."""
        return count

    def all_reduce_(self, tensor: "Tensor") -> None:
        """Sum a tensor over the processes, in place."""

    def all_reduce_scalars(self, values: Mapping[str, "Tensor"]) -> dict[str, float]:
        """Return scalars summed over the processes."""
        if self.device == "cpu":
            return {name: value.item() for name, value in values.items()}
        import torch

        together = torch.stack([value.detach() for value in values.values()])  # one synchronisation with the GPU
        return dict(zip(values, together.tolist(), strict=True))

    def mean_score(self, score: tuple[float, float], targets: int) -> tuple[float, float]:  # noqa: ARG002 (as above)
        """Return means over all targets, given this process's means and its number of targets."""
        return score

    def broadcast_decision(self, due: bool) -> bool:
        """Return the main process's decision if all processes must act on it together."""
        return due

    def any_process(self, asked: bool) -> bool:
        """Whether the flag is set in at least one process."""
        return asked

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""


def is_distributed() -> bool:
    """Whether this process is one of several, started by torchrun or with its environment variables."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
