"""Why a track is recommended: what each play and each skip of the session adds to its score.

The score of a track is the inner product of its embedding and the encoder's query, and a query is made of any part of
a session's plays. So the plays are players of a game whose outcome is the score, and a play's contribution is its
Shapley value: what it adds to the plays that came into the game before it, on average over the orders in which they
may come. Contributions add up to the score; a play that changes nothing has 0. An order is drawn together with its
reverse, which makes the estimate steadier.

Source: Shapley, "A value for n-person games", 1953; Strumbelj and Kononenko, "Explaining prediction models and
individual predictions with feature contributions", Knowledge and Information Systems 2014,
https://doi.org/10.1007/s10115-013-0679-x; pairs of orders: Mitchell et al., JMLR 2022, https://arxiv.org/abs/2104.12199.
"""

import itertools
import math
from typing import Final

import numpy as np

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import PAD_ROW
from segue.recommend import QueryEncoder
from segue.window import Windows

ORDERS: Final = 16  # orders of the plays that are averaged over; all of them where there are no more
_WINDOWS_AT_ONCE: Final = 256


def contributions(encoder: QueryEncoder, window: Windows, targets: Float32, orders: int = ORDERS) -> Float32:
    """What each play of one window contributes to the score of each target track. [targets, plays] float32.

    `window` [1, window] holds the plays, of which padding is none; `targets` [targets, dimension] float32 are
    embeddings. A line adds up to the score of its track. The same window has the same contributions always.
    """
    places = np.flatnonzero(window.tracks[0] != PAD_ROW)
    count = len(places)
    if not count:
        return np.zeros((len(targets), 0), dtype=np.float32)
    drawn = _orders(count, orders)
    # joined[order, step, play]: whether the play has come in after so many steps.
    joined = np.argsort(drawn, axis=1)[:, None, :] <= np.arange(count)[None, :, None]
    parts, which = np.unique(joined.reshape(-1, count), axis=0, return_inverse=True)
    scores = (_queries(encoder, window, places, parts).astype(np.float64) @ targets.T.astype(np.float64))[which]
    scores = scores.reshape(len(drawn), count, len(targets))
    added = np.diff(scores, axis=1, prepend=0.0)  # without any play there is no query, and no score
    total: Float64 = np.zeros((count, len(targets)))
    for order, steps in zip(drawn, added, strict=True):
        total[order] += steps
    return (total / len(drawn)).T.astype(np.float32)


def _orders(count: int, most: int) -> Int:
    """Orders of `count` plays, drawn in pairs of reverses, or all of them. [orders, count] int64."""
    if math.factorial(count) <= most:
        return np.array(list(itertools.permutations(range(count))), dtype=np.int64)
    rng = np.random.default_rng(count)  # one seed: who asks again is told the same
    half = np.array([rng.permutation(count) for _ in range(-(-most // 2))], dtype=np.int64)
    return np.concatenate([half, half[:, ::-1]])


def _queries(encoder: QueryEncoder, window: Windows, places: Int, parts: Bool) -> Float32:
    """The encoder's queries for windows that hold a part of the plays, padded anew. [parts, dimension] float32."""
    length = window.tracks.shape[1]
    tracks, skipped = window.tracks[0, places], window.skipped[0, places]
    # Where each kept play goes: as many columns from the right as kept plays follow it.
    columns = length - np.cumsum(parts[:, ::-1], axis=1)[:, ::-1]
    lines, plays = np.nonzero(parts)
    shown = Windows(
        np.full((len(parts), length), PAD_ROW, dtype=np.int64), np.zeros((len(parts), length), dtype=np.bool_)
    )
    shown.tracks[lines, columns[lines, plays]] = tracks[plays]
    shown.skipped[lines, columns[lines, plays]] = skipped[plays]
    starts = range(0, len(parts), _WINDOWS_AT_ONCE)
    return np.concatenate([encoder.encode(shown.select(slice(start, start + _WINDOWS_AT_ONCE))) for start in starts])
