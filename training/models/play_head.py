"""Learn the play head (segue.play_head) on the plays of the training part, by penalised maximum likelihood.

The counts that describe a training play are out of fold: they leave out all sessions of its fold, one of FOLDS. If only
the play itself were left out, its own outcome would show in the counts, as the skip rate of a skipped play would be
lower. The released counts are of the whole training part.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from segue.arrays import Bool, Float64, Int
from segue.catalogue import PAD_ROW
from segue.play_head import (
    FEATURES,
    HIDDEN,
    MIN_PAIR,
    REACH,
    SESSION_FEATURES,
    OutcomeCounts,
    PlayHead,
    Weights,
    linear_weights,
    session_features,
)
from segue.window import Sessions, SessionViews, Windows, to_windows
from training.data.splits import Examples

FOLDS: Final = 5
PLAYS: Final = 200_000  # plays that the weights are learned from
COUNTED_PLAYS: Final = 20_000_000  # plays that are counted, in memory
PAIR_PLAYS: Final = 2_000_000  # plays whose pairs are counted; memory and time grow with them
PENALTY: Final = 10.0
_BATCH: Final = 2048
_PAIRS_AT_ONCE: Final = 1 << 24
_ITERATIONS: Final = 150
_HIDDEN_SPREAD: Final = 0.3
_LEAST_SPREAD: Final = 0.1  # features that hardly vary would get weights that fail on other sessions


class OutcomeExamples(NamedTuple):
    """Windows, the track that came after each of them, and whether the listener skipped it."""

    windows: Windows
    rows: Int  # [examples] int64
    skipped: Bool  # [examples] bool

    def select(self, which: Int | slice) -> "OutcomeExamples":
        """Return the examples with these indices, or of this slice."""
        return OutcomeExamples(self.windows.select(which), self.rows[which], self.skipped[which])


class FittedHead(NamedTuple):
    """A play head, and the weights of a model of SESSION_FEATURES alone that was fitted to the same plays."""

    head: PlayHead
    session_weights: Float64  # [session features] float64
    plays: int  # plays that the weights were learned from


def held_out(asked: Examples, window: int) -> OutcomeExamples:
    """Return the validation or test targets of known outcome that follow a play."""
    known = np.ones(len(asked.targets), dtype=np.bool_) if asked.target_known is None else asked.target_known
    windows = to_windows(asked.inputs.gathered(), window)
    examples = OutcomeExamples(windows, asked.targets, asked.target_skipped)
    return examples.select(np.flatnonzero(known & (windows.tracks[:, -1] != PAD_ROW)))


def fit_play_head(sessions: SessionViews, num_rows: int, window: int, seed: int = 0) -> FittedHead | None:
    """Fit the play head to the sessions of the training part, whose outcomes are all known.

    `seed` chooses the sessions that are counted, the plays that are learned from, and the sessions whose pairs are
    counted, if there are more than COUNTED_PLAYS, PLAYS and PAIR_PLAYS. Returns None without a skipped and a played
    play that follow another play.
    """
    rng = np.random.default_rng(seed)
    share = COUNTED_PLAYS / max(int(sessions.lengths.sum()), 1)
    usable = sessions.select(slice(None) if share >= 1 else np.flatnonzero(rng.random(len(sessions)) < share)).usable()
    examples = training_examples(usable, num_rows, window, rng)
    if examples.skipped.all() or not examples.skipped.any():
        return None
    session_weights = fit_weights(examples.features[:, : len(SESSION_FEATURES)], examples.skipped)
    weights = fit_network(examples.features, examples.skipped, rng)
    return FittedHead(PlayHead(stored(examples.counts), weights), session_weights, len(examples.skipped))


class TrainingExamples(NamedTuple):
    """The features of training plays, fold by fold, and the counts of all folds."""

    features: Float64  # [examples, features] float64
    skipped: Bool  # [examples] bool
    counts: OutcomeCounts


def training_examples(sessions: Sessions, num_rows: int, window: int, rng: np.random.Generator) -> TrainingExamples:
    """Return plays that follow another play, described by counts of the sessions of the other folds.

    The fold of session i is i modulo FOLDS. All tracks of `sessions` are in the catalogue.
    """
    chosen = _chosen_plays(sessions, rng)
    paired = _paired_sessions(sessions, rng)
    of_play = np.searchsorted(sessions.offsets, chosen, side="right") - 1
    total = count_outcomes(sessions, num_rows, paired)
    lines, outcomes = [np.empty((0, len(FEATURES)))], [np.empty(0, dtype=np.bool_)]
    for fold in range(FOLDS):
        own = np.arange(fold, len(sessions), FOLDS, dtype=np.int64)
        others = stored(without(total, count_outcomes(sessions.select(own), num_rows, paired[own])))
        head = PlayHead(others, linear_weights(np.zeros(len(FEATURES))))
        in_fold = of_play % FOLDS == fold
        for examples in _batches(sessions, chosen[in_fold], of_play[in_fold], window):
            lines.append(_features(head, examples))
            outcomes.append(examples.skipped)
    return TrainingExamples(np.concatenate(lines), np.concatenate(outcomes), total)


def measure(fitted: FittedHead, held_out: OutcomeExamples) -> dict[str, float | int | None]:
    """Return AUC and mean log-likelihood of the outcomes of held-out plays, and the same of the session alone.

    The AUC is None if all plays are played, or all skipped.
    """
    logits = [_logits(fitted, held_out.select(slice(at, at + _BATCH))) for at in range(0, len(held_out.rows), _BATCH)]
    whole, session = np.concatenate(logits, axis=1) if logits else np.zeros((2, 0))
    found: dict[str, float | int | None] = {"plays": fitted.plays, "validation_plays": len(held_out.rows)}
    for name, values in (("", whole), (" of the session alone", session)):
        likelihood = -(np.logaddexp(0.0, values) - held_out.skipped * values)
        found[f"AUC{name}"] = _auc(values, held_out.skipped)
        found[f"log-likelihood{name}"] = float(likelihood.mean()) if len(likelihood) else None
    return found


def _logits(fitted: FittedHead, examples: OutcomeExamples) -> Float64:
    """Return the logits of a skip, by all features and by those of the session. [2, examples] float64."""
    features = _features(fitted.head, examples)
    session = features[:, : len(SESSION_FEATURES)] @ fitted.session_weights
    weights = fitted.head.weights
    return np.stack([weights.logits(features @ weights.layer), session])


def _auc(values: Float64, skipped: Bool) -> float | None:
    """Return the probability that a skipped example has a larger value than a played one; ties count half."""
    skips, plays = int(skipped.sum()), int((~skipped).sum())
    if not skips or not plays:
        return None
    _, level, tied = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(tied) - (tied - 1) / 2)[level]  # ties share their mean rank
    return float((ranks[skipped].sum() - skips * (skips + 1) / 2) / (skips * plays))


def _paired_sessions(sessions: Sessions, rng: np.random.Generator) -> Bool:
    """Return which sessions count pairs: all, or a sample with about PAIR_PLAYS plays. [sessions] bool."""
    if len(sessions.rows) <= PAIR_PLAYS:
        return np.ones(len(sessions), dtype=np.bool_)
    chosen: Bool = rng.random(len(sessions)) < PAIR_PLAYS / len(sessions.rows)
    return chosen


def _chosen_plays(sessions: Sessions, rng: np.random.Generator) -> Int:
    """Return the indices of at most PLAYS plays that have a play before them in their session, ascending."""
    later = np.ones(len(sessions.rows), dtype=np.bool_)
    later[sessions.offsets[:-1][sessions.lengths > 0]] = False
    found = np.flatnonzero(later)
    return found if len(found) <= PLAYS else np.sort(rng.choice(found, PLAYS, replace=False))


def _batches(sessions: Sessions, plays: Int, of_play: Int, window: int) -> Iterator[OutcomeExamples]:
    for start in range(0, len(plays), _BATCH):
        some, owner = plays[start : start + _BATCH], of_play[start : start + _BATCH]
        starts = np.maximum(sessions.offsets[owner], some - window)
        windows = to_windows(sessions.cut(starts, some), window)
        yield OutcomeExamples(windows, sessions.rows[some].astype(np.int64), sessions.skipped[some])


def _features(head: PlayHead, examples: OutcomeExamples) -> Float64:
    tracks = head.track_features(examples.windows, examples.rows[:, None])[:, 0]
    return np.concatenate([session_features(examples.windows), tracks], axis=1)


def count_outcomes(sessions: Sessions, num_rows: int, paired: Bool) -> OutcomeCounts:
    """Count the plays and skips of each track, and of each pair of tracks with at most REACH places between them.

    `paired` [sessions] bool are the sessions whose pairs are counted.
    """
    rows, skipped = sessions.rows.astype(np.int64, copy=False), sessions.skipped
    before = np.zeros(len(rows), dtype=np.int64)
    before[1:] = 1 + skipped[:-1]
    before[sessions.offsets[:-1][sessions.lengths > 0]] = 0
    cells = (rows * 3 + before) * 2
    tracks = np.bincount(np.concatenate([cells, cells[skipped] + 1]), minlength=num_rows * 6)
    return OutcomeCounts(
        tracks.reshape(num_rows, 3, 2).astype(np.int32), *_pairs(sessions.select(np.flatnonzero(paired)), num_rows)
    )


def _pairs(sessions: Sessions, num_rows: int) -> tuple[Int, NDArray[np.int32]]:
    """Count pairs in blocks of plays that bound the memory."""
    rows, skipped = sessions.rows, sessions.skipped
    place = np.arange(len(rows), dtype=np.int64) - np.repeat(sessions.offsets[:-1], sessions.lengths)
    parts = [(np.empty(0, dtype=np.int64), np.empty((0, 2, 2), dtype=np.int32))]
    block = _PAIRS_AT_ONCE // REACH
    for start in range(0, len(rows), block):
        at = np.arange(start, min(start + block, len(rows)), dtype=np.int64)
        keys, cells = [], []
        for distance in range(1, REACH + 1):
            later = at[place[at] >= distance]
            keys.append(rows[later - distance] * num_rows + rows[later])
            cells.append(2 * skipped[later - distance].astype(np.int64) + skipped[later])
        parts.append(_summed(np.concatenate(keys), _one_hot(np.concatenate(cells))))
    return _summed(*map(np.concatenate, zip(*parts, strict=True)))


def _one_hot(cells: Int) -> NDArray[np.int32]:
    """Return plays and skips by outcome of the earlier track for cells 2 * earlier + later. [pairs, 2, 2] int32."""
    counts = np.zeros((len(cells), 2, 2), dtype=np.int32)
    counts[np.arange(len(cells)), cells // 2, 0] = 1
    counts[np.arange(len(cells)), cells // 2, 1] = cells % 2
    return counts


def _summed(keys: Int, counts: NDArray[np.int32]) -> tuple[Int, NDArray[np.int32]]:
    """Return distinct keys, ascending, and the sums of their counts [keys, 2, 2]."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[first], np.add.reduceat(counts[order], first, axis=0).astype(np.int32, copy=False)


