"""The play head: the probability that a listener plays a track to its end, if it comes next, P(played | session, x).

A ranking with `caution` c orders tracks by log P(next = x) + c * log P(played | session, x). The head is a small
neural network over features of the session and of counts. Numpy computes it for a batch of windows and candidates, so
serving needs neither ONNX nor torch. With f = FEATURES(session, x):

    P(played | session, x) = 1 / (1 + exp(f . w + tanh(f . A) . b))            w: linear, A and b: HIDDEN units

The counts are plays and skips of the training part: by track and outcome of the play before, and by pair of tracks
(i, x) with at most REACH places between them and by the outcome of i. They are memory-mapped in a release.

Notation: r(x) is the logit of the skip rate of x, shrunk by TRACK_PRIOR plays to the rate of all plays, minus the logit
of the rate of all plays; r(x | o) the same for plays after a play of outcome o, shrunk to r(x); e(i, x) is the logit of
the skip rate of x after a play of i of i's outcome, shrunk by PAIR_PRIOR plays to the rate that r(x) gives, minus the
logit of that rate. Outcomes are 1 for a skip. training.models.play_head learns w, A and b.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from segue.arrays import Float64, Int
from segue.catalogue import PAD_ROW
from segue.errors import BadRelease
from segue.window import Windows, distinct

REACH: Final = 20  # places between two plays that count as a pair
TRACK_PRIOR: Final = 5.0
PAIR_PRIOR: Final = 5.0
MIN_PAIR: Final = 2  # rarer pairs are not stored
SESSION_FEATURES: Final = (
    "constant",
    "no plays",
    "log of the plays",
    "last skipped",
    "second to last skipped",
    "third to last skipped",
    "share skipped",
    "share skipped of the last five",
    "share of distinct tracks",
    "last skipped times share skipped of the last five",
)
TRACK_FEATURES: Final = (
    "track",  # r(x)
    "track after the last outcome",  # r(x | o) - r(x)
    "track if the last was skipped",
    "pair with the last track",  # e(last, x)
    "sum over the window",  # sum of e(i, x)
    "mean over the window",
    "heard",
    "heard and the last skipped",
    "skipped when last heard",
    "log of the places since last heard",  # 0 if it is the last track, or not in the window
    "log of the plays of the track",
)
FEATURES: Final = (*SESSION_FEATURES, *TRACK_FEATURES)
HIDDEN: Final = 8
_COUNT_FILES: Final = ("play_head_tracks.npy", "play_head_pairs.npy", "play_head_pair_counts.npy")
_WEIGHT_FILES: Final = ("play_head_weights.npy", "play_head_output.npy")
FILES: Final = (*_COUNT_FILES, *_WEIGHT_FILES)


class OutcomeCounts(NamedTuple):
    """Plays and skips of the training part."""

    tracks: NDArray[np.int32]  # [num_rows, 3, 2] int32: by outcome before (none, played, skipped), plays and skips
    pairs: Int  # [pairs] int64, ascending: the row of the earlier track times num_rows, plus that of the later one
    pair_counts: NDArray[np.int32]  # [pairs, 2, 2] int32: by outcome of the earlier track, plays and skips of the later

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store in a release, by file name."""
        return dict(zip(_COUNT_FILES, self, strict=True))


class Weights(NamedTuple):
    """The weights of the network, whose output is the logit of a skip."""

    layer: Float64  # [features, 1 + HIDDEN] float64: w, then the columns of A
    output: Float64  # [HIDDEN] float64: b

    def logits(self, sums: Float64) -> Float64:
        """Return the logit of a skip from `sums` = features @ layer, [..., 1 + HIDDEN] float64 -> [...] float64."""
        logits: Float64 = sums[..., 0] + np.tanh(sums[..., 1:]) @ self.output
        return logits


def linear_weights(weights: Float64) -> Weights:
    """Return a network without hidden units, from weights [features] float64."""
    layer = np.zeros((len(weights), 1 + HIDDEN))
    layer[:, 0] = weights
    return Weights(layer, np.zeros(HIDDEN))


