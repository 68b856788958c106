"""Rank by transition counts, or by counts and an encoder together: a mixture whose weights depend on the session.

The next track is either a track of the window (a repeat) or a new one. A logistic gate gives the probability of a
repeat, from features of the window. Within each of the two cases a softmax gate weighs the parts, which are restricted
to the tracks of the case:

    p(x) = r * sum_s g_s p_s(x) / p_s(window)                 x in the window; p_s(window) sums p_s over its tracks
    p(x) = (1 - r) * sum_s h_s p_s(x) / (1 - p_s(window))     x not in the window

The parts are those of segue.ngram and, for a hybrid, the softmax of the encoder's scores over its best ENCODER_TRACKS
tracks (0 for other tracks). Each part, each case and the mixture sum to 1. training.models.mixture learns the gates on
validation targets.

A hybrid then corrects the RESCORED most probable tracks C with a network of one hidden layer. It reads the logarithms
of the mixture and of all parts, which a sum of probabilities cannot multiply:

    q(x) = p(C) * softmax over C of (log p(x) + network(x))                   x in C; p(C) sums p over C
    q(x) = p(x)                                                               other tracks

q sums to 1. The score of a track is q(x), or p(x) without a network. training.models.rescoring learns the network.

Sources: repeat and explore modes, Ren et al., RepeatNet, AAAI 2019, https://arxiv.org/abs/1812.02646; mixtures of
experts, Jacobs et al., Neural Computation 1991.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import PAD_ROW
from segue.errors import BadRelease
from segue.filters import Allowed
from segue.ngram import PARTS, Best, Found, best_of, in_order
from segue.recommend import Ranked, ServedRanker
from segue.window import Windows

ENCODER_TRACKS: Final = 50
ALL_PARTS: Final = (*PARTS, "encoder")


def _numbers(*names: str) -> tuple[int, ...]:
    return tuple(ALL_PARTS.index(name) for name in names)


_FORESEEING: Final = _numbers("ngram", "follow", "near", "encoder")  # their probability of a repeat is a feature
NEW_PARTS: Final = _numbers("ngram", "follow", "near", "liked", "popular", "encoder")  # that new tracks have
REPEAT_PARTS: Final = _numbers("ngram", "follow", "near", "liked", "recent", "own", "encoder")  # of the window's tracks
FEATURES: Final = (
    "constant",
    *(f"context of {order}" for order in range(1, 5)),
    "log of the context's count",
    "followers per count",
    "log of the plays",
    "share of distinct tracks",
    "last skipped",
    "second to last skipped",
    "share skipped",
    "last track played before",
    "log of the encoder's largest probability",
)
REPEAT_FEATURES: Final = len(FEATURES) + 2 * len(_FORESEEING)
FILES: Final = ("mixture_repeat.npy", "mixture_new_tracks.npy", "mixture_repeats.npy")
_LEAST: Final = 1e-9  # the least mass that a part is divided by
RESCORED: Final = 32
HIDDEN: Final = 64
NETWORK_FILES: Final = ("rescoring_tracks.npy", "rescoring_windows.npy", "rescoring_output.npy")
TRACK_FEATURES: Final = (
    "log of the mixture",
    *(f"log of {part}" for part in ALL_PARTS),
    "in the window",
    "last play skipped",
    "log of the plays in the window",
    "newest track",
)
# Added to probabilities before the logarithm: about the least value that each part gives to a likely track.
_FLOOR: Final = 1e-7  # of the mixture
_FLOORS: Final = np.array([[[{"recent": 1e-3, "own": 1e-3, "encoder": 1e-4}.get(part, 1e-5)]] for part in ALL_PARTS])


class Mixture(NamedTuple):
    """The weights of the three gates: that of repeats, and those of the parts for new tracks and for repeats.

    Each is stored in its own file. FILES names them in this order.
    """

    repeat: Float64  # [REPEAT_FEATURES] float64
    new_tracks: Float64  # [features, NEW_PARTS] float64
    repeats: Float64  # [features, REPEAT_PARTS] float64

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Self:
        """Create the mixture from arrays by file name. Raises BadRelease if a shape is wrong or a value is NaN."""
        shapes = ((REPEAT_FEATURES,), (len(FEATURES), len(NEW_PARTS)), (len(FEATURES), len(REPEAT_PARTS)))
        return cls(*_checked(arrays, dict(zip(FILES, shapes, strict=True)), name))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store in a release, by file name."""
        return dict(zip(FILES, self, strict=True))


