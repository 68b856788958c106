"""A comparison in words, for readers who know neither the paper nor the systems: answers, an example and a glossary.

Every sentence is generated from the results.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from segue.arrays import Bool, Float64
from segue.ranking_metrics import hit
from training.evaluation.compare.statistics import Difference
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


# The measures beyond hit rates, one sentence each, and the groups or columns that a result needs for them.
# The measures beyond hit rates: name, and the meaning in one sentence.
_MEASURES: Final = {
    "gap": (
        "Matched gap",
        "How much more often played targets are found than skipped ones, in sessions with an equally likely skip.",
    ),
    "effect": (
        "Matched effect",
        "The matched gap of a system minus that of the same system without feedback, or of the Markov chain: above 0, "
        "the system knows more about which tracks are skipped.",
    ),
    "caution": (
        "Effect of caution",
        "The matched gap with caution minus that of its permuted control, whose play probabilities are shuffled within "
        "each list: above 0, caution knows which tracks are skipped.",
    ),
    "auc": (
        "AUC in a session",
        "How often a system scores a played track above a skipped one of the same session; chance is 0.5.",
    ),
    "response": (
        "After a skip",
        "How far tracks similar to a skipped one move in the list, in percentage points (pp): they should fall, so "
        "below 0 is better.",
    ),
    "pair": (
        "Pair seen, pair unseen",
        "Hit rates of targets whose last two tracks before follow each other in a training session, and of targets for "
        "which they do not, where counts of pairs are no help.",
    ),
    "after": ("After play, after skip", "Hit rates by the outcome of the play before the target."),
    "repeat": (
        "Repeat, new",
        "Hit rates of targets that were already played in the session, and of all others.",
    ),
}


def measures(measured: ComparisonData) -> dict[str, str]:
    """What the skip measures and groups of targets in these results mean: name and one sentence each."""
    groups = {group for _, group, _ in measured.groups}
    seeds = [of for answered in measured.asked.systems.values() for of in answered.skip_measures]
    shown = {
        "gap": bool(measured.gaps),
        "effect": any(gaps.difference for gaps in measured.gaps.values()),
        "caution": any(of.get("caution_effect") for of in seeds),
        "auc": any(of.get("pairwise_auc") for of in seeds),
        "response": any(of.get("responsiveness") for of in seeds),
        "pair": bool({"pair_seen", "pair_unseen"} & groups),
        "after": bool({"after_play", "after_skip"} & groups),
        "repeat": bool({"repeat", "new"} & groups),
    }
    return dict(_MEASURES[name] for name, is_shown in shown.items() if is_shown)


def best_system(measured: ComparisonData) -> str:
    """The system with the highest HR@10 on the targets that a good system ranks high."""
    return measured.lead.system if measured.lead is not None else measured.ranked[0]


def answer(measured: ComparisonData) -> tuple[str, str]:
    """Whether there is a best system, and what feedback gained and cost: one text each."""
    return _best(measured), _feedback(measured)


def _best(measured: ComparisonData) -> str:
    best, systems = best_system(measured), measured.asked.systems
    others = len(systems) - 1
    if not others:
        return _only(best, len(systems[best].ranks), measured)
    near = _near(measured, best)
    if near:
        counts = (len(near), others) if others >= len(_WORDS) else (number_word(len(near)), number_word(others))
        of = "{} of the {} other systems".format(*counts)
        of = "any other system" if len(near) == others else of
        of = near[0] if others == 1 else f"{of}: {listed(near)}"
        if measured.lead is not None:
            tests = "a paired test does" if others == 1 else "paired tests do"
            return f"No single best: {tests} not separate {best} ({_with_interval(measured, best)}) from {of}."
        overlaps = f"overlaps with {'that' if len(near) == 1 else 'those'} of {of}"
        return f"No single best: the confidence interval of {best} ({_with_interval(measured, best)}) {overlaps}."
    what = f"better than {measured.ranked[1]}" if others == 1 else f"the best of {number_word(others + 1)} systems"
    tests = "no other confidence interval overlaps with its own"
    if measured.lead is not None:
        tests = "a paired test separates the two" if others == 1 else "paired tests separate it from every other system"
    return f"{best} is {what}: {_in_words(measured, best)}, and {tests}."


def _near(measured: ComparisonData, best: str) -> list[str]:
    """The systems that are not separated from the best: by a paired test, else by intervals that do not overlap."""
    low = measured.hit_rate(best).low
    overlapping = [system for system in measured.ranked if system != best and measured.hit_rate(system).high >= low]
    return overlapping if measured.lead is None else [s for s in measured.ranked if s in measured.lead.level]


def _only(system: str, seeds: int, measured: ComparisonData) -> str:
    """The sentence about a comparison of one system."""
    what = "One result" if seeds == 1 else f"One system ({seeds} seeds)"
    return (
        f"{what}, so there is nothing to compare: {system} {_finds(measured, system)}. Add the results of other "
        "systems on the same dataset, split, targets and policy for repeated tracks."
    )


def _in_words(measured: ComparisonData, system: str) -> str:
    return f"it {_finds(measured, system)}"


def _finds(measured: ComparisonData, system: str) -> str:
    found = measured.hit_rate(system)
    sessions = of_sessions(measured.wanted_group, f"{100 * found.value:.0f} of 100")
    interval = f"HR@10 {found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}"
    return f"finds the next track among its first ten in {sessions} ({interval})"


def _with_interval(measured: ComparisonData, system: str) -> str:
    found = measured.hit_rate(system)
    targets = "HR@10 on played targets" if measured.wanted_group == "played" else "HR@10"
    return f"{targets} {found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}"


def of_sessions(group: str, count: str) -> str:
    """A number of sessions of a group, in words."""
    return f"{count} sessions whose next track was played" if group == "played" else f"{count} sessions"


_WORDS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def number_word(count: int) -> str:
    """A number as a sentence writes it: in words up to ten."""
    return _WORDS[count] if count < len(_WORDS) else str(count)


def _feedback(measured: ComparisonData) -> str:
    tested = [d for d in measured.differences if d.pair.why == "feedback"]
    found = [d for d in tested if (d.group, d.metric) == (measured.wanted_group, "HR@10")]
    if not found:
        return "Cannot estimate the effect of skip feedback: add results with and without `--no-nce`."
    skipped = [d for d in tested if (d.group, d.metric) == ("skipped", "MRR@10")]
    said = (
        [_one_found(measured, found[0])] if len(found) == 1 else [_found(measured, found), _at_rank_1(measured, found)]
    )
    if skipped:
        said.append(_one_skipped(skipped[0]) if len(skipped) == 1 else _skipped(skipped))
    return " ".join(filter(None, said))


def _one_found(measured: ComparisonData, d: Difference) -> str:
    """What feedback changed in the hits of the one system that was evaluated with and without it."""
    name = d.pair.against if d.pair.system == f"{d.pair.against}+nce" else d.pair.system
    what = "played targets" if d.group == "played" else "targets"
    values = f"({d.before + d.estimate.value:.3f} against {d.before:.3f})"
    if d.significant:
        said, join = f"finds {_points(d.estimate.value)} {what} in its first ten {values}", " and"
    else:
        said, join = (
            f"finds neither significantly more nor fewer {what} in its first ten {values}",
            ", but",
        )
    at_rank_1 = _changed_at_rank_1(measured, d)
    return f"With skip feedback, {name} {said}{f'{join} {at_rank_1}' if at_rank_1 else ''}."


def _changed_at_rank_1(measured: ComparisonData, d: Difference) -> str:
    """The change of HR@1 in words, if the intervals with and without feedback do not overlap, else nothing."""
    with_it, without = (measured.estimates.get((s, d.group, "HR@1")) for s in (d.pair.system, d.pair.against))
    if with_it is None or without is None or (with_it.high >= without.low and with_it.low <= without.high):
        return ""
    return f"{_points(with_it.value - without.value)} at rank 1 ({with_it.value:.3f} against {without.value:.3f})"


def _points(change: float) -> str:
    points = f"{100 * abs(change):.1f}"
    return f"{points} point{'s' * (points != '1.0')} {'more' if change > 0 else 'fewer'}"


def _found(measured: ComparisonData, found: Sequence[Difference]) -> str:
    """How many of several systems find more of the targets with feedback, and how many find fewer."""
    what = "played targets" if measured.wanted_group == "played" else "targets"
    more, fewer = _moved(found, up=True), _moved(found, up=False)
    first_ten = f"in {'its' if len(more) < 2 else 'their'} first ten"
    said = f"{_of(more, found)} find{_s(more)} significantly more {what} {first_ten}"
    if more:
        most = max(more, key=lambda d: d.estimate.value)
        values = f"{most.before + most.estimate.value:.3f} against {most.before:.3f}"
        at_most = "at most " * (len(more) > 1)
        said += f" ({at_most}{_points(most.estimate.value).removesuffix(' more')}: {most.pair.system}, {values})"
    said += f", and {number_word(len(fewer))} find{_s(fewer)} fewer" if fewer else ""
    return f"With skip feedback, {said}."


def _at_rank_1(measured: ComparisonData, found: Sequence[Difference]) -> str:
    """The systems whose HR@1 is clearly lower with feedback: its cost."""
    changed = [(d.pair.system, _changed_at_rank_1(measured, d)) for d in found]
    cost = [f"{system} finds {change.replace(' at rank 1', '')}" for system, change in changed if " fewer " in change]
    return f"Cost at rank 1: {listed(cost)}." if cost else ""


def _one_skipped(d: Difference) -> str:
    values = f"(MRR@10 {d.before + d.estimate.value:.3f} against {d.before:.3f})"
    if not d.significant:
        return f"It ranks skipped targets neither significantly lower nor higher {values}."
    return f"It ranks skipped targets {'lower' if d.estimate.value < 0 else 'higher'} {values}."


def _skipped(skipped: Sequence[Difference]) -> str:
    lower, higher = _moved(skipped, up=False), _moved(skipped, up=True)
    said = f"{_of(lower, skipped)} rank{_s(lower)} skipped targets significantly lower"
    said += f", and {number_word(len(higher))} rank{_s(higher)} them higher" if higher else ""
    return f"{said[0].upper()}{said[1:]}."


def _moved(differences: Sequence[Difference], *, up: bool) -> list[Difference]:
    """The significant differences, upwards or downwards."""
    return [d for d in differences if d.significant and (d.estimate.value > 0) == up]


def _of(changed: Sequence[Difference], every: Sequence[Difference]) -> str:
    """How many systems changed, as the subject of a sentence: "none of the four systems", "both systems"."""
    if len(changed) == len(every):
        return "both systems" if len(every) == 2 else f"all {number_word(len(every))} systems"
    some = number_word(len(changed)) if changed else "none"
    return f"{some} of the {number_word(len(every))} systems"


def _s(subject: Sequence[Difference]) -> str:
    """The ending of a verb in the third person."""
    return "s" if len(subject) < 2 else ""


def listed(names: Sequence[str], most: int = 6) -> str:
    """At most `most` names as part of a sentence."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def example(measured: ComparisonData) -> list[str]:
    """How a hit rate is computed, with one session as an example: sentences."""
    asked, best, group = measured.asked, best_system(measured), measured.wanted_group
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
