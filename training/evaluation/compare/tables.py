"""Tables of a comparison: the paper's two tables with its values, intervals, tests, costs and the open questions.

Tables are rendered as Markdown or by the page's template. The paper is Seshadri, Shashaani and Knees, RecSys 2024,
https://doi.org/10.1145/3640457.3688188.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from segue.ranking_metrics import Estimate
from training.evaluation.compare.results import EvaluationResults, SystemResults
from training.evaluation.compare.statistics import NEURAL, Breakdown, Difference, Lead, Pair, SkipGaps, kendall
from training.evaluation.skip_measures import GROUP_NAMES
from training.reports.tables import Table

METRICS: Final = ("HR@1", "HR@5", "HR@10", "HR@20", "MAP@10")
# The columns of Table 1 as systems are named here: (family, its versions).
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "sasrec": ("sasrec", "sasrec+nce"),
    "bert4rec": ("bert4rec", "bert4rec+nce"),
    "gru4rec": ("gru4rec", "gru4rec+nce"),
    "caser": ("caser", "caser+nce"),
    "wrmf": ("wrmf", "wrmf-bl", "wrmf-nr"),
    "bpr": ("bpr", "bpr-bl", "bpr-nr"),
}
SYSTEMS: Final = tuple(system for versions in FAMILIES.values() for system in versions)

_ROWS: Final = {
    "MSSD": """
        .377 .410 .204 .355 .210 .235 .223 .251 .203 .207 .211 .208 .213 .216
        .615 .628 .450 .608 .398 .431 .412 .455 .400 .406 .411 .406 .413 .421
        .696 .706 .553 .693 .491 .534 .518 .530 .488 .498 .505 .502 .510 .517
        .767 .774 .648 .767 .600 .627 .616 .649 .597 .603 .608 .605 .609 .612
        .397 .417 .185 .369 .176 .193 .195 .221 .149 .156 .164 .160 .168 .173""",
    "LFM-2B": """
        .190 .221 .101 .117 .096 .102 .102 .112 .097 .098 .102 .098 .105 .107
        .371 .400 .227 .248 .203 .221 .197 .208 .138 .142 .147 .143 .152 .169
        .452 .477 .292 .320 .273 .291 .281 .302 .269 .273 .279 .276 .286 .294
        .532 .553 .366 .394 .311 .342 .326 .354 .305 .311 .316 .314 .324 .348
        .188 .219 .098 .110 .078 .085 .081 .088 .062 .065 .067 .066 .072 .078""",
    "LFM-1K": """
        .152 .181 .069 .086 .048 .059 .052 .071 .042 .044 .047 .043 .050 .052
        .301 .330 .207 .230 .182 .200 .188 .198 .139 .146 .177 .150 .153 .159
        .392 .421 .299 .320 .261 .289 .269 .293 .270 .285 .294 .292 .298 .301
        .478 .491 .413 .433 .388 .397 .390 .404 .346 .368 .375 .369 .374 .376
        .092 .107 .049 .064 .034 .042 .037 .040 .028 .031 .034 .032 .036 .038""",
}

# dataset: (system, metric): value. Table 1.
TABLE_1: Final[dict[str, dict[tuple[str, str], float]]] = {
    dataset: {
        (system, metric): float(value)
        for metric, line in zip(METRICS, text.strip().splitlines(), strict=True)
        for system, value in zip(SYSTEMS, line.split(), strict=True)
    }
    for dataset, text in _ROWS.items()
}

# dataset: system: MRR@10 on skipped targets, lower is better. Table 2.
TABLE_2: Final[dict[str, dict[str, float]]] = {
    "MSSD": {"sasrec": 0.960, "sasrec+nce": 0.950, "bert4rec": 0.840, "bert4rec+nce": 0.950},
    "LFM-2B": {"sasrec": 0.969, "sasrec+nce": 0.911, "bert4rec": 0.953, "bert4rec+nce": 0.950},
    "LFM-1K": {"sasrec": 0.731, "sasrec+nce": 0.731, "bert4rec": 0.540, "bert4rec+nce": 0.460},
}


def dataset_of(source: str) -> str | None:
    """The paper's name of a dataset, None if the paper does not use it.

    Datasets in the `events` format are compared with MSSD, because the MSSD extract has this format.
    """
    return {"mssd": "MSSD", "events": "MSSD", "lfm1k": "LFM-1K", "lfm2b": "LFM-2B"}.get(source)


SHOWN: Final = ("HR@1", "HR@10", "MRR@10")


@dataclass(frozen=True)
class ComparisonData:
    """The results of one evaluation and the statistics that tables and charts show."""

    asked: EvaluationResults
    estimates: Mapping[tuple[str, str, str], Estimate]  # (system, group, metric)
    differences: Sequence[Difference]
    hit_curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # system: HR@k for LIST_LENGTHS
    breakdowns: Sequence[Breakdown] = ()
    groups: Mapping[tuple[str, str, str], Estimate] = field(default_factory=dict)  # (system, target group, metric)
    gaps: Mapping[str, SkipGaps] = field(default_factory=dict)  # of played and skipped targets, by system
    lead: Lead | None = None  # None without the ranks of the sessions, which paired tests need

    @property
    def wanted_group(self) -> str:
        """The targets that a good system ranks high: the played ones, or all if no outcome is known."""
        return "played" if any(group == "played" for _, group, _ in self.estimates) else "all"

    def hit_rate(self, system: str) -> Estimate:
        """HR@10 of a system on these targets, by which the page sorts systems."""
        return self.estimates[system, self.wanted_group, "HR@10"]

    @property
    def ranked(self) -> list[str]:
        """The systems by descending HR@10 on these targets."""
        return sorted(self.asked.systems, key=lambda system: -self.hit_rate(system).value)

    def change(self, system: str, group: str, metric: str, why: str = "feedback") -> Difference | None:
        """The tested difference of a system from its baseline, None if it was not tested."""
        wanted = (system, group, metric, why)
        found = [d for d in self.differences if (d.pair.system, d.group, d.metric, d.pair.why) == wanted]
        return found[0] if found else None


def table_1(by_protocol: Mapping[str, ComparisonData], paper_dataset: str | None) -> Table:
    """The paper's Table 1 with its own values: a row for each metric, a column for each system, all targets."""
    systems = _in_papers_order(by_protocol)
    rows = []
    for metric in METRICS:
        for protocol, measured in by_protocol.items():
            rows.append([metric, protocol, *(_cell_1(measured, system, metric) for system in systems)])
        if paper_dataset:
            published = TABLE_1[paper_dataset]
            rows.append(
                [metric, f"paper ({paper_dataset})", *(_published(published.get((s, metric))) for s in systems)]
            )
    return Table(
        "Hit rates and MAP@10, all targets (the paper's Table 1)",
        ["metric", "ranking", *systems],
        rows,
        "In brackets: the gain over the version without feedback. Bold: significant at 5 % after correction "
        "(only HR@1 and HR@10 were tested).",
    )


