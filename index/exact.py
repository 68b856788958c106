"""Exact search in NumPy, and exact scoring of the candidates of every other index.

The result depends only on the query and the embeddings, not on the batch, the blocks or the BLAS kernel. A matrix
product only finds candidates; the score of a pair is always computed by the same dot product, and equal scores are
ordered by row. NumPy's BLAS threads apply (OPENBLAS_NUM_THREADS); set 1 for a service with several workers.

Recall@k and the speed of other indexes are measured against exact search.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from segue.arrays import Bool, Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.errors import BadOption, BadRelease
from segue.recommend import NearestTracks, Ranked

QUERIES_AT_ONCE: Final = 256
_SCORES_AT_ONCE: Final = 4_000_000  # floats of one block of scores, 16 MB
_ROWS_AT_ONCE: Final = 65_536  # rows of one block of embeddings, so that the block of a single query stays in the cache
_FIRST_ROWS: Final = 4_096
_VALUES_AT_ONCE: Final = 8_000_000  # floats of gathered embeddings while pairs are scored, 32 MB


class ExactIndex:
    """Compares each query with every track, in less than about 200 MB besides the embeddings."""

    def __init__(self, embeddings: Float32) -> None:
        """`embeddings` [num_rows, dim] float32, possibly memory-mapped; row 0 is padding. Raises BadRelease on NaN."""
        self._embeddings = np.asarray(embeddings)  # slices of a memmap object cost more than of a plain view
        self._longest = _longest(self._embeddings)

    def search(self, queries: Float32, k: int) -> Ranked:
        """Return the k best tracks for each of `queries` [b, dim] float32; none for a query with NaN or infinity."""
        queries = validate_queries(queries, self._embeddings.shape[1])
        found = empty_result(len(queries), k)
        finite = finite_rows(queries)
        wanted = min(k, len(self._embeddings) - FIRST_TRACK_ROW)
        if wanted <= 0:
            return found
        for start in range(0, len(finite), QUERIES_AT_ONCE):
            lines = finite[start : start + QUERIES_AT_ONCE]
            best = self._search_some(queries[lines], wanted)
            found.rows[lines, :wanted], found.scores[lines, :wanted] = best
        return found

    def _search_some(self, queries: Float32, k: int) -> Ranked:
        """`queries` [b, dim] float32, b at most QUERIES_AT_ONCE, 1 <= k <= tracks."""
        best = empty_result(len(queries), k)
        # A float32 product of `dim` terms is off by less than dim * eps * |q| * |x|, by whatever kernel it is computed.
        doubt = 2 * queries.shape[1] * np.finfo(np.float32).eps * np.linalg.norm(queries, axis=1) * self._longest
        step = min(_ROWS_AT_ONCE, max(1, _SCORES_AT_ONCE // max(1, len(queries))))
        first = FIRST_TRACK_ROW
        while first < len(self._embeddings):
            # The first block is small: it only raises the threshold for the others.
            block = self._embeddings[first : first + (step if first > FIRST_TRACK_ROW else min(step, _FIRST_ROWS))]
            # [b, rows of the block]; for a lone query BLAS's matrix product is no faster than dot products.
            rough = queries @ block.T if len(queries) > 1 else np.vecdot(block, queries[0])[None]
            lines, rows = _candidates(rough, best.scores[:, -1], doubt, k)
            if len(lines):
                rows += first
                best = _merged(best, lines, rows, pair_scores(queries, lines, self._embeddings, rows))
            first += len(block)
        return best


def ranked(queries: Float32, rows: Int, embeddings: Float32, k: int) -> Ranked:
    """Return the k best of given candidates by exact score; equal scores are ordered by row.

    `queries` [b, dim] float32, `rows` [b, candidates] int64 without repetitions except PAD_ROW, which is ignored.
    """
    best = empty_result(len(queries), k)
    if not rows.size:
        return best
    lines = np.repeat(np.arange(len(rows)), rows.shape[1])
    scores = pair_scores(queries, lines, embeddings, rows.reshape(-1)).reshape(rows.shape)
    missing = (rows == PAD_ROW) | ~np.isfinite(scores)
    scores[missing] = -np.inf
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    kept = order.shape[1]
    best.scores[:, :kept] = np.take_along_axis(scores, order, axis=1)
    best.rows[:, :kept] = np.where(np.isneginf(best.scores[:, :kept]), PAD_ROW, np.take_along_axis(rows, order, axis=1))
    return best


def pair_scores(queries: Float32, lines: Int, embeddings: Float32, rows: Int) -> Float32:
    """Return the inner products of queries[lines[i]] and embeddings[rows[i]]. [pairs] float32.

    Each pair is one dot product, so that its score never depends on its neighbours (a matrix product's last bits do).
    """
    scores = np.empty(len(rows), dtype=np.float32)
    step = max(1, _VALUES_AT_ONCE // max(1, queries.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scores[part] = np.vecdot(embeddings[rows[part]], queries[lines[part]])
    return scores


def empty_result(batch: int, k: int) -> Ranked:
    """Return a result without tracks: rows [batch, k] int64 of PAD_ROW, scores [batch, k] float32 of -inf."""
    return Ranked(np.full((batch, k), PAD_ROW, dtype=np.int64), np.full((batch, k), -np.inf, dtype=np.float32))


def validate_queries(queries: Float32, dimension: int) -> Float32:
    """Return the queries as contiguous float32. Raises ValueError unless they are [b, dimension]."""
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ValueError(f"queries have the shape {queries.shape}, expected [batch, {dimension}]")
    return np.ascontiguousarray(queries, dtype=np.float32)


def finite_rows(queries: Float32) -> Int:
    """Return the indices of the queries without NaN or infinity. [n] int64.

    The others get no tracks, so that one invalid query does not fail its batch.
    """
    return np.flatnonzero(np.isfinite(queries).all(axis=1))


def _longest(embeddings: Float32) -> float:
    """The largest Euclidean norm of a track's embedding, in blocks."""
    longest = 0.0
    for first in range(FIRST_TRACK_ROW, len(embeddings), _ROWS_AT_ONCE):
        block = embeddings[first : first + _ROWS_AT_ONCE]
        squares = np.vecdot(block, block)
        if not np.isfinite(squares).all():
            row = first + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise BadRelease(f"the item embedding of row {row} is not finite: train the release again")
        longest = max(longest, float(np.sqrt(squares.max())))
    return longest


def _candidates(rough: Float32, bar: Float32, doubt: Float32, k: int) -> tuple[Int, Int]:
    """Lines and columns of a block that may belong to the k best. `rough` [b, step], `bar` and `doubt` [b] float32.

    `bar` is the k-th best score so far. If many scores of a block pass, the block's own k-th best filters them.
    """
    passing: Bool = rough >= (bar - doubt)[:, None]
    if rough.shape[1] > k and np.count_nonzero(passing) > 4 * k * len(rough):
        own = np.partition(rough, -k, axis=1)[:, -k]
        # Both sides of this comparison are approximate, hence twice the doubt.
        passing &= rough >= (own - 2 * doubt)[:, None]
    lines, columns = np.divmod(np.flatnonzero(passing), rough.shape[1])  # np.nonzero is slow on two dimensions
    return lines, columns


def _merged(best: Ranked, lines: Int, rows: Int, scores: Float32) -> Ranked:
    """Merge the k best so far with further pairs (line, row, score), each [pairs]."""
    batch, k = best.rows.shape
    all_lines = np.concatenate([np.repeat(np.arange(batch), k), lines])
    all_rows = np.concatenate([best.rows.reshape(-1), rows])
    all_scores = np.concatenate([best.scores.reshape(-1), scores])
    order = np.lexsort((all_rows, -all_scores, all_lines))
    starts = np.searchsorted(all_lines[order], np.arange(batch))
    kept = order[starts[:, None] + np.arange(k)]
    return Ranked(all_rows[kept], all_scores[kept])


TOLERANCE: Final = 1e-5
RECALL_K: Final = 20
MOST_QUERIES: Final = 2_000
_TIMED_QUERIES: Final = 200
_TIMED_EXACT_QUERIES: Final = 20


def recall_at_k(found: Int, exact: Ranked, queries: Float32, embeddings: Float32) -> float:
    """Recall@k: the mean, over queries, of the share of the k best tracks that were found; k is the width of `exact`.

    A found track counts if its exact score reaches the k-th best exact score less TOLERANCE (relative above 1), so
    tracks that tie for the last place are interchangeable. A track counts once; with fewer than k tracks in the
    catalogue the share is of those. The recall is 1.0 without queries or tracks.

    `found` [b, n] int64, `exact` [b, k] from ExactIndex, `queries` [b, dim] and `embeddings` [num_rows, dim] float32.
    Source: Aumueller, Bernhardsson, Faithfull, "ANN-Benchmarks", 2017, https://arxiv.org/abs/1807.05614 (their
    epsilon is TOLERANCE).
    """
    shares = []
    for line, query in enumerate(queries):
        wanted = int(np.count_nonzero(exact.rows[line] != PAD_ROW))
        if not wanted:
            continue
        rows = np.unique(found[line])
        rows = rows[rows != PAD_ROW]
        scores = pair_scores(query[None], np.zeros(len(rows), dtype=np.int64), embeddings, rows)
        last = float(exact.scores[line, wanted - 1])
        reached = int(np.count_nonzero(scores >= last - TOLERANCE * max(1.0, abs(last))))
        shares.append(min(reached, wanted) / wanted)
    return float(np.mean(shares)) if shares else 1.0


@dataclass(frozen=True)
class QuerySet:
    """Queries [n, dim] with their exact answers, and the embeddings [num_rows, dim] that were searched."""

    queries: Float32
    answers: Ranked
    embeddings: Float32

    def recall(self, index: NearestTracks) -> float:
        """Return the recall@RECALL_K of an index."""
        found = index.search(self.queries, RECALL_K).rows
        return recall_at_k(found, self.answers, self.queries, self.embeddings)

    def ms(self, index: NearestTracks, count: int = _TIMED_QUERIES) -> float:
        """Return the median milliseconds of a single query over the first `count` ones, after one warm-up query."""
        index.search(self.queries[:1], RECALL_K)
        taken = []
        for i in range(min(count, len(self.queries))):
            started = time.perf_counter()
            index.search(self.queries[i : i + 1], RECALL_K)
            taken.append(time.perf_counter() - started)
        return 1000 * float(np.median(taken))


@dataclass(frozen=True)
class RecallBenchmark:
    """The queries that tune an index, and held-out queries for the reported figures."""

    tuning: QuerySet
    test_queries: QuerySet
    exact: ExactIndex

    @classmethod
    def of(cls, queries: Float32, embeddings: Float32) -> "RecallBenchmark":
        """Split `queries` [n, dim] into two halves and answer them exactly. Raises BadOption for invalid queries."""
        expected = embeddings.shape[1]
        if queries.ndim != 2 or queries.shape[1] != expected or not len(queries) or not np.isfinite(queries).all():
            raise BadOption(
                f"an index is tuned with finite queries of the shape [n, {expected}], n at least 1; "
                f"these have {queries.shape}: does the encoder belong to this release?"
            )
        exact = ExactIndex(embeddings)
        # Evenly from the whole, since neighbouring queries may come from one session.
        queries = queries[np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).astype(np.int64)]
        answers = exact.search(queries, RECALL_K)
        halves = (slice(0, None, 2), slice(1, None, 2)) if len(queries) > 1 else (slice(None), slice(None))
        tuning, test_queries = (
            QuerySet(queries[half], Ranked(answers.rows[half], answers.scores[half]), embeddings) for half in halves
        )
        return cls(tuning, test_queries, exact)

    @cached_property
    def exact_ms(self) -> float:
        """Milliseconds of one query with exact search on CPU."""
        return self.test_queries.ms(self.exact, _TIMED_EXACT_QUERIES)
