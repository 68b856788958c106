"""BPR: matrix factorisation with a pairwise ranking loss, trained by stochastic gradient descent.

Session and track factors are trained to rank a session's tracks above other tracks. A training sample is a triple of a
session u, a positive track i and a negative track j. With x_ui = p_u . q_i + b_i, its loss is (Rendle, Freudenthaler,
Gantner and Schmidt-Thieme, UAI 2009, https://arxiv.org/abs/1205.2618):

    -log sigmoid(x_ui - x_uj)  +  regularization / 2 (|p_u|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2)

C is the set of all (session, track) pairs. C+ are the pairs with at least one completed play. C- are the pairs with
skips only. S_u is the set of all tracks in session u. The three versions come from Wen, Yang and Estrin (RecSys 2019,
https://dl.acm.org/doi/10.1145/3298689.3347037):

    orig   (u, i) uniform from C, j outside S_u
    bl     (u, i) uniform from C+, j outside S_u
    nr     for a share `skip_share` of the samples: (u, i) uniform from C+, j uniform from the tracks of u in C-;
           for the other samples: the same as bl

The option `negative_sampling` determines how a track outside S_u is drawn:

    uniform   as in the paper: all tracks are equally likely, and a track in S_u is drawn again
    popular   as bpr_update in implicit/cpu/bpr.pyx (https://github.com/benfred/implicit): the track of a random pair
              from C, and the sample is dropped if the track is in S_u

The initial values and the gradient steps also follow `implicit`. The difference is the batch size: `implicit` updates
the factors after every sample, this module after every batch, with the summed gradient.
"""

from collections.abc import Callable, Hashable
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

_ROUNDS: Final = 10  # attempts to replace a uniform negative that is in S_u; after these the sample is dropped
_RIDGE: Final = 1e-3  # regularization of the fold-in regression, relative to the mean diagonal of the Gram matrix


class Draws(NamedTuple):
    """Training samples, one per index. Each array is [draws] int64."""

    sessions: Int
    liked: Int  # rows of the positive tracks
    others: Int  # rows of the negative tracks


class Factors(NamedTuple):
    """Trained factors of sessions and tracks."""

    sessions: Tensor  # [sessions, dimension + 1] float32, the last column is 1
    tracks: Tensor  # [num_rows, dimension + 1] float32, the last column is the item bias


class Sampler:
    """Samples training triples for one version of BPR from the pairs of all sessions."""

    def __init__(self, pairs: Pairs, num_rows: int, options: BprOptions, version: Version) -> None:
        """Prepare sampling from `pairs`. Raises BadDataset if no sample is possible."""
        self._pairs = pairs
        self._num_rows = num_rows
        self._popular = options.negative_sampling == "popular"
        self._keys = pairs.sessions * num_rows + pairs.tracks  # sorted, because `pairs` is sorted
        self._skipped = np.flatnonzero(~pairs.played)
        self._skips = np.bincount(pairs.sessions[self._skipped], minlength=int(pairs.sessions.max(initial=0)) + 1)
        self._first_skip = (
            np.cumsum(self._skips) - self._skips
        )  # per session: index into _skipped of its first skipped pair
        liked = np.ones_like(pairs.played) if version == "orig" else pairs.played
        not_all = np.bincount(pairs.sessions) < num_rows - FIRST_TRACK_ROW
        self._open = np.flatnonzero(liked & not_all[pairs.sessions])  # positives for which some track is outside S_u
        self._contrasted = np.flatnonzero(liked & (self._skips > 0)[pairs.sessions])
        self.draws = int(liked.sum())
        self._contrasts = self._number_of_contrasts(options.skip_share if version == "nr" else 0.0)

    def _number_of_contrasts(self, share: float) -> int:
        """Return the number of samples per epoch that rank a played track above a skipped one.

        If all possible samples are of this kind, the number is `self.draws`. If none is, the number is 0.
        """
        if len(self._open) and len(self._contrasted):
            return round(share * self.draws)
        if len(self._open) or (len(self._contrasted) and share > 0):
            return 0 if len(self._open) else self.draws
        raise BadDataset("BPR finds no track to prefer over another: it needs played tracks, and tracks beside them")

    def epoch(self, rng: np.random.Generator) -> Draws:
        """Return about `self.draws` samples in random order."""
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
    """Train factors by gradient descent, starting from small uniform values. The seed determines the result.

    After each epoch, `report` is called with the number of completed epochs and the total number of epochs.
    """
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
    """Take one gradient step on the summed loss of `draws`. Updates the rows of `factors` in `draws` in place."""
    sessions, liked, others = (torch.from_numpy(column) for column in draws)
    session, better, worse = factors.sessions[sessions], factors.tracks[liked], factors.tracks[others]
    difference = better - worse  # [draws, dimension + 1]
    wrong = torch.sigmoid(-(session * difference).sum(dim=1, keepdim=True))  # [draws, 1]
    pull = wrong * session
    step = wrong * difference - regularization * session
    step[:, -1] = 0.0  # the last session column stays 1, as the factor of the item bias
    _add_rows(factors.sessions, sessions, learning_rate * step)
    _add_rows(factors.tracks, liked, learning_rate * (pull - regularization * better))
    _add_rows(factors.tracks, others, learning_rate * (-pull - regularization * worse))


