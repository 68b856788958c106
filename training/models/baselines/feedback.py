"""Sessions as the matrix that WRMF and BPR factorise, in the three versions of Wen, Yang and Estrin.

A session is a user there, and C the set of (session, track) pairs: C+ those played, C- those skipped, S_u the tracks
of session u. A cell holds one value, so a track's repetitions in a session count once, and a track both played and
skipped in it counts as played. The versions differ in what is learnt from a skip (Wen, Yang and Estrin, Leveraging
post-click feedback for content recommendations, RecSys 2019, https://dl.acm.org/doi/10.1145/3298689.3347037):

    orig   ignores outcomes: every pair of C is a positive
    bl     a skipped track is neither a positive nor a missing pair
    nr     a skipped track is a negative
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from segue.arrays import Bool, Int
from segue.catalogue import PAD_ROW
from segue.window import Sessions

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