def without(total: OutcomeCounts, part: OutcomeCounts) -> OutcomeCounts:
    """Return `total` minus `part`, which is one of its summands."""
    counts = total.pair_counts.copy()
    counts[np.searchsorted(total.pairs, part.pairs)] -= part.pair_counts
    return OutcomeCounts(total.tracks - part.tracks, total.pairs, counts)


def stored(counts: OutcomeCounts) -> OutcomeCounts:
    """Return the counts without pairs that occur fewer than MIN_PAIR times."""
    kept = counts.pair_counts[:, :, 0].sum(axis=1) >= MIN_PAIR
    return OutcomeCounts(counts.tracks, counts.pairs[kept], counts.pair_counts[kept])


def _standardised(features: Float64) -> tuple[Float64, Float64, Float64]:
    """Return features of mean 0 and spread 1, except the constant, and the means and spreads that were taken out."""
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), _LEAST_SPREAD)
    mean[0], spread[0] = 0.0, 1.0
    return (features - mean) / spread, mean, spread


def fit_weights(features: Float64, skipped: Bool) -> Float64:
    """Return the weights of a logistic model of `skipped` [n] bool over `features` [n, features] float64.

    Minimises the mean negative log-likelihood plus PENALTY / n times the squared norm of the weights of standardised
    features, without that of the constant (the first feature).
    """
    scaled, mean, spread = _standardised(features)
    penalty = np.full(features.shape[1], PENALTY / len(features))
    penalty[0] = 0.0

    def objective(weights: Float64) -> tuple[float, Float64]:
        logits = scaled @ weights
        value = float((np.logaddexp(0.0, logits) - skipped * logits).mean() + (penalty * weights**2).sum())
        error = (1.0 / (1.0 + np.exp(-np.clip(logits, -50, 50))) - skipped) / len(logits)
        return value, scaled.T @ error + 2 * penalty * weights

    start = np.zeros(features.shape[1])
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    weights: Float64 = found.x / spread
    weights[0] -= float(mean @ weights)
    return weights


