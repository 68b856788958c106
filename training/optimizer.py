"""Adam on weights that lie together in a list, and gradients clipped together: a step has some thirty small tensors.

torch's own functions below its optimisers, which take as long over the bookkeeping as over the arithmetic.

Source: Kingma and Ba, "Adam", ICLR 2015, https://arxiv.org/abs/1412.6980; decoupled weight decay: Loshchilov and
Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_BETAS = 0.9, 0.999  # those of torch.optim.AdamW
_EPSILON = 1e-8
_FUSED_ON = "cpu"  # elsewhere the numbers of steps would have to be on the device too: the list is one call there


class Moments(NamedTuple):
    """Adam's state of some weights."""

    first: list[Tensor]  # like the weights, float32
    second: list[Tensor]
    steps: list[Tensor]  # one for each, scalar float32 on the CPU


def adam(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Moments,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """One step of AdamW on weights, in place."""
    fused = weights[0].device.type == _FUSED_ON
    with torch.no_grad():
        adamw(
            list(weights),
            list(gradients),
            moments.first,
            moments.second,
            [],
            moments.steps,
            fused=fused,
            foreach=not fused,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=_EPSILON,
            maximize=False,
        )


def clip(gradients: list[Tensor], most: float) -> None:
    """Scale gradients down together, in place, to a Euclidean norm of `most` where it is greater."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.device.type != "cpu" or not norm <= most:  # a GPU is not waited for, and what is no number is passed on
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp_(max=1.0))


class DenseWeights:
    """Weights that every step changes as a whole, and Adam's state of them."""

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.moments = Moments(
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros_like(parameter) for parameter in parameters],
            [torch.zeros((), dtype=torch.float32) for _ in parameters],
        )

    def gradients(self) -> list[Tensor]:
        """Those that the backward pass has reached."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def update(self, learning_rate: float) -> None:
        """Take one step by the gradients; weights without one stay as they are."""
        reached = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        moments = Moments(*([part[i] for i in reached] for part in self.moments))
        adam([self.parameters[i] for i in reached], self.gradients(), moments, learning_rate, self.weight_decay)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The optimiser's state."""
        return self.moments._asdict()

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from a state."""
        for name, tensors in self.state_dict().items():
            for tensor, value in zip(tensors, state[name], strict=True):
                tensor.copy_(value)
