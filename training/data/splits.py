"""Split a dataset into training, validation and test: by position as in the paper, or by whole sessions.

last-play     the last play of a session is its test target, the last but one its validation target, and the
              others are training data (paper, section 4.1.1)
new-sessions  a hash of its id assigns a whole session to one part: 10 % validation, 20 % test; the target is its
              last play. Training never sees these sessions, as in serving
"""

import zlib
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from segue.arrays import Bool, Int
from segue.window import SessionViews
from training.data.dataset import Dataset

Split: TypeAlias = Literal["last-play", "new-sessions"]
Part: TypeAlias = Literal["validation", "test"]

_VALIDATION_PERCENT: Final = 10
_TEST_PERCENT: Final = 20
# A shorter session would have no play left to train on without its targets: all of it is training data.
_SHORTEST_WITH_TARGETS: Final = 3


class Examples(NamedTuple):
    """Evaluation examples: the plays of each session before its target, and the target."""

    inputs: SessionViews
    targets: Int  # [sessions] int64, rows of the dataset's catalogue
    target_skipped: Bool  # [sessions] bool
    sessions: Int  # [sessions] int64, number of the session in the dataset


def training_part(dataset: Dataset, split: Split) -> SessionViews:
    """Return the training part of each session."""
    sessions = dataset.sessions
    starts, ends = sessions.offsets[:-1], sessions.offsets[1:]
    if split == "last-play":
        trained_ends = np.where(sessions.lengths >= _SHORTEST_WITH_TARGETS, ends - 2, ends)
        return SessionViews(sessions, starts, trained_ends)
    buckets = _buckets(dataset)
    trained = np.flatnonzero((buckets >= _VALIDATION_PERCENT + _TEST_PERCENT) | (sessions.lengths < 2))
    return SessionViews(sessions, starts[trained], ends[trained])


def examples(dataset: Dataset, split: Split, part: Part) -> Examples:
    """Return the examples of a part, in the order of the sessions."""
    sessions = dataset.sessions
    starts, ends = sessions.offsets[:-1], sessions.offsets[1:]
    if split == "last-play":
        asked = np.flatnonzero(sessions.lengths >= _SHORTEST_WITH_TARGETS)
        target = ends[asked] - (1 if part == "test" else 2)
    else:
        buckets = _buckets(dataset)
        lowest, beyond = (0, _VALIDATION_PERCENT) if part == "validation" else _TEST_BUCKETS
        asked = np.flatnonzero((buckets >= lowest) & (buckets < beyond) & (sessions.lengths >= 2))
        target = ends[asked] - 1
    inputs = SessionViews(sessions, starts[asked], target)
    targets = sessions.rows[target].astype(np.int64, copy=False)
    return Examples(inputs, targets, sessions.skipped[target], asked)


_TEST_BUCKETS: Final = (_VALIDATION_PERCENT, _VALIDATION_PERCENT + _TEST_PERCENT)


def _buckets(dataset: Dataset) -> Int:
    """Hash each session id to a bucket from 0 to 99. [sessions] int64.

    A grown dataset keeps its parts where the log names its sessions, but not where they are made from a listener's
    plays and numbered; the pieces of a session that was cut have a number each.
    """
    ids = (zlib.crc32(session_id.encode()) % 100 for session_id in dataset.session_ids)
    return np.fromiter(ids, dtype=np.int64, count=len(dataset.sessions))
