"""WRMF: weighted matrix factorisation of sessions and tracks by alternating least squares.

WRMF and BPR factorise the same matrix, in the three versions of Wen, Yang and Estrin (Leveraging post-click feedback
for content recommendations, RecSys 2019, https://dl.acm.org/doi/10.1145/3298689.3347037). Their users correspond to
sessions here. C is the set of distinct (session, track) pairs. A pair counts as played if the session played the
track at least once without a skip, otherwise as skipped. The versions treat skips differently:

    orig   outcomes are ignored: every pair in C is a positive
    bl     a skipped pair is excluded: it is neither positive nor missing
    nr     a skipped pair is a negative

The loss over the factors p_u of sessions and q_i of tracks (Hu, Koren and Volinsky, ICDM 2008,
https://doi.org/10.1109/ICDM.2008.22):

    sum of w_ui (y_ui - p_u . q_i)^2 over all pairs  +  regularization (sum |p_u|^2 + sum |q_i|^2)

    pair                  orig                   bl                     nr
    played in u           y = 1, w = positive    y = 1, w = positive    y = 1, w = positive
    skipped in u          y = 1, w = positive    w = 0                  y = 0, w = skip_weight
    not in u (missing)    y = 0, w = 1           y = 0, w = 1           y = 0, w = 1

In expectation, the sampling of Wen, Yang and Estrin minimises this loss. They draw a share lp of the samples from the
|C| positive pairs and the rest from the M missing pairs. A positive pair therefore weighs lp / (1 - lp) * M / |C|
times as much as a missing pair. This module differs from theirs in two points. L2 regularization applies once per row
instead of once per sample. There are no biases, because exact alternating least squares does not support them.

The package `implicit` (https://github.com/benfred/implicit) runs the alternating least squares. The package takes a
sparse matrix of confidences. For every stored cell, user_linear_equation in implicit/cpu/als.py adds
(|confidence| - 1) q q^T to the normal equations. If the confidence is above 0, the function also adds confidence * q to
the right-hand side. A negative confidence -w therefore means y = 0 with weight w. A stored zero means weight 0, which
excludes a pair from the loss, as bl requires.

A session that was not in the training data gets its factors from a ridge regression on the track factors (`Wrmf`).
"""

from collections.abc import Callable, Hashable
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
    """Distinct (session, track) pairs, sorted by session, then by track."""

    sessions: Int  # [pairs] int64
    tracks: Int  # [pairs] int64 rows
    played: Bool  # [pairs] bool, whether at least one play of the pair was not skipped


