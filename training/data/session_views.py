"""Sessions that are parts of other sessions: numbers of first and last plays, and no copy of the plays themselves.

What is trained on and asked for is a part of a dataset whose plays may be mapped from a file larger than memory; a
batch of it is copied when it is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from segue.arrays import Int
from segue.window import Sessions

_PLAYS_A_BLOCK: Final = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class SessionViews:
    """Session i is the plays starts[i]:ends[i] of `whole`, oldest play first; views may overlap."""

    whole: Sessions
    starts: Int  # [sessions] int64
    ends: Int  # [sessions] int64, not below `starts`

    @classmethod
    def of(cls, sessions: "Sessions | SessionViews") -> "SessionViews":
        """Views of all of them."""
        if isinstance(sessions, SessionViews):
            return sessions
        return cls(sessions, sessions.offsets[:-1], sessions.offsets[1:])

    def __len__(self) -> int:
        """The number of sessions."""
        return len(self.starts)

    @property
    def lengths(self) -> Int:
        """Plays in each session. [sessions] int64."""
        return self.ends - self.starts

    def select(self, which: Int | slice) -> Sessions:
        """A copy of the sessions with these numbers (or of this slice of them), in that order."""
        return self.whole.cut(self.starts[which], self.ends[which])

    def gathered(self) -> Sessions:
        """A copy of all of them."""
        return self.select(slice(None))

    def blocks(self) -> Iterator[Sessions]:
        """All of them in order, copied a few million plays at a time."""
        reached = np.cumsum(self.lengths)
        start = 0
        while start < len(self):
            before = reached[start - 1] if start else 0
            end = max(int(np.searchsorted(reached, before + _PLAYS_A_BLOCK, side="right")), start + 1)
            yield self.select(slice(start, end))
            start = end

    def played(self) -> "SessionViews":
        """The same sessions without the plays that were skipped: a copy, in the dtype of the plays."""
        kept = [block.played() for block in self.blocks()]
        if not kept:
            return self
        rows = np.concatenate([part.rows.astype(self.whole.rows.dtype, copy=False) for part in kept])
        ends = np.cumsum(np.concatenate([part.lengths for part in kept]), dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        return SessionViews.of(Sessions(rows, np.zeros(len(rows), dtype=np.bool_), offsets))
