"""Ranking metrics for sessions with one target track each. They are computed from the rank of the target; 1 is best.

With a single relevant track per session, average precision equals the reciprocal rank, so MAP@k = MRR@k. Table 1 of the
paper reports MAP@10 below HR@1, which is impossible under any definition of MAP (docs/evaluation.md).

Ties: the rank of a target is the mean of its best and worst possible rank, so a ranker that gives every track the same
score gets no credit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from segue.arrays import Float32, Float64, Int

CUTOFFS: Final = (1, 5, 10, 20)
# Lists of 100 tracks determine all metrics up to a cutoff of 20, even with ties: if a target ties with the last track
# of the list, its mean rank is at least (1 + 101) / 2, which is beyond every cutoff.
LIST_LENGTH: Final = 100
NOT_FOUND: Final = np.inf


def mean_rank(greater: Int, equal: Int) -> Float64:
    """Return the mean rank of each target. [n] int64 -> [n] float64.

    `greater` is the number of other candidates with a higher score than the target, and `equal` the number of other
    candidates with the same score. A target with the score NaN does not equal itself, so its `equal` is -1, and its
    rank is NOT_FOUND.
    """
    ranks: Float64 = np.where(equal < 0, NOT_FOUND, 1.0 + greater + equal / 2.0)
    return ranks


def rank_in_list(rows: Int, scores: Float32, target: int) -> float:
    """Return the mean rank of `target` in a ranked list, or NOT_FOUND if the list does not contain the target.

    `rows` [n] int64 and `scores` [n] float32 are the list, best track first. Tracks with the same score share their
    mean rank. If the target ties with the last track of a list of LIST_LENGTH, more tracks outside the list may have
    the same score. The true mean rank is beyond every cutoff in that case, so the result is also NOT_FOUND.
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
    """Return HR@k for each target: 1 if its rank is at most k, else 0. With one target, HR@k equals Recall@k.

    `ranks` [n] float64. Returns [n] float64.
    """
    return (ranks <= k).astype(np.float64)


def reciprocal_rank(ranks: Float64, k: int) -> Float64:
    """Return MRR@k (Voorhees, TREC-8 1999) for each target: 1 / rank if the rank is at most k, else 0.

    With one target per session, MRR@k equals MAP@k. `ranks` [n] float64. Returns [n] float64.
    """
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def ndcg(ranks: Float64, k: int) -> Float64:
    """Return NDCG@k (Jarvelin and Kekalainen, 2002) for each target: 1 / log2(rank + 1) if rank <= k, else 0.

    `ranks` [n] float64. Returns [n] float64.
    """
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
    """An estimate (a mean or a difference of means) with its 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(values: Float64, rng: np.random.Generator, resamples: int = _RESAMPLES) -> Estimate | None:
    """Return the mean of per-session values with its bootstrap percentile interval (Efron, 1979).

    `values` [sessions] float64. Returns None if there are no sessions.
    """
    if not len(values):
        return None
    low, high = np.quantile(list(_resampled_means(values, rng, resamples)), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def bootstrap_difference(first: Float64, second: Float64, rng: np.random.Generator) -> Estimate | None:
    """Return mean(first) - mean(second) with its bootstrap interval. Each group is resampled independently.

    `first` and `second` are [n] float64; their lengths may differ. Returns None if a group is empty.
    """
    if not len(first) or not len(second):
        return None
    means = zip(_resampled_means(first, rng, _RESAMPLES), _resampled_means(second, rng, _RESAMPLES), strict=True)
    low, high = np.quantile([a - b for a, b in means], [0.025, 0.975])
    return Estimate(float(first.mean() - second.mean()), float(low), float(high))


def _resampled_means(values: Float64, rng: np.random.Generator, resamples: int) -> Iterator[float]:
    # The values are few distinct numbers (0, 1/1, 1/2, ...). A multinomial sample of their counts therefore replaces
    # drawing every session, with thousands of times fewer random numbers.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
    yield from (drawn @ distinct / len(values)).tolist()
