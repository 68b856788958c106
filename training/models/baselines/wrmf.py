"""WRMF: weighted least squares on the matrix of sessions and tracks, and a ridge solve that folds a session in.

WRMF and BPR factorise the same matrix, in the three versions of Wen, Yang and Estrin (Leveraging post-click feedback
for content recommendations, RecSys 2019, https://dl.acm.org/doi/10.1145/3298689.3347037). A session is a user there. A
cell has one value: a track that is played several times in a session counts once, and as played if it was played at
least once. C is the set of (session, track) pairs. The versions differ in what a skip teaches:

    orig   ignores outcomes: every pair of C is a positive
    bl     a skipped track is neither a positive nor a missing pair
    nr     a skipped track is a negative

The loss over the factors p_u of sessions and q_i of tracks (Hu, Koren and Volinsky, ICDM 2008,
https://doi.org/10.1109/ICDM.2008.22):

    sum of w_ui (y_ui - p_u . q_i)^2 over all pairs  +  regularization (sum |p_u|^2 + sum |q_i|^2)

    pair                  orig                   bl                     nr
    played in u           y = 1, w = positive    y = 1, w = positive    y = 1, w = positive
    skipped in u          y = 1, w = positive    w = 0                  y = 0, w = skip_weight
    not in u (missing)    y = 0, w = 1           y = 0, w = 1           y = 0, w = 1

It is what the sampling of Wen, Yang and Estrin minimises in expectation: a share
lp of the draws spread over |C| positives and the rest over M missing pairs weigh a positive lp / (1 - lp) * M / |C|
times as much as a missing one. Differences from theirs: L2 is charged once a row instead of once a draw, and
there are no biases, which exact alternating least squares has no place for.

Alternating least squares comes from `implicit` (https://github.com/benfred/implicit), whose matrix of confidences means
exactly this loss: user_linear_equation in implicit/cpu/als.py adds (|confidence| - 1) q q^T to the normal equations
for every stored cell, and confidence * q to their right-hand side where the confidence is above 0. A negative
confidence is therefore y = 0 with that weight, and a stored zero is weight 0: the pair takes no part, as bl wants it.
"""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
import torch
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from segue.arrays import Bool, Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.window import Sessions
from training.models.encoders.encoder import Encoder
from training.options import WrmfOptions

Version: TypeAlias = Literal["orig", "bl", "nr"]


class Pairs(NamedTuple):
    """Distinct pairs of a session and a track, sorted by session, then by track."""

    sessions: Int  # [pairs] int64
    tracks: Int  # [pairs] int64 rows
    played: Bool  # [pairs] bool, whether the session played the track at least once


