"""Splits of a dataset into training, validation and test data.

    last-play     The last play of each session is the test target, the second to last play is the validation target,
                  and the other plays are training data (paper, section 4.1.1). Sessions with fewer than three plays are
                  only training data.
    new-sessions  A hash of the session id assigns the whole session to one part: 10 % validation, 20 % test, the rest
                  training. The target is the last play of a session. As in serving, the model has not been trained on
                  the sessions for which it predicts.

If skips were inferred from time, the last play of a session has no known outcome (`Dataset.last_known`): no play
follows it. Training never uses such a play, as it would count as played. (If the log has no outcome at all,
`Dataset.has_outcomes` is false, and all plays count as played.) What evaluation does with it is a choice:

    last          The last play is the target, whatever its outcome.
    known         The last play with a known outcome is the target, and the play after it does not exist for any part.
"""

import zlib
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from segue.arrays import Bool, Int
from segue.sessions import RepeatPolicy
from segue.window import SessionViews
from training.data.dataset import Dataset

Split: TypeAlias = Literal["last-play", "new-sessions"]
Part: TypeAlias = Literal["validation", "test"]
Targets: TypeAlias = Literal["last", "known"]

_VALIDATION_PERCENT: Final = 10
_TEST_PERCENT: Final = 20
_TEST_BUCKETS: Final = (_VALIDATION_PERCENT, _VALIDATION_PERCENT + _TEST_PERCENT)
# A shorter session would have no training play left besides its two targets, so all its plays are training data.
_SHORTEST_WITH_TARGETS: Final = 3


class Examples(NamedTuple):
    """Evaluation examples. Each example is the plays of a session before its target, and the target."""

    inputs: SessionViews
    targets: Int  # [sessions] int64, rows of the dataset's catalogue
    target_skipped: Bool  # [sessions] bool; false if the outcome is unknown
    sessions: Int  # [sessions] int64, index of the session in the dataset
    target_known: Bool | None = None  # [sessions] bool, whether the outcome of the target is known; None: of all

    def excluded_by(self, repeat: RepeatPolicy) -> Bool:
        """Return which targets the policy excludes, because they repeat a track of their session. [sessions] bool."""
        if not repeat.plays:
            return np.zeros(len(self.targets), dtype=np.bool_)
        found = [np.zeros(0, dtype=np.bool_)]
        first = 0
        for block in self.inputs.blocks():
            session = np.repeat(np.arange(len(block)), block.lengths)
            later = block.offsets[1:][session] - np.arange(len(session)) - 1  # plays after each play
            repeated = (block.rows == self.targets[first:][session]) & (later < repeat.plays)
            found.append(np.bincount(session[repeated], minlength=len(block)) > 0)
            first += len(block)
        return np.concatenate(found)


def training_part(dataset: Dataset, split: Split, targets: Targets = "last") -> SessionViews:
    """Return the training data of a split, as views of the sessions. They contain no last play of unknown outcome."""
    sessions = dataset.sessions
    starts, ends = sessions.offsets[:-1], _ends(dataset, targets)
    if split == "last-play":
        has_targets = ends - starts >= _SHORTEST_WITH_TARGETS
        trained_ends = np.where(has_targets, ends - 2, _ends(dataset, "known"))
    else:
        trained_ends = _ends(dataset, "known")
    trained = trained_ends > starts
    if split == "new-sessions":
        trained &= (_buckets(dataset) >= _TEST_BUCKETS[1]) | (ends - starts < 2)
    return SessionViews(sessions, starts[trained], trained_ends[trained])


def examples(dataset: Dataset, split: Split, part: Part, targets: Targets = "last") -> Examples:
    """Return the examples of the validation or test part of a split, in the order of the sessions."""
    sessions = dataset.sessions
    starts, ends = sessions.offsets[:-1], _ends(dataset, targets)
    before = 1
    if split == "last-play":
        asked = np.flatnonzero(ends - starts >= _SHORTEST_WITH_TARGETS)
        before = 1 if part == "test" else 2
    else:
        buckets = _buckets(dataset)
        lowest, beyond = (0, _VALIDATION_PERCENT) if part == "validation" else _TEST_BUCKETS
        asked = np.flatnonzero((buckets >= lowest) & (buckets < beyond) & (ends - starts >= 2))
    target = ends[asked] - before
    known = None
    if not dataset.has_outcomes:
        known = np.zeros(len(asked), dtype=np.bool_)
    elif dataset.last_known is not None:
        known = dataset.last_known[asked] | (target < sessions.offsets[1:][asked] - 1)
    inputs = SessionViews(sessions, starts[asked], target)
    rows = sessions.rows[target].astype(np.int64, copy=False)
    return Examples(inputs, rows, sessions.skipped[target], asked, known)


def _ends(dataset: Dataset, targets: Targets) -> Int:
    """Return the end of each session, before a last play of unknown outcome if `targets` is "known". [sessions]."""
    ends = dataset.sessions.offsets[1:]
    if targets == "last" or dataset.last_known is None or not dataset.has_outcomes:
        return ends
    return ends - ~dataset.last_known


def _buckets(dataset: Dataset) -> Int:
    """Hash each session id to a bucket from 0 to 99. [sessions] int64.

    If the log contains session ids, a session stays in the same bucket when the dataset grows. If `prepare` splits the
    plays of a listener into numbered sessions, the numbers can change and so can the buckets. If a long session is cut
    into pieces, each piece has its own id and its own bucket.
    """
    ids = (zlib.crc32(session_id.encode()) % 100 for session_id in dataset.session_ids)
    return np.fromiter(ids, dtype=np.int64, count=len(dataset.sessions))