class Network(NamedTuple):
    """The weights of the network that corrects probable tracks, in the order of NETWORK_FILES.

    network(x) = relu(track features of x @ tracks + repeat features of the window @ windows) @ output
    """

    tracks: Float64  # [TRACK_FEATURES, HIDDEN] float64
    windows: Float64  # [REPEAT_FEATURES, HIDDEN] float64
    output: Float64  # [HIDDEN] float64

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Self:
        """Create the network from arrays by file name. Raises BadRelease if a shape is wrong or a value is NaN."""
        shapes = ((len(TRACK_FEATURES), HIDDEN), (REPEAT_FEATURES, HIDDEN), (HIDDEN,))
        return cls(*_checked(arrays, dict(zip(NETWORK_FILES, shapes, strict=True)), name))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store in a release, by file name."""
        return dict(zip(NETWORK_FILES, self, strict=True))


def _checked(arrays: Mapping[str, NDArray[Any]], shapes: dict[str, tuple[int, ...]], name: str) -> list[Float64]:
    for file, shape in shapes.items():
        found = arrays[file]
        if found.shape != shape or found.dtype != np.float64 or not np.isfinite(found).all():
            raise BadRelease(f"{name}: {file} is {found.dtype} {found.shape}, expected finite float64 {shape}")
    return [np.array(arrays[file]) for file in shapes]


class Evidence(NamedTuple):
    """The candidates of a batch of windows, the probability of each part, and the features of the gates."""

    found: Found
    parts: Float64  # [ALL_PARTS, candidates]
    in_window: Bool  # [candidates]
    masses: Float64  # [ALL_PARTS, batch], the probability that each part gives to the tracks of the window
    features: Float64  # [batch, features]
    repeat_features: Float64  # [batch, REPEAT_FEATURES]


class Probable(NamedTuple):
    """The most probable tracks of a batch of windows, best first, as a network reads them."""

    rows: Int  # [batch, n] int64 catalogue rows, PAD_ROW after the last
    probabilities: Float64  # [batch, n] of the mixture, 0 after the last
    features: Float64  # [batch, n, TRACK_FEATURES]
    repeat_features: Float64  # [batch, REPEAT_FEATURES]


class Counts(Protocol):
    """Transition counts: NgramCounts, or the same with a timer around it."""

    def lookup(self, windows: Windows, extra: Int) -> Found:
        """As NgramCounts.lookup."""
        ...

    def neighbours(self, row: int) -> tuple[Int, Float64]:
        """As NgramCounts.neighbours."""
        ...


@dataclass(frozen=True)
class HybridRanker:
    """Ranks by a mixture of transition counts and, if there is one, an encoder. Immutable and thread-safe."""

    counts: Counts
    mixture: Mixture
    by_plays: Int  # [tracks] int64, catalogue rows by descending play count
    encoder: ServedRanker | None = None
    network: Network | None = None
    allowed: Allowed | None = None

    def within(self, allowed: Allowed) -> "HybridRanker":
        """Return the same ranker that ranks only allowed tracks.

        The encoder's part is of its best allowed tracks, and the network corrects the most probable allowed tracks.
        """
        encoder = None if self.encoder is None else self.encoder.within(allowed)
        return replace(self, encoder=encoder, allowed=allowed)

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window, by probability, then by row. Rows and scores [batch, k]."""
        return self._ranked(windows, k, None)[0]

    def rank_and_score(self, windows: Windows, k: int, rows: Int) -> tuple[Ranked, Float32]:
        """Return what `rank` and `scores` return, in the time of one of them."""
        return self._ranked(windows, k, rows)

    def _ranked(self, windows: Windows, k: int, rows: Int | None) -> tuple[Ranked, Float32]:
        k = min(k, len(self.by_plays) if self.allowed is None else self.allowed.count)
        if not k:
            none = Ranked(np.empty((len(windows), 0), np.int64), np.empty((len(windows), 0), np.float32))
            return none, none.scores if rows is None else self.scores(windows, rows)
        kept = k if self.network is None else RESCORED + k
        popular = self._popular(windows, kept)
        evidence = self.evidence(windows, popular if rows is None else np.concatenate([rows, popular], axis=1))
        mixture = np.einsum("pc,pc->c", evidence.parts, self._weights(evidence))
        best = self._best(evidence, mixture, kept)
        if self.network is not None:
            places = best.places[:, :RESCORED]
            best.scores[:, :RESCORED] = _corrected(self.network, _probable(windows, evidence, mixture, places))
            mixture[places[places >= 0]] = best.scores[:, :RESCORED][places >= 0]
            best = in_order(best, k)
        scores = best.scores if rows is None else mixture[evidence.found.given[:, : rows.shape[1]]].astype(np.float32)
        return Ranked(np.where(best.places < 0, PAD_ROW, evidence.found.rows[best.places]), best.scores), scores

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the probability of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        scores: Float32 = self.part_scores(windows, rows).sum(axis=0).astype(np.float32)
        return scores

    def part_scores(self, windows: Windows, rows: Int) -> Float64:
        """Return how much each part adds to the score of given tracks. They add up to `scores`.

        `rows` [batch, candidates] int64. Returns [ALL_PARTS, batch, candidates] float64.
        """
        popular = self._popular(windows, RESCORED)  # the probable tracks must not depend on `rows`
        evidence = self.evidence(windows, rows if self.network is None else np.concatenate([rows, popular], axis=1))
        probabilities = evidence.parts * self._weights(evidence)
        if self.network is not None:
            mixture = probabilities.sum(axis=0)
            best = self._best(evidence, mixture, RESCORED)
            factors = _corrected(self.network, _probable(windows, evidence, mixture, best.places))
            factors /= np.maximum(mixture[best.places], 1e-300)
            exists = best.places >= 0
            probabilities[:, best.places[exists]] *= factors[exists]
        of_rows: Float64 = probabilities[:, evidence.found.given[:, : rows.shape[1]]]
        return of_rows

    def probable(self, windows: Windows) -> Probable:
        """Return the RESCORED most probable tracks of the mixture, with the features that a network reads."""
        evidence = self.evidence(windows, self._popular(windows, RESCORED))
        mixture = np.einsum("pc,pc->c", evidence.parts, self._weights(evidence))
        return _probable(windows, evidence, mixture, self._best(evidence, mixture, RESCORED).places)

    def evidence(self, windows: Windows, extra: Int) -> Evidence:
        """Return the candidates of the counts, of the encoder and in `extra` [batch, n] int64, with all parts."""
        batch = len(windows)
        ranked = None if self.encoder is None else self.encoder.rank(windows, ENCODER_TRACKS)
        given = extra if ranked is None else np.concatenate([extra, ranked.rows], axis=1)
        found = self.counts.lookup(windows, given)
        parts = found.parts
        largest = np.zeros(batch)
        if ranked is not None:
            probability = _softmax(ranked.scores.astype(np.float64))
            parts[-1, found.given[:, extra.shape[1] :]] = probability
            largest = np.log(probability.max(axis=1, initial=1e-9))
        in_window: Bool = np.zeros(len(found.rows), dtype=np.bool_)
        in_window[found.places] = True
        heard = np.flatnonzero(in_window)
        lines = found.lines[heard]
        cells = np.arange(len(parts), dtype=np.int64)[:, None] * batch + lines
        weights = parts[:, heard].ravel()
        flat = np.bincount(cells.ravel(), weights=weights, minlength=len(parts) * batch)
        masses = flat.reshape(-1, batch).astype(np.float64, copy=False)
        different = np.bincount(lines[found.rows[heard] != PAD_ROW], minlength=batch)
        features = _features(windows, found, different, masses[PARTS.index("own")] > 0, largest)
        foreseen = np.clip(masses[list(_FORESEEING)], 0.0, 1.0).T
        odds = np.log(foreseen + 1e-3) - np.log(1 - foreseen + 1e-3)
        return Evidence(found, parts, in_window, masses, features, np.concatenate([features, foreseen, odds], axis=1))

    def _popular(self, windows: Windows, k: int) -> Int:
        """Return tracks among which are the k best of those that have only popularity. [batch, n] int64."""
        most = k + windows.tracks.shape[1]
        popular = self.by_plays[:most] if self.allowed is None else self.allowed.first(self.by_plays, most)
        return np.broadcast_to(popular, (len(windows), len(popular)))

    def _best(self, evidence: Evidence, probabilities: Float64, k: int) -> Best:
        """Return the k most probable allowed candidates of each window."""
        found = evidence.found
        forbidden = found.rows == PAD_ROW if self.allowed is None else ~self.allowed.contains(found.rows)
        return best_of(found, probabilities, forbidden, len(evidence.features), k)

    def _weights(self, evidence: Evidence) -> Float64:
        """Return the weight of each part for each candidate. [ALL_PARTS, candidates] float64."""
        new, again = part_weights(evidence, self.mixture, with_encoder=self.encoder is not None)
        repeat = repeat_probability(evidence, self.mixture)
        batch = len(repeat)
        of_new, of_repeats = np.zeros((2, len(ALL_PARTS), batch))
        of_new[list(NEW_PARTS)] = new * (1 - repeat)
        of_repeats[list(REPEAT_PARTS)] = again * repeat
        weights = np.repeat(of_new, np.bincount(evidence.found.lines, minlength=batch), axis=1)
        weights[:, evidence.found.places] = of_repeats[:, :, None]
        return weights


