"""The order in which an epoch takes its sessions: at random, and of more plays than fit in memory chunk by chunk.

A batch of sessions from all over a file that is not in memory reads for each of them what the disk reads ahead, some
megabytes (seen: 500 batches of 64 sessions read a file of 500 MB as a whole). Beyond WHOLE_UP_TO plays
an epoch therefore takes chunks of neighbouring sessions in random order, 64 at a time, and the sessions of
these in random order: every session once, another order every epoch, and what is read lies together. Both orders
depend on the seed, the epoch and the number of sessions and plays alone, not on the machine.
"""

from typing import Final

import numpy as np

from segue.arrays import Int

WHOLE_UP_TO: Final = 1_000_000_000  # plays; 5 bytes each where they are mapped
CHUNK: Final = 65_536  # sessions that lie together: 5 MB
CHUNKS_AT_ONCE: Final = 64  # which are shuffled with one another: 4 million sessions


def epoch_order(seed: int, epoch: int, sessions: int, plays: int) -> Int:
    """All sessions in the order of an epoch; `plays` counts those of the whole dataset. [sessions] int64."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(sessions) if plays <= WHOLE_UP_TO else chunked_permutation(rng, sessions)


def chunked_permutation(
    rng: np.random.Generator, sessions: int, chunk: int = CHUNK, chunks_at_once: int = CHUNKS_AT_ONCE
) -> Int:
    """A permutation in which any `chunks_at_once` chunks in a row are as many chunks of numbers. [sessions] int64."""
    chunks = rng.permutation(-(-sessions // chunk))
    order = np.empty(sessions, dtype=np.int64)
    reached = 0
    for start in range(0, len(chunks), chunks_at_once):
        which = chunks[start : start + chunks_at_once, None]
        numbers = (which * chunk + np.arange(chunk)).ravel()
        numbers = rng.permutation(numbers[numbers < sessions])
        order[reached : reached + len(numbers)] = numbers
        reached += len(numbers)
    return order
