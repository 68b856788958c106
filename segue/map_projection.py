"""Places on the map of a release's tracks: points of a plane in which tracks with like embeddings lie near each other.

`map.npy` holds them (docs/release-format.md); training/track_map.py draws the map. What is no point of the map itself,
a track that was not drawn with the others or the encoder's query, lies among its nearest points.
"""

from pathlib import Path
from typing import Final

import numpy as np

from segue.arrays import Float32
from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadRelease

NEAREST: Final = 5  # points that a place lies among


def among(scores: Float32, places: Float32) -> Float32:
    """The weighted mean of the places of each line's nearest points. [n, 2] float32.

    `scores` [n, k] float32 in falling order say how near the points are, `places` [n, k, 2] where they lie. The last
    point counts nothing and the others by what they are nearer than it, so that a place does not jump as a point comes
    in. Where all are equally near, it is their middle.
    """
    weights = scores - scores[:, -1:]
    sums = weights.sum(axis=1, keepdims=True)
    even = ~(sums > 0)
    shares = (weights + even) / np.where(even, scores.shape[1], sums)
    place: Float32 = (shares[:, :, None] * places).sum(axis=1).astype(np.float32)
    return place


def validate_map(file: Path, places: Float32, tracks: int) -> None:
    """Raise BadRelease unless `places` has a place from -1 to 1 for each track and the padding before them."""
    expected = (tracks + FIRST_TRACK_ROW, 2)
    if places.shape != expected or places.dtype != np.float32 or not places.flags.c_contiguous:
        raise BadRelease(f"{file} is {places.dtype} {places.shape}, the manifest asks for float32 {expected}")
    if not (np.abs(places) <= 1).all():  # NaN is not either
        raise BadRelease(f"{file} holds what is no place from -1 to 1: train the release again")
