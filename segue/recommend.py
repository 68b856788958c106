"""The recommendation step: rank the next tracks for sessions. The service and the evaluator use the same code.

This module does not depend on HTTP, Redis, ONNX or FAISS: the encoder and the index are parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.sessions import ALLOW_REPEATS, RepeatPolicy
from segue.window import Sessions, Windows, to_windows

Source: TypeAlias = Literal["model", "popularity"]


class Ranked(NamedTuple):
    """Ranked tracks in descending order of score, one row of both arrays per query."""

    rows: Int  # [batch, k] int64, PAD_ROW after the last track
    scores: Float32  # [batch, k] float32, -inf after the last track


class QueryEncoder(Protocol):
    """Turns windows into query vectors in the item space."""

    def encode(self, windows: Windows) -> Float32:
        """Return a query vector for each window. [batch, dimension] float32."""
        ...


class NearestTracks(Protocol):
    """Finds the tracks whose embeddings have the largest inner product with a query."""

    def search(self, queries: Float32, k: int) -> Ranked:
        """Return the k best tracks for each query in `queries` [batch, dimension] float32.

        An approximate index may miss some of the best tracks and may find fewer than k tracks.
        """
        ...


class Ranker(Protocol):
    """Ranks tracks for windows. Examples are an encoder with an index, popularity, and a Markov chain."""

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window, or all tracks if there are fewer. Rows and scores [batch, k]."""
        ...

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        ...


class EncoderRanker:
    """Ranks by inner product between the encoder's query and the item embeddings, through an index."""

    def __init__(self, encoder: QueryEncoder, index: NearestTracks, exact: NearestTracks, embeddings: Float32) -> None:
        """Create a ranker that falls back to `exact` if `index` finds fewer than k tracks for a query.

        `embeddings` [num_rows, dimension] float32 are the item embeddings.
        """
        self._encoder = encoder
        self._index = index
        self._exact = exact
        self._embeddings = embeddings

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window. Queries for which the index finds too few use exact search."""
        queries = self._encoder.encode(windows)
        k = min(k, len(self._embeddings) - FIRST_TRACK_ROW)
        found = self._index.search(queries, k)
        incomplete = np.flatnonzero(found.rows[:, -1] == PAD_ROW) if k else np.empty(0, dtype=np.int64)
        if len(incomplete):
            full = self._exact.search(queries[incomplete], k)
            rows, scores = found.rows.copy(), found.scores.copy()
            rows[incomplete], scores[incomplete] = full
            found = Ranked(rows, scores)
        return found

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the inner product of each query and the embedding of each candidate track.

        `rows` [batch, candidates] int64 are the candidates. Returns [batch, candidates] float32.
        """
        queries = self._encoder.encode(windows)
        scores: Float32 = np.einsum("bd,bcd->bc", queries, self._embeddings[rows])
        return scores


class PopularityRanker:
    """Ranks tracks by their number of plays, then by row; every session gets the same list."""

    def __init__(self, plays: Int | Float32, order: Int | None = None) -> None:
        """Create a ranker from play counts `plays` [num_rows], indexed by row.

        `order` [tracks] contains the rows by descending play count. It is computed if it is None.
        """
        self._plays = plays.astype(np.float32, copy=False)
        self._order = order if order is not None else np.argsort(-plays[FIRST_TRACK_ROW:], kind="stable") + 1

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k most played tracks for every window; the score is the number of plays."""
        best = np.broadcast_to(self._order[:k].astype(np.int64), (len(windows), min(k, len(self._order))))
        return Ranked(best, self._plays[best])

    def scores(self, windows: Windows, rows: Int) -> Float32:  # noqa: ARG002 (every session gets the same scores)
        """Return the play counts of the given tracks. `rows` [batch, candidates] int64 -> the same shape, float32."""
        return self._plays[rows]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended tracks for one session."""

    source: Source
    rows: Int  # [n] int64, best first; n is k unless the catalogue has fewer tracks left
    scores: Float32  # [n] float32
    window_plays: int  # plays in the window that were not skipped
    window_skips: int  # skipped plays in the window