def fit_network(features: Float64, skipped: Bool, rng: np.random.Generator) -> Weights:
    """Return the weights of a network for `skipped` [n] bool over `features` [n, features] float64.

    Minimises the same loss as `fit_weights`, from its solution and hidden units with random inputs and no output.
    """
    scaled, mean, spread = _standardised(features)
    inputs, outcomes, count = scaled.astype(np.float32), skipped.astype(np.float32), len(features)
    shape = (features.shape[1], 1 + HIDDEN)
    penalty = np.full(shape[0] * shape[1] + HIDDEN, PENALTY / count)
    penalty[0] = 0.0  # of the constant

    def split(flat: Float64) -> tuple[Float64, Float64]:
        return flat[:-HIDDEN].reshape(shape), flat[-HIDDEN:]

    def objective(flat: Float64) -> tuple[float, Float64]:
        layer, output = (part.astype(np.float32) for part in split(flat))
        sums = inputs @ layer
        units = np.tanh(sums[:, 1:])
        logits = sums[:, 0] + units @ output
        error = (1.0 / (1.0 + np.exp(-np.clip(logits, -50, 50))) - outcomes) / count
        by_sum = np.concatenate([error[:, None], np.outer(error, output) * (1.0 - units**2)], axis=1)
        gradient = np.concatenate([(inputs.T @ by_sum).ravel(), units.T @ error]).astype(np.float64)
        loss = float((np.logaddexp(0.0, logits) - outcomes * logits).mean(dtype=np.float64))
        return loss + float((penalty * flat**2).sum()), gradient + 2 * penalty * flat

    linear = fit_weights(features, skipped) * spread
    linear[0] += float(mean @ (linear / spread))
    hidden = rng.normal(0.0, _HIDDEN_SPREAD, (shape[0], HIDDEN))
    start = np.concatenate([np.column_stack([linear, hidden]).ravel(), np.zeros(HIDDEN)])
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    layer, output = split(found.x)
    layer = layer / spread[:, None]
    layer[0] -= mean @ layer
    return Weights(layer, output)
