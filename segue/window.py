"""The one place that turns plays into arrays: training, evaluation and serving all see sessions through this.

A window holds the last plays of a session, oldest first, padded on the left with PAD_ROW, so that the newest play
is always in the last column. Plays of tracks outside the catalogue are passed over: they take no column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.arrays import Bool, Int
from segue.catalogue import PAD_ROW, Catalogue
from segue.sessions import Outcome, Play

DEFAULT_LENGTH = 20


@dataclass(frozen=True, slots=True, eq=False)
class Sessions:
    """Many sessions in three flat arrays; session i is the slice offsets[i]:offsets[i + 1], oldest play first."""

    rows: (
        Int  # [plays] int64 (int32 where they are mapped from a file), PAD_ROW where the track is outside the catalogue
    )
    skipped: Bool  # [plays] bool
    offsets: Int  # [sessions + 1] int64

    def __len__(self) -> int:
        """The number of sessions."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """Plays in each session. [sessions] int64."""
        return np.diff(self.offsets)

    def select(self, which: Int | slice) -> "Sessions":
        """The sessions with these numbers (or this slice of them), in that order."""
        starts, ends = self.offsets[:-1][which], self.offsets[1:][which]
        return self.cut(starts, ends)

    def cut(self, starts: Int, ends: Int) -> "Sessions":
        """New sessions made of the plays starts[i]:ends[i] of the flat arrays."""
        lengths = np.maximum(ends - starts, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)
        return Sessions(self.rows[positions].astype(np.int64, copy=False), self.skipped[positions], offsets)

    def usable(self) -> "Sessions":
        """The same sessions without the plays of tracks outside the catalogue."""
        return self._only(self.rows != PAD_ROW)

    def played(self) -> "Sessions":
        """The same sessions without the plays that were skipped."""
        return self._only(~self.skipped)

    def _only(self, kept: Bool) -> "Sessions":
        if kept.all():
            return self
        places = np.concatenate([[0], np.cumsum(kept)])
        return Sessions(self.rows[kept], self.skipped[kept], places[self.offsets].astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """What an encoder sees of a batch of sessions."""

    tracks: Int  # [batch, window] int64, PAD_ROW on the left
    skipped: Bool  # [batch, window] bool, False in padding

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.tracks)

    def select(self, which: Int | slice) -> "Windows":
        """The windows with these numbers, in that order."""
        return Windows(self.tracks[which], self.skipped[which])


def to_sessions(sessions: Sequence[Sequence[Play]], catalogue: Catalogue) -> Sessions:
    """Sessions of plays by TrackId as flat arrays of rows."""
    lengths = [len(plays) for plays in sessions]
    flat = [play for plays in sessions for play in plays]
    return Sessions(
        rows=catalogue.rows([play.track_id for play in flat]),
        skipped=np.fromiter((play.outcome is Outcome.SKIPPED for play in flat), dtype=np.bool_, count=len(flat)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def to_windows(sessions: Sessions, length: int) -> Windows:
    """The last `length` usable plays of each session, padded on the left. See Windows for shapes and dtypes."""
    usable = sessions.usable()
    starts, ends = usable.offsets[:-1, None], usable.offsets[1:, None]
    positions = ends - length + np.arange(length, dtype=np.int64)  # [batch, window]
    real = positions >= starts
    if len(usable.rows) == 0:
        return Windows(np.full(real.shape, PAD_ROW, dtype=np.int64), np.zeros(real.shape, dtype=np.bool_))
    positions = np.where(real, positions, 0)
    return Windows(
        tracks=np.where(real, usable.rows[positions], PAD_ROW).astype(np.int64, copy=False),
        skipped=usable.skipped[positions] & real,
    )
