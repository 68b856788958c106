"""Dropout (Srivastava et al., JMLR 2014), which on a CPU draws one random byte an activation.

torch draws a float for each and takes ten times as long, which was a sixth of a training step. A byte resolves the
share to 1/256; the scale makes up for the rounding exactly, so that the expected activation stays the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(states: Tensor, share: float, training: bool) -> Tensor:
    """Zero a share of the activations and scale the others up, in training alone. Any shape, float."""
    if not training:
        return states
    if states.device.type != "cpu":
        return F.dropout(states, share)
    factors = kept(states, share)
    return states if factors is None else states * factors


def kept(states: Tensor, share: float) -> Tensor | None:
    """What each activation is multiplied by: 0, or the scale of those that are kept. None where nothing is dropped."""
    dropped = min(round(share * 256), 255)
    if not dropped:
        return None
    if states.device.type != "cpu":
        return F.dropout(torch.ones_like(states), share)
    words = torch.empty(math.ceil(states.numel() / 8), dtype=torch.int64).random_(-(2**63), None)
    bytes_ = words.view(torch.uint8)[: states.numel()].view(states.shape)
    # Compared as floats, which a processor does many at a time and torch's comparison of bytes does not.
    return bytes_.float().ge_(dropped).mul_(256 / (256 - dropped))
