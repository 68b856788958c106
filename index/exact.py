"""Exact nearest-track search in NumPy, exact scoring of candidates, and the recall of approximate indexes.

The result of a search depends only on the query and the embeddings. The batch size, the block size and the BLAS kernel
have no effect, because a matrix product only selects candidates. The score of each candidate is computed separately, by
a dot product. Equal scores are ordered by row. NumPy uses the number of threads in OPENBLAS_NUM_THREADS. Set 1 for a
service with several workers.

Exact search is the reference for the recall@k and the speed of other indexes.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from segue.arrays import Bool, Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.errors import BadOption, BadRelease
from segue.filters import Allowed
from segue.recommend import NearestTracks, Ranked

QUERIES_AT_ONCE: Final = 256
_SCORES_AT_ONCE: Final = 4_000_000  # floats in one block of scores, 16 MB
_ROWS_AT_ONCE: Final = (
    65_536  # rows in one block of embeddings: a block fits in the CPU cache while one query is scored
)
_FILTERED_AT_ONCE: Final = 16_384  # allowed rows whose embeddings are gathered at once, 8 MB of 128 dimensions
_FIRST_ROWS: Final = 4_096  # rows in the first block
_VALUES_AT_ONCE: Final = 8_000_000  # floats of embeddings gathered at once to score pairs, 32 MB


class ExactIndex:
    """Searches by comparing each query with every track. Uses at most about 200 MB in addition to the embeddings."""

    def __init__(self, embeddings: Float32) -> None:
        """Create the index over `embeddings` [num_rows, dim] float32, which may be memory-mapped. Row 0 is padding.

        Raises BadRelease if an embedding is NaN or infinite.
        """
        self._embeddings = np.asarray(embeddings)  # slicing a plain view is cheaper than slicing a memmap object
        self._longest = _longest(self._embeddings)

    def search(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        """Return the k best tracks for each of `queries` [b, dim] float32, among the allowed ones.

        A query with NaN or infinity gets no tracks: its rows are PAD_ROW and its scores -inf.
        """
        queries = validate_queries(queries, self._embeddings.shape[1])
        if allowed is not None:
            return best_of(queries, allowed.rows, self._embeddings, k)
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
        """Search `queries` [b, dim] float32, with b at most QUERIES_AT_ONCE and 1 <= k <= tracks."""
        best = empty_result(len(queries), k)
        # The error of a float32 dot product of `dim` terms is less than dim * eps * |q| * |x| with any kernel.
        doubt = 2 * queries.shape[1] * np.finfo(np.float32).eps * np.linalg.norm(queries, axis=1) * self._longest
        step = min(_ROWS_AT_ONCE, max(1, _SCORES_AT_ONCE // max(1, len(queries))))
        first = FIRST_TRACK_ROW
        while first < len(self._embeddings):
            # The first block is small. Its scores raise the threshold for the following blocks.
            block = self._embeddings[first : first + (step if first > FIRST_TRACK_ROW else min(step, _FIRST_ROWS))]
            # `rough` is [b, rows of the block]. For a single query, a matrix product is no faster than dot products.
            rough = queries @ block.T if len(queries) > 1 else np.vecdot(block, queries[0])[None]
            lines, rows = _candidates(rough, best.scores[:, -1], doubt, k)
            if len(lines):
                rows += first
                best = _merged(best, lines, rows, pair_scores(queries, lines, self._embeddings, rows))
            first += len(block)
        return best


def ranked(queries: Float32, rows: Int, embeddings: Float32, k: int) -> Ranked:
    """Return the k best of given candidates by exact score. Equal scores are ordered by row.

    Args:
        queries: [b, dim] float32.
        rows: [b, candidates] int64, the distinct candidates of each query. PAD_ROW may repeat and is ignored.
        embeddings: [num_rows, dim] float32.
        k: The number of tracks to return per query.

    Returns:
        Rows [b, k] int64 and scores [b, k] float32. Missing tracks are PAD_ROW with score -inf.

    """
    best = empty_result(len(queries), k)
    if not rows.size:
        return best
    scores = np.empty(rows.shape, dtype=np.float32)
    step = max(1, _VALUES_AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        np.vecdot(embeddings[rows[part]], queries[part, None], out=scores[part])  # as in pair_scores
    scores[(rows == PAD_ROW) | ~np.isfinite(scores)] = -np.inf
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    kept = np.arange(len(rows))[:, None], order
    best.scores[:, : order.shape[1]] = found = scores[kept]
    best.rows[:, : order.shape[1]] = np.where(np.isneginf(found), PAD_ROW, rows[kept])
    return best


def best_of(queries: Float32, rows: Int, embeddings: Float32, k: int) -> Ranked:
    """Return the k best of the same candidates for every query. Equal scores are ordered by row.

    `queries` [b, dim] float32, `rows` [candidates] int64 ascending, `embeddings` [num_rows, dim] float32. Rows and
    scores are [b, k], and PAD_ROW with -inf after the last track.
    """
    best = empty_result(len(queries), k)
    if k <= 0:
        return best
    finite = finite_rows(queries)
    for start in range(0, len(rows), _FILTERED_AT_ONCE):
        some = rows[start : start + _FILTERED_AT_ONCE]
        block = embeddings[some]
        for line in finite.tolist():
            scores = np.vecdot(block, queries[line])
            kept = np.flatnonzero(scores >= best.scores[line, -1])
            if len(kept) > k:
                own = scores[kept]
                kept = kept[own >= np.partition(own, -k)[-k]]
            found_rows = np.concatenate([best.rows[line], some[kept]])
            found_scores = np.concatenate([best.scores[line], scores[kept]])
            order = np.lexsort((found_rows, -found_scores))[:k]
            missing = np.isneginf(found_scores[order])
            best.rows[line], best.scores[line] = np.where(missing, PAD_ROW, found_rows[order]), found_scores[order]
    return best


def pair_scores(queries: Float32, lines: Int, embeddings: Float32, rows: Int) -> Float32:
    """Return the inner products of queries[lines[i]] and embeddings[rows[i]]. [pairs] float32.

    Each pair is a separate dot product, so its score does not depend on the other pairs. In a matrix product, the last
    bits of a score can depend on them.
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

    Invalid queries get no tracks. One invalid query therefore does not make its batch fail.
    """
    return np.flatnonzero(np.isfinite(queries).all(axis=1))


def _longest(embeddings: Float32) -> float:
    """Return the largest Euclidean norm of all track embeddings. Raises BadRelease if an embedding is not finite."""
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
    """Return the row and column indices of all scores of a block that may be among the k best of their query.

    `rough` [b, step] float32 are approximate scores with an error of at most `doubt` [b] float32. `bar` [b] float32 is
    the k-th best score so far. If many scores pass, the k-th best score of the block is an additional threshold.
    """
    passing: Bool = rough >= (bar - doubt)[:, None]
    if rough.shape[1] > k and np.count_nonzero(passing) > 4 * k * len(rough):
        own = np.partition(rough, -k, axis=1)[:, -k]
        # Both sides of the comparison are approximate, so the tolerance is twice the error bound.
        passing &= rough >= (own - 2 * doubt)[:, None]
    lines, columns = np.divmod(np.flatnonzero(passing), rough.shape[1])  # np.nonzero is slow on two-dimensional arrays
    return lines, columns


def _merged(best: Ranked, lines: Int, rows: Int, scores: Float32) -> Ranked:
    """Merge further pairs into the k best tracks so far. `lines`, `rows` and `scores` are [pairs] each."""
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
    """Return the recall@k: the share of the k best tracks that were found, averaged over queries.

    The width of `exact` is k. A found track counts if its exact score is at least the k-th best exact score minus
    TOLERANCE. Tracks that tie for the last place are therefore interchangeable. For scores with an absolute value above
    1, TOLERANCE is relative. Repetitions of a track count once. If the catalogue has fewer than k tracks, the share
    refers to all its tracks. Without queries or tracks the recall is 1.0.

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
    """Queries [n, dim] float32 with their exact results [n, RECALL_K], and the searched embeddings [num_rows, dim]."""

    queries: Float32
    answers: Ranked
    embeddings: Float32

    def recall(self, index: NearestTracks) -> float:
        """Return the recall@RECALL_K of an index."""
        found = index.search(self.queries, RECALL_K).rows
        return recall_at_k(found, self.answers, self.queries, self.embeddings)

    def ms(self, index: NearestTracks, count: int = _TIMED_QUERIES) -> float:
        """Return the median search time of a single query in milliseconds.

        The first `count` queries are timed, after one warm-up query.
        """
        index.search(self.queries[:1], RECALL_K)
        taken = []
        for i in range(min(count, len(self.queries))):
            started = time.perf_counter()
            index.search(self.queries[i : i + 1], RECALL_K)
            taken.append(time.perf_counter() - started)
        return 1000 * float(np.median(taken))


