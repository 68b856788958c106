"""Ranks tracks that were added while the service runs together with those of a release.

The release knows nothing of an added track. Its score is the weighted mean of the scores of a few neighbours, which are
tracks of the release; for an encoder, the inner product of the query and the track's vector, which is the mean of its
neighbours' embeddings or was supplied. In a window, a play of an added track stands for one of its first neighbour.
Added tracks do not change the scores of other tracks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segue.arrays import Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.filters import Allowed
from segue.hybrid import Counts, HybridRanker
from segue.recommend import EncoderRanker, Outcomes, Ranked, Ranker, Recommender, ServedRanker
from segue.window import Windows

# The k best allowed rows for each query [n, dimension], by inner product.
Nearest: TypeAlias = Callable[[Float32, int, Allowed | None], Ranked]
Score: TypeAlias = Callable[[Windows, Int], NDArray[Any]]  # of rows [batch, n] -> [..., batch, n]

MAX_NEIGHBOURS: Final = 10
NEIGHBOURS: Final = 5  # that are chosen if none are given

_CANDIDATES: Final = 100  # tracks by inner product, among which the nearest ones to an embedding are chosen


@dataclass(frozen=True, slots=True)
class Vectors:
    """The embeddings of a release, and the search for the nearest ones."""

    release: str  # its name
    embeddings: Float32  # [num_rows, dimension]
    nearest: Nearest

    def near(self, embedding: Sequence[float]) -> list[Row]:
        """Return the tracks nearest to an embedding, among those with the best inner product."""
        vector = np.array(embedding, dtype=np.float32)
        [rows] = self.nearest(vector[None], min(_CANDIDATES, len(self.embeddings) - FIRST_TRACK_ROW), None).rows
        rows = rows[rows != PAD_ROW]
        distances = np.linalg.norm(self.embeddings[rows].astype(np.float64) - vector, axis=1)
        nearest: list[Row] = rows[np.argsort(distances, kind="stable")][:NEIGHBOURS].tolist()
        return nearest


@dataclass(frozen=True, eq=False)
class AddedRows:
    """The added tracks of a release, in rows after its last one. Immutable and thread-safe."""

    first: Row  # the row of the first added track
    neighbours: Int  # [n, most] int64 rows of the release; the first neighbour again after the last one
    weights: Float32  # [n, most] float32, which add up to 1; 0 after the last neighbour
    vectors: Float32 | None  # [n, dimension] float32; None for a release without an encoder

    def __len__(self) -> int:
        """Return the number of added tracks."""
        return len(self.neighbours)

    @cached_property
    def rows(self) -> Int:
        """The rows of the added tracks. [n] int64."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64)

    def stand_in(self, rows: Int) -> Int:
        """Return the rows with the first neighbour of an added track in its place. `rows` int64 of any shape."""
        of_added = rows >= self.first
        if not of_added.any():
            return rows
        stood = rows.copy()
        stood[of_added] = self.neighbours[rows[of_added] - self.first, 0]
        return stood

    def mean_of(self, values: NDArray[Any], rows: Int) -> NDArray[Any]:
        """Return values [num_rows, ...] at rows [n] int64: of an added track the mean of its neighbours."""
        found: NDArray[Any] = values[self.stand_in(rows)]
        places = np.flatnonzero(rows >= self.first)
        added = rows[places] - self.first
        found[places] = np.einsum("nm,nm...->n...", self.weights[added], values[self.neighbours[added]])
        return found

    def windows(self, windows: Windows) -> Windows:
        """Return windows of tracks of the release."""
        return Windows(self.stand_in(windows.tracks), windows.skipped)

    def means(self, score: Score, windows: Windows, which: Int) -> NDArray[Any]:
        """Return the mean scores of the neighbours of some added tracks.

        `windows` have only tracks of the release. `which` [m] int64 are positions from 0. Returns [..., batch, m].
        """
        near, places = np.unique(self.neighbours[which], return_inverse=True)
        scores = score(windows, np.broadcast_to(near, (len(windows), len(near))))
        means: NDArray[Any] = (scores[..., places.reshape(len(which), -1)] * self.weights[which]).sum(axis=-1)
        return means

    def ranked(self, ranker: HybridRanker, windows: Windows, k: int, which: Int) -> tuple[Ranked, NDArray[Any]]:
        """Return the ranking of `ranker` and the `means` by it, in the time of one of them."""
        ranked: list[Ranked] = []

        def score(windows: Windows, rows: Int) -> Float32:
            found, scores = ranker.rank_and_score(windows, k, rows)
            ranked.append(found)
            return scores

        means = self.means(score, windows, which)
        return ranked[0], means

    def spread(self, score: Score, windows: Windows, rows: Int) -> NDArray[Any]:
        """Return scores of rows, among which may be added tracks. `rows` [batch, n] int64 -> [..., batch, n].

        `windows` have only tracks of the release, and `score` is asked for such tracks alone.
        """
        stored = score(windows, self.stand_in(rows))
        lines, columns = np.nonzero(rows >= self.first)
        if not len(lines):
            return stored
        which, places = np.unique(rows[lines, columns] - self.first, return_inverse=True)
        scores = stored.copy()
        scores[..., lines, columns] = self.means(score, windows, which)[..., lines, places]
        return scores

    def products(self, queries: Float32, which: Int) -> Float32:
        """Return the inner products of queries [batch, dimension] and vectors of added tracks. [batch, m] float32.

        Each query has products of its own, so that they do not depend on the batch (index.exact.pair_scores).
        """
        assert self.vectors is not None
        vectors = self.vectors[which]
        products = np.empty((len(queries), len(which)), dtype=np.float32)
        for line, query in enumerate(queries):
            products[line] = np.vecdot(vectors, query)
        return products


