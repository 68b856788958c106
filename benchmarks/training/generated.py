"""Sessions for measuring speed: as many as in the MSSD extract, over a catalogue of any size, as plain arrays.

Plays are Zipf over the catalogue and half of them skipped. Tracks that nobody played follow in further sessions, each
once, so that every library's table of item embeddings has a row for all of them.
"""

from pathlib import Path
from typing import Any

import numpy as np

SESSIONS = 7064
SHORTEST, LONGEST = 10, 20


def arrays_of(tracks: int, seed: int = 0) -> dict[str, Any]:
    """`rows` int64 from 1 on, `skipped` bool, `offsets` [sessions + 1] int64, `played` the first sessions' number."""
    rng = np.random.default_rng((seed, tracks))
    lengths = rng.integers(SHORTEST, LONGEST + 1, SESSIONS)
    weights = 1 / np.arange(1, tracks + 1)
    drawn = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(lengths.sum()))
    by_rank = rng.permutation(tracks) + 1
    rows = by_rank[np.minimum(drawn, tracks - 1)]
    unplayed = rng.permutation(np.setdiff1d(by_rank, rows))
    rows = np.concatenate([rows, unplayed])
    further = rng.integers(SHORTEST, LONGEST + 1, -(-len(unplayed) // SHORTEST))
    ends = np.concatenate([[0], np.cumsum(np.concatenate([lengths, further]))])
    ends = np.append(ends[ends < len(rows)], len(rows))
    return {
        "num_rows": np.array(tracks + 1),
        "rows": rows.astype(np.int64),
        "skipped": rng.random(len(rows)) < 0.5,
        "offsets": ends.astype(np.int64),
        "played": np.array(SESSIONS),
    }


def written(folder: Path, tracks: int) -> Path:
    """The file of a catalogue's sessions, made where it is not there."""
    file = folder / f"sessions_{tracks}.npz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **arrays_of(tracks))
    return file