def distinct_pairs(sessions: Sessions, num_rows: int) -> Pairs:
    """The pairs of all sessions; plays of tracks outside the catalogue are ignored."""
    usable = sessions.usable()
    session = np.repeat(np.arange(len(usable), dtype=np.int64), usable.lengths)
    keys, pair = np.unique(session * num_rows + usable.rows, return_inverse=True)
    played = np.bincount(pair[~usable.skipped], minlength=len(keys)) > 0
    return Pairs(keys // num_rows, keys % num_rows, played)


def distinct_outcomes(tracks: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """Mark the last position of each distinct track in a window: of tracks played in it, and of tracks only skipped.

    Args:
        tracks: [batch, window] int64 rows.
        skipped: [batch, window] bool.

    Returns:
        Two disjoint masks [batch, window] bool; PAD_ROW and repetitions are in neither.

    """
    same = tracks[:, :, None] == tracks[:, None, :]  # [batch, window, window]
    repeated = (same & torch.ones_like(same[0]).triu(1)).any(dim=2)
    last = (tracks != PAD_ROW) & ~repeated
    played = (same & ~skipped[:, None, :]).any(dim=2)
    return last & played, last & ~played


def freshness(window: int, half_life: float, like: Tensor) -> Tensor:
    """Return the weight of each column of a window: 1 for the newest, halved every `half_life` plays. [window].

    All weights are 1 if `half_life` is 0. The dtype and the device are those of `like`.
    """
    age = torch.arange(window - 1, -1, -1, dtype=like.dtype, device=like.device)
    return torch.exp2(-age / half_life) if half_life else torch.ones_like(age)


MISSING: Final = -1.0  # a missing pair as implicit's matrix would hold it


class Wrmf(Encoder):
    """Factors of tracks; a session's factors are the minimum of its part of the loss, given those of the tracks."""

    options: WrmfOptions
    inverse: Tensor  # [dimension, dimension] float32, (Q^T Q + regularization I)^-1, symmetric

    def __init__(self, num_rows: int, options: WrmfOptions, version: Version) -> None:
        super().__init__()
        self.options = options
        self.version = version
        self.item_embeddings = nn.Embedding(num_rows, options.dimension, padding_idx=PAD_ROW)
        self.register_buffer("inverse", torch.eye(options.dimension))

    def set_factors(self, tracks: Float32) -> None:
        """Set the factors of all tracks, [num_rows, dimension] float32; the padding row becomes zero."""
        with torch.no_grad():
            self.item_embeddings.weight.copy_(torch.from_numpy(tracks))
            self.item_embeddings.weight[PAD_ROW] = 0.0
            factors = self.item_embeddings.weight.double()
            ridge = self.options.regularization * torch.eye(self.options.dimension, dtype=torch.float64)
            self.inverse.copy_(torch.linalg.inv(factors.T @ factors + ridge))

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the session factors that minimise the window's part of the loss. [batch, dimension] float32.

        An older play counts as a mixture of itself and a missing pair (`half_life`). By Woodbury's identity the system
        to solve has the size of the window.
        With A = Q^T Q + regularization I, E the window's factors, W its weights (1 where a column takes no part) and
        r = W y, the session's factors (A + E^T (W - I) E)^-1 E^T r are A^-1 E^T v, where v solves
        (I + (W - I) E A^-1 E^T) v = r.
        """
        weights, wanted = self._weights(tracks, skipped)
        factors: Tensor = self.item_embeddings(tracks)  # [batch, window, dimension]
        solved = factors @ self.inverse  # [batch, window, dimension]
        system = (weights - 1.0)[:, :, None] * (solved @ factors.transpose(1, 2))
        system = system + torch.eye(tracks.shape[1], dtype=system.dtype, device=system.device)
        return (solve(system, wanted)[:, None, :] @ solved)[:, 0]

    def _weights(self, tracks: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight w of each column (1 if unused) and w y. [batch, window] float32 each."""
        played, only_skipped = distinct_outcomes(tracks, skipped)
        of_played, of_skipped = cell_values(self.options, self.version)
        missing = torch.full_like(tracks, MISSING, dtype=self.item_embeddings.weight.dtype)
        cells = torch.where(played, of_played, torch.where(only_skipped, of_skipped, missing))
        fresh = freshness(tracks.shape[1], self.options.half_life, cells)
        return 1.0 + fresh * (cells.abs() - 1.0), fresh * cells.clamp(min=0.0)


def cell_values(options: WrmfOptions, version: Version) -> tuple[float, float]:
    """What implicit's matrix holds for a played and for a skipped pair: the weight, below 0 where y is 0."""
    positive = options.positive_weight
    return positive, {"orig": positive, "bl": 0.0, "nr": -options.skip_weight}[version]


def solve(system: Tensor, right: Tensor) -> Tensor:
    """Solutions of small linear systems by Gauss-Jordan elimination without pivoting, in operations that ONNX has.

    `system` [batch, n, n] and `right` [batch, n] float32 -> [batch, n]. For the systems here no pivot is needed: each
    leading minor of I + (W - I) E A^-1 E^T is the ratio of the determinants of two positive definite matrices, the
    normal equations with the first columns of the window and those with none.
    """
    n = right.shape[1]
    lines = torch.cat([system, right[:, :, None]], dim=2)  # [batch, n, n + 1]
    unit = torch.eye(n, dtype=system.dtype, device=system.device)
    for i in range(n):
        pivot = lines[:, i : i + 1] / lines[:, i : i + 1, i : i + 1]  # [batch, 1, n + 1]
        lines = lines - (lines[:, :, i : i + 1] - unit[:, i : i + 1]) * pivot
    return lines[:, :, n]


def fit_wrmf(
    sessions: Sessions,
    num_rows: int,
    options: WrmfOptions,
    version: Version,
    report: Callable[[int, int], None] | None = None,
) -> Wrmf:
    """Factorise the sessions. `report` is told the rounds done and all rounds.

    The result depends on the seed and the sessions alone, however many threads there are: rows are solved one by one.
    """
    cells = confidences(distinct_pairs(sessions, num_rows), len(sessions), num_rows, cell_values(options, version))
    with threadpool_limits(1, "blas"):  # implicit has threads of its own, and asks for this
        als = AlternatingLeastSquares(
            factors=options.dimension,
            regularization=options.regularization,
            iterations=options.iterations,
            random_state=options.seed,
        )
        als.fit(cells, show_progress=False, callback=lambda done, *_: report and report(done + 1, options.iterations))
    model = Wrmf(num_rows, options, version)
    padding = np.zeros((FIRST_TRACK_ROW, options.dimension), dtype=np.float32)
    model.set_factors(np.concatenate([padding, als.item_factors]))
    return model.eval()


def confidences(pairs: Pairs, num_sessions: int, num_rows: int, values: tuple[float, float]) -> scipy.sparse.csr_matrix:
    """The matrix that implicit factorises. [num_sessions, num_rows - FIRST_TRACK_ROW] float32, zeros stored."""
    played, skipped = values
    cells = np.where(pairs.played, played, skipped).astype(np.float32)
    ends = np.searchsorted(pairs.sessions, np.arange(num_sessions + 1)).astype(np.int32)
    columns = (pairs.tracks - FIRST_TRACK_ROW).astype(np.int32)
    return scipy.sparse.csr_matrix((cells, columns, ends), shape=(num_sessions, num_rows - FIRST_TRACK_ROW))