class AddedRanker:
    """Ranks the tracks of `ranker` and added ones. Windows and rows may have added tracks."""

    def __init__(
        self, ranker: ServedRanker, added: AddedRows, which: Int | None = None, near: Ranker | None = None
    ) -> None:
        """`which` [m] int64 are the positions of the added tracks to rank; None: all of them.

        `near` gives the scores of their neighbours, if `ranker` may not rank all of these.
        """
        self.ranker = ranker
        self.has_logits = isinstance(ranker, EncoderRanker)  # log_probabilities of segue.recommend reads it
        self._added = added
        self._which = np.arange(len(added), dtype=np.int64) if which is None else which
        self._near = ranker if near is None else near

    def within(self, allowed: Allowed) -> "AddedRanker":
        """Return the same ranker that ranks only allowed tracks. `allowed` is of the release's and the added tracks."""
        added = self._added
        which = np.flatnonzero(allowed.contains(added.rows))
        mask = allowed.mask[: added.first - FIRST_TRACK_ROW]
        near = np.unique(added.neighbours[which]) - FIRST_TRACK_ROW
        ranker, of_near = self.ranker.within(Allowed(mask)), None
        if isinstance(ranker, HybridRanker) and not mask[near].all():
            # A part of a hybrid is shared out among the tracks that may be ranked.
            mask[near] = True
            of_near = self.ranker.within(Allowed(mask))
        return AddedRanker(ranker, added, which, of_near)

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window. Of equal scores, added tracks come last."""
        windows = self._added.windows(windows)
        if not len(self._which):
            return self.ranker.rank(windows, k)
        if isinstance(self.ranker, EncoderRanker):
            queries = self.ranker.encoder.encode(windows)
            found, scores = self.ranker.nearest(queries, k), self._added.products(queries, self._which)
        elif isinstance(self.ranker, HybridRanker) and self._near is self.ranker:
            found, scores = self._added.ranked(self.ranker, windows, k, self._which)
        else:
            found = self.ranker.rank(windows, k)
            scores = self._added.means(self._near.scores, windows, self._which)
        rows = np.broadcast_to(self._which + self._added.first, scores.shape)
        return merged(found, Ranked(rows, scores.astype(np.float32)), k)

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        added, of_added = self._added, rows >= self._added.first
        windows = added.windows(windows)
        scores = self.ranker.scores(windows, added.stand_in(rows))
        if not of_added.any():
            return scores
        if isinstance(self.ranker, EncoderRanker):
            queries = self.ranker.encoder.encode(windows)
            found = added.products(queries, np.arange(len(added)))[
                np.nonzero(of_added)[0], rows[of_added] - added.first
            ]
        else:
            found = added.spread(self._near.scores, windows, rows)[of_added]
        scores = scores.copy()
        scores[of_added] = found
        return scores

    def part_scores(self, windows: Windows, rows: Int) -> Float64:
        """Return what each part of a hybrid adds to the scores, as HybridRanker.part_scores does."""
        assert isinstance(self.ranker, HybridRanker)
        assert isinstance(self._near, HybridRanker)
        windows = self._added.windows(windows)
        scores: Float64 = self._added.spread(self._near.part_scores, windows, rows)
        if self._near is not self.ranker:
            stored = rows < self._added.first
            scores[:, stored] = self.ranker.part_scores(windows, self._added.stand_in(rows))[:, stored]
        return scores


@dataclass(frozen=True, slots=True)
class AddedOutcomes:
    """Predicts skips of added tracks as well: the mean of log P(played) of the neighbours."""

    head: Outcomes
    added: AddedRows

    def log_played(self, windows: Windows, rows: Int) -> Float64:
        """Return log P(played) of candidates. `rows` [batch, candidates] int64 -> [batch, candidates] float64."""
        scores: Float64 = self.added.spread(self.head.log_played, self.added.windows(windows), rows)
        return scores


def with_added(recommender: Recommender, added: AddedRows) -> Recommender:
    """Return a recommender of the same tracks and of added ones."""
    ranker: Any = recommender.ranker  # a ServedRanker in a service
    return Recommender(
        AddedRanker(ranker, added),
        AddedRanker(recommender.popularity, added),
        recommender.window,
        AddedOutcomes(recommender.head, added) if recommender.head is not None else None,
    )


def similar_rows(
    added: AddedRows, row: Row, k: int, allowed: Allowed | None, by: "Vectors | Counts"
) -> tuple[list[Row], list[float]]:
    """Return the k tracks most similar to a track, and their scores: LoadedRelease.similar with added tracks.

    `by` are the embeddings, or the transition counts of a release without an encoder.
    """
    if isinstance(by, Vectors):
        stored = None if allowed is None else Allowed(allowed.mask[: added.first - FIRST_TRACK_ROW])
        best = _near_by_vector(added, row, k, stored, by)
    else:
        best = _near_by_counts(added, row, by)
    [rows], [scores] = best
    kept = (rows != row) & (rows != PAD_ROW)
    if allowed is not None:
        kept &= allowed.contains(rows)
    return rows[kept][:k].tolist(), scores[kept][:k].tolist()


def _near_by_vector(added: AddedRows, row: Row, k: int, stored: Allowed | None, by: "Vectors") -> Ranked:
    if row < added.first:
        vector = by.embeddings[row]
    else:
        assert added.vectors is not None
        vector = added.vectors[row - added.first]
    most = len(by.embeddings) - FIRST_TRACK_ROW if stored is None else stored.count
    found = by.nearest(vector[None], min(k + 1, most), stored)
    products = added.products(vector[None], np.arange(len(added)))
    return merged(found, Ranked(added.rows[None], products), found.rows.shape[1] + len(added))


def _near_by_counts(added: AddedRows, row: Row, counts: Counts) -> Ranked:
    """Return all tracks that are near a track by their share of its pairs. A track and its neighbours are near."""
    if row < added.first:
        queries = [(row, 1.0)]
    else:
        place = row - added.first
        queries = [*zip(added.neighbours[place].tolist(), added.weights[place].tolist(), strict=True)]
    near = [np.array([row for row, _ in queries], dtype=np.int64)]
    shares = [np.array([weight for _, weight in queries])]
    for query, weight in queries:
        of_query = counts.neighbours(query)
        near.append(of_query[0])
        shares.append(of_query[1] * weight)
    rows, places = np.unique(np.concatenate(near), return_inverse=True)
    share: Float32 = np.bincount(places, np.concatenate(shares), len(rows)).astype(np.float32)
    at = np.minimum(np.searchsorted(rows, added.neighbours), len(rows) - 1)
    of_neighbours: Float32 = np.where(rows[at] == added.neighbours, share[at], np.float32(0)) * added.weights
    new: Float32 = of_neighbours.sum(axis=1)
    some = new > 0
    return merged(
        Ranked(rows[None], share[None]), Ranked(added.rows[None, some], new[None, some]), len(rows) + len(new)
    )


def merged(one: Ranked, other: Ranked, k: int) -> Ranked:
    """Return the k best of two rankings of different tracks. Of equal scores, those of `one` come first."""
    rows = np.concatenate([one.rows, other.rows], axis=1)
    scores = np.concatenate([one.scores, other.scores], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Ranked(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))
