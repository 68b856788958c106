"""Estimates, differences and tests of systems on the same sessions.

Intervals are percentile bootstrap intervals over sessions (Efron, 1979). Tests are paired permutation tests, which flip
the sign of each session's difference (Fisher, 1935; for rankings: Smucker, Allan and Carterette, CIKM 2007,
https://doi.org/10.1145/1321440.1321528), corrected for their number by Holm's step-down procedure (1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from segue.arrays import Bool, Float64
from segue.ranking_metrics import Estimate, bootstrap, hit
from training.evaluation.compare.results import GROUPS, EvaluationResults
from training.evaluation.skip_measures import GROUP_NAMES, MEASURED, bootstrap_gap

PERMUTATIONS: Final = 10_000
TESTED: Final = (("all", "HR@1"), ("all", "HR@10"), ("played", "HR@10"), ("skipped", "MRR@10"))
LIST_LENGTHS: Final = (1, 2, 3, 5, 10, 20, 50, 100)
_CHUNK: Final = 500  # permutations at a time: 500 x 100,000 sessions are 200 MB


@dataclass(frozen=True)
class Pair:
    """A system and the baseline that it is compared with."""

    system: str
    against: str
    why: str  # "feedback", "chain" or the open question


@dataclass(frozen=True)
class Difference:
    """The difference of a pair in one metric on one group of targets."""

    pair: Pair
    group: str
    metric: str
    before: float  # of `pair.against`
    estimate: Estimate
    p: float
    p_corrected: float

    @property
    def gain_percent(self) -> Estimate | None:
        """The difference in percent of the baseline; None if that is 0."""
        if not self.before:
            return None
        scale = 100.0 / self.before
        return Estimate(self.estimate.value * scale, self.estimate.low * scale, self.estimate.high * scale)

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 5 %."""
        return self.p_corrected < 0.05

    def verdict(self) -> str:
        """The result of the test in words. For skipped targets, lower is better."""
        if not self.significant:
            return "no significant difference"
        better = (self.estimate.value > 0) != (self.group == "skipped")
        return f"{'better' if better else 'worse'} by {abs(self.estimate.value):.4f}"


NEURAL: Final = ("sasrec", "bert4rec", "gru4rec", "caser")
HYBRIDS: Final = ("hybrid", "hybrid-bert4rec", "hybrid-gru4rec", "hybrid-caser")
OPEN_QUESTIONS: Final = {
    "sasrec+nce+published-pairing": (
        "sasrec+nce",
        "negatives paired as in the authors' public code, or as in the text",
    ),
    "sasrec+next-played": ("sasrec", "objective next-played, or next (without NCE)"),
    "sasrec+nce+next-played": ("sasrec+nce", "objective next-played, or next (with NCE)"),
    "sasrec+played-only": ("sasrec", "only played tracks in training and input, or all"),
}


def pairs(systems: Sequence[str]) -> list[Pair]:
    """The pairs that are compared, of the systems given."""
    wanted = [
        *(Pair(f"{name}+nce", name, "feedback") for name in (*NEURAL, *HYBRIDS)),
        *(Pair(f"{name}-{version}", name, "feedback") for name in ("wrmf", "bpr") for version in ("bl", "nr")),
        *(Pair(f"{name}{loss}", "markov", "chain") for name in (*NEURAL, *HYBRIDS) for loss in ("", "+nce")),
        Pair("ngram", "markov", "chain"),
        *(Pair(name, against, why) for name, (against, why) in OPEN_QUESTIONS.items()),
    ]
    return [pair for pair in wanted if pair.system in systems and pair.against in systems]


def differences(asked: EvaluationResults, permutations: int = PERMUTATIONS, seed: int = 0) -> list[Difference]:
    """The difference of every pair in the metrics of TESTED, with p-values corrected over all of them."""
    compared, rng = pairs(list(asked.systems)), np.random.default_rng(seed)
    found: list[tuple[Pair, str, str, float, Estimate, float]] = []
    for group in GROUPS:
        members = asked.members(group)
        metrics = [metric for of, metric in TESTED if of == group]
        if not members.any() or not metrics or not compared:
            continue
        lines = [(pair, metric) for pair in compared for metric in metrics]
        values = {
            (system, metric): answered.values(metric)[members]
            for system, answered in asked.systems.items()
            for metric in metrics
        }
        changes = np.stack([values[pair.system, m] - values[pair.against, m] for pair, m in lines], axis=1)
        p_values = permutation_test(changes, rng, permutations)
        for (pair, metric), change, p in zip(lines, changes.T, p_values, strict=True):
            estimate = bootstrap(change, rng)
            assert estimate is not None
            found.append((pair, group, metric, float(values[pair.against, metric].mean()), estimate, p))
    corrected = holm(np.array([line[-1] for line in found]))
    return [Difference(*line, p_corrected=float(p)) for line, p in zip(found, corrected, strict=True)]