def _probable(windows: Windows, evidence: Evidence, mixture: Float64, places: Int) -> Probable:
    """Return the features of the candidates at `places` [batch, n] int64, -1 for none."""
    found = evidence.found
    probabilities = np.where(places < 0, 0.0, mixture[places])
    heard = np.zeros((4, len(mixture)))
    heard[0] = evidence.in_window
    heard[1, found.places] = windows.skipped  # of repeated plays the last one is kept
    heard[2] = np.bincount(found.places.ravel(), minlength=len(mixture))
    heard[3, found.places[:, -1]] = 1.0
    features = np.empty((*places.shape, len(TRACK_FEATURES)))
    features[:, :, 0] = np.log(probabilities + _FLOOR)
    features[:, :, 1:-4] = np.log(evidence.parts[:, places] + _FLOORS).transpose(1, 2, 0)
    features[:, :, -4:] = heard[:, places].transpose(1, 2, 0)
    features[:, :, -2] = np.log1p(features[:, :, -2])
    rows = np.where(places < 0, PAD_ROW, found.rows[places])
    return Probable(rows, probabilities, features, evidence.repeat_features)


def _corrected(network: Network, probable: Probable) -> Float64:
    """Return the probabilities after the network. [batch, n] float64."""
    hidden = probable.features @ network.tracks + (probable.repeat_features @ network.windows)[:, None]
    with np.errstate(divide="ignore"):
        logits = np.log(probable.probabilities) + np.maximum(hidden, 0.0, out=hidden) @ network.output
    corrected: Float64 = _softmax(logits) * probable.probabilities.sum(axis=1, keepdims=True)
    return corrected


