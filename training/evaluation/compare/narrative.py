"""A comparison in words, for readers who know neither the paper nor the systems: answers, an example, a glossary.

Every sentence is made from the figures; nothing here knows how anything is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from segue.arrays import Bool, Float64
from segue.ranking_metrics import hit
from training.evaluation.compare.statistics import Difference, Pair
from training.evaluation.compare.tables import ComparisonData

# What a system's name says, part by part; the first part is the model.
_MOST_LISTED: Final = 6
MODELS: Final = {
    "sasrec": "a transformer that reads a session forwards (Kang and McAuley, 2018)",
    "bert4rec": "a transformer that looks both ways and fills in a hidden play (Sun et al., 2019)",
    "gru4rec": "a recurrent network (Hidasi et al., 2016)",
    "caser": "convolutions over the last plays (Tang and Wang, 2018)",
    "wrmf": "weighted matrix factorisation, blind to order (Hu, Koren and Volinsky, 2008)",
    "bpr": "matrix factorisation that learns from pairs, blind to order (Rendle et al., 2009)",
    "vmis-knn": "what came next in the most similar sessions; nothing is trained (Kersbergen et al., 2022)",
    "markov": "what came next after the last play, counted; nothing is trained",
    "popularity": "the most played tracks, the same for everybody",
}
VERSIONS: Final = {
    "+nce": "trained to tell the next played track from the session's skips as well: the paper's InfoNCE term",
    "-bl": "skipped plays count neither as wanted nor as unwanted (Wen, Yang and Estrin, 2019)",
    "-nr": "skipped plays are drawn as negative examples (Wen, Yang and Estrin, 2019)",
    "+published-pairing": "the skips of that term paired as in the authors' public code, mostly with other sessions",
    "+next-played": "trained to find the next track that was not skipped, passing over those that were",
    "+played-only": "trained on and shown the plays that were not skipped alone",
}
GLOSSARY: Final = {
    "Session": "The plays of one listening occasion, in order. Each play was either played or skipped.",
    "Target": "The play that a system is to find: it came next, and was kept from the system.",
    "Played and skipped targets": "A target that the listener played is one to find. One that the listener skipped is "
    "one to leave out: for skipped targets, lower figures are better.",
    "Rank": "The target's place in the system's list of all tracks, 1 the first.",
    "HR@k": "Hit rate: the share of sessions whose target had a rank of k or better.",
    "MRR@10": "The mean of 1 / rank, 0 where the rank is beyond 10: a target at first place counts 1, at fourth 0.25.",
    "MAP@10": "With one target a session the same as MRR@10; the paper calls it so.",
    "NDCG@10": "As MRR@10, but falling more slowly: 1 / log2(rank + 1).",
    "Interval": "A 95 % bootstrap interval over sessions: how far the figure moves with other sessions of the kind.",
    "Measurable": "The difference of two systems on the same sessions passes a permutation test at 5 %, corrected for "
    "the number of tests (Holm). Two intervals that overlap say less than this test.",
    "Seed": "A training starts from random numbers. Figures are means over several trainings.",
    "Feedback": "Learning from what was skipped. Every neural system is told which plays of the session were skipped; "
    "versions with feedback also learn from it what not to recommend.",
    "Full and sampled ranking": "The target ranked among all tracks, or among 1,000 drawn at random. Sampled figures "
    "are far higher; they exist to stand beside the paper's.",
}


def chosen(by_protocol: Mapping[str, ComparisonData]) -> ComparisonData:
    """What sentences are made from: the full ranking, or the first protocol without it."""
    return by_protocol.get("full") or next(iter(by_protocol.values()))


def wanted_group(measured: ComparisonData) -> str:
    """The targets that are to be found: those that were played, where it is known."""
    return "played" if any(group == "played" for _, group, _ in measured.estimates) else "all"


def best_system(measured: ComparisonData) -> str:
    """The system that finds most of them: the highest HR@10."""
    group = wanted_group(measured)
    return max(measured.asked.systems, key=lambda s: measured.estimates[s, group, "HR@10"].value)


def answer(measured: ComparisonData) -> tuple[str, str]:
    """Which system finds most, and what feedback gained and cost: two sentences."""
    return _best(measured), _feedback(measured)


def _best(measured: ComparisonData) -> str:
    best, group = best_system(measured), wanted_group(measured)
    top = measured.estimates[best, group, "HR@10"]
    beside = [
        system
        for system in measured.asked.systems
        if system != best and measured.estimates[system, group, "HR@10"].high >= top.low
    ]
    near = "no other interval reaches it"
    if beside:
        near = f"the interval{'s' * (len(beside) > 1)} of {listed(beside)} overlap{'s' * (len(beside) == 1)} with it"
    return (
        f"The best is {best}: {of_sessions(group, f'{100 * top.value:.0f} of 100')} have it among the first ten of its "
        f"list (HR@10 {top.value:.3f}, 95 % interval {top.low:.3f} to {top.high:.3f}); {near}."
    )


def of_sessions(group: str, count: str) -> str:
    """So many sessions of a group, in words."""
    return f"{count} sessions whose next track was played" if group == "played" else f"{count} sessions"


def _feedback(measured: ComparisonData) -> str:
    pairs = list(dict.fromkeys(d.pair for d in measured.differences if d.pair.why == "feedback"))
    if not pairs:
        return "No system came both with feedback and without, so what feedback gains cannot be said."
    more, fewer = (_changed(measured, "played", "HR@10", up=up) for up in (True, False))
    lower, higher = (_changed(measured, "skipped", "MRR@10", up=up) for up in (False, True))
    count = len(pairs)
    gained = (
        f"Of {count} version{'s' * (count > 1)} with feedback {_do(more, count, 'find')} more of what is played next"
    )
    gained += _largest(more) + (f" and {_do(fewer, count, 'find')} less of it" if fewer else "")
    ranked = f"{_do(lower, count, 'rank')} what is skipped next lower"
    ranked += f" and {_do(higher, count, 'rank')} it higher" if higher else ""
    return f"{gained}; {ranked}; {_price(measured, pairs)}."


def _price(measured: ComparisonData, pairs: Sequence[Pair]) -> str:
    """What becomes of the first place, where an interval lies below the other."""
    found = []
    for pair in pairs:
        with_it, without = (measured.estimates.get((s, "played", "HR@1")) for s in (pair.system, pair.against))
        if with_it is not None and without is not None and with_it.high < without.low:
            found.append(f"{pair.system} {with_it.value:.3f} instead of {without.value:.3f}")
    if not found:
        return "no interval of their hits at the first place, HR@1 of played targets, lies below the one without"
    return f"the price is the first place, HR@1 of played targets: {listed(found)}"


def _changed(measured: ComparisonData, group: str, metric: str, *, up: bool) -> list[Difference]:
    """What feedback measurably moved up, or down."""
    return [
        d
        for d in measured.differences
        if d.pair.why == "feedback" and (d.group, d.metric) == (group, metric)
        if d.significant and (d.estimate.value > 0) == up
    ]


def _do(changed: Sequence[Difference], of: int, verb: str) -> str:
    """How many do something: `all find`, `1 finds`, `none find`."""
    number = "all" if len(changed) == of else str(len(changed) or "none")
    return f"{number} {verb}{'s' * (number == '1')}"


def _largest(changed: Sequence[Difference]) -> str:
    if not changed:
        return ""
    most = max(changed, key=lambda d: d.estimate.value)
    who = f"{'most of all ' * (len(changed) > 1)}{most.pair.system}"
    return f" ({who}: HR@10 {most.before + most.estimate.value:.3f} instead of {most.before:.3f})"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them, no more than _MOST_LISTED of them."""
    if len(names) > _MOST_LISTED:
        return f"{', '.join(names[:_MOST_LISTED])} and {len(names) - _MOST_LISTED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def example(measured: ComparisonData) -> list[str]:
    """How a hit rate comes about, with a session of the data: sentences."""
    asked, best, group = measured.asked, best_system(measured), wanted_group(measured)
    seed, ranks = next(iter(sorted(asked.systems[best].ranks.items())))
    members = asked.members(group)
    number = _pick_example(ranks, members)
    length, rank = int(asked.session_length[number]), ranks[number]
    hits, sessions = int(hit(ranks[members], 10).sum()), int(members.sum())
    outcome = "skipped" if asked.target_skipped[number] else "played"
    sentences = [
        f"Take session {number + 1:,} of {len(ranks):,}. The system {best} was shown its {length} plays before the "
        f"target, {round(length * float(asked.session_skip_rate[number]))} of which had been skipped, and put all "
        f"tracks in an order. The target, which the listener {outcome}, stood at place {_place(rank)} of that order: "
        f"{_verdict(rank, 10)} at 10, {_verdict(rank, 1)} at 1.",
        f"There is a hit at 10 in {of_sessions(group, f'{hits:,} of the {sessions:,}')}: "
        f"HR@10 = {hits:,} / {sessions:,} = {hits / sessions:.3f}.",
    ]
    seeds = len(asked.systems[best].ranks)
    if seeds > 1:
        value = measured.estimates[best, group, "HR@10"].value
        sentences.append(f"That is one training, of seed {seed}; the mean over {seeds} trainings is {value:.3f}.")
    return sentences


def _pick_example(ranks: Float64, members: Bool) -> int:
    """The first session of a group whose target stood within the first nine, not at their head; else its first."""
    found = np.flatnonzero(members & (ranks > 1) & (ranks < 10) & (ranks == np.floor(ranks)))
    return int(found[0]) if len(found) else int(np.flatnonzero(members)[0])


def _place(rank: float) -> str:
    return f"{rank:g}" if np.isfinite(rank) else "beyond 100"


def _verdict(rank: float, k: int) -> str:
    return "a hit" if rank <= k else "a miss"


def describe_system(system: str) -> str:
    """What a system's name says, in words."""
    model = next((name for name in MODELS if system.startswith(name)), "")
    parts = [text for version, text in VERSIONS.items() if version in system.removeprefix(model)]
    return "; ".join([MODELS.get(model, "a system of yours"), *parts]) + "."