def _add_rows(matrix: Tensor, rows: Tensor, change: Tensor) -> None:
    # scatter_add_ is four times as fast as index_add_ on a CPU.
    matrix.scatter_add_(0, rows[:, None].expand_as(change), change)


class Bpr(Encoder):
    """Encoder that computes session factors from the mean track factors of a window by a linear map.

    The map (`fold`) is a ridge regression from mean track factors to the trained factors of the training sessions. The
    regression gives a new session factors of the same scale as the trained ones, which keeps the item biases
    calibrated. The mean includes all tracks for orig, and only the played tracks for bl and nr. The version nr adds a
    second mean, over the skipped tracks, with its own part of the map. The weight of a play in the means halves
    every `half_life` plays. A mean over no tracks is zero.
    """

    options: BprOptions
    fold: Tensor  # [means * dimension, dimension] float32; `means` is 2 for nr, otherwise 1

    def __init__(self, num_rows: int, options: BprOptions, version: Version) -> None:
        super().__init__()
        self.options = options
        self.version = version
        self.item_embeddings = nn.Embedding(num_rows, options.dimension + 1, padding_idx=PAD_ROW)
        means = 2 if version == "nr" else 1
        self.register_buffer("fold", torch.zeros(means * options.dimension, options.dimension))

    @property
    def architecture(self) -> Hashable:
        """As in the base class."""
        return super().architecture, self.version

    def set_factors(self, tracks: Tensor, fold: Tensor) -> None:
        """Set the track factors and the fold-in map.

        Args:
            tracks: [num_rows, dimension + 1] float32, the item bias in the last column.
            fold: [means * dimension, dimension] float32.

        """
        with torch.no_grad():
            self.item_embeddings.weight.copy_(tracks)
            self.fold.copy_(fold)

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the query vector of each window. [batch, dimension + 1] float32.

        The last column is 1, the factor of the item bias. `tracks` [batch, window] int64, `skipped` [batch, window]
        bool.
        """
        factors = self.means(tracks, skipped) @ self.fold
        return torch.cat([factors, torch.ones_like(factors[:, :1])], dim=1)

    def means(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the weighted mean track factors of each window. [batch, means * dimension] float32."""
        factors = self.item_embeddings(tracks)[:, :, :-1]  # [batch, window, dimension]
        fresh = freshness(tracks.shape[1], self.options.half_life, factors)
        played, only_skipped = distinct_outcomes(tracks, skipped)
        kinds = {"orig": [played | only_skipped], "bl": [played], "nr": [played, only_skipped]}[self.version]
        return torch.cat([_mean(fresh * kind, factors) for kind in kinds], dim=1)


def _mean(weights: Tensor, factors: Tensor) -> Tensor:
    """Return the weighted means over the window, zero if all weights are zero. [batch, dimension] float32.

    `weights` [batch, window], `factors` [batch, window, dimension].
    """
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
    """Train BPR on `sessions` and return the model in evaluation mode. The seed determines the result.

    After each epoch, `report` is called with the number of completed epochs and the total number of epochs.
    Raises BadDataset if `sessions` gives no training sample.
    """
    pairs = distinct_pairs(sessions, num_rows)
    sampler = Sampler(pairs, num_rows, options, version)
    factors = factorise(sampler, len(sessions), num_rows, options, report)
    model = Bpr(num_rows, options, version)
    model.set_factors(factors.tracks, fold_map(pairs, factors, version))
    return model.eval()


def fold_map(pairs: Pairs, factors: Factors, version: Version) -> Tensor:
    """Fit the fold-in map of Bpr by ridge regression. [means * dimension, dimension] float32.

    The regression uses the sessions with at least one positive pair.
    """
    kinds = {"orig": [pairs.played | True], "bl": [pairs.played], "nr": [pairs.played, ~pairs.played]}[version]
    trained = np.unique(pairs.sessions[kinds[0]])
    means = np.concatenate([_session_means(pairs, kind, factors)[trained] for kind in kinds], axis=1)
    inputs, outputs = torch.from_numpy(means).double(), factors.sessions[torch.from_numpy(trained), :-1].double()
    gram = inputs.T @ inputs
    ridge = _RIDGE * gram.diagonal().mean() + torch.finfo(torch.float32).tiny
    solution: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), inputs.T @ outputs)
    return solution.float()


def _session_means(pairs: Pairs, kind: Bool, factors: Factors) -> Float32:
    """Return the mean track factors of each session, zero for a session without tracks. [sessions, dimension] float32.

    The mean includes only the pairs that the mask `kind` [pairs] bool selects.
    """
    sessions, tracks = pairs.sessions[kind], pairs.tracks[kind]
    shares = (1.0 / np.bincount(sessions, minlength=1)[sessions]).astype(np.float32)
    shape = (len(factors.sessions), len(factors.tracks))
    means: Float32 = scipy.sparse.coo_array((shares, (sessions, tracks)), shape=shape).tocsr() @ factors.tracks.numpy()
    return means[:, :-1]
