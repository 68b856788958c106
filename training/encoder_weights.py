"""An encoder's trainable weights as one plain array, so that a release can be trained on from.

`encoder_weights.npy` holds a single record of float32: a field for each weight, by its name in the encoder, with the
weight's shape. The item embeddings are not among them: they have a file of their own. The dtype says all that must fit,
so one comparison refuses the weights of another encoder, and the file is mapped and checked like every other array.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from segue.arrays import mapped_array
from segue.errors import BadRelease
from segue.release import Release
from training.models.encoders.encoder import SessionEncoder

ENCODER_WEIGHTS: Final = "encoder_weights.npy"
_LARGEST_HEADER: Final = 1_000_000  # characters; a block of self-attention takes 700


def encoder_weights(encoder: SessionEncoder) -> NDArray[Any]:
    """All weights but the item embeddings. [1] record of float32."""
    record = np.zeros(1, dtype=_fields(encoder))
    for name, weight in _weights(encoder).items():
        record[name][0] = weight.detach().cpu().numpy()
    return record


def take_weights(encoder: SessionEncoder, release: Release) -> None:
    """Give the encoder a release's weights, its item embeddings aside. Raises BadRelease with one line."""
    record = mapped_array(release.path / ENCODER_WEIGHTS, _LARGEST_HEADER)
    expected = _fields(encoder)
    if record.dtype != expected or record.shape != (1,):
        raise BadRelease(f"{release.path}: {ENCODER_WEIGHTS} holds {_differing(record.dtype, expected)}")
    with torch.no_grad():
        for name, weight in _weights(encoder).items():
            values = np.array(record[name][0])
            if not np.isfinite(values).all():
                raise BadRelease(f"{release.path}: {ENCODER_WEIGHTS}: {name} is not finite: train the release again")
            weight.copy_(torch.from_numpy(values))


def _weights(encoder: SessionEncoder) -> dict[str, torch.Tensor]:
    table = encoder.item_embeddings.weight
    return {name: weight for name, weight in sorted(encoder.named_parameters()) if weight is not table}


def _fields(encoder: SessionEncoder) -> np.dtype[Any]:
    return np.dtype([(name, "<f4", tuple(weight.shape)) for name, weight in _weights(encoder).items()])


def _differing(found: np.dtype[Any], expected: np.dtype[Any]) -> str:
    """The first weight that is not as expected."""
    theirs, ours = dict(found.fields or {}), dict(expected.fields or {})
    for name in sorted({*theirs, *ours}, key=str):
        one, other = (str(fields[name][0]) if name in fields else "nothing" for fields in (theirs, ours))
        if one != other:
            return f"{one} for {str(name)[:80]!r}, this Segue's encoder has {other}: train the release again"
    return f"an array of {str(found)[:80]}, expected one record of weights: train the release again"
