"""Popularity: every session gets the most played tracks, in the same order."""

from typing import Self

from segue.arrays import Int
from segue.recommend import PopularityRanker
from segue.release import Release
from segue.window import Sessions
from training.options import Options


class Popularity(PopularityRanker):
    """A release of it needs no file of its own, because the catalogue contains the counts."""

    @classmethod
    def fit(cls, _sessions: Sessions, _num_rows: int, plays: Int, _options: Options) -> Self:
        """`plays` [num_rows] int64 are the counts of the training sessions."""
        return cls(plays)

    @classmethod
    def of_release(cls, release: Release) -> Self:
        """Open a release."""
        return cls(release.catalogue.plays)

    def arrays(self) -> dict[str, Int]:
        """What a release stores, by file name."""
        return {}
