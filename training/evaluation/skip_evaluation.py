"""Applies the measures of skip learning to a release: the blocks `target_groups` and `skip_measures` of a result.

docs/evaluation.md explains the measures, training.evaluation.skip_measures has their formulas. A measure that the data
or the recommender do not support is None, and `reasons` says why.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import scipy.sparse

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.ranking_metrics import LIST_LENGTH, METRICS, Estimate, bootstrap
from segue.recommend import CANDIDATES, Recommender, log_probabilities
from segue.window import Sessions, SessionViews, Windows, to_windows
from training.data.dataset import Dataset
from training.data.splits import Examples, Split
from training.evaluation.session_state import quantile_strata, seen_pairs, session_features, train_skip_classifier
from training.evaluation.skip_measures import (
    GROUP_NAMES,
    MEASURED,
    bootstrap_gap,
    metric_values,
    pairwise_auc,
    percentiles,
    permuted_control,
)

GROUPS: Final = ("pair_seen", "after_skip", "repeat")  # with their complements: GROUP_NAMES
AUC_SESSIONS: Final = 10_000
RESPONSE_SESSIONS: Final = 1_000
_SIMILAR: Final = 10  # tracks
_SAMPLE: Final = 1_000  # tracks of the catalogue
_BATCH: Final = 64  # sessions with _SAMPLE candidates each: 32 MB of embeddings of dimension 128

_NO_OUTCOMES: Final = "the outcome of the targets is unknown"
_ONE_OUTCOME: Final = "the targets are all played or all skipped"
_FOREIGN: Final = "the release was trained on another dataset"
SERVICE: Final = "a service returns lists, not the scores of given tracks"
SAMPLED: Final = "it does not depend on sampled tracks: use the protocol full"
_TRAINED: Final = "the earlier plays of the test sessions were trained on: use the split new-sessions"


@dataclass(frozen=True)
class ScoredRelease:
    """A release in this process, how its rows relate to those of the dataset, and the caution of its requests."""

    recommender: Recommender
    to_release: Int  # [dataset rows] int64, PAD_ROW for unknown tracks
    caution: float = 0.0

    def scores(self, sessions: Sessions, rows: Int) -> Float32:
        """Return the scores of tracks for sessions, both in the release's rows, as Recommender.scores."""
        return self.recommender.scores(sessions, rows, self.caution)

    def mapped(self, sessions: Sessions) -> Sessions:
        """Return sessions of the dataset's rows with the release's rows."""
        return replace(sessions, rows=self.to_release[sessions.rows])


@dataclass(frozen=True)
class EvaluatedTargets:
    """Targets with their ranks, and the training part that their groups and states refer to."""

    dataset: Dataset
    split: Split
    asked: Examples
    ranks: Float64  # [sessions] float64
    training: SessionViews
    same_dataset: bool  # whether the release was trained on this training part
    seed: int = 0

    @property
    def known(self) -> Bool:
        """Whether the outcome of the target is known. [sessions] bool."""
        every = np.ones(len(self.ranks), dtype=np.bool_)
        return every if self.asked.target_known is None else self.asked.target_known


def skip_blocks(targets: EvaluatedTargets, release: ScoredRelease | str) -> dict[str, Any]:
    """Return the blocks of a result about groups of targets and skip learning.

    `release` is the reason, such as SERVICE, if the scores of given tracks are not available.

    `target_group_members` and `target_stratum` have a value for each target: whether it is in a group, and the stratum
    of its session's state. They are None where this is not known.
    """
    members, reasons = group_members(targets)
    strata, skips = _gaps(targets)
    skips |= _scored(targets, release, skips["reasons"])
    skips |= _caution_effect(targets, release, strata, skips["reasons"])
    return {
        "target_groups": _target_groups(targets, members) | {"reasons": reasons},
        "skip_measures": skips,
        "target_group_members": members,
        "target_stratum": strata,
    }


