"""Stations: recommendations that seeds keep pulling, whatever the session plays.

The score of a track is the probability (1 - w) * P(next | session) + w * P(next | seeds). P(next | seeds) is the same
ranker's, asked about windows of seeds; of several windows it is the mean. Without plays the seeds alone count.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from segue.arrays import Float32, Float64, Int
from segue.catalogue import PAD_ROW, Row
from segue.recommend import CANDIDATES, Ranked, Ranker, Recommender, log_probabilities
from segue.window import Windows

MAX_WINDOWS: Final = 4  # each is a query of the model, in every answer


class Pull(NamedTuple):
    """The seeds of a station as catalogue rows, and their weight."""

    seeds: tuple[tuple[Row, ...], ...]  # for each seed (an artist, or all named tracks) its rows, the best first
    weight: float  # above 0, at most 1


class SeedWindows(NamedTuple):
    """The windows that the ranker is asked about."""

    windows: Windows
    shares: Float64  # [windows] of each window in P(next | seeds), with the sum 1


def seed_windows(seeds: Sequence[Sequence[Row]], length: int) -> SeedWindows:
    """Return the windows of seeds. Each seed has at least one row.

    Each seed has the same share. A seed with more rows than a window has is dealt to several windows. If that makes
    more than MAX_WINDOWS windows, the seeds take turns, and their first MAX_WINDOWS * `length` rows are dealt to
    MAX_WINDOWS windows. The first row of a window is its latest play.
    """
    counts = [-(-len(seed) // length) for seed in seeds]
    if sum(counts) > MAX_WINDOWS:
        turns = itertools.chain.from_iterable(itertools.zip_longest(*seeds, fillvalue=PAD_ROW))
        mixed = [row for row in dict.fromkeys(turns) if row != PAD_ROW][: MAX_WINDOWS * length]
        seeds, counts = [mixed], [min(MAX_WINDOWS, len(mixed))]
    dealt = [seed[start::count] for seed, count in zip(seeds, counts, strict=True) for start in range(count)]
    tracks = np.full((len(dealt), length), PAD_ROW, dtype=np.int64)
    for line, rows in enumerate(dealt):
        tracks[line, length - len(rows) :] = rows[::-1]
    shares = np.repeat([1 / (len(seeds) * count) for count in counts], counts)
    return SeedWindows(Windows(tracks, np.zeros(tracks.shape, dtype=np.bool_)), shares)


@dataclass(frozen=True, slots=True)
class StationRanker:
    """Ranks by a mixture of P(next | session) and P(next | seeds) of `ranker`. The score of a track is a probability.

    The candidates are the best tracks for the session and for each window of seeds, at least CANDIDATES of each. All of
    them have both parts.
    """

    ranker: Ranker
    seeds: SeedWindows
    weight: float

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window, by probability, then by row. Rows and scores [batch, k]."""
        known, shown = self._known(windows)
        found = self.ranker.rank(_joined(shown, self.seeds.windows), max(CANDIDATES, k))
        of_seeds = found.rows[len(known) :].ravel()
        lines = {line: found.rows[place] for place, line in enumerate(known.tolist())}
        nothing = np.empty(0, dtype=np.int64)
        each = [np.unique(np.concatenate([lines.get(line, nothing), of_seeds])) for line in range(len(windows))]
        each = [rows[rows != PAD_ROW] for rows in each]
        k = min(k, max(map(len, each), default=0))
        rows = np.full((len(windows), max(map(len, each), default=0)), PAD_ROW, dtype=np.int64)
        for line, of_line in enumerate(each):
            rows[line, : len(of_line)] = of_line
        scores = self._part_scores(windows, rows, found.scores).sum(axis=0).astype(np.float32)
        scores[rows == PAD_ROW] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranked(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the probability of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        scores: Float32 = self.part_scores(windows, rows).sum(axis=0).astype(np.float32)
        return scores

    def part_scores(self, windows: Windows, rows: Int) -> Float64:
        """Return what the session and the seeds add to the score of given tracks. They add up to `scores`.

        `rows` [batch, candidates] int64. Returns [2, batch, candidates] float64. A window without plays has 0 as the
        part of the session, and P(next | seeds) as that of the seeds.
        """
        return self._part_scores(windows, rows, None)

    def _part_scores(self, windows: Windows, rows: Int, best: Float32 | None) -> Float64:
        """As `part_scores`. `best` are the best scores for the known windows, then for those of the seeds, if known."""
        parts = np.zeros((2, *rows.shape))
        known, shown = self._known(windows)
        pool, places = np.unique(rows, return_inverse=True)
        asked = np.broadcast_to(pool, (len(self.seeds.windows), len(pool)))
        of_seeds = self._probability(self.seeds.windows, asked, None if best is None else best[len(known) :])
        parts[1] = (self.seeds.shares @ of_seeds)[places.reshape(rows.shape)]
        if len(known):
            of_session = self._probability(shown, rows[known], None if best is None else best[: len(known)])
            parts[0, known] = (1 - self.weight) * of_session
            parts[1, known] *= self.weight
        return parts

    def _probability(self, windows: Windows, rows: Int, best: Float32 | None) -> Float64:
        probability: Float64 = np.exp(log_probabilities(self.ranker, windows, self.ranker.scores(windows, rows), best))
        return probability

    def _known(self, windows: Windows) -> tuple[Int, Windows]:
        """Return the indices of the windows with plays, and these windows. An encoder need not accept others."""
        known = np.flatnonzero((windows.tracks != PAD_ROW).any(axis=1))
        return known, windows.select(known)


def _joined(first: Windows, second: Windows) -> Windows:
    return Windows(np.concatenate([first.tracks, second.tracks]), np.concatenate([first.skipped, second.skipped]))


def pulled(recommender: Recommender, pull: Pull) -> Recommender:
    """Return a recommender whose sessions `pull` pulls. It never answers by popularity."""
    seeds = seed_windows(pull.seeds, recommender.window)
    return replace(recommender, ranker=StationRanker(recommender.ranker, seeds, pull.weight), needs_plays=False)
