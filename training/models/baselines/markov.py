"""Count-based rankers: popularity and a first-order Markov chain.

Popularity recommends the most played tracks in the same order to every session. The Markov chain recommends the tracks
that most often followed the newest track in the training sessions. Played and skipped tracks both count. The score of
track j after track i is

    score(j | i) = count(i -> j) + plays(j) / (plays of all tracks + 1)

The second term is below 1. Popularity therefore only breaks ties between equal transition counts, and ranks the tracks
that never followed track i.
"""

from typing import Self

import numpy as np

from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.recommend import PopularityRanker, Ranked
from segue.release import Release
from segue.window import Sessions, Windows
from training.options import Options


class Popularity(PopularityRanker):
    """Popularity ranker. A release of this model has no model file, because the catalogue contains the play counts."""

    @classmethod
    def fit(cls, _sessions: Sessions, _num_rows: int, plays: Int, _options: Options) -> Self:
        """Create the ranker from `plays` [num_rows] int64, the play counts of the training sessions."""
        return cls(plays)

    @classmethod
    def of_release(cls, release: Release) -> Self:
        """Create the ranker from the play counts in the catalogue of a release."""
        return cls(release.catalogue.plays)

    def arrays(self) -> dict[str, Int]:
        """Return the arrays to store in a release, by file name: none."""
        return {}


class MarkovRanker:
    """Ranks tracks by the number of transitions from the newest track of a window.

    The transition counts are a sparse matrix in CSR format, in three arrays: offsets, followers and counts.
    """

    files = ("markov_offsets.npy", "markov_followers.npy", "markov_counts.npy")

    def __init__(self, offsets: Int, followers: Int, counts: Int, plays: Int) -> None:
        """Create the ranker from the transition counts and the play counts.

        The shapes are [num_rows + 1] for `offsets`, [transitions] for `followers` and `counts`, and [num_rows] for
        `plays`. All arrays are int64.
        """
        self._offsets = offsets
        self._followers = followers
        self._counts = counts
        self._popularity = PopularityRanker(plays)
        self._share = plays / (plays.sum() + 1.0)

    @classmethod
    def fit(cls, sessions: Sessions, num_rows: int, plays: Int, _options: Options | None = None) -> Self:
        """Count the transitions between consecutive plays of each session.

        `plays` [num_rows] int64 are the play counts of the training sessions.
        """
        first = np.ones(len(sessions.rows), dtype=np.bool_)
        first[sessions.offsets[:-1][sessions.lengths > 0]] = False
        to = np.flatnonzero(first)  # all plays except the first of each session
        pairs = sessions.rows[to - 1] * num_rows + sessions.rows[to]
        distinct, counts = np.unique(pairs, return_counts=True)
        offsets = np.searchsorted(distinct, np.arange(num_rows + 1, dtype=np.int64) * num_rows)
        return cls(offsets.astype(np.int64), distinct % num_rows, counts.astype(np.int64), plays)

    @classmethod
    def of_release(cls, release: Release) -> Self:
        """Open the model from the arrays of a release."""
        offsets, followers, counts = (release.array(name) for name in cls.files)
        return cls(offsets, followers, counts, release.catalogue.plays)

    def arrays(self) -> dict[str, Int]:
        """Return the arrays to store in a release, by file name."""
        return dict(zip(self.files, (self._offsets, self._followers, self._counts), strict=True))

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window, by transition count, then by popularity."""
        k = min(k, len(self._share) - FIRST_TRACK_ROW)
        rows = np.empty((len(windows), k), dtype=np.int64)
        popular = self._popularity.rank(Windows(windows.tracks[:1], windows.skipped[:1]), len(self._share)).rows
        for line, newest in enumerate(windows.tracks[:, -1]):
            followers, scores = self._followers_of(newest)
            seen = followers[np.lexsort((followers, -scores))]
            rest = popular[0, : k + len(seen)] if len(popular) else seen
            rows[line] = np.concatenate([seen, rest[~np.isin(rest, seen)]])[:k]
        return Ranked(rows, self.scores(windows, rows))

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks for each window. [batch, candidates] float32.

        `rows` [batch, candidates] int64 are the tracks to score.
        """
        result = self._share[rows]
        for line, newest in enumerate(windows.tracks[:, -1]):
            followers, scores = self._followers_of(newest)
            if len(followers):
                place = np.minimum(np.searchsorted(followers, rows[line]), len(followers) - 1)
                known = followers[place] == rows[line]
                result[line] = np.where(known, scores[place], result[line])
        scored: Float32 = result.astype(np.float32)
        return scored

    def _followers_of(self, newest: int) -> tuple[Int, Float32]:
        span = slice(self._offsets[newest], self._offsets[newest + 1])
        followers = self._followers[span]
        return followers, (self._counts[span] + self._share[followers]).astype(np.float32)
