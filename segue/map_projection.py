"""Positions on the 2D map of a release's tracks. Tracks with similar embeddings are close to each other on the map.

`map.npy` contains the positions (docs/release-format.md). training/track_map.py computes the map. The position of a
query, or of a track that was left out of that computation, is interpolated from the positions of its nearest tracks.
"""

from pathlib import Path
from typing import Final

import numpy as np

from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadRelease, UnknownTrack

NEAREST: Final = 5  # number of nearest tracks with a nonzero weight


def among(scores: Float32, places: Float32) -> Float32:
    """Return the weighted mean position of each query's nearest tracks. [n, 2] float32.

    `scores` [n, k] float32 are the scores of the nearest tracks in descending order. `places` [n, k, 2] float32 are the
    positions of these tracks. The weight of a track is the difference between its score and the last score. The last
    track therefore has the weight 0, so the mean moves continuously when another track becomes one of the nearest. If
    all scores are equal, all weights are equal.
    """
    weights = scores - scores[:, -1:]
    sums = weights.sum(axis=1, keepdims=True)
    even = ~(sums > 0)
    shares = (weights + even) / np.where(even, scores.shape[1], sums)
    place: Float32 = (shares[:, :, None] * places).sum(axis=1).astype(np.float32)
    return place


def validate_map(file: Path, places: Float32, tracks: int) -> None:
    """Raise BadRelease unless `places` is a valid map: [tracks + 1, 2] float32, values from -1 to 1.

    The first row is padding. `file` is the path for the error message.
    """
    expected = (tracks + FIRST_TRACK_ROW, 2)
    if places.shape != expected or places.dtype != np.float32 or not places.flags.c_contiguous:
        raise BadRelease(f"{file} is {places.dtype} {places.shape}, the manifest asks for float32 {expected}")
    if not (np.abs(places) <= 1).all():  # also False for NaN
        raise BadRelease(f"{file} holds what is no place from -1 to 1: train the release again")


class TrackMap:
    """The 2D map of a release's tracks. The points of the map are numbered from 0 by descending play count."""

    def __init__(self, positions: Float32, order: Int) -> None:
        """`positions` [num_rows, 2] float32 are those of map.npy, `order` [tracks] the rows by descending plays."""
        self.positions = positions
        self._order = order

    def points(self, limit: int) -> bytes:
        """Return the positions of the `limit` most played tracks, as pairs of little-endian float32 values."""
        return self.positions[self._order[:limit]].astype("<f4").tobytes()

    def row(self, position: int) -> int:
        """Return the catalogue row of the point with number `position`. Raises UnknownTrack."""
        if position >= len(self._order):
            raise UnknownTrack(
                f"point {position} is not on the map of {len(self._order):,} tracks, which counts from 0"
            )
        return int(self._order[position])
