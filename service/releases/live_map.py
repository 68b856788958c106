"""The map of a release's tracks as it is served: points, who they are, and where a session stands on it."""

from dataclasses import dataclass

import numpy as np

from segue.arrays import Float32, Int
from segue.catalogue import PAD_ROW
from segue.errors import UnknownTrack
from segue.map_projection import among
from segue.recommend import Ranked
from segue.release import Release


@dataclass(frozen=True, slots=True)
class Places:
    """Where a session and its next tracks are on the map; each [n, 2] float32."""

    path: Float32  # every play of the session, oldest first; NaN where the release does not hold the track
    plays: Float32  # what the encoder saw, oldest first
    items: Float32  # the next tracks, best first
    query: Float32 | None  # [2] float32, where the encoder's query stands; None where there is none


class TrackMap:
    """The map of one release. Points go by the number of plays, so that the first ones are those that matter most."""

    def __init__(self, release: Release) -> None:
        assert release.track_map is not None, release.name
        self._places = release.track_map
        self._order = release.mapped_catalogue.by_plays

    def points(self, limit: int) -> bytes:
        """The first points, two little-endian float32 each."""
        return self._places[self._order[:limit]].astype("<f4").tobytes()

    def row(self, position: int) -> int:
        """The row of a point. Raises UnknownTrack."""
        if position >= len(self._order):
            raise UnknownTrack(
                f"point {position} is not on the map of {len(self._order):,} tracks, which counts from 0"
            )
        return int(self._order[position])

    def places(self, session: Int, plays: list[int], items: list[int], nearest: Ranked | None) -> Places:
        """Places of tracks by row, and of a query by the tracks nearest to it, [1, k]."""
        path = self._places[session]
        path[session == PAD_ROW] = np.nan
        query = None
        if nearest is not None:
            found = nearest.rows[0] != PAD_ROW
            if found.any():
                [query] = among(nearest.scores[:, found], self._places[nearest.rows[:, found]])
        empty = np.empty(0, dtype=np.int64)
        return Places(path, self._places[plays or empty], self._places[items or empty], query)