def permutation_test(changes: Float64, rng: np.random.Generator, permutations: int = PERMUTATIONS) -> Float64:
    """Two-sided p-values that the mean change of each column is 0.

    `changes` is [sessions, comparisons]; p = (1 + permutations at least as far from 0) / (1 + permutations), so that no
    p-value is 0 (Phipson and Smyth, 2010). The columns share their random signs. [comparisons] float64.
    """
    observed = np.abs(changes.sum(axis=0))
    moved = changes.astype(np.float32)
    as_far = np.zeros(changes.shape[1])
    for start in range(0, permutations, _CHUNK):
        count = min(_CHUNK, permutations - start)
        signs = rng.integers(0, 2, (count, len(changes)), dtype=np.int8).astype(np.float32) * 2 - 1
        # The sum of the same terms in another order may differ in the last digits, which counts as equal.
        as_far += (np.abs(signs @ moved) >= observed * (1 - 1e-5) - 1e-9).sum(axis=0)
    return (1.0 + as_far) / (1.0 + permutations)


def holm(p_values: Float64) -> Float64:
    """Holm's corrected p-values, in the order given (Holm, Scandinavian Journal of Statistics, 1979)."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    corrected = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    result = np.empty(count)
    result[order] = np.minimum(corrected, 1.0)
    return result


@dataclass(frozen=True)
class Lead:
    """The first system by HR@10, and those that paired tests do not separate from it."""

    group: str  # of targets: the played ones, or all if no outcome is known
    system: str
    p_corrected: Mapping[str, float]  # of every other system: that its difference from the first one is 0

    @property
    def level(self) -> list[str]:
        """The systems that are not separated from the first one at 5 %."""
        return [system for system, p in self.p_corrected.items() if p >= 0.05]


def lead(asked: EvaluationResults, permutations: int = PERMUTATIONS, seed: int = 0) -> Lead:
    """Test the first system by HR@10 against every other one, paired over sessions, corrected by Holm's procedure."""
    group = "played" if asked.members("played").any() else "all"
    members = asked.members(group)
    values = {system: answered.values("HR@10")[members] for system, answered in asked.systems.items()}
    first = max(values, key=lambda system: float(values[system].mean()))
    others = [system for system in values if system != first]
    if not others:
        return Lead(group, first, {})
    changes = np.stack([values[first] - values[system] for system in others], axis=1)
    p_values = holm(permutation_test(changes, np.random.default_rng(seed), permutations))
    return Lead(group, first, dict(zip(others, map(float, p_values), strict=True)))


def estimates(
    asked: EvaluationResults, metrics: Sequence[str], seed: int = 0
) -> Mapping[tuple[str, str, str], Estimate]:
    """The mean over seeds and sessions with its interval, by (system, group, metric)."""
    rng = np.random.default_rng(seed)
    found = {}
    for system, answered in asked.systems.items():
        for metric in metrics:
            values = answered.values(metric)
            for group in GROUPS:
                estimate = bootstrap(values[asked.members(group)], rng)
                if estimate is not None:
                    found[system, group, metric] = estimate
    return found


def group_estimates(asked: EvaluationResults, seed: int = 0) -> Mapping[tuple[str, str, str], Estimate]:
    """The mean over seeds and targets with its interval, by (system, group of target_groups, metric)."""
    found, rng = {}, np.random.default_rng(seed)
    for system, answered in asked.systems.items():
        for (group, side), name in GROUP_NAMES.items():
            members = np.array([value is side for value in asked.group_members.get(group, ())], dtype=np.bool_)
            for metric in MEASURED if members.any() else ():
                estimate = bootstrap(answered.values(metric)[members], rng)
                assert estimate is not None
                found[system, name, metric] = estimate
    return found


