"""Reads result files and groups them by evaluation: the same dataset, split, part, protocol, targets and `repeat`.

A system may have several training seeds; its value for a session is the mean over them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from segue.arrays import Bool, Float64, Int
from segue.errors import InputError
from segue.ranking_metrics import METRICS, NOT_FOUND
from segue.release import MANIFEST

GROUPS: Final = ("all", "played", "skipped")
_NEEDED: Final = ("system", "train_seed", "dataset", "split", "part", "protocol", "ranks", "target_skipped", "training")
_OF_A_SESSION: Final = ("target_skipped", "target_plays", "session_length", "session_skip_rate")


class Question(NamedTuple):
    """An evaluation: results are compared only within one."""

    source: str
    fingerprint: str
    split: str
    part: str
    protocol: str
    targets: str = "last"
    repeat: str = "allow"

    def __str__(self) -> str:
        """The name in titles of tables."""
        known = " of known outcome" if self.targets == "known" else ""
        return f"{self.part} targets{known}, {self.split} split, {self.protocol} ranking{self.policy}"

    @property
    def policy(self) -> str:
        """The policy for repeated tracks in titles: nothing for the default."""
        return "" if self.repeat == "allow" else f", repeat={self.repeat}"


@dataclass
class SystemResults:
    """The results of one system in one evaluation, for all its seeds."""

    options: dict[str, Any] = field(default_factory=dict)  # without the seed
    ranks: dict[int, Float64] = field(default_factory=dict)  # training seed: [sessions] float64, NOT_FOUND beyond lists
    training: list[dict[str, float]] = field(default_factory=list)  # a seed's seconds, peak_memory_bytes, epochs
    unseen_targets: float = 0.0
    coverage: list[float] = field(default_factory=list)
    skip_measures: list[dict[str, Any]] = field(default_factory=list)  # of each seed; none in results of older versions

    def values(self, metric: str) -> Float64:
        """Each session's value, the mean over seeds. [sessions] float64."""
        value: Float64 = np.mean([METRICS[metric](ranks) for ranks in self.ranks.values()], axis=0)
        return value

    def of_each_seed(self, metric: str, members: Bool) -> Float64:
        """The mean over the sessions of a group, seed by seed. [seeds] float64."""
        return np.array([METRICS[metric](ranks)[members].mean() for ranks in self.ranks.values()])


@dataclass
class EvaluationResults:
    """One evaluation: facts about its sessions, and the results of every system."""

    question: Question
    target_skipped: Bool  # [sessions]
    target_plays: Int  # [sessions] int64, plays of the target in the training part
    session_length: Int  # [sessions] int64, plays of the input
    session_skip_rate: Float64  # [sessions]
    drawn: int = 0  # the seed of the sampled tracks, for the protocol `sampled`
    systems: dict[str, SystemResults] = field(default_factory=dict)
    target_known: Bool | None = None  # [sessions], whether the outcome of the target is known; None: of all of them
    group_members: dict[str, list[bool | None]] = field(default_factory=dict)  # whether a target is in a group
    stratum: list[int | None] = field(default_factory=list)  # the state of the session before each target
    title: str = ""  # of the dataset, for readers; empty in results of older versions
    notes: list[str] = field(default_factory=list)  # what the evaluation cannot measure, and what holds anyway

    def members(self, group: str) -> Bool:
        """The sessions of a group of targets, [sessions] bool."""
        every = np.ones_like(self.target_skipped)
        known = every if self.target_known is None else self.target_known
        return {"all": every, "played": known & ~self.target_skipped, "skipped": known & self.target_skipped}[group]


Comparison: TypeAlias = dict[Question, EvaluationResults]


def read_results(paths: Sequence[Path]) -> Comparison:
    """Read result files, grouped by evaluation. Raises InputError for a file that does not fit the others."""
    if not paths:
        raise InputError("there is no result to compare: write one with `segue evaluate --output FILE`")
    compared: Comparison = {}
    for path in paths:
        _add(compared, path, _read(path))
    return dict(sorted(compared.items(), key=lambda item: _order(item[0])))


def _order(question: Question) -> tuple[Any, ...]:
    split = question.split != "last-play"
    of = (question.source, question.fingerprint, question.part, split, question.targets)
    return (*of, question.repeat != "allow", question.repeat, question.protocol)


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        release = path if (path / MANIFEST).is_file() else "RELEASE"
        raise InputError(
            f"{path} is a folder, expected the file of a result: write it with `segue evaluate {release} DATASET "
            "--output FILE`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result of `segue evaluate --output`: {error}") from error
    missing = [key for key in (*_NEEDED, *_OF_A_SESSION) if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}: evaluate its release again with this Segue")
    return dict(content)


def _add(compared: Comparison, path: Path, content: dict[str, Any]) -> None:
    dataset = content["dataset"]
    split, part, protocol = (content[key] for key in ("split", "part", "protocol"))
    # A result without the key is older than the option. It was measured with the default.
    targets, repeat = content.get("targets", "last"), content.get("repeat", "allow")
    question = Question(dataset["source"], dataset["fingerprint"], split, part, protocol, targets, repeat)
    drawn = content.get("evaluation_seed", 0) if question.protocol == "sampled" else 0
    skipped, plays, length, skip_rate = (np.array(content[key]) for key in _OF_A_SESSION)
    asked = compared.setdefault(question, EvaluationResults(question, skipped, plays, length, skip_rate, drawn))
    asked.title = asked.title or dataset.get("title", "")
    if "target_known" in content:
        asked.target_known = np.array(content["target_known"])
    for group, members in content.get("target_group_members", {}).items():
        if group not in asked.group_members or set(asked.group_members[group]) == {None}:
            asked.group_members[group] = members
    asked.stratum = asked.stratum or content.get("target_stratum", [])
    asked.notes += [note for note in content.get("notes", []) if note not in asked.notes]
    if not np.array_equal(asked.target_skipped, skipped) or len(content["ranks"]) != len(skipped):
        raise InputError(f"{path} has other targets than the results before it of the same dataset and split")
    if asked.drawn != drawn:
        raise InputError(
            f"{path} uses sampled tracks of --seed {drawn}, the other results of --seed {asked.drawn}: "
            "evaluate all of them with one seed"
        )
    options = {key: value for key, value in content.get("options", {}).items() if key != "seed"}
    answered = asked.systems.setdefault(content["system"], SystemResults(options))
    for key in sorted(options.keys() & answered.options.keys()):
        if options[key] != answered.options[key]:
            raise InputError(
                f"{path} is {content['system']} with {key}={options[key]}, an earlier result has "
                f"{key}={answered.options[key]}: compare only seeds with the same options"
            )
    seed = content["train_seed"]
    if seed in answered.ranks:
        raise InputError(f"{path} is a second result of {content['system']} with seed {seed}: remove one of them")
    ranks = [NOT_FOUND if rank is None else rank for rank in content["ranks"]]
    answered.ranks[seed] = np.array(ranks, dtype=np.float64)
    answered.training.append(content["training"])
    answered.unseen_targets = content["unseen_targets"]
    answered.coverage.append(content.get("catalogue_coverage@20", float("nan")))
    if "skip_measures" in content:
        answered.skip_measures.append(content["skip_measures"])