def group_members(targets: EvaluatedTargets) -> tuple[dict[str, list[bool | None]], dict[str, str]]:
    """Return whether each target is in each of GROUPS, and why a group is not known for any target.

    pair_seen: the last two plays before the target directly follow each other in a session of the training part.
    after_skip: the play before the target was skipped. repeat: the target occurs among the plays before it.
    """
    asked = targets.asked
    reasons: dict[str, str] = {}
    starts, ends, whole = asked.inputs.starts, asked.inputs.ends, asked.inputs.whole
    found: dict[str, list[bool | None]] = {name: [None] * len(ends) for name in GROUPS}
    if targets.same_dataset:
        first, second = (whole.rows[np.maximum(ends - back, 0)].astype(np.int64) for back in (2, 1))
        seen = seen_pairs(targets.training, first, second, targets.dataset.catalogue.num_rows)
        found["pair_seen"] = [bool(v) if n >= 2 else None for v, n in zip(seen, ends - starts, strict=True)]
    else:
        reasons["pair_seen"] = _FOREIGN
    if targets.dataset.has_outcomes:
        skipped = whole.skipped[np.maximum(ends - 1, 0)]
        found["after_skip"] = [bool(v) if n >= 1 else None for v, n in zip(skipped, ends - starts, strict=True)]
    else:
        reasons["after_skip"] = "the log has no outcomes"
    spans = zip(asked.targets.tolist(), starts.tolist(), ends.tolist(), strict=True)
    found["repeat"] = [bool((whole.rows[start:end] == target).any()) for target, start, end in spans]
    return found, reasons


def _target_groups(targets: EvaluatedTargets, members: dict[str, list[bool | None]]) -> dict[str, Any]:
    rng, found = np.random.default_rng(targets.seed), {}
    for (group, side), name in GROUP_NAMES.items():
        ranks = targets.ranks[[value is side for value in members[group]]]
        found[name] = {"sessions": len(ranks)} | {
            metric: as_json(bootstrap(METRICS[metric](ranks), rng)) for metric in MEASURED
        }
    return found


def _gaps(targets: EvaluatedTargets) -> tuple[list[int | None], dict[str, Any]]:
    """Return the stratum of each target, and the raw and matched gaps with the AUC of the skip classifier."""
    known = targets.known
    reasons: dict[str, str] = {}
    skipped, values = targets.asked.target_skipped[known], metric_values(targets.ranks[known])
    found: dict[str, Any] = {"raw_gap": None, "matched_gap": None, "skip_classifier_auc": None, "reasons": reasons}
    strata: list[int | None] = [None] * len(known)
    if not known.any() or skipped.all() or not skipped.any():
        reasons["raw_gap"] = reasons["matched_gap"] = _ONE_OUTCOME if known.any() else _NO_OUTCOMES
        return strata, found
    found["raw_gap"] = _by_metric(bootstrap_gap(values, skipped, np.zeros(len(skipped), dtype=np.int64), targets.seed))
    classifier = train_skip_classifier(targets.training)
    if classifier is None:
        reasons["matched_gap"] = "the plays of the training part are all played or all skipped"
        return strata, found
    inputs = targets.asked.inputs.select(np.flatnonzero(known))
    features = session_features(inputs, np.arange(len(inputs), dtype=np.int64), inputs.lengths)
    probability = classifier.predict_proba(features)[:, 1]
    found["skip_classifier_auc"] = pairwise_auc(-probability, skipped)  # a played target has a lower probability
    grouped = quantile_strata(probability)
    for i, stratum in zip(np.flatnonzero(known).tolist(), grouped.tolist(), strict=True):
        strata[i] = stratum
    found["matched_gap"] = _by_metric(bootstrap_gap(values, skipped, grouped, targets.seed))
    if found["matched_gap"] is None:
        reasons["matched_gap"] = "no group of sessions in the same state has played and skipped targets"
    return strata, found


