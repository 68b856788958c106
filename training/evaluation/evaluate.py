"""Offline evaluation of a release or a running service. docs/evaluation.md describes the protocols.

The protocol `full` requests the top LIST_LENGTH tracks from segue.recommend.Recommender or from the service. The
metrics therefore describe the same lists that users get. The protocol `sampled` ranks the target among random tracks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.errors import BadOption, InputError
from segue.ranking_metrics import (
    LIST_LENGTH,
    METRICS,
    NOT_FOUND,
    bootstrap,
    bootstrap_difference,
    mean_rank,
    rank_in_list,
    reciprocal_rank,
)
from segue.recommend import Recommender
from segue.release import Release
from segue.sessions import ALLOW_REPEATS, RepeatPolicy
from segue.window import Sessions, SessionViews
from training.data.dataset import Dataset
from training.data.splits import Examples, Part, Split, Targets, examples, training_part
from training.evaluation.skip_evaluation import SAMPLED, SERVICE, EvaluatedTargets, ScoredRelease, as_json, skip_blocks
from training.notes import (
    by_construction,
    construction_note,
    fitted_note,
    one_target_note,
    outcomes_note,
    release_notes,
    repeats_note,
    selection_note,
)
from training.registry import system_name

Protocol_: TypeAlias = Literal["full", "sampled"]

BATCH: Final = 256
SAMPLED_CANDIDATES: Final = 1000
COVERAGE_CUTOFF: Final = 20

RankedList: TypeAlias = tuple[Int, Float32]  # rows of the release's catalogue [n] int64 and scores [n], best first


class RecommenderUnderTest(Protocol):
    """Recommends tracks for sessions: a local release or a running service."""

    def lists(self, sessions: Sessions, repeat: RepeatPolicy = ALLOW_REPEATS, caution: float = 0.0) -> list[RankedList]:
        """Return the top LIST_LENGTH tracks for each session; `sessions` contains rows of the dataset's catalogue."""
        ...


@dataclass(frozen=True)
class LocalRecommender:
    """Computes recommendations with a release in this process."""

    recommender: Recommender
    to_release: Int  # [dataset rows] int64, dataset row to release row; PAD_ROW for unknown tracks

    def lists(self, sessions: Sessions, repeat: RepeatPolicy = ALLOW_REPEATS, caution: float = 0.0) -> list[RankedList]:
        """Return the top LIST_LENGTH tracks for each session. Tracks that the release does not know are ignored."""
        mapped = replace(sessions, rows=self.to_release[sessions.rows])
        answers = self.recommender.recommend(mapped, LIST_LENGTH, repeat=repeat, caution=caution)
        return [(answer.rows, answer.scores) for answer in answers]


@dataclass(frozen=True)
class Question:
    """The settings of an evaluation: dataset, release, split, protocol, seed, targets, repeated tracks and caution."""

    dataset: Dataset
    release: Release
    split: Split
    part: Part = "test"
    protocol: Protocol_ = "full"
    seed: int = 0
    targets: Targets = "last"
    repeat: RepeatPolicy = ALLOW_REPEATS
    caution: float | None = None  # None: the default of the release

    @property
    def used_caution(self) -> float:
        """The caution of the requests."""
        return self.release.default_caution if self.caution is None else self.caution

    def examples(self) -> Examples:
        """Return the sessions and targets to evaluate.

        Raises:
            BadOption: The targets are `known`, but the log has no outcome.
            InputError: There are no targets, the release was trained on some of them, or it has none of their tracks.

        """
        self._check_not_trained_on()
        if self.targets == "known" and not self.dataset.has_outcomes:
            raise BadOption(
                f"--targets known: {self.dataset.path} does not tell skipped from played tracks, so no play has a "
                "known outcome: use --targets last"
            )
        asked = examples(self.dataset, self.split, self.part, self.targets)
        if not len(asked.targets):
            raise InputError(f"{self.dataset.path} has no {self.part} target in the split {self.split}: too few plays")
        if (self.to_release() == PAD_ROW).all():
            raise InputError(
                f"0 of {len(self.dataset.catalogue):,} tracks of {self.dataset.path} are in {self.release.path}, so "
                "nothing can be recommended: evaluate on a log with the track ids that the release was trained on"
            )
        return asked

    def _check_not_trained_on(self) -> None:
        manifest = self.release.manifest
        if not self._same_dataset:
            return
        if manifest.dataset.split != self.split:
            raise InputError(
                f"{self.release.path} was trained with the split {manifest.dataset.split}, so the {self.split} split "
                "would ask for plays that it was trained on: train with the split that you evaluate"
            )
        if self._moves_targets and (self.part == "validation" or self.release.has_counts):
            raise InputError(
                f"{self.release.path} was trained without --targets known, on {self.part} targets of --targets known: "
                "train with --targets known"
            )

    @property
    def _same_dataset(self) -> bool:
        return self.release.manifest.dataset.fingerprint == self.dataset.facts.fingerprint

    @property
    def _moves_targets(self) -> bool:
        """Whether some targets of the last-play split are one play earlier than those of the training."""
        trained = self.release.manifest.evaluation.get("targets", "last")
        unknown = self.dataset.last_known is not None
        return unknown and self.split == "last-play" and self.targets == "known" and trained != "known"

    def notes(self, asked: Examples) -> list[str]:
        """Return sentences about what the evaluation cannot measure, and what holds by construction."""
        notes = [
            outcomes_note(self.dataset, asked),
            repeats_note(asked, self.repeat),
            selection_note(asked, self.dataset) if self._same_dataset and self._moves_targets else None,
            fitted_note(self.release, self.part) if self._same_dataset else None,
            construction_note(self.candidates),
            one_target_note(len(asked.targets), self.part),
            *release_notes(self.release.manifest),
        ]
        return [note for note in notes if note is not None]

    @property
    def candidates(self) -> int:
        """The number of tracks that a target is ranked among, or that the sampled protocol samples from."""
        return len(self.release.catalogue if self.protocol == "full" else self.dataset.catalogue)

    def with_ranks(self, asked: Examples, ranks: Float64) -> EvaluatedTargets:
        """Return the targets with their ranks, for the measures of skip learning. `ranks` [sessions] float64."""
        trained = training_part(self.dataset, self.split, self.targets)
        return EvaluatedTargets(self.dataset, self.split, asked, ranks, trained, self._same_dataset, self.seed)

    def to_release(self) -> Int:
        """Return the release row of each dataset row, matched by track id. [dataset rows] int64.

        Tracks that the release does not know have PAD_ROW.
        """
        return np.concatenate([[PAD_ROW], self.release.catalogue.rows(self.dataset.catalogue.track_ids)])


