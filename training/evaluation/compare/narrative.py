"""A comparison in words, for readers who know neither the paper nor the systems: answers, an example and a glossary.

Every sentence is generated from the results.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from segue.arrays import Bool, Float64
from segue.ranking_metrics import Estimate, hit
from training.evaluation.compare.statistics import Difference, Pair
from training.evaluation.compare.tables import ComparisonData

# The parts of a system's name; the first part is the model.
MODELS: Final = {
    "sasrec": "a transformer that reads a session forwards (Kang and McAuley, 2018)",
    "bert4rec": "a transformer that reads in both directions and fills in a hidden play (Sun et al., 2019)",
    "gru4rec": "a recurrent network (Hidasi et al., 2016)",
    "caser": "convolutions over the last plays (Tang and Wang, 2018)",
    "wrmf": "weighted matrix factorisation, which ignores the order of plays (Hu, Koren and Volinsky, 2008)",
    "bpr": "matrix factorisation trained on pairs of tracks, which ignores the order of plays (Rendle et al., 2009)",
    "hybrid-bert4rec": "ngram and BERT4Rec, mixed by gates that were learned on validation sessions",
    "hybrid-gru4rec": "ngram and GRU4Rec, mixed by gates that were learned on validation sessions",
    "hybrid-caser": "ngram and Caser, mixed by gates that were learned on validation sessions",
    "hybrid": "ngram and SASRec, mixed by gates that were learned on validation sessions",
    "ngram": "counts of the tracks that came next after the last one to four plays, and of repeats within a session",
    "vmis-knn": "the tracks that came next in the most similar sessions; nothing is trained (Kersbergen et al., 2022)",
    "markov": "counts of the tracks that came next after the last play; nothing is trained",
    "popularity": "the most played tracks, the same for every session",
}
VERSIONS: Final = {
    "+nce": "also trained to distinguish the next played track from the session's skips: the paper's InfoNCE term",
    "-bl": "skipped plays count neither as positive nor as negative (Wen, Yang and Estrin, 2019)",
    "-nr": "skipped plays are sampled as negatives (Wen, Yang and Estrin, 2019)",
    "+published-pairing": "negatives of that term paired as in the authors' public code, mostly with other sessions",
    "+next-played": "trained to predict the next track that was not skipped",
    "+played-only": "skipped plays are removed from training and from the input",
}
GLOSSARY: Final = {
    "Session": "The plays of one listening occasion, in order. Each play was either played or skipped.",
    "Target": "The play that a system predicts: it came next, and the system did not see it.",
    "Played and skipped targets": "A good system ranks targets that the listener played high, and those that the "
    "listener skipped low. For skipped targets, lower values are better.",
    "Rank": "The position of the target in the system's list of all tracks, from 1.",
    "HR@k": "Hit rate: the share of sessions whose target has a rank of at most k.",
    "MRR@10": "Mean reciprocal rank: the mean of 1 / rank, or of 0 if the rank is above 10. Rank 4 counts 0.25.",
    "MAP@10": "Mean average precision. With one target per session it equals MRR@10. The paper uses this name.",
    "NDCG@10": "Like MRR@10, with 1 / log2(rank + 1) instead of 1 / rank, which falls more slowly.",
    "Interval": "A 95 % bootstrap interval over sessions: how much the value varies with other sessions of the kind.",
    "Significant": "The difference of two systems on the same sessions passes a permutation test at 5 %, corrected for "
    "the number of tests (Holm). The test is more sensitive than a look at two overlapping intervals.",
    "Seed": "The start value of the random numbers of a training. Values are means over several trainings.",
    "Feedback": "Training with skips as negative examples. Every neural system sees which plays of the session were "
    "skipped; versions with feedback also learn from the skips what not to recommend.",
    "Raw and matched gap": "The hit rate of played targets minus that of skipped ones. A skip mostly depends on the "
    "state of the listener. The matched gap compares targets of sessions in which a skip is equally likely. The raw "
    "gap compares all targets, so a system can raise it without knowing which tracks are skipped.",
    "AUC in a session": "The share of pairs of a played and a skipped track of one session in which the system scores "
    "the played one higher. Chance is 0.5.",
    "After a skip": "A recommended track is added to the session as skipped. The value is the change of position of "
    "similar tracks among all tracks, in percentage points. It should be below 0.",
    "Full and sampled ranking": "The target is ranked among all tracks, or among 1,000 random ones. Sampled values "
    "are much higher. They are here for comparison with the paper.",
}


def chosen(by_protocol: Mapping[str, ComparisonData]) -> ComparisonData:
    """The results that sentences are about: the full ranking, or the first protocol if there is none."""
    return by_protocol.get("full") or next(iter(by_protocol.values()))


def wanted_group(measured: ComparisonData) -> str:
    """The targets that a good system ranks high: the played ones, or all if skips are unknown."""
    return "played" if any(group == "played" for _, group, _ in measured.estimates) else "all"


def best_system(measured: ComparisonData) -> str:
    """The system with the highest HR@10 on those targets."""
    group = wanted_group(measured)
    return max(measured.asked.systems, key=lambda s: measured.estimates[s, group, "HR@10"].value)


def answer(measured: ComparisonData) -> tuple[str, str]:
    """The best system, and what feedback gained and cost: one text each."""
    return _best(measured), _feedback(measured)


def _best(measured: ComparisonData) -> str:
    best, group = best_system(measured), wanted_group(measured)
    top = measured.estimates[best, group, "HR@10"]
    if len(measured.asked.systems) == 1:
        return _only(best, len(measured.asked.systems[best].ranks), group, top)
    beside = [
        system
        for system in measured.asked.systems
        if system != best and measured.estimates[system, group, "HR@10"].high >= top.low
    ]
    near = "No other confidence interval overlaps."
    if beside:
        near = f"There is no clear winner: the interval{'s' * (len(beside) > 1)} of {listed(beside)} "
        near += f"overlap{'s' * (len(beside) == 1)} with it."
    return f"{best} has the highest hit rate: {_in_words(group, top)}. {near}"


def _only(system: str, seeds: int, group: str, hit_rate: Estimate) -> str:
    """The sentence about a comparison of one system."""
    what = "One result" if seeds == 1 else f"One system ({seeds} seeds)"
    return (
        f"{what}: nothing to compare. {system}: {_in_words(group, hit_rate)}. Add the results of other systems on the "
        "same dataset, split, targets and policy for repeated tracks."
    )


def _in_words(group: str, hit_rate: Estimate) -> str:
    return (
        f"in {of_sessions(group, f'{100 * hit_rate.value:.0f} of 100')}, the next track is among the first ten of its "
        f"list (HR@10 {hit_rate.value:.3f}, 95 % interval {hit_rate.low:.3f} to {hit_rate.high:.3f})"
    )


def of_sessions(group: str, count: str) -> str:
    """A number of sessions of a group, in words."""
    return f"{count} sessions whose next track was played" if group == "played" else f"{count} sessions"


def _feedback(measured: ComparisonData) -> str:
    pairs = list(dict.fromkeys(d.pair for d in measured.differences if d.pair.why == "feedback"))
    if not pairs:
        return "The effect of skip feedback is unknown: no system was evaluated both with and without it."
    more, fewer = (_changed(measured, "played", "HR@10", up=up) for up in (True, False))
    lower, higher = (_changed(measured, "skipped", "MRR@10", up=up) for up in (False, True))
    count = len(pairs)
    gained = f"HR@10 on played targets is higher for {_of(more, count)}{_largest(more)}"
    gained += f" and lower for {_of(fewer, count)}" if fewer else ""
    ranked = f"Skipped targets are ranked lower by {_of(lower, count)}"
    ranked += f" and higher by {_of(higher, count)}" if higher else ""
    return f"Effect of skip feedback: {gained}. {ranked}. {_price(measured, pairs)}"


def _price(measured: ComparisonData, pairs: Sequence[Pair]) -> str:
    """Systems whose HR@1 on played targets is lower with feedback, with intervals that do not overlap."""
    found = []
    for pair in pairs:
        with_it, without = (measured.estimates.get((s, "played", "HR@1")) for s in (pair.system, pair.against))
        if with_it is not None and without is not None and with_it.high < without.low:
            found.append(f"{pair.system} {with_it.value:.3f} instead of {without.value:.3f}")
    if not found:
        return "No system has a clearly lower HR@1 on played targets."
    return f"The cost is a lower HR@1 on played targets: {listed(found)}."


def _changed(measured: ComparisonData, group: str, metric: str, *, up: bool) -> list[Difference]:
    """The significant changes by feedback, upwards or downwards."""
    return [
        d
        for d in measured.differences
        if d.pair.why == "feedback" and (d.group, d.metric) == (group, metric)
        if d.significant and (d.estimate.value > 0) == up
    ]


def _of(changed: Sequence[Difference], count: int) -> str:
    """How many of `count` systems changed, for example "3 of 4 systems"."""
    if count == 1:
        return "the one system" if changed else "no system"
    number = "all" if len(changed) == count else f"{len(changed) or 'none'} of"
    return f"{number} {count} systems"


def _largest(changed: Sequence[Difference]) -> str:
    if not changed:
        return ""
    most = max(changed, key=lambda d: d.estimate.value)
    most_of_all = "the most for " * (len(changed) > 1)
    return f" ({most_of_all}{most.pair.system}: {most.before + most.estimate.value:.3f} instead of {most.before:.3f})"


def listed(names: Sequence[str], most: int = 6) -> str:
    """At most `most` names as part of a sentence."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def example(measured: ComparisonData) -> list[str]:
    """How a hit rate is computed, with one session as an example: sentences."""
    asked, best, group = measured.asked, best_system(measured), wanted_group(measured)
    seed, ranks = next(iter(sorted(asked.systems[best].ranks.items())))
    members = asked.members(group)
    number = _pick_example(ranks, members)
    length, rank = int(asked.session_length[number]), ranks[number]
    hits, sessions = int(hit(ranks[members], 10).sum()), int(members.sum())
    outcome = next((of for of in ("skipped", "played") if asked.members(of)[number]), None)
    target = f"The target, which the listener {outcome}," if outcome else "The target, whose outcome is unknown,"
    sentences = [
        f"Take session {number + 1:,} of {len(ranks):,}. The system {best} saw its {length} plays before the target, "
        f"{round(length * float(asked.session_skip_rate[number]))} of them skipped, and ranked all tracks. "
        f"{target} has rank {_place(rank)}: {_verdict(rank, 10)} at 10, {_verdict(rank, 1)} at 1.",
        f"There is a hit at 10 in {of_sessions(group, f'{hits:,} of the {sessions:,}')}: "
        f"HR@10 = {hits:,} / {sessions:,} = {hits / sessions:.3f}.",
    ]
    seeds = len(asked.systems[best].ranks)
    if seeds > 1:
        value = measured.estimates[best, group, "HR@10"].value
        sentences.append(f"This is one training, with seed {seed}. The mean over {seeds} trainings is {value:.3f}.")
    return sentences


def _pick_example(ranks: Float64, members: Bool) -> int:
    """The first session of a group whose target has a rank from 2 to 9, else the first of the group."""
    found = np.flatnonzero(members & (ranks > 1) & (ranks < 10) & (ranks == np.floor(ranks)))
    return int(found[0]) if len(found) else int(np.flatnonzero(members)[0])


def _place(rank: float) -> str:
    return f"{rank:g}" if np.isfinite(rank) else "above 100"


def _verdict(rank: float, k: int) -> str:
    return "a hit" if rank <= k else "a miss"


def describe_system(system: str) -> str:
    """The meaning of a system's name."""
    model = next((name for name in MODELS if system.startswith(name)), "")
    parts = [text for version, text in VERSIONS.items() if version in system.removeprefix(model)]
    return "; ".join([MODELS.get(model, "a system of your own"), *parts]) + "."
