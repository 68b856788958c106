"""Measure the recall of an index against exact search, and its search time."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from index.exact import ExactIndex, pair_scores
from segue.arrays import Float32, Int
from segue.catalogue import PAD_ROW
from segue.errors import BadOption
from segue.recommend import NearestTracks, Ranked

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
