"""Measures of skip learning that a ranker cannot improve by doing harm. They are pure functions of arrays.

"Hit rate of played minus skipped targets" (the raw gap) has two faults. A skip is mostly a state of the listener, so
played and skipped targets come from different kinds of sessions. And a re-ranker can widen the gap by lowering hits in
sessions in which skips are likely, without knowledge of any track. The matched gap compares targets of sessions in the
same state. The permuted control shows what a re-ranker gains if its knowledge of tracks is destroyed.

docs/evaluation.md explains the measures. training.evaluation.session_state groups the targets by the state of their
sessions, and training.evaluation.skip_evaluation applies the measures to a release.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from segue.arrays import Bool, Float64, Int
from segue.ranking_metrics import METRICS, NOT_FOUND, Estimate, mean_rank

MEASURED: Final = ("HR@1", "HR@10", "MRR@10")
# (kind of group, whether a target is in it): the name of the group. skip_evaluation.group_members has the meaning.
GROUP_NAMES: Final = {
    ("pair_seen", True): "pair_seen",
    ("pair_seen", False): "pair_unseen",
    ("after_skip", False): "after_play",
    ("after_skip", True): "after_skip",
    ("repeat", True): "repeat",
    ("repeat", False): "new",
}
_RESAMPLES: Final = 1_000
_CHUNK: Final = 8_000_000  # resampled counts at a time, 64 MB
_LEAST_PROBABILITY: Final = 1e-9


def metric_values(ranks: Float64) -> Float64:
    """Return the value of each metric of MEASURED for each target. `ranks` [n] float64 -> [n, 3] float64."""
    return np.column_stack([METRICS[metric](ranks) for metric in MEASURED])


def matched_gap(values: Float64, skipped: Bool, strata: Int) -> Float64:
    """Return the mean of played minus skipped targets within strata of the same session state. [columns] float64.

        gap = sum_j n_j (mean over P_j - mean over S_j) / sum_j n_j,      n_j = min(|P_j|, |S_j|)

    P_j and S_j are the played and the skipped targets of stratum j. A stratum without one of them has n_j = 0. The
    estimator is stratification on a propensity score (Rosenbaum and Rubin, 1984,
    https://doi.org/10.1080/01621459.1984.10478078), weighted by the smaller side. `values` [n, columns] float64,
    `skipped` [n] bool, `strata` [n] int64. The raw gap is the case of a single stratum. NaN if no stratum has both.

    The gap is linear in `values`: for two systems on the same targets, the difference of their gaps equals the gap of
    the differences of their values.
    """
    cells = 2 * strata + skipped
    size = 2 * (int(strata.max()) + 1) if len(strata) else 2
    counts = np.bincount(cells, minlength=size)
    sums: Float64 = np.stack([np.bincount(cells, weights=column, minlength=size) for column in values.T], axis=-1)
    return _gap(counts.astype(np.float64), sums)


def _gap(counts: Float64, sums: Float64) -> Float64:
    """`counts` [..., 2 strata] and `sums` [..., 2 strata, columns], played before skipped -> [..., columns]."""
    means = sums / np.maximum(counts, 1)[..., None]
    matched = np.minimum(counts[..., 0::2], counts[..., 1::2])
    gaps = means[..., 0::2, :] - means[..., 1::2, :]
    with np.errstate(invalid="ignore"):
        found: Float64 = (matched[..., None] * gaps).sum(axis=-2) / matched.sum(axis=-1)[..., None]
    return found


def bootstrap_gap(values: Float64, skipped: Bool, strata: Int, seed: int = 0) -> list[Estimate] | None:
    """Return the matched gap of each column with a 95 % bootstrap interval over questions.

    A question is resampled with its values, outcome and stratum. The classifier and the borders of the strata are
    held fixed, so the interval excludes their uncertainty. All columns share the resamples. For the paired interval of
    a difference, pass the differences of the values. Returns None if no stratum has played and skipped targets.
    """
    observed = matched_gap(values, skipped, strata)
    if np.isnan(observed).any():
        return None
    # Values are few distinct numbers. A multinomial sample of equal questions replaces drawing every question.
    lines, times = np.unique(np.column_stack([2 * strata + skipped, values]), axis=0, return_counts=True)
    cells, starts = np.unique(lines[:, 0].astype(np.int64), return_index=True)
    size = 2 * (int(strata.max()) + 1)
    rng, gaps = np.random.default_rng(seed), []
    step = max(1, min(_RESAMPLES, _CHUNK // len(lines)))
    for _ in range(0, _RESAMPLES, step):
        drawn = rng.multinomial(len(values), times / len(values), size=step)
        counts, sums = np.zeros((step, size)), np.zeros((step, size, values.shape[1]))
        counts[:, cells] = np.add.reduceat(drawn, starts, axis=1)
        for column in range(values.shape[1]):
            sums[:, cells, column] = np.add.reduceat(drawn * lines[:, 1 + column], starts, axis=1)
        gaps.append(_gap(counts, sums))
    low, high = np.nanquantile(np.concatenate(gaps), [0.025, 0.975], axis=0)
    return [Estimate(float(v), float(a), float(b)) for v, a, b in zip(observed, low, high, strict=True)]


def reranked(log_next: Float64, play: Float64, caution: float) -> Float64:
    """Return log p_next + caution * log p_play of each candidate. [questions, candidates] float64.

    `log_next` [questions, candidates] float64 are the base scores, -inf for padding, and `play` of the same shape the
    probabilities that a candidate is played. A probability below 1e-9 counts as 1e-9. `caution` is at least 0.
    """
    return log_next + caution * np.log(np.maximum(play, _LEAST_PROBABILITY))


def permuted(play: Float64, present: Bool, rng: np.random.Generator) -> Float64:
    """Shuffle the play probabilities among the candidates of each list. [questions, candidates] float64.

    Each list has its own permutation. Candidates that are not `present` [questions, candidates] bool keep their value.
    """
    order = np.argsort(np.where(present, rng.random(play.shape), np.inf), axis=1)
    places = np.argsort(~present, axis=1, kind="stable")  # the present candidates first, then the padding
    found = np.empty_like(play)
    np.put_along_axis(found, places, np.take_along_axis(play, order, axis=1), axis=1)
    return np.where(present, found, play)


def ranks_among(scores: Float64, targets: Int) -> Float64:
    """Return the mean rank of each target among its candidates, NOT_FOUND if it is none of them. [questions] float64.

    `scores` [questions, candidates] float64, `targets` [questions] int64 the column of the target, or -1. Tied
    candidates share their mean rank. A list needs at least as many candidates as the largest cutoff.
    """
    own = scores[np.arange(len(scores)), np.maximum(targets, 0)][:, None]
    ranks = mean_rank((scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1)
    return np.where(targets < 0, NOT_FOUND, ranks)


@dataclass(frozen=True)
class Control:
    """A re-ranking and its permuted control. Each list has one estimate for each metric of MEASURED."""

    real: Float64  # [questions] float64, ranks
    control: Float64  # [questions] float64, ranks with permuted play probabilities
    raw: tuple[list[Estimate] | None, list[Estimate] | None]  # real, permuted
    matched: tuple[list[Estimate] | None, list[Estimate] | None]  # real, permuted
    effect: list[Estimate] | None  # matched gap, real - permuted


def permuted_control(
    log_next: Float64, play: Float64, targets: Int, outcome: tuple[Bool, Int], caution: float, seed: int = 0
) -> Control:
    """Measure what the knowledge of tracks in `play` adds to a re-ranking: its matched gap minus that of its control.

        effect = matched gap(log p_next + caution log p_play) - matched gap(the same, p_play permuted in each list)

    `log_next`, `play` and `targets` are as in `reranked` and `ranks_among`. `outcome` has the skip flags [questions]
    bool and the strata [questions] int64. The interval is a paired bootstrap over questions for one permutation.
    """
    skipped, strata = outcome
    control = permuted(play, np.isfinite(log_next), np.random.default_rng(seed))
    ranks = [ranks_among(reranked(log_next, values, caution), targets) for values in (play, control)]
    real, shuffled = (metric_values(of) for of in ranks)
    one = np.zeros_like(strata)
    return Control(
        ranks[0],
        ranks[1],
        (bootstrap_gap(real, skipped, one, seed), bootstrap_gap(shuffled, skipped, one, seed)),
        (bootstrap_gap(real, skipped, strata, seed), bootstrap_gap(shuffled, skipped, strata, seed)),
        bootstrap_gap(real - shuffled, skipped, strata, seed),
    )


def pairwise_auc(scores: Any, skipped: Bool) -> float | None:
    """Return the share of pairs (played, skipped) in which the played one has the higher score; a tie counts half.

    It is the area under the ROC curve, computed from mean ranks (Mann and Whitney, 1947,
    https://doi.org/10.1214/aoms/1177730491). `scores` [n] float, `skipped` [n] bool. None without such a pair.
    """
    skips = int(skipped.sum())
    plays = len(skipped) - skips
    if not skips or not plays:
        return None
    _, level, tied = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(tied) - (tied - 1) / 2  # of each level, 1 is the lowest score
    above = mean_ranks[level[~skipped]].sum() - plays * (plays + 1) / 2
    return float(above / (plays * skips))


def percentiles(scores: Any, sample: Any) -> Float64:
    """Return the share of a sample of tracks with a lower score, for each track; a tie counts half. [batch, n] float64.

    `scores` [batch, n] and `sample` [batch, m] are scores of the same session, m is at least 1.
    """
    ordered = np.sort(sample, axis=1)
    sides = [
        [np.searchsorted(line, own, side=side) for line, own in zip(ordered, scores, strict=True)]
        for side in ("left", "right")
    ]
    found: Float64 = np.array(sides, dtype=np.float64).mean(axis=0).reshape(scores.shape) / sample.shape[1]
    return found