@dataclass(frozen=True, slots=True)
class Recommender:
    """Recommends with `ranker`. Sessions without a play of a catalogue track get the most popular tracks instead."""

    ranker: Ranker
    popularity: PopularityRanker
    window: int

    def recommend(
        self,
        sessions: Sessions,
        k: int | Sequence[int],
        excluded: Sequence[Int] | None = None,
        *,
        repeat: RepeatPolicy | Sequence[RepeatPolicy] = ALLOW_REPEATS,
    ) -> list[Recommendation]:
        """Recommend the next tracks for each session, best first.

        `excluded` contains, for each session, the rows to exclude. `repeat` says which tracks of the session itself to
        exclude. `k` and `repeat` are either one value for all sessions or one value per session. A list has fewer than
        k tracks only if the catalogue has fewer tracks that are not excluded. The result for a session does not depend
        on the other sessions in the batch.
        """
        count = len(sessions)
        k_per_session = [k] * count if isinstance(k, int) else k
        policies = [repeat] * count if isinstance(repeat, RepeatPolicy) else repeat
        excluded_rows = [_excluded_rows(sessions, i, excluded, policies[i]) for i in range(count)]
        fetch_sizes = np.array(
            [_overfetch(k_per_session[i], len(excluded_rows[i])) for i in range(count)], dtype=np.int64
        )
        windows = to_windows(sessions, self.window)
        ranked: list[tuple[Source, Int, Float32]] = [("popularity", _NO_ROWS, _NO_SCORES)] * count
        for source, ranker, usable in self._by_source(windows):
            for size in np.unique(fetch_sizes[usable]).tolist():
                which = usable[fetch_sizes[usable] == size]
                found = ranker.rank(windows.select(which), size)
                for line, i in enumerate(which.tolist()):
                    ranked[i] = (source, found.rows[line], found.scores[line])
        skips = windows.skipped.sum(axis=1)
        plays = ((windows.tracks != PAD_ROW).sum(axis=1) - skips).tolist()
        return [
            Recommendation(source, *_top_k(k_per_session[i], rows, scores, excluded_rows[i]), plays[i], skip)
            for i, ((source, rows, scores), skip) in enumerate(zip(ranked, skips.tolist(), strict=True))
        ]

    def scores(self, sessions: Sessions, rows: Int) -> Float32:
        """Return the scores of the given tracks for each session.

        `rows` [batch, candidates] int64 are the tracks. Returns [batch, candidates] float32.
        """
        windows = to_windows(sessions, self.window)
        result = np.empty(rows.shape, dtype=np.float32)
        for _, ranker, which in self._by_source(windows):
            result[which] = ranker.scores(windows.select(which), rows[which])
        return result

    def _by_source(self, windows: Windows) -> Iterator[tuple[Source, Ranker, Int]]:
        """Yield source, ranker and window indices: the model for windows with a known track, popularity for others."""
        usable = (windows.tracks != PAD_ROW).any(axis=1)
        assignments: tuple[tuple[Source, Ranker, Int], ...] = (
            ("model", self.ranker, np.flatnonzero(usable)),
            ("popularity", self.popularity, np.flatnonzero(~usable)),
        )
        yield from (assignment for assignment in assignments if len(assignment[2]))


_NO_ROWS: Int = np.empty(0, dtype=np.int64)
_NO_SCORES: Float32 = np.empty(0, dtype=np.float32)
_MIN_FETCH: Final = 48  # enough for k = 20 and a window of 20 excluded plays


def _excluded_rows(sessions: Sessions, i: int, excluded: Sequence[Int] | None, repeat: RepeatPolicy) -> set[Row]:
    """Return the rows that must not be recommended to session i."""
    excluded_rows: set[Row] = set(excluded[i].tolist()) if excluded is not None else set()
    if repeat.plays:
        start, end = sessions.offsets[i : i + 2].tolist()
        excluded_rows.update(sessions.rows[start + repeat.start(end - start) : end].tolist())
    excluded_rows.discard(PAD_ROW)
    return excluded_rows


def _overfetch(k: int, excluded: int) -> int:
    """Return how many tracks to rank so that at least k tracks remain after `excluded` rows are removed.

    The result is rounded up to one of a few sizes, so that sessions with similar needs share one search.
    """
    if not excluded:
        return k
    size = _MIN_FETCH
    while size < k + excluded:
        size *= 2
    return size


def _top_k(k: int, rows: Int, scores: Float32, excluded_rows: set[Row]) -> tuple[Int, Float32]:
    """Return the rows and scores of the first k tracks of a ranking that are not excluded."""
    if not excluded_rows:
        rows, scores = rows[:k], scores[:k]
        keep = rows != PAD_ROW
        return rows[keep], scores[keep]
    kept = [i for i, row in enumerate(rows.tolist()) if row != PAD_ROW and row not in excluded_rows][:k]
    return rows[kept], scores[kept]
