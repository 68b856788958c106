"""Sessions of the size of the paper's MSSD extract, drawn at random: for speed, not for what is learnt from them."""

import numpy as np

from segue.window import Sessions, SessionViews
from training.data.splits import Examples

SHORTEST, LONGEST = 10, 20  # as in MSSD: 15 plays on average


def drawn(sessions: int, tracks: int, seed: int = 0) -> Sessions:
    """Plays are Zipf over the tracks, in random order of rows, and half of them skipped."""
    rng = np.random.default_rng((seed, sessions, tracks))
    offsets = np.concatenate([[0], np.cumsum(rng.integers(SHORTEST, LONGEST + 1, sessions))]).astype(np.int64)
    weights = 1 / np.arange(1, tracks + 1)
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(int(offsets[-1])))
    rows = (rng.permutation(tracks) + 1)[np.minimum(ranks, tracks - 1)]
    return Sessions(rows.astype(np.int64), rng.random(len(rows)) < 0.5, offsets)


def split(sessions: Sessions) -> tuple[SessionViews, Examples]:
    """The split `last-play`: all but the last two plays to train on, the last but one as the target of validation."""
    starts, ends = sessions.offsets[:-1], sessions.offsets[1:]
    targets = ends - 2
    validation = Examples(
        SessionViews(sessions, starts, targets),
        sessions.rows[targets],
        sessions.skipped[targets],
        np.arange(len(sessions)),
    )
    return SessionViews(sessions, starts, targets), validation