def _in_papers_order(by_protocol: Mapping[str, ComparisonData]) -> list[str]:
    present = {system for measured in by_protocol.values() for system in measured.asked.systems}
    return [system for system in SYSTEMS if system in present]


def _cell_1(measured: ComparisonData, system: str, metric: str) -> str:
    estimate = measured.estimates.get((system, "all", metric))
    if estimate is None:
        return "-"
    text = f"{estimate.value:.3f}"
    base = next(versions[0] for versions in FAMILIES.values() if system in versions)
    before = measured.estimates.get((base, "all", metric))
    if base != system and before is not None and before.value:
        text += f" ({100 * (estimate.value / before.value - 1):+.0f}%)"
    change = measured.change(system, "all", metric)
    return f"**{text}**" if change is not None and change.significant else text


def _published(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table_2(by_protocol: Mapping[str, ComparisonData], paper_dataset: str | None) -> Table:
    """The paper's Table 2: MRR@10 on skipped targets, for every system of Table 1."""
    systems = _in_papers_order(by_protocol)
    rows = []
    for protocol, measured in by_protocol.items():
        cells = []
        for system in systems:
            estimate = measured.estimates.get((system, "skipped", "MRR@10"))
            change = measured.change(system, "skipped", "MRR@10")
            text = "-" if estimate is None else f"{estimate.value:.3f}"
            if change is not None and change.gain_percent is not None:
                text += f" ({change.gain_percent.value:+.0f}%)"
            cells.append(f"**{text}**" if change is not None and change.significant else text)
        rows.append([protocol, *cells])
    if paper_dataset:
        published = TABLE_2[paper_dataset]
        rows.append([f"paper ({paper_dataset})", *(_published(published.get(system)) for system in systems)])
    return Table(
        "MRR@10 on skipped targets, lower is better (the paper's Table 2)",
        ["ranking", *systems],
        rows,
        "Bold: significant at 5 % after correction.",
    )


def systems_table(measured: ComparisonData) -> Table:
    """Every system with intervals, the values of its seeds and the cost of its training."""
    asked, played = measured.asked, ["HR@10 played"] if measured.wanted_group == "played" else []
    return Table(
        f"Every system, {asked.question}",
        [
            "system",
            "seeds",
            *played,
            *SHOWN,
            "HR@10 of each seed",
            "MRR@10 skipped",
            "coverage@20",
            "training",
            "peak memory",
        ],
        [[system, *_system_cells(measured, system)] for system in measured.ranked],
        f"Sorted by HR@10 of {measured.wanted_group} targets. {len(asked.target_skipped):,} sessions; mean over seeds "
        "with 95 % bootstrap intervals over sessions. "
        "Other processes ran during the training; peak memory is that of the whole process.",
    )


def _system_cells(measured: ComparisonData, system: str) -> list[str]:
    answered = measured.asked.systems[system]
    seeds = answered.of_each_seed("HR@10", measured.asked.members("all"))
    seconds = [of["seconds"] for of in answered.training if "seconds" in of]
    memory = [of["peak_memory_bytes"] for of in answered.training if "peak_memory_bytes" in of]
    coverage = float(np.mean(answered.coverage))
    return [
        str(len(answered.ranks)),
        *([interval(measured.hit_rate(system))] if measured.wanted_group == "played" else []),
        *(interval(measured.estimates[system, "all", metric]) for metric in SHOWN),
        ", ".join(f"{value:.4f}" for value in seeds),
        interval(measured.estimates.get((system, "skipped", "MRR@10"))),
        "-" if np.isnan(coverage) else f"{coverage:.2f}",
        f"{np.mean(seconds):,.1f} s" if seconds else "-",
        f"{max(memory) / 2**20:,.0f} MiB" if memory else "-",
    ]


def interval(estimate: Estimate | None, sign: str = "") -> str:
    """A value with its interval as text."""
    return (
        "-" if estimate is None else f"{estimate.value:{sign}.4f} [{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"
    )


def groups_table(measured: ComparisonData) -> Table:
    """HR@1 and HR@10 of every system by group of targets."""
    names = [name for name in GROUP_NAMES.values() if any(group == name for _, group, _ in measured.groups)]
    return Table(
        f"Groups of targets, {measured.asked.question}",
        ["system", *(f"{metric} {name.replace('_', ' ')}" for name in names for metric in ("HR@1", "HR@10"))],
        [
            [system, *(interval(measured.groups.get((system, n, m))) for n in names for m in ("HR@1", "HR@10"))]
            for system in measured.ranked
        ],
        "pair seen: the last two tracks before the target directly follow each other in a training session. repeat: "
        "the target occurs in the session before.",
    )


def skips_table(measured: ComparisonData) -> Table:
    """The measures of skip learning of every system."""
    cautious = any(caution_effect(answered, metric) for answered in measured.asked.systems.values() for metric in SHOWN)
    return Table(
        f"Skip measures, {measured.asked.question}",
        [
            "system",
            *(f"matched gap {metric}" for metric in SHOWN[:2]),
            "against",
            *(f"matched effect {metric}" for metric in SHOWN[:2]),
            *(f"raw gap {metric}" for metric in SHOWN[:2]),
            *(f"effect of caution {metric}" for metric in SHOWN[:2] if cautious),
            "AUC in a session",
            "after a skip, pp",
            "skip - play, pp",
        ],
        [_skip_cells(measured, system, cautious=cautious) for system in measured.ranked if system in measured.gaps],
        "Gap: played minus skipped targets, higher is better; matched: between sessions in the same state. Matched "
        "effect: the matched gap minus that of the system under `against`, paired over targets. "
        + ("Effect of caution: minus that of its permuted control. " if cautious else "")
        + "AUC: played tracks above skipped ones of the same session. After a skip: change of position of similar "
        "tracks in percentage points; it should be below 0. AUC and changes: means over seeds of values and of "
        "interval limits.",
    )


def _skip_cells(measured: ComparisonData, system: str, *, cautious: bool) -> list[str]:
    gaps, seeds = measured.gaps[system], measured.asked.systems[system].skip_measures
    responses = [of.get("responsiveness") or {} for of in seeds]
    return [
        system,
        *(interval(gaps.matched.get(metric), "+") for metric in SHOWN[:2]),
        gaps.against or "-",
        *(interval(gaps.difference.get(metric), "+") for metric in SHOWN[:2]),
        *(interval(gaps.raw.get(metric), "+") for metric in SHOWN[:2]),
        *(interval(caution_effect(measured.asked.systems[system], m), "+") for m in SHOWN[:2] if cautious),
        interval(mean_estimate([of.get("pairwise_auc") for of in seeds])),
        *(interval(mean_estimate([of.get(key) for of in responses], 100), "+") for key in RESPONSES),
    ]


RESPONSES: Final = ("after_skip", "skip_minus_play")


def caution_effect(answered: SystemResults, metric: str) -> Estimate | None:
    """The effect of caution on a metric: the mean over seeds; None without caution."""
    effects = [((of.get("caution_effect") or {}).get("effect") or {}).get(metric) for of in answered.skip_measures]
    return mean_estimate(effects)


def mean_estimate(of_seeds: Sequence[Mapping[str, Any] | None], scale: float = 1.0) -> Estimate | None:
    """The mean over seeds of values and limits; None if a seed has no value."""
    found = [of for of in of_seeds if of is not None]
    if not found or len(found) < len(of_seeds):
        return None
    return Estimate(*(scale * float(np.mean([of[key] for of in found])) for key in ("value", "low", "high")))


def differences_table(measured: ComparisonData, why: str, title: str) -> Table:
    """The differences of one kind of pair, with their tests."""
    chosen = [d for d in measured.differences if d.pair.why == why]
    return Table(
        f"{title}, {measured.asked.question}",
        ["system", "against", "targets", "metric", "before", "difference", "gain", "p", "p corrected", "verdict"],
        [_difference_cells(difference) for difference in chosen],
        _correction(measured),
    )


def _difference_cells(difference: Difference) -> list[str]:
    gain = difference.gain_percent
    return [
        difference.pair.system,
        difference.pair.against,
        difference.group,
        difference.metric,
        f"{difference.before:.4f}",
        interval(difference.estimate, "+"),
        "-" if gain is None else f"{gain.value:+.1f} %",
        f"{difference.p:.4f}",
        f"{difference.p_corrected:.4f}",
        difference.verdict(),
    ]


def _correction(measured: ComparisonData) -> str:
    return (
        "Paired over sessions: 95 % bootstrap intervals, two-sided permutation tests, corrected by Holm's procedure "
        f"for the {len(measured.differences)} comparisons of this evaluation. Skipped targets: lower is better."
    )


def open_questions(measured: ComparisonData) -> Table:
    """The questions that the paper leaves open: a row for each metric with the difference and the answer."""
    kinds = {"feedback", "chain"}
    chosen = [d for d in measured.differences if d.pair.why not in kinds]
    return Table(
        f"What the paper leaves open, {measured.asked.question}",
        ["question", "first against second", "targets", "metric", "difference", "p corrected", "answer"],
        [
            [
                d.pair.why,
                _versus(d.pair),
                d.group,
                d.metric,
                interval(d.estimate, "+"),
                f"{d.p_corrected:.4f}",
                d.verdict(),
            ]
            for d in chosen
        ],
        _correction(measured),
    )


def _versus(pair: Pair) -> str:
    return f"{pair.system} - {pair.against}"


def protocols_table(by_protocol: Mapping[str, ComparisonData]) -> Table | None:
    """The systems under full and under sampled ranking, and how well the two orders agree."""
    if {"full", "sampled"} - by_protocol.keys():
        return None
    full, sampled = by_protocol["full"], by_protocol["sampled"]
    systems = [system for system in full.ranked if system in sampled.asked.systems]
    values = [[of.hit_rate(system).value for system in systems] for of in (full, sampled)]
    place = np.argsort(np.argsort(-np.array(values[1]))) + 1
    rows = [
        [system, f"{values[0][i]:.4f}", str(i + 1), f"{values[1][i]:.4f}", str(place[i])]
        for i, system in enumerate(systems)
    ]
    return Table(
        f"Sampled against full ranking, HR@10 of {full.wanted_group} targets, {full.asked.question.split} split"
        f"{full.asked.question.policy}",
        ["system", "full", "place", "sampled", "place"],
        rows,
        f"Kendall's tau of the two orders: {kendall(*values):.2f}. A sampled value ranks the target among 1,000 other "
        "tracks and does not estimate the full one.",
    )


def not_better_than_markov(measured: ComparisonData, metric: str) -> list[str]:
    """Neural systems whose mean is not above that of the Markov baseline."""
    chain = measured.estimates.get(("markov", "all", metric))
    neural = [f"{name}{loss}" for name in NEURAL for loss in ("", "+nce")]
    if chain is None:
        return []
    found = [(system, measured.estimates.get((system, "all", metric))) for system in neural]
    return [system for system, estimate in found if estimate is not None and estimate.value <= chain.value]