def repeat_probability(evidence: Evidence, mixture: Mixture) -> Float64:
    """Return the probability that the next track is one of the window. [batch] float64.

    It is 0 for a window without tracks, and 1 if the window has the whole catalogue.
    """
    logits = evidence.repeat_features @ mixture.repeat
    probability: Float64 = 1.0 / (1.0 + np.exp(-np.clip(logits, -50, 50)))
    probability[~_any_mass(evidence.masses[list(REPEAT_PARTS)])] = 0.0
    probability[evidence.masses[PARTS.index("popular")] >= 1 - _LEAST] = 1.0
    return probability


def part_weights(evidence: Evidence, mixture: Mixture, *, with_encoder: bool) -> tuple[Float64, Float64]:
    """Return the factors of the parts for new tracks and for repeats: gate weights divided by the mass of the case.

    Returns [NEW_PARTS, batch] and [REPEAT_PARTS, batch] float64. A part without mass in a case has the factor 0.
    """
    left_out = () if with_encoder else (ALL_PARTS.index("encoder"),)
    factors = []
    for parts, weights, masses in (
        (NEW_PARTS, mixture.new_tracks, 1.0 - evidence.masses),
        (REPEAT_PARTS, mixture.repeats, evidence.masses),
    ):
        mass = masses[list(parts)]
        allowed = np.array([[part not in left_out] for part in parts])
        usable: Bool = np.logical_and(np.greater(mass, _LEAST), allowed)
        gates = _softmax(np.where(usable, (evidence.features @ weights).T, -np.inf).T).T
        factors.append(np.where(usable, gates / np.maximum(mass, _LEAST), 0.0))
    return factors[0], factors[1]


def _any_mass(masses: Float64) -> Bool:
    any_mass: Bool = np.greater(masses, _LEAST).sum(axis=0) > 0
    return any_mass


def _features(windows: Windows, found: Found, different: Int, repeated: Bool, largest: Float64) -> Float64:
    """Return the features of the gates, in the order of FEATURES. [batch, features] float64."""
    tracks, skipped = windows.tracks, windows.skipped
    plays = np.maximum((tracks != PAD_ROW).sum(axis=1), 1)
    order, total, followers = found.seen.T
    features = np.empty((len(tracks), len(FEATURES)))
    features[:, 0] = 1.0
    features[:, 1:5] = order[:, None] >= np.arange(1, 5)
    features[:, 5] = np.log1p(total)
    features[:, 6] = followers / np.maximum(total, 1.0)
    features[:, 7] = np.log(plays)
    features[:, 8] = different / plays
    features[:, 9] = skipped[:, -1]
    features[:, 10] = skipped[:, -2] if skipped.shape[1] > 1 else 0.0
    features[:, 11] = skipped.sum(axis=1) / plays
    features[:, 12] = repeated
    features[:, 13] = largest
    return features


def _softmax(logits: Float64) -> Float64:
    """Return the softmax of each row; a row of -inf alone, or without columns, gives 0. [n, m] -> [n, m] float64."""
    largest = logits.max(axis=1, keepdims=True, initial=-np.inf)
    exponents = np.exp(logits - np.where(np.isfinite(largest), largest, 0.0))
    softmax: Float64 = exponents / np.maximum(exponents.sum(axis=1, keepdims=True), 1e-300)
    return softmax