def _scored(targets: EvaluatedTargets, release: ScoredRelease | str, reasons: dict[str, str]) -> dict[str, Any]:
    """Return the measures that need the scores of given tracks."""
    found: dict[str, Any] = {"pairwise_auc": None, "responsiveness": None}
    if isinstance(release, str):
        return found | {"reasons": reasons | {"pairwise_auc": release, "responsiveness": release}}
    if not targets.dataset.has_outcomes:
        reasons["pairwise_auc"] = "the log has no outcomes"
    elif targets.split != "new-sessions":
        reasons["pairwise_auc"] = _TRAINED
    else:
        found["pairwise_auc"] = session_auc(targets, release)
        if found["pairwise_auc"] is None:
            reasons["pairwise_auc"] = "no session has a played and a skipped track in its second half"
    found["responsiveness"] = responsiveness(targets, release)
    if found["responsiveness"] is None:
        reasons["responsiveness"] = "no recommended track has a similar track"
    return found | {"reasons": reasons}


def _caution_effect(
    targets: EvaluatedTargets, release: ScoredRelease | str, strata: list[int | None], reasons: dict[str, str]
) -> dict[str, Any]:
    """Return the matched gap of caution minus that of its permuted control. The lists of both allow repeats."""
    if isinstance(release, str) or not release.caution:
        return {"caution_effect": None}
    if "matched_gap" in reasons:
        return {"caution_effect": None, "reasons": reasons | {"caution_effect": reasons["matched_gap"]}}
    head = release.recommender.head
    assert head is not None  # caution needs one
    measured = np.flatnonzero(targets.known)
    windows = to_windows(release.mapped(targets.asked.inputs.select(measured)), release.recommender.window)
    log_next, rows = caution_candidates(release.recommender, windows)
    play = np.concatenate([np.exp(head.log_played(windows.select(at), rows[at])) for at in _batches(len(rows))])
    is_target = rows == release.to_release[targets.asked.targets[measured]][:, None]
    column = np.where(is_target.any(axis=1) & (rows[:, 0] != PAD_ROW), is_target.argmax(axis=1), -1)
    outcome = targets.asked.target_skipped[measured], np.array([strata[i] for i in measured], dtype=np.int64)
    control = permuted_control(log_next, play, column, outcome, release.caution, targets.seed)
    real, permuted = control.matched
    parts = {"effect": control.effect, "matched_gap": real, "matched_gap_permuted": permuted}
    return {"caution_effect": {name: _by_metric(estimates) for name, estimates in parts.items()}}


def caution_candidates(recommender: Recommender, windows: Windows) -> tuple[Float64, Int]:
    """Return log P(next) and the rows of the tracks that caution re-ranks, as in a request for 20 tracks.

    [windows, candidates] float64 and int64. Padding has -inf and PAD_ROW.
    """
    ranker, parts = recommender.ranker, []
    for at in _batches(len(windows)):
        batch = windows.select(at)
        found = ranker.rank(batch, CANDIDATES)
        log_next = log_probabilities(ranker, batch, found.scores, found.scores)
        parts.append((np.where(found.rows == PAD_ROW, -np.inf, log_next), found.rows))
    log_next, rows = map(np.concatenate, zip(*parts, strict=True))
    return log_next, rows


def _batches(count: int) -> list[slice]:
    return [slice(at, at + _BATCH) for at in range(0, count, _BATCH)]


