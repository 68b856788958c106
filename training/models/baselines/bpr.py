"""BPR: factors of sessions and tracks that rank a session's tracks above others, by stochastic gradient descent.

The loss of a draw (session u, its track i, another track j), with x_ui = p_u . q_i + b_i (Rendle, Freudenthaler,
Gantner and Schmidt-Thieme, UAI 2009, https://arxiv.org/abs/1205.2618):

    -log sigmoid(x_ui - x_uj)  +  regularization / 2 (|p_u|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2)

The versions are those of Wen, Yang and Estrin (training/models/baselines/wrmf.py says what C+, C- and S_u are):

    orig   i uniform from C, j outside S_u
    bl     i uniform from C+, j outside S_u
    nr     a share `skip_share` of the draws: i uniform from C+, j uniform from C- of the same session; the rest as bl

A track outside S_u is drawn uniformly, as in the paper, and drawn anew where S_u holds it; or by popularity, as
`implicit` does: bpr_update in implicit/cpu/bpr.pyx (https://github.com/benfred/implicit) draws it from all pairs of the
matrix, and the whole draw is dropped where S_u holds it. Starting values and steps are those of `implicit` too; there,
a step follows every draw, here one follows a batch, summed.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from segue.arrays import Bool, Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.errors import BadDataset
from segue.window import Sessions
from training.models.baselines.wrmf import Pairs, Version, distinct_outcomes, distinct_pairs, freshness
from training.models.encoders.encoder import Encoder
from training.options import BprOptions

_ROUNDS: Final = 10  # of drawing a uniform track anew where S_u holds it; what is left then is dropped
_RIDGE: Final = 1e-3  # of the fold-in's regression, as a share of the mean square of its inputs


class Draws(NamedTuple):
    """What the loss is made of, one draw a line. [draws] int64 each."""

    sessions: Int
    liked: Int  # rows of tracks
    others: Int  # rows of tracks


class Factors(NamedTuple):
    """What training yields."""

    sessions: Tensor  # [sessions, dimension + 1] float32, the last column 1
    tracks: Tensor  # [num_rows, dimension + 1] float32, the last column the bias


class Sampler:
    """Draws of one version from the pairs of all sessions."""

    def __init__(self, pairs: Pairs, num_rows: int, options: BprOptions, version: Version) -> None:
        """Raises BadDataset where no draw is possible."""
        self._pairs = pairs
        self._num_rows = num_rows
        self._popular = options.negative_sampling == "popular"
        self._keys = pairs.sessions * num_rows + pairs.tracks  # sorted, as the pairs are
        self._skipped = np.flatnonzero(~pairs.played)
        self._skips = np.bincount(pairs.sessions[self._skipped], minlength=int(pairs.sessions.max(initial=0)) + 1)
        self._first_skip = np.cumsum(self._skips) - self._skips  # places in _skipped
        liked = np.ones_like(pairs.played) if version == "orig" else pairs.played
        not_all = np.bincount(pairs.sessions) < num_rows - FIRST_TRACK_ROW
        self._open = np.flatnonzero(liked & not_all[pairs.sessions])  # pairs of sessions with something outside
        self._contrasted = np.flatnonzero(liked & (self._skips > 0)[pairs.sessions])
        self.draws = int(liked.sum())
        self._contrasts = self._number_of_contrasts(options.skip_share if version == "nr" else 0.0)

    def _number_of_contrasts(self, share: float) -> int:
        """How many draws of an epoch are played against skipped; all or none where only one kind is possible."""
        if len(self._open) and len(self._contrasted):
            return round(share * self.draws)
        if len(self._open) or (len(self._contrasted) and share > 0):
            return 0 if len(self._open) else self.draws
        raise BadDataset("BPR finds no track to prefer over another: it needs played tracks, and tracks beside them")

    def epoch(self, rng: np.random.Generator) -> Draws:
        """About `draws` draws in random order."""
        contrasts = self._contrast(rng, self._contrasts)
        outside = self._outside(rng, self.draws - self._contrasts)
        order = rng.permutation(len(contrasts.liked) + len(outside.liked))
        return Draws(*(np.concatenate(both)[order] for both in zip(contrasts, outside, strict=True)))

    def _contrast(self, rng: np.random.Generator, count: int) -> Draws:
        pairs = self._contrasted[rng.integers(max(len(self._contrasted), 1), size=count)]
        sessions = self._pairs.sessions[pairs]
        skip = self._first_skip[sessions] + rng.integers(self._skips[sessions])
        return Draws(sessions, self._pairs.tracks[pairs], self._pairs.tracks[self._skipped[skip]])

    def _outside(self, rng: np.random.Generator, count: int) -> Draws:
        pairs = self._open[rng.integers(max(len(self._open), 1), size=count)]
        sessions = self._pairs.sessions[pairs]
        others = self._any_track(rng, count)
        inside = self._inside(sessions, others)
        for _ in range(0 if self._popular else _ROUNDS):
            again = np.flatnonzero(inside)
            others[again] = self._any_track(rng, len(again))
            inside[again] = self._inside(sessions[again], others[again])
        return Draws(sessions[~inside], self._pairs.tracks[pairs[~inside]], others[~inside])

    def _any_track(self, rng: np.random.Generator, count: int) -> Int:
        if self._popular:
            return self._pairs.tracks[rng.integers(len(self._keys), size=count)]
        return rng.integers(FIRST_TRACK_ROW, self._num_rows, size=count)

    def _inside(self, sessions: Int, tracks: Int) -> Bool:
        keys = sessions * self._num_rows + tracks
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        inside: Bool = np.equal(self._keys[place], keys)
        return inside


def factorise(
    sampler: Sampler,
    num_sessions: int,
    num_rows: int,
    options: BprOptions,
    report: Callable[[int, int], None] | None = None,
) -> Factors:
    """Gradient descent from small uniform factors; the seed decides the result."""
    rng = np.random.default_rng(options.seed)
    shapes = ((num_sessions, options.dimension + 1), (num_rows, options.dimension + 1))
    factors = Factors(*(torch.from_numpy((rng.random(s, np.float32) - 0.5) / options.dimension) for s in shapes))
    factors.sessions[:, -1] = 1.0
    factors.tracks[PAD_ROW] = 0.0
    for epoch in range(options.epochs):
        draws = sampler.epoch(rng)
        for start in range(0, len(draws.liked), options.batch_size):
            batch = Draws(*(column[start : start + options.batch_size] for column in draws))
            descend(factors, batch, options.learning_rate, options.regularization)
        if report:
            report(epoch + 1, options.epochs)
    return factors


def descend(factors: Factors, draws: Draws, learning_rate: float, regularization: float) -> None:
    """One step down the summed loss of the draws. Changes `factors`, the looked-up rows alone."""
    sessions, liked, others = (torch.from_numpy(column) for column in draws)
    session, better, worse = factors.sessions[sessions], factors.tracks[liked], factors.tracks[others]
    difference = better - worse  # [draws, dimension + 1]
    wrong = torch.sigmoid(-(session * difference).sum(dim=1, keepdim=True))  # [draws, 1]
    pull = wrong * session
    step = wrong * difference - regularization * session
    step[:, -1] = 0.0  # what the biases are multiplied by
    _add_rows(factors.sessions, sessions, learning_rate * step)
    _add_rows(factors.tracks, liked, learning_rate * (pull - regularization * better))
    _add_rows(factors.tracks, others, learning_rate * (-pull - regularization * worse))


def _add_rows(matrix: Tensor, rows: Tensor, change: Tensor) -> None:
    # On a CPU four times as fast as index_add_.
    matrix.scatter_add_(0, rows[:, None].expand_as(change), change)


class Bpr(Encoder):
    """Factors and biases of tracks; a session's factors are a linear map of the means over its tracks' factors.

    The map (`fold`) is the ridge regression of the trained factors of the training sessions on those means, so that
    what is folded in has the length and the direction that the biases were trained beside. Means are over the played
    tracks, for orig over all tracks; nr has a second mean, over the skipped ones, with a map of its own. A window's
    older plays count less in the means (`half_life`). A mean over no track is zero.
    """

    options: BprOptions
    fold: Tensor  # [means * dimension, dimension] float32, means is 2 for nr and else 1

    def __init__(self, num_rows: int, options: BprOptions, version: Version) -> None:
        super().__init__()
        self.options = options
        self.version = version
        self.item_embeddings = nn.Embedding(num_rows, options.dimension + 1, padding_idx=PAD_ROW)
        means = 2 if version == "nr" else 1
        self.register_buffer("fold", torch.zeros(means * options.dimension, options.dimension))

    def set_factors(self, tracks: Tensor, fold: Tensor) -> None:
        """Take the factors of all tracks, [num_rows, dimension + 1] with the bias last, and the map."""
        with torch.no_grad():
            self.item_embeddings.weight.copy_(tracks)
            self.fold.copy_(fold)

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the query vector of each window; its last column is 1, the factor of the item biases."""
        factors = self.means(tracks, skipped) @ self.fold
        return torch.cat([factors, torch.ones_like(factors[:, :1])], dim=1)

    def means(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Weighted means of the window's factors. [batch, means * dimension] float32."""
        factors = self.item_embeddings(tracks)[:, :, :-1]  # [batch, window, dimension]
        fresh = freshness(tracks.shape[1], self.options.half_life, factors)
        played, only_skipped = distinct_outcomes(tracks, skipped)
        kinds = {"orig": [played | only_skipped], "bl": [played], "nr": [played, only_skipped]}[self.version]
        return torch.cat([_mean(fresh * kind, factors) for kind in kinds], dim=1)


def _mean(weights: Tensor, factors: Tensor) -> Tensor:
    """Means by `weights` [batch, window] of `factors` [batch, window, dimension]; zero where no column counts."""
    total = weights.sum(dim=1, keepdim=True)
    shares = weights / torch.where(total > 0, total, 1.0)
    return (shares[:, None, :] @ factors)[:, 0]


def fit_bpr(
    sessions: Sessions,
    num_rows: int,
    options: BprOptions,
    version: Version,
    report: Callable[[int, int], None] | None = None,
) -> Bpr:
    """Factorise the sessions. `report` is told the epochs done and all epochs.

    The seed decides the result. Raises BadDataset where no track can be preferred over another.
    """
    pairs = distinct_pairs(sessions, num_rows)
    sampler = Sampler(pairs, num_rows, options, version)
    factors = factorise(sampler, len(sessions), num_rows, options, report)
    model = Bpr(num_rows, options, version)
    model.set_factors(factors.tracks, fold_map(pairs, factors, version))
    return model.eval()


def fold_map(pairs: Pairs, factors: Factors, version: Version) -> Tensor:
    """The ridge regression that Bpr folds in with, over sessions with a positive. [means * dimension, dimension]."""
    kinds = {"orig": [pairs.played | True], "bl": [pairs.played], "nr": [pairs.played, ~pairs.played]}[version]
    trained = np.unique(pairs.sessions[kinds[0]])
    means = np.concatenate([_session_means(pairs, kind, factors)[trained] for kind in kinds], axis=1)
    inputs, outputs = torch.from_numpy(means).double(), factors.sessions[torch.from_numpy(trained), :-1].double()
    gram = inputs.T @ inputs
    ridge = _RIDGE * gram.diagonal().mean() + torch.finfo(torch.float32).tiny
    solution: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), inputs.T @ outputs)
    return solution.float()


def _session_means(pairs: Pairs, kind: Bool, factors: Factors) -> Float32:
    """Means of the factors of each session's tracks of a kind, zero for none. [sessions, dimension] float32."""
    sessions, tracks = pairs.sessions[kind], pairs.tracks[kind]
    shares = (1.0 / np.bincount(sessions, minlength=1)[sessions]).astype(np.float32)
    shape = (len(factors.sessions), len(factors.tracks))
    means: Float32 = scipy.sparse.coo_array((shares, (sessions, tracks)), shape=shape).tocsr() @ factors.tracks.numpy()
    return means[:, :-1]