Advance: TypeAlias = Callable[[int, int], None]  # evaluated sessions, total sessions


def evaluate(question: Question, answers: RecommenderUnderTest, advance: Advance | None = None) -> dict[str, Any]:
    """Evaluate recommendations and return the content of the file that `segue evaluate --output` writes.

    `advance` is called after every batch of sessions.

    Raises:
        BadOption: The protocol is `sampled`, but `answers` is a service, or the targets do not fit the log.
        InputError: There are no targets, the release was trained on some of them, or it has none of their tracks.

    """
    asked, to_release = question.examples(), question.to_release()
    targets = to_release[asked.targets]  # PAD_ROW if the release does not know the target, which counts as a miss
    covered: Int = np.empty(0, dtype=np.int64)
    if question.protocol == "full":
        ranks, covered = _full_ranks(question, answers, asked, targets, advance)
    elif isinstance(answers, LocalRecommender):
        ranks = _sampled_ranks(question, answers.recommender, asked, to_release, advance)
    else:
        raise BadOption("--protocol sampled is not for --url: a service ranks its whole catalogue; use --protocol full")
    target_plays = question.release.catalogue.plays[targets]
    manifest = question.release.manifest
    caution = f"+caution {question.used_caution:g}" if question.used_caution else ""
    result: dict[str, Any] = {
        "release": question.release.name,
        "model": manifest.model,
        "system": system_name(manifest.model, manifest.options) + caution,
        "options": manifest.options,
        "train_seed": manifest.options.get("seed", 0),
        "training": manifest.evaluation.get("training", {}),
        "dataset": {name: getattr(question.dataset.facts, name) for name in ("source", "title", "fingerprint")},
        "split": question.split,
        "part": question.part,
        "protocol": question.protocol,
        "targets": question.targets,
        "repeat": question.repeat.text,
        "caution": question.used_caution,
        "evaluation_seed": question.seed,
        "notes": question.notes(asked),
        "by_construction": by_construction(question.candidates),
        "unknown_targets": 0 if asked.target_known is None else int((~asked.target_known).sum()),
        **summary(ranks, asked.target_skipped, question.seed, asked.target_known),
        "unseen_targets": float((target_plays == 0).mean()),
    }
    if question.protocol == "full":
        result["catalogue_coverage@20"] = len(covered) / max(len(question.release.catalogue), 1)
    scored: ScoredRelease | str = SAMPLED if question.protocol == "sampled" else SERVICE
    if isinstance(answers, LocalRecommender) and question.protocol == "full":
        scored = ScoredRelease(answers.recommender, to_release, question.used_caution)
    result |= skip_blocks(question.with_ranks(asked, ranks), scored)
    result["ranks"] = [rank if np.isfinite(rank) else None for rank in ranks.tolist()]
    result["target_skipped"] = asked.target_skipped.tolist()
    if asked.target_known is not None:
        result["target_known"] = asked.target_known.tolist()
    result["target_plays"] = target_plays.tolist()
    result["session_length"] = asked.inputs.lengths.tolist()
    result["session_skip_rate"] = [round(rate, 4) for rate in skip_rates(asked.inputs).tolist()]
    return result


def skip_rates(sessions: SessionViews) -> Float64:
    """Return the share of skipped plays of each session, or 0 for a session without plays. [sessions] float64."""
    rates = [np.empty(0)]
    for block in sessions.blocks():
        skips = np.concatenate([[0], np.cumsum(block.skipped)])
        rates.append(np.diff(skips[block.offsets]) / np.maximum(block.lengths, 1))
    return np.concatenate(rates)