class PlayHead:
    """Predicts whether tracks are played or skipped. Immutable and thread-safe."""

    def __init__(self, counts: OutcomeCounts, weights: Weights) -> None:
        """Create the head from its counts and its weights."""
        self.counts = counts
        self.weights = weights
        self._num_rows = len(counts.tracks)
        self._base = _logit(*_shrunk(counts.tracks.sum(axis=(0, 1))))
        # By outcome of the play before, and by outcome of an earlier play: the difference to the rate of all plays.
        self._after = _logit(*_shrunk(counts.tracks.sum(axis=0, dtype=np.int64))) - self._base
        self._within = _logit(*_shrunk(counts.pair_counts.sum(axis=0, dtype=np.int64))) - self._base

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], num_rows: int, name: str) -> Self:
        """Create the head from arrays by file name. Raises BadRelease if they do not fit a catalogue of `num_rows`."""
        tracks, pairs, pair_counts, layer, output = (arrays[file] for file in FILES)
        for file, array, dtype, shape in (
            (FILES[0], tracks, np.int32, (num_rows, 3, 2)),
            (FILES[1], pairs, np.int64, (len(pair_counts),) if pair_counts.ndim else ()),
            (FILES[2], pair_counts, np.int32, (pairs.size, 2, 2)),
            (FILES[3], layer, np.float64, (len(FEATURES), 1 + HIDDEN)),
            (FILES[4], output, np.float64, (HIDDEN,)),
        ):
            if array.dtype != dtype or array.shape != shape:
                raise BadRelease(f"{name}: {file} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
        finite = np.isfinite(layer).all() and np.isfinite(output).all()
        if not finite or (np.diff(pairs) <= 0).any():
            raise BadRelease(f"{name}: the arrays of the play head are damaged: copy the release again")
        counts = OutcomeCounts(np.asarray(tracks), np.asarray(pairs), np.asarray(pair_counts))
        return cls(counts, Weights(np.array(layer), np.array(output)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store in a release, by file name."""
        return {**self.counts.arrays(), **dict(zip(_WEIGHT_FILES, self.weights, strict=True))}

    def log_played(self, windows: Windows, rows: Int) -> Float64:
        """Return log P(played) of candidates. `rows` [batch, candidates] int64 -> [batch, candidates] float64."""
        of_session, of_track = np.split(self.weights.layer, [len(SESSION_FEATURES)])
        sums = self.track_features(windows, rows) @ of_track + (session_features(windows) @ of_session)[:, None]
        log_played: Float64 = -np.logaddexp(0.0, self.weights.logits(sums))
        return log_played

    def track_features(self, windows: Windows, rows: Int) -> Float64:
        """Return TRACK_FEATURES of candidates. `rows` [batch, n] int64 -> [batch, n, features] float64."""
        tracks, skipped = windows.tracks, windows.skipped
        real = tracks != PAD_ROW
        by_outcome = self.counts.tracks[rows].astype(np.float64)  # [batch, n, 3, 2]
        track = _deviation(by_outcome.sum(axis=2), self._base, TRACK_PRIOR)
        before = np.where(real[:, -1], 1 + skipped[:, -1], 0)
        after = np.take_along_axis(by_outcome, before[:, None, None, None], axis=2)[:, :, 0]
        after_base = self._base + track + self._after[before][:, None]
        pairs = self._pairs(windows, rows, self._base + track)  # [batch, n, window]
        plays = np.maximum(real.sum(axis=1), 1)[:, None]
        total = pairs.sum(axis=2)
        same = (tracks[:, None, :] == rows[:, :, None]) & real[:, None, :]
        heard = same.any(axis=2)
        places = np.where(heard, np.argmax(same[:, :, ::-1], axis=2), 0)
        latest = np.take_along_axis(skipped, tracks.shape[1] - 1 - places, axis=1)
        last = skipped[:, -1:]
        return np.stack(
            [
                track,
                _deviation(after, after_base, TRACK_PRIOR),
                track * last,
                pairs[:, :, -1],
                total,
                total / plays,
                heard,
                heard & last,
                heard & latest,
                np.log1p(places),
                np.log1p(by_outcome[..., 0].sum(axis=2)),
            ],
            axis=2,
        ).astype(np.float64)

    def _pairs(self, windows: Windows, rows: Int, base: Float64) -> Float64:
        """Return e(i, x) for each candidate and each play of the latest REACH, 0 for others. [batch, n, window].

        `base` [batch, n] is the logit of the skip rate that the candidate's own counts give.
        """
        tracks, skipped = windows.tracks[:, -REACH:], windows.skipped[:, -REACH:]
        keys = tracks[:, None, :] * self._num_rows + rows[:, :, None]
        stored = self.counts.pairs
        found = np.zeros(keys.shape)
        if not len(stored):
            return found
        place = np.minimum(np.searchsorted(stored, keys), len(stored) - 1)
        known = (stored[place] == keys) & (tracks != PAD_ROW)[:, None, :]
        outcome = np.broadcast_to(skipped[:, None, :].astype(np.int64), keys.shape)[known]
        counts = self.counts.pair_counts[place[known], outcome].astype(np.float64)
        expected = np.broadcast_to(base[:, :, None], keys.shape)[known] + self._within[outcome]
        found[known] = _deviation(counts, expected, PAIR_PRIOR)
        return found


def session_features(windows: Windows) -> Float64:
    """Return SESSION_FEATURES of each window. [batch, features] float64."""
    tracks, skipped = windows.tracks, windows.skipped
    real = tracks != PAD_ROW
    plays = real.sum(axis=1)
    some = np.maximum(plays, 1)
    last = [skipped[:, -back] if skipped.shape[1] >= back else np.zeros(len(tracks)) for back in (1, 2, 3)]
    recent = skipped[:, -5:].sum(axis=1) / np.maximum(real[:, -5:].sum(axis=1), 1)
    different = (distinct(tracks) != PAD_ROW).sum(axis=1)
    columns = [plays >= 0, plays == 0, np.log1p(plays), *last, skipped.sum(axis=1) / some, recent, different / some]
    return np.stack([*columns, last[0] * recent], axis=1).astype(np.float64)


def _shrunk(counts: Any) -> tuple[Float64, Float64]:
    """Return plays and skips [..., 2] with one played and one skipped play added, as two arrays."""
    return counts[..., 0] + 2.0, counts[..., 1] + 1.0


def _logit(plays: Any, skips: Any) -> Any:
    return np.log(skips) - np.log(plays - skips)


def _deviation(counts: Float64, expected: Float64 | float, prior: float) -> Float64:
    """Return how far the logit of a skip rate is from the `expected` logit, shrunk to it by `prior` plays.

    `counts` [..., 2] float64 are plays and skips.
    """
    rate = 1.0 / (1.0 + np.exp(-expected))
    plays, skips = counts[..., 0] + prior, counts[..., 1] + prior * rate
    deviation: Float64 = _logit(plays, skips) - expected
    return deviation