def session_auc(targets: EvaluatedTargets, release: ScoredRelease) -> dict[str, Any] | None:
    """Return the mean AUC "played above skipped" of the tracks in the second half of a session, with its interval.

    The release gets the first half of the plays, floor(n / 2), and scores the distinct tracks of the others that are
    not in the first half. A track counts with the outcome of its first play there. Tracks that the release does not
    know and plays of unknown outcome are left out. At most AUC_SESSIONS sessions, drawn with the seed. None if no
    session has a played and a skipped one.
    """
    asked, whole = targets.asked, targets.asked.inputs.whole
    chosen = _sample(len(asked.targets), AUC_SESSIONS, targets.seed)
    values = []
    for batch in np.array_split(chosen, max(1, -(-len(chosen) // _BATCH))):
        starts, ends = asked.inputs.starts[batch], asked.inputs.ends[batch] + 1  # the target is the last play
        halves = starts + (ends - starts) // 2
        lists = [
            _later_tracks(release.to_release[whole.rows[start:end]], whole.skipped[start:end], half - start)
            for start, half, end in zip(starts, halves, ends - ~targets.known[batch], strict=True)
        ]
        candidates = _padded([rows for rows, _ in lists])
        if not candidates.size:
            continue
        scores = release.scores(release.mapped(whole.cut(starts, halves)), candidates)
        for (rows, skipped), line in zip(lists, scores, strict=True):
            auc = pairwise_auc(line[: len(rows)], skipped)
            values += [] if auc is None else [auc]
    estimate = bootstrap(np.array(values), np.random.default_rng(targets.seed))
    return None if estimate is None else {"sessions": len(values)} | asdict(estimate)


def _later_tracks(rows: Int, skipped: Bool, half: int) -> tuple[Int, Bool]:
    """Return the distinct known tracks after the first `half` plays that are not among them, and their outcomes."""
    later, first = np.unique(rows[half:], return_index=True)
    new = (later != PAD_ROW) & ~np.isin(later, rows[:half])
    return later[new], skipped[half:][first[new]]


def responsiveness(targets: EvaluatedTargets, release: ScoredRelease) -> dict[str, Any] | None:
    """Return how a skip and a play of a recommended track x move the tracks that are similar to x.

    The best recommended track x that is new in the session is appended to it, once as skipped and once as played. A
    track's position is the share of a sample of the catalogue with a lower score (`percentiles`), so that scores of
    different sessions are comparable. The change of a session is the mean change of position of at most 10 similar
    tracks: other tracks of x's artist, or, without artists, the tracks in most training sessions with x. At most
    RESPONSE_SESSIONS sessions, drawn with the seed. None if no such track has a similar one.
    """
    chosen = _sample(len(targets.asked.targets), RESPONSE_SESSIONS, targets.seed)
    inputs = targets.asked.inputs.select(chosen)
    new = _recommended(release, inputs)
    kind, similar = similar_tracks(targets, release, new)
    usable = np.array([bool(len(similar.get(row, ()))) for row in new.tolist()], dtype=np.bool_)
    if not usable.any():
        return None
    inputs, new = inputs.select(np.flatnonzero(usable)), new[usable]
    known = np.flatnonzero(release.to_release != PAD_ROW)
    sample = release.to_release[known[_sample(len(known), _SAMPLE, targets.seed)]]
    changes = []
    for start in range(0, len(new), _BATCH):
        batch = slice(start, start + _BATCH)
        lists = [release.to_release[similar[row]] for row in new[batch].tolist()]
        before, appended = release.mapped(inputs.select(batch)), release.to_release[new[batch]]
        changes.append(_changes(release, before, appended, lists, sample))
    after_skip, after_play = np.concatenate(changes).T
    measured = {"after_skip": after_skip, "after_play": after_play, "skip_minus_play": after_skip - after_play}
    return {
        "sessions": len(new),
        "similar": kind,
        **{name: as_json(bootstrap(values, np.random.default_rng(targets.seed))) for name, values in measured.items()},
    }


def _recommended(release: ScoredRelease, inputs: Sessions) -> Int:
    """Return the best recommended track that is not in the session, as a row of the dataset or PAD_ROW. [sessions]."""
    known = np.flatnonzero(release.to_release != PAD_ROW)
    from_release = dict(zip(release.to_release[known].tolist(), known.tolist(), strict=True))
    found = np.full(len(inputs), PAD_ROW, dtype=np.int64)
    for start in range(0, len(inputs), _BATCH):
        batch = release.mapped(inputs.select(slice(start, start + _BATCH)))
        answers = release.recommender.recommend(batch, LIST_LENGTH, caution=release.caution)
        for i, answer in enumerate(answers, start=start):
            heard = set(inputs.rows[inputs.offsets[i] : inputs.offsets[i + 1]].tolist())
            rows = (from_release.get(row, PAD_ROW) for row in answer.rows.tolist())
            found[i] = next((row for row in rows if row != PAD_ROW and row not in heard), PAD_ROW)
    return found


def _changes(release: ScoredRelease, before: Sessions, new: Int, lists: list[Int], sample: Int) -> Float64:
    """Return the mean change of position of each session's similar tracks after a skip and after a play. [batch, 2]."""
    similar = _padded(lists)
    candidates = np.concatenate([similar, np.broadcast_to(sample, (len(new), len(sample)))], axis=1)
    present = similar != PAD_ROW

    def positions(sessions: Sessions) -> Float64:
        scores = release.scores(sessions, candidates)
        at = percentiles(scores[:, : similar.shape[1]], scores[:, similar.shape[1] :])
        mean: Float64 = (at * present).sum(axis=1) / present.sum(axis=1)
        return mean

    first = positions(before)
    return np.stack([positions(_appended(before, new, skipped=skipped)) - first for skipped in (True, False)], axis=1)


def _appended(sessions: Sessions, rows: Int, *, skipped: bool) -> Sessions:
    """Return the sessions with one more play each."""
    ends = sessions.offsets[1:]
    return Sessions(
        np.insert(sessions.rows, ends, rows),
        np.insert(sessions.skipped, ends, skipped),
        sessions.offsets + np.arange(len(sessions.offsets), dtype=np.int64),
    )


def similar_tracks(targets: EvaluatedTargets, release: ScoredRelease, rows: Int) -> tuple[str, dict[int, Int]]:
    """Return the kind of similarity and the similar tracks of each track, at most 10, as rows of the dataset.

    `rows` [n] int64 are rows of the dataset; PAD_ROW is ignored. Tracks that the release does not know are left out.
    """
    wanted = np.unique(rows[rows != PAD_ROW])
    known = release.to_release != PAD_ROW
    artists = targets.dataset.catalogue.frame["artist"]
    if artists.null_count() < len(artists):
        names = [None] * FIRST_TRACK_ROW + artists.to_list()
        by_artist: dict[str, list[int]] = {}
        for row in np.flatnonzero(known).tolist():
            by_artist.setdefault(names[row] or "", []).append(row)
        others = {
            row: [other for other in by_artist.get(names[row] or "", []) if other != row] for row in wanted.tolist()
        }
        return "same artist", {
            row: np.array(found[:_SIMILAR], dtype=np.int64) for row, found in others.items() if names[row] and found
        }
    return "same sessions", _played_together(targets.training, wanted, known)


def _played_together(training: SessionViews, wanted: Int, known: Bool) -> dict[int, Int]:
    """Return for each track the _SIMILAR others that occur in most training sessions with it; ties by row."""
    together = scipy.sparse.csr_array((len(wanted), len(known)), dtype=np.float64)
    for block in training.blocks():
        of_play = np.repeat(np.arange(len(block), dtype=np.int64), block.lengths)
        ones = np.ones(len(block.rows))
        inside = scipy.sparse.coo_array((ones, (of_play, block.rows)), shape=(len(block), len(known))).tocsr()
        inside.data[:] = 1.0
        together = together + inside[:, wanted].T @ inside
    found = {}
    for line, row in enumerate(wanted.tolist()):
        span = slice(together.indptr[line], together.indptr[line + 1])
        others, counts = together.indices[span], together.data[span]
        kept = (others != row) & known[others]
        order = np.lexsort((others[kept], -counts[kept]))
        found[row] = others[kept][order][:_SIMILAR].astype(np.int64)
    return found


def _sample(count: int, most: int, seed: int) -> Int:
    """Return at most `most` of the numbers from 0 to count - 1, in ascending order. [n] int64."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _padded(lists: list[Int]) -> Int:
    """Return lists of rows as an array, padded with PAD_ROW on the right. [lists, longest] int64."""
    found = np.full((len(lists), max((len(rows) for rows in lists), default=0)), PAD_ROW, dtype=np.int64)
    for line, rows in zip(found, lists, strict=True):
        line[: len(rows)] = rows
    return found


def _by_metric(estimates: list[Estimate] | None) -> dict[str, Any] | None:
    return None if estimates is None else {name: asdict(e) for name, e in zip(MEASURED, estimates, strict=True)}


def as_json(estimate: Estimate | None) -> dict[str, float] | None:
    """Return an estimate as a block of a result."""
    return None if estimate is None else asdict(estimate)