def summary(ranks: Float64, target_skipped: Bool, seed: int, target_known: Bool | None = None) -> dict[str, Any]:
    """Return all metrics with 95 % confidence intervals for the groups `all`, `played` and `skipped` of targets.

    `skip_down_ranking` contains the MRR@10 of skipped targets, and the difference in MRR@10 between played and skipped
    targets. `ranks` is [sessions] float64, `target_skipped` and `target_known` are [sessions] bool. Targets of unknown
    outcome are in the group `all` only. `seed` initialises the bootstrap.
    """
    known = np.ones_like(target_skipped) if target_known is None else target_known
    groups = {"all": ranks, "played": ranks[known & ~target_skipped], "skipped": ranks[known & target_skipped]}
    rng = np.random.default_rng(seed)
    measured: dict[str, Any] = {
        name: {"sessions": len(members)}
        | {metric: as_json(bootstrap(of(members), rng)) for metric, of in METRICS.items()}
        for name, members in groups.items()
    }
    played, skipped = (reciprocal_rank(groups[name], 10) for name in ("played", "skipped"))
    return {
        "groups": measured,
        "skip_down_ranking": {
            "MRR@10 skipped": measured["skipped"]["MRR@10"],
            "MRR@10 played - skipped": as_json(bootstrap_difference(played, skipped, rng)),
        },
    }


def _batches(asked: Examples, advance: Advance | None) -> Iterator[slice]:
    total = len(asked.targets)
    for start in range(0, total, BATCH):
        yield slice(start, min(start + BATCH, total))
        if advance is not None:
            advance(min(start + BATCH, total), total)


def _full_ranks(
    question: Question, answers: RecommenderUnderTest, asked: Examples, targets: Int, advance: Advance | None
) -> tuple[Float64, Int]:
    """Return the rank of each target among all tracks, and the distinct rows in the top 20 of any list.

    The rank is NOT_FOUND if the target is not in the list. Ranks are [sessions] float64, rows are [n] int64.
    """
    ranks = np.full(len(targets), NOT_FOUND)
    covered: Int = np.empty(0, dtype=np.int64)
    for batch in _batches(asked, advance):
        lists = answers.lists(asked.inputs.select(batch), question.repeat, question.used_caution)
        for i, (rows, scores) in enumerate(lists, start=batch.start):
            if targets[i] != PAD_ROW:
                ranks[i] = rank_in_list(rows, scores, targets[i])
        covered = np.union1d(covered, np.concatenate([rows[:COVERAGE_CUTOFF] for rows, _ in lists]))
    return ranks, covered


def _sampled_ranks(
    question: Question, recommender: Recommender, asked: Examples, to_release: Int, advance: Advance | None
) -> Float64:
    """Return the rank of each target among uniformly sampled tracks outside its session. [sessions] float64.

    The samples depend only on the seed and the session, so all rankers are compared on the same candidates. The rank
    of a target that the policy for repeated tracks excludes is NOT_FOUND.
    """
    ranks = np.full(len(asked.targets), NOT_FOUND)
    tracks = len(question.dataset.catalogue)
    for batch in _batches(asked, advance):
        inputs = asked.inputs.select(batch)
        candidates = [
            sample_candidates(inputs, i, target, tracks, (question.seed, int(session)))
            for i, (target, session) in enumerate(zip(asked.targets[batch], asked.sessions[batch], strict=True))
        ]
        width = max(len(line) for line in candidates)
        rows = to_release[np.array([np.pad(line, (0, width - len(line))) for line in candidates])]
        mapped = replace(inputs, rows=to_release[inputs.rows])
        scored = recommender.scores(mapped, rows, question.used_caution)
        scores = np.where(rows == PAD_ROW, -np.inf, scored)
        of_target = scores[:, :1]
        rank = mean_rank((scores > of_target).sum(axis=1), (scores == of_target).sum(axis=1) - 1)
        ranks[batch] = np.where(rows[:, 0] == PAD_ROW, NOT_FOUND, rank)
    ranks[asked.excluded_by(question.repeat)] = NOT_FOUND
    return ranks


def sample_candidates(inputs: Sessions, i: int, target: int, tracks: int, seed: tuple[int, int]) -> Int:
    """Return the target, followed by SAMPLED_CANDIDATES distinct tracks sampled uniformly from outside session `i`.

    If the catalogue has fewer tracks outside the session, return all of them. The result is [n] int64 dataset rows.
    `tracks` is the number of tracks in the catalogue.
    """
    own = np.append(inputs.rows[inputs.offsets[i] : inputs.offsets[i + 1]], target)
    own = np.unique(own[own != PAD_ROW]) - FIRST_TRACK_ROW
    outside = tracks - len(own)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(outside, size=min(SAMPLED_CANDIDATES, outside), replace=False, shuffle=False)
    # `drawn` contains indices into the tracks outside the session. Convert them to indices into all tracks.
    drawn = drawn + np.searchsorted(own - np.arange(len(own)), drawn, side="right")
    return np.concatenate([[target], drawn + FIRST_TRACK_ROW])