def distinct_pairs(sessions: Sessions, num_rows: int) -> Pairs:
    """Return each distinct pair of a session and a track once. Plays of tracks outside the catalogue are ignored."""
    usable = sessions.usable()
    session = np.repeat(np.arange(len(usable), dtype=np.int64), usable.lengths)
    keys, pair = np.unique(session * num_rows + usable.rows, return_inverse=True)
    played = np.bincount(pair[~usable.skipped], minlength=len(keys)) > 0
    return Pairs(keys // num_rows, keys % num_rows, played)


def distinct_outcomes(tracks: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """Mark the last position of each distinct track of a window, with one mask for each outcome.

    Args:
        tracks: [batch, window] int64 rows.
        skipped: [batch, window] bool.

    Returns:
        Two masks, [batch, window] bool each. The first marks the tracks with at least one play that was not skipped.
        The second marks the tracks with skipped plays only. Neither marks PAD_ROW or an earlier play of a track.

    """
    same = tracks[:, :, None] == tracks[:, None, :]  # [batch, window, window]
    repeated = (same & torch.ones_like(same[0]).triu(1)).any(dim=2)
    last = (tracks != PAD_ROW) & ~repeated
    played = (same & ~skipped[:, None, :]).any(dim=2)
    return last & played, last & ~played


def freshness(window: int, half_life: float, like: Tensor) -> Tensor:
    """Return the weight of each window column: 1 for the newest play, halved every `half_life` plays. [window].

    All weights are 1 if `half_life` is 0. The dtype and the device are those of `like`.
    """
    age = torch.arange(window - 1, -1, -1, dtype=like.dtype, device=like.device)
    return torch.exp2(-age / half_life) if half_life else torch.ones_like(age)


MISSING: Final = -1.0  # the confidence that stands for a missing pair in implicit's matrix: y = 0 with weight 1


class Wrmf(Encoder):
    """Encoder that computes the session factors of a window from fixed track factors.

    The session factors minimise the session's part of the WRMF loss.
    """

    options: WrmfOptions
    inverse: Tensor  # [dimension, dimension] float32, (Q^T Q + regularization I)^-1, symmetric

    def __init__(self, num_rows: int, options: WrmfOptions, version: Version) -> None:
        super().__init__()
        self.options = options
        self.version = version
        self.item_embeddings = nn.Embedding(num_rows, options.dimension, padding_idx=PAD_ROW)
        self.register_buffer("inverse", torch.eye(options.dimension))

    @property
    def architecture(self) -> Hashable:
        """As in the base class."""
        return super().architecture, self.version

    def set_factors(self, tracks: Float32) -> None:
        """Set the track factors to `tracks` [num_rows, dimension] float32 and the padding row to zero."""
        with torch.no_grad():
            self.item_embeddings.weight.copy_(torch.from_numpy(tracks))
            self.item_embeddings.weight[PAD_ROW] = 0.0
            factors = self.item_embeddings.weight.double()
            ridge = self.options.regularization * torch.eye(self.options.dimension, dtype=torch.float64)
            self.inverse.copy_(torch.linalg.inv(factors.T @ factors + ridge))

    def query(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the session factors that minimise the window's part of the loss. [batch, dimension] float32.

        `tracks` [batch, window] int64, `skipped` [batch, window] bool. With age, the weight and the target of a play
        decay from their own values to the values of a missing pair, with the half-life `half_life`.

        Woodbury's identity reduces the linear system to the size of the window. Let A = Q^T Q + regularization I. Let
        E be the factors of the window's tracks, W their weights (1 for an unused column) and r = W y. The session
        factors (A + E^T (W - I) E)^-1 E^T r are equal to A^-1 E^T v, where v solves (I + (W - I) E A^-1 E^T) v = r.
        """
        weights, wanted = self._weights(tracks, skipped)
        factors: Tensor = self.item_embeddings(tracks)  # [batch, window, dimension]
        solved = factors @ self.inverse  # [batch, window, dimension]
        system = (weights - 1.0)[:, :, None] * (solved @ factors.transpose(1, 2))
        system = system + torch.eye(tracks.shape[1], dtype=system.dtype, device=system.device)
        return (solve(system, wanted)[:, None, :] @ solved)[:, 0]

    def _weights(self, tracks: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight w of each column (1 for an unused column) and w y. [batch, window] float32 each."""
        played, only_skipped = distinct_outcomes(tracks, skipped)
        of_played, of_skipped = cell_values(self.options, self.version)
        missing = torch.full_like(tracks, MISSING, dtype=self.item_embeddings.weight.dtype)
        cells = torch.where(played, of_played, torch.where(only_skipped, of_skipped, missing))
        fresh = freshness(tracks.shape[1], self.options.half_life, cells)
        return 1.0 + fresh * (cells.abs() - 1.0), fresh * cells.clamp(min=0.0)


def cell_values(options: WrmfOptions, version: Version) -> tuple[float, float]:
    """Return the confidences of a played and of a skipped pair in implicit's matrix.

    A confidence is the weight of the pair. The confidence is negative if y is 0.
    """
    positive = options.positive_weight
    return positive, {"orig": positive, "bl": 0.0, "nr": -options.skip_weight}[version]


def solve(system: Tensor, right: Tensor) -> Tensor:
    """Solve small linear systems by Gauss-Jordan elimination, with operations that ONNX supports.

    `system` [batch, n, n] and `right` [batch, n] float32 -> [batch, n] float32. Pivoting is not needed for the systems
    of `Wrmf.query`, because all leading minors of I + (W - I) E A^-1 E^T are positive. Each of them is the ratio of the
    determinants of two positive definite matrices: the normal equations with the first columns of the window, and the
    normal equations without any column.
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
    """Train WRMF on `sessions` and return the model in evaluation mode.

    After each iteration, `report` is called with the number of completed iterations and the total number of iterations.
    The result depends on the seed and the sessions. The number of threads has no effect, because each row is solved
    separately.
    """
    cells = confidences(distinct_pairs(sessions, num_rows), len(sessions), num_rows, cell_values(options, version))
    with threadpool_limits(1, "blas"):  # implicit has its own threads and recommends one BLAS thread
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
    """Return the confidence matrix for implicit. [num_sessions, num_rows - FIRST_TRACK_ROW] float32.

    `values` are the confidences of a played and of a skipped pair. Confidences of 0 are stored explicitly.
    """
    played, skipped = values
    cells = np.where(pairs.played, played, skipped).astype(np.float32)
    ends = np.searchsorted(pairs.sessions, np.arange(num_sessions + 1)).astype(np.int32)
    columns = (pairs.tracks - FIRST_TRACK_ROW).astype(np.int32)
    return scipy.sparse.csr_matrix((cells, columns, ends), shape=(num_sessions, num_rows - FIRST_TRACK_ROW))
