"""Sentences about the conditions of a figure: what it cannot measure, and what holds whatever the model does.

`segue train`, `tune`, `reproduce`, `evaluate` and `compare` print them. A release keeps those of its training in its
manifest (`evaluation.notes`), and a result of `segue evaluate` those of its evaluation (`notes`).
"""

from collections.abc import Sequence

from segue.ranking_metrics import CUTOFFS, METRICS
from segue.release import Manifest, Release
from segue.sessions import NEVER_REPEAT, RepeatPolicy
from segue.window import SessionViews
from training.data.dataset import Dataset
from training.data.splits import Examples, Split, Targets, examples, training_part
from training.options import NeuralOptions, Options

LEARN_FROM_SKIPS = "-nr"  # suffix of the versions of WRMF and BPR that take skipped plays as negatives


def by_construction(candidates: int) -> list[str]:
    """Return the metrics that are 1 for every ranked target if there are `candidates` tracks to rank."""
    if candidates == 1:
        return list(METRICS)
    return [f"HR@{k}" for k in CUTOFFS if candidates <= k]


def construction_note(tracks: int) -> str | None:
    """Return a sentence about the metrics that are 1 by construction, or None if there are none."""
    metrics = by_construction(tracks)
    if not metrics:
        return None
    named = "every metric is" if tracks == 1 else f"{_listed(metrics)} {'is' if len(metrics) == 1 else 'are'}"
    return f"The catalogue has {_count(tracks, 'track')}, so {named} 1 by construction for each target in it."


def one_target_note(targets: int, part: str) -> str | None:
    """Return a sentence about an evaluation of one session, or None."""
    if targets != 1:
        return None
    return f"There is 1 {part} target: the metrics describe one session only, and say nothing about other sessions."


def repeats_note(asked: Examples, repeat: RepeatPolicy) -> str | None:
    """Return a sentence about targets that the policy for repeated tracks excludes, or None if there are none."""
    excluded, total = int(asked.excluded_by(repeat).sum()), len(asked.targets)
    if not excluded:
        return None
    heard = "its session" if repeat == NEVER_REPEAT else f"the {_count(repeat.plays, 'play')} before it"
    return (
        f"repeat={repeat} excludes every target that repeats a track of {heard}, {excluded:,} of {total:,}: each of "
        "them counts as a miss."
    )


def selection_note(asked: Examples, dataset: Dataset) -> str:
    """Return a sentence about test targets that were validation targets of the training without --targets known."""
    assert dataset.last_known is not None
    seen = int((~dataset.last_known[asked.sessions]).sum())
    return (
        f"{seen:,} of {len(asked.targets):,} targets were validation targets of the training, which may have "
        "chosen its epoch or options with them: train with --targets known for a test that it never saw."
    )


def fitted_note(release: Release, part: str) -> str | None:
    """Return a sentence about validation targets that a release was fitted to, or None."""
    if part != "validation" or not release.has_counts:
        return None
    return (
        "The weights of counts were fitted to these validation targets, so the values are a little too good: evaluate "
        "the part test to compare with other models."
    )


def outcomes_note(dataset: Dataset, asked: Examples) -> str | None:
    """Return a sentence about targets whose outcome is unknown, or None if there are none."""
    if asked.target_known is None or asked.target_known.all():
        return None
    unknown, total = int((~asked.target_known).sum()), len(asked.targets)
    skipped = int(asked.target_skipped.sum())
    if not dataset.has_outcomes:
        return (
            f"The log does not tell skipped from played tracks, so all {total:,} targets count neither as played nor "
            "as skipped: prepare a log with skip flags, end reasons or played durations to measure both groups."
        )
    return (
        f"{_reason(dataset)}, and no later play shows the outcome of a last play: "
        f"{unknown:,} of {_count(total, 'target')} count neither as played nor as skipped, which leaves "
        f"{_count(skipped, 'skipped target')}. Train and evaluate with --targets known to measure both groups, or "
        "prepare a log with skip flags or played durations."
    )


def training_notes(
    model: str, options: Options, dataset: Dataset, split: Split, targets: Targets = "last"
) -> list[str]:
    """Return the sentences about a training that its data do not support, or only in part."""
    part = training_part(dataset, split, targets)
    validation = examples(dataset, split, "validation", targets)
    notes = [
        _skips_note(model, options, part),
        _left_out_note(dataset, split, targets),
        construction_note(len(dataset.catalogue)),
        "The split has no validation target, so validation HR@10 is 0 after every epoch."
        if not len(validation.targets)
        else one_target_note(len(validation.targets), "validation"),
    ]
    return [note for note in notes if note is not None]


def release_notes(manifest: Manifest) -> list[str]:
    """Return the sentence about the training of a release that its evaluation must repeat, if there is one."""
    training = manifest.evaluation.get("training", {})
    if training.get("skips") != 0 or not (manifest.options.get("beta") or manifest.model.endswith(LEARN_FROM_SKIPS)):
        return []
    return [f"{manifest.name} learned from sessions without a skip: it is a model without skip feedback."]


def _skips_note(model: str, options: Options, part: SessionViews) -> str | None:
    has_loss = isinstance(options, NeuralOptions) and options.beta > 0
    if not has_loss and not model.endswith(LEARN_FROM_SKIPS):
        return None
    if any(block.skipped.any() for block in part.blocks()):
        return None
    if has_loss:
        return (
            "The training sessions have no skip, so the skip loss has nothing to learn from: the model is trained as "
            "with --no-nce."
        )
    plain = model.removesuffix(LEARN_FROM_SKIPS)
    return f"The training sessions have no skip, so {model} has no negatives to learn from: it is trained as {plain}."


def _left_out_note(dataset: Dataset, split: Split, targets: Targets) -> str | None:
    """Return a sentence about last plays of unknown outcome, which the training and the targets leave out."""
    if dataset.last_known is None or not dataset.has_outcomes:
        return None
    unknown = int((~dataset.last_known).sum())
    begin = f"{_reason(dataset)}, so {_count(unknown, 'last play')} of {len(dataset.sessions):,} sessions"
    if targets == "known":
        return f"{begin} have no known outcome: they are left out (--targets known)."
    if split == "new-sessions":
        return f"{begin} have no known outcome: they are left out of the training, and remain targets."
    return (
        f"{begin} have no known outcome: they are test targets that are neither played nor skipped. With --targets "
        "known, training and evaluation leave them out."
    )


def _reason(dataset: Dataset) -> str:
    """Why outcomes are unknown: the first words of a sentence."""
    log = dataset.facts.log
    if log is None:
        return "Skips were inferred from time"
    if not log.skips_from.time:
        return "The log does not give the outcome of each play"
    given = log.skips_from.flag + log.skips_from.end_reason + log.skips_from.played_duration
    return "Some skips were inferred from time" if given else "Skips were inferred from time"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