@dataclass(frozen=True)
class SkipGaps:
    """The gaps between played and skipped targets of a system, by metric."""

    raw: Mapping[str, Estimate]
    matched: Mapping[str, Estimate]
    against: str | None  # the system that `difference` refers to
    difference: Mapping[str, Estimate]  # of the matched gap, paired over targets


def skip_gaps(asked: EvaluationResults) -> Mapping[str, SkipGaps]:
    """The gaps of each system on the targets of known outcome, and the paired difference to its reference system.

    The reference is the same system without feedback, else the Markov chain. A target counts with its mean over seeds.
    No system has gaps if the strata are unknown or no stratum has played and skipped targets.
    """
    known = np.array([stratum is not None for stratum in asked.stratum], dtype=np.bool_)
    if not known.any():
        return {}
    strata = np.array([stratum for stratum in asked.stratum if stratum is not None], dtype=np.int64)
    skipped, one = asked.target_skipped[known], np.zeros_like(strata)
    values = {
        system: np.column_stack([answered.values(metric)[known] for metric in MEASURED])
        for system, answered in asked.systems.items()
    }
    found = {}
    for system, of in values.items():
        against = next((pair.against for pair in pairs(list(values)) if pair.system == system), None)
        raw, matched = (_by_metric(bootstrap_gap(of, skipped, groups)) for groups in (one, strata))
        if not matched:
            return {}
        difference = bootstrap_gap(of - values[against], skipped, strata) if against is not None else None
        found[system] = SkipGaps(raw, matched, against, _by_metric(difference))
    return found


def _by_metric(estimates: Sequence[Estimate] | None) -> dict[str, Estimate]:
    return dict(zip(MEASURED, estimates, strict=True)) if estimates is not None else {}


def hit_curves(asked: EvaluationResults) -> dict[str, list[float]]:
    """Each system's HR@k of all targets, the mean over seeds, for the k of LIST_LENGTHS."""
    return {
        system: [float(np.mean([hit(ranks, k).mean() for ranks in answered.ranks.values()])) for k in LIST_LENGTHS]
        for system, answered in asked.systems.items()
    }


@dataclass(frozen=True)
class Breakdown:
    """Every system's HR@10 of all targets in groups of sessions."""

    by: str  # the field of EvaluationResults that the groups are made by
    groups: list[str]  # the values of each group, for example "5 to 9"
    sessions: list[int]  # in each group
    hit_rates: dict[str, list[Estimate]]  # system: HR@10 in each group


BREAKDOWNS: Final = ("session_length", "session_skip_rate", "target_plays")


def breakdowns(asked: EvaluationResults) -> list[Breakdown]:
    """HR@10 by each of BREAKDOWNS; those with a single group are left out."""
    found = [_breakdown(asked, by) for by in BREAKDOWNS]
    return [breakdown for breakdown in found if len(breakdown.groups) > 1]


def _breakdown(asked: EvaluationResults, by: str) -> Breakdown:
    groups, rng = _quantile_groups(np.asarray(getattr(asked, by), dtype=np.float64)), np.random.default_rng(0)
    hit_rates = {}
    for system, answered in asked.systems.items():
        hits = answered.values("HR@10")
        hit_rates[system] = [e for _, members in groups if (e := bootstrap(hits[members], rng)) is not None]
    return Breakdown(by, [name for name, _ in groups], [int(members.sum()) for _, members in groups], hit_rates)


def _quantile_groups(values: Float64, wanted: int = 5) -> list[tuple[str, Bool]]:
    """At most `wanted` groups of neighbouring values with similar sizes: names and members, [sessions] bool."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, wanted + 1)[1:-1]))
    group = np.searchsorted(edges, values, side="left")
    found = []
    for number in np.unique(group):
        members = group == number
        low, high = values[members].min(), values[members].max()
        found.append((_number(low) if low == high else f"{_number(low)} to {_number(high)}", members))
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.2f}"


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a of two lists of values: concordant minus discordant pairs, as a share of all pairs."""
    a, b = np.asarray(first), np.asarray(second)
    agreement = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agreement.sum() / max(len(a) * (len(a) - 1), 1))