@dataclass(frozen=True)
class RecallBenchmark:
    """Queries for tuning an index, and held-out queries for the reported recall and times."""

    tuning: QuerySet
    test_queries: QuerySet
    exact: ExactIndex

    @classmethod
    def of(cls, queries: Float32, embeddings: Float32) -> "RecallBenchmark":
        """Split `queries` [n, dim] float32 into tuning and held-out queries, and search them exactly.

        At most MOST_QUERIES are used. A single query is used for both. Raises BadOption if `queries` is empty, has a
        wrong shape or is not finite.
        """
        expected = embeddings.shape[1]
        if queries.ndim != 2 or queries.shape[1] != expected or not len(queries) or not np.isfinite(queries).all():
            raise BadOption(
                f"an index is tuned with finite queries of the shape [n, {expected}], n at least 1; "
                f"these have {queries.shape}: does the encoder belong to this release?"
            )
        exact = ExactIndex(embeddings)
        # Evenly spaced, because neighbouring queries may come from the same session.
        queries = queries[np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).astype(np.int64)]
        answers = exact.search(queries, RECALL_K)
        halves = (slice(0, None, 2), slice(1, None, 2)) if len(queries) > 1 else (slice(None), slice(None))
        tuning, test_queries = (
            QuerySet(queries[half], Ranked(answers.rows[half], answers.scores[half]), embeddings) for half in halves
        )
        return cls(tuning, test_queries, exact)

    @cached_property
    def exact_ms(self) -> float:
        """Return the median time of one exact search on CPU, in milliseconds."""
        return self.test_queries.ms(self.exact, _TIMED_EXACT_QUERIES)
