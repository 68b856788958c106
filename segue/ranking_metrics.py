"""Ranking metrics for one target a session, from the target's rank; 1 is the best rank.

With a single relevant track a session, average precision is the reciprocal rank, so MAP@k = MRR@k (the paper's
Table 1 holds MAP@10 below HR@1, which no definition of MAP allows; docs/evaluation.md says more).

Ties: a target's rank is the mean of its best and worst possible rank, so a ranker that gives every track the same
score earns nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from segue.arrays import Float32, Float64, Int

CUTOFFS: Final = (1, 5, 10, 20)
# A list this long settles every metric at 20 or less: a target that ties with the list's last track has a mean rank
# of at least (1 + 101) / 2.
LIST_LENGTH: Final = 100
NOT_FOUND: Final = np.inf


def mean_rank(greater: Int, equal: Int) -> Float64:
    """Ranks from the numbers of other candidates that score above the target and the same. [n] -> [n] float64.

    A target whose score is no number is not even its own equal (`equal` is -1): it is not found.
    """
    ranks: Float64 = np.where(equal < 0, NOT_FOUND, 1.0 + greater + equal / 2.0)
    return ranks


def rank_in_list(rows: Int, scores: Float32, target: int) -> float:
    """The mean rank of `target` in a list of tracks, best first; NOT_FOUND where the list does not hold or settle it.

    `rows` and `scores` are [n]. Tracks that tie with the target share its rank. A tie that reaches the end of a list
    of LIST_LENGTH may go on behind it: the true mean rank is then beyond every cutoff.
    """
    where = np.flatnonzero(rows == target)
    if not len(where):
        return NOT_FOUND
    score = scores[where[0]]
    tied = scores == score
    if len(rows) >= LIST_LENGTH and tied[-1]:
        return NOT_FOUND
    return float(mean_rank((scores > score).sum(), tied.sum() - 1))


def hit(ranks: Float64, k: int) -> Float64:
    """HR@k, also Recall@k: 1 where the target is among the first k. [n] -> [n]."""
    return (ranks <= k).astype(np.float64)


def reciprocal_rank(ranks: Float64, k: int) -> Float64:
    """MRR@k (Voorhees, TREC-8 1999), and MAP@k for one target: 1 / rank within the first k, else 0. [n] -> [n]."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def ndcg(ranks: Float64, k: int) -> Float64:
    """NDCG@k (Jarvelin and Kekalainen, 2002) for one target: 1 / log2(rank + 1) within the first k, else 0. [n]."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


_RESAMPLES: Final = 1_000

METRICS: Final[dict[str, Callable[[Float64], Float64]]] = {
    **{f"HR@{k}": partial(hit, k=k) for k in CUTOFFS},
    "MAP@10": partial(reciprocal_rank, k=10),
    "MRR@10": partial(reciprocal_rank, k=10),
    "NDCG@10": partial(ndcg, k=10),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over sessions with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(values: Float64, rng: np.random.Generator, resamples: int = _RESAMPLES) -> Estimate | None:
    """The mean of per-session values and its percentile interval (Efron, 1979); None for no session."""
    if not len(values):
        return None
    low, high = np.quantile(list(_resampled_means(values, rng, resamples)), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def bootstrap_difference(first: Float64, second: Float64, rng: np.random.Generator) -> Estimate | None:
    """The difference of two groups' means, mean(first) - mean(second), each group resampled by itself."""
    if not len(first) or not len(second):
        return None
    means = zip(_resampled_means(first, rng, _RESAMPLES), _resampled_means(second, rng, _RESAMPLES), strict=True)
    low, high = np.quantile([a - b for a, b in means], [0.025, 0.975])
    return Estimate(float(first.mean() - second.mean()), float(low), float(high))


def _resampled_means(values: Float64, rng: np.random.Generator, resamples: int) -> Iterator[float]:
    # Few distinct values (0, 1/1, 1/2, ...) make a resample a draw from a multinomial: thousands of times fewer
    # random numbers than drawing every session.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
    yield from (drawn @ distinct / len(values)).tolist()
