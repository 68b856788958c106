"""Learn the gates of segue.hybrid on validation targets, by penalised maximum likelihood.

The three gates are fitted one after another: the repeat gate on all targets, the gate of the new tracks on targets that
are new in their window, the gate of the repeats on the others. Each fit minimises the mean negative log-likelihood plus
PENALTY / targets times the squared distance to prior weights, over standardised features, by L-BFGS. Without targets,
the gates are the prior: constant weights, and the share of repeats in the training sessions.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import scipy.optimize

from segue.arrays import Bool, Float64, Int
from segue.catalogue import PAD_ROW
from segue.hybrid import ALL_PARTS, FEATURES, NEW_PARTS, REPEAT_FEATURES, REPEAT_PARTS, HybridRanker, Mixture
from segue.window import Sessions, SessionViews, Windows, to_windows

PENALTY: Final = 2.0
EXAMPLES: Final = 20_000  # more change the weights less than the seed of an encoder does
_PRIOR: Final = {
    "ngram": 0.45,
    "follow": 0.2,
    "near": 0.1,
    "liked": 0.1,
    "recent": 0.2,
    "own": 0.2,
    "popular": 0.05,
    "encoder": 0.3,
}
_BATCH: Final = 256
_LEAST: Final = 1e-12  # probability that keeps the logarithm finite
_ITERATIONS: Final = 200


class Targets(NamedTuple):
    """Windows, and the track that came after each of them."""

    windows: Windows
    rows: Int  # [examples] int64
    skipped: Bool  # [examples], whether that track was skipped, or its outcome is unknown

    def played(self) -> "Targets":
        """Return the targets that are known to be played."""
        kept = np.flatnonzero(~self.skipped)
        return Targets(self.windows.select(kept), self.rows[kept], self.skipped[kept])


class _Observed(NamedTuple):
    """What the mixture needs of each target."""

    parts: Float64  # [examples, ALL_PARTS] probabilities of the target
    masses: Float64  # [examples, ALL_PARTS] probabilities of the window's tracks
    features: Float64  # [examples, features]
    repeat_features: Float64  # [examples, REPEAT_FEATURES]
    repeated: Bool  # [examples], whether the target is a track of its window


def prior_mixture(repeat_share: float) -> Mixture:
    """Return gates that do not depend on the window. `repeat_share` is the share of repeats among next tracks."""
    repeat = np.zeros(REPEAT_FEATURES)
    share = min(max(repeat_share, 1e-3), 1 - 1e-3)
    repeat[0] = np.log(share / (1 - share))
    gates = []
    for parts in (NEW_PARTS, REPEAT_PARTS):
        weights = np.zeros((len(FEATURES), len(parts)))
        weights[0] = np.log([_PRIOR[ALL_PARTS[part]] for part in parts])
        gates.append(weights)
    return Mixture(repeat, *gates)


def repeat_share(sessions: Sessions, window: int) -> float:
    """Return the share of plays that repeat one of the `window` plays before them in their session."""
    rows = sessions.rows
    place = np.arange(len(rows), dtype=np.int64) - np.repeat(sessions.offsets[:-1], sessions.lengths)
    repeated = np.zeros(len(rows), dtype=np.bool_)
    for back in range(1, window + 1):
        at = np.flatnonzero(place >= back)
        repeated[at] |= rows[at] == rows[at - back]
    return float(repeated[place > 0].mean()) if (place > 0).any() else 0.0


def every_position(sessions: SessionViews, targets: Int, skipped: Bool, window: int) -> Targets:
    """Return all plays of sessions but the first as targets, at most EXAMPLES, and the window before each of them.

    `targets` [sessions] int64 are the plays after the sessions' own ones, and `skipped` [sessions] their outcomes.
    Sessions must not be training data.
    """
    found, rows, outcomes, count = [], [], [], 0
    for start in range(len(sessions)):
        one = sessions.select(slice(start, start + 1))
        plays = np.append(one.rows, targets[start])
        ends = np.arange(1, len(plays), dtype=np.int64)
        found.append(to_windows(one.cut(np.zeros_like(ends), ends), window))
        rows.append(plays[1:])
        outcomes.append(np.append(one.skipped, skipped[start])[1:])
        count += len(ends)
        if count >= EXAMPLES:
            break
    if not found:
        none = Windows(np.zeros((0, window), np.int64), np.zeros((0, window), np.bool_))
        return Targets(none, np.zeros(0, np.int64), np.zeros(0, np.bool_))
    windows = Windows(np.concatenate([w.tracks for w in found]), np.concatenate([w.skipped for w in found]))
    first = slice(EXAMPLES)
    return Targets(windows.select(first), np.concatenate(rows)[first], np.concatenate(outcomes)[first])


def fit_mixture(ranker: HybridRanker, targets: Targets) -> Mixture:
    """Learn the gates on `targets`. `ranker.mixture` is the prior."""
    prior = ranker.mixture
    usable = (targets.rows != PAD_ROW) & (targets.windows.tracks != PAD_ROW).any(axis=1)
    which = np.flatnonzero(usable)[:EXAMPLES]
    if not len(which):
        return prior
    seen = _observed(ranker, Targets(targets.windows.select(which), targets.rows[which], targets.skipped[which]))
    new, again = ~seen.repeated, seen.repeated
    return Mixture(
        repeat=_fitted(seen.repeat_features, prior.repeat[:, None], _logistic(seen.repeated))[:, 0],
        new_tracks=_gate(seen.features[new], prior.new_tracks, seen.parts[new], 1 - seen.masses[new], NEW_PARTS),
        repeats=_gate(seen.features[again], prior.repeats, seen.parts[again], seen.masses[again], REPEAT_PARTS),
    )


def _observed(ranker: HybridRanker, targets: Targets) -> _Observed:
    lines = []
    for start in range(0, len(targets.rows), _BATCH):
        some = slice(start, start + _BATCH)
        evidence = ranker.evidence(targets.windows.select(some), targets.rows[some, None])
        at = evidence.found.given[:, 0]
        features = evidence.features, evidence.repeat_features
        lines.append((evidence.parts[:, at].T, evidence.masses.T, *features, evidence.in_window[at]))
    return _Observed(*map(np.concatenate, zip(*lines, strict=True)))


def _gate(features: Float64, prior: Float64, parts: Float64, masses: Float64, chosen: tuple[int, ...]) -> Float64:
    """Fit a softmax gate over the chosen parts, each divided by its mass in the case."""
    mass = masses[:, chosen]
    likelihoods = np.where(mass > 1e-9, parts[:, chosen] / np.maximum(mass, 1e-9), 0.0)
    return _fitted(features, prior, _softmax_gate(np.minimum(likelihoods, 1.0), mass > 1e-9))


Loss = Callable[[Float64], tuple[float, Float64]]  # logits [n, outputs] -> mean loss, gradient [n, outputs]


def _softmax_gate(likelihoods: Float64, usable: Bool) -> Loss:
    def loss(logits: Float64) -> tuple[float, Float64]:
        logits = np.where(usable, logits, -1e9)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        gates = exponents / exponents.sum(axis=1, keepdims=True)
        joint = gates * (likelihoods + _LEAST)
        total = joint.sum(axis=1, keepdims=True)
        return -float(np.log(total).mean()), (gates - joint / total) / len(logits)

    return loss


def _logistic(happened: Bool) -> Loss:
    def loss(logits: Float64) -> tuple[float, Float64]:
        values = logits[:, 0]
        mean = float((np.logaddexp(0.0, values) - happened * values).mean())
        return mean, ((1 / (1 + np.exp(-np.clip(values, -50, 50))) - happened) / len(values))[:, None]

    return loss


def _fitted(features: Float64, prior: Float64, loss: Loss) -> Float64:
    """Minimise `loss` of the logits over weights near `prior`. Both weights are [features, outputs] float64."""
    count = len(features)
    if not count:
        return prior
    mean, spread = features.mean(axis=0), features.std(axis=0)
    constant = spread < 1e-9
    mean[constant], spread[constant] = 0.0, 1.0
    scaled = (features - mean) / spread
    # The prior in terms of standardised features; features without spread in these targets keep their prior weights.
    start = prior * spread[:, None]
    start[0] += mean @ prior

    def objective(flat: Float64) -> tuple[float, Float64]:
        weights = flat.reshape(prior.shape)
        value, by_logit = loss(scaled @ weights)
        away = weights - start
        gradient = scaled.T @ by_logit + 2 * PENALTY / count * away
        return value + PENALTY / count * float((away**2).sum()), gradient.ravel()

    found = scipy.optimize.minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    weights: Float64 = found.x.reshape(prior.shape) / spread[:, None]
    weights[0] -= mean @ weights
    return weights
