"""Convert plays to arrays. Training, evaluation and serving all use this definition of the session window.

A window contains the last plays of a session, oldest first, padded on the left with PAD_ROW. The newest play is
therefore always in the last column. Plays of tracks outside the catalogue are ignored and take no column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segue.arrays import Bool, Int
from segue.catalogue import PAD_ROW, Catalogue
from segue.sessions import Outcome, Play

DEFAULT_LENGTH = 20
_PLAYS_PER_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Sessions:
    """Many sessions in three flat arrays; session i is the slice offsets[i]:offsets[i + 1], oldest play first."""

    rows: Int  # [plays] int64 (int32 if mapped from a file), PAD_ROW for a track outside the catalogue
    skipped: Bool  # [plays] bool
    offsets: Int  # [sessions + 1] int64

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """The number of plays in each session. [sessions] int64."""
        return np.diff(self.offsets)

    def select(self, which: Int | slice) -> "Sessions":
        """Return the sessions with these indices, or this slice, in that order."""
        starts, ends = self.offsets[:-1][which], self.offsets[1:][which]
        return self.cut(starts, ends)

    def cut(self, starts: Int, ends: Int) -> "Sessions":
        """Return sessions made of the plays starts[i]:ends[i] of the flat arrays. `starts` and `ends` [n] int64."""
        lengths = np.maximum(ends - starts, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)
        return Sessions(self.rows[positions].astype(np.int64, copy=False), self.skipped[positions], offsets)

    def usable(self) -> "Sessions":
        """Return all sessions without their plays of tracks outside the catalogue."""
        return self._filter(self.rows != PAD_ROW)

    def played(self) -> "Sessions":
        """Return all sessions without their skipped plays."""
        return self._filter(~self.skipped)

    def _filter(self, kept: Bool) -> "Sessions":
        if kept.all():
            return self
        positions_kept = np.concatenate([[0], np.cumsum(kept)])
        return Sessions(self.rows[kept], self.skipped[kept], positions_kept[self.offsets].astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class SessionViews:
    """Sessions as slices of `whole`: session i has the plays starts[i]:ends[i], oldest first. Slices may overlap."""

    whole: Sessions
    starts: Int  # [sessions] int64
    ends: Int  # [sessions] int64, ends[i] >= starts[i]

    @classmethod
    def of(cls, sessions: "Sessions | SessionViews") -> "SessionViews":
        """Return views of all `sessions`."""
        if isinstance(sessions, SessionViews):
            return sessions
        return cls(sessions, sessions.offsets[:-1], sessions.offsets[1:])

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.starts)

    @property
    def lengths(self) -> Int:
        """The number of plays in each session. [sessions] int64."""
        return self.ends - self.starts

    def select(self, which: Int | slice) -> Sessions:
        """Return a copy of the sessions with these indices, or of this slice, in that order."""
        return self.whole.cut(self.starts[which], self.ends[which])

    def gathered(self) -> Sessions:
        """Return a copy of all sessions."""
        return self.select(slice(None))

    def blocks(self) -> Iterator[Sessions]:
        """Yield copies of all sessions in order, in blocks of a few million plays."""
        reached = np.cumsum(self.lengths)
        start = 0
        while start < len(self):
            before = reached[start - 1] if start else 0
            end = max(int(np.searchsorted(reached, before + _PLAYS_PER_BLOCK, side="right")), start + 1)
            yield self.select(slice(start, end))
            start = end

    def played(self) -> "SessionViews":
        """Return a copy of all sessions without their skipped plays. The dtype of the rows stays the same."""
        kept = [block.played() for block in self.blocks()]
        if not kept:
            return self
        rows = np.concatenate([part.rows.astype(self.whole.rows.dtype, copy=False) for part in kept])
        ends = np.cumsum(np.concatenate([part.lengths for part in kept]), dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        return SessionViews.of(Sessions(rows, np.zeros(len(rows), dtype=np.bool_), offsets))


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The windows of a batch of sessions. They are the input of an encoder."""

    tracks: Int  # [batch, window] int64, PAD_ROW on the left
    skipped: Bool  # [batch, window] bool, False in padding

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.tracks)

    def select(self, which: Int | slice) -> "Windows":
        """Return the windows with these indices, or this slice, in that order."""
        return Windows(self.tracks[which], self.skipped[which])


def to_sessions(sessions: Sequence[Sequence[Play]], catalogue: Catalogue) -> Sessions:
    """Convert sessions of plays with track ids to flat arrays of rows."""
    lengths = [len(plays) for plays in sessions]
    flat = [play for plays in sessions for play in plays]
    return Sessions(
        rows=catalogue.rows([play.track_id for play in flat]),
        skipped=np.fromiter((play.outcome is Outcome.SKIPPED for play in flat), dtype=np.bool_, count=len(flat)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def to_windows(sessions: Sessions, length: int) -> Windows:
    """Return the last `length` plays of known tracks of each session, padded on the left. [sessions, length] arrays."""
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


def distinct(tracks: Int) -> Int:
    """Replace repeated tracks in each row by PAD_ROW; the first occurrence stays. [batch, n] int64 -> [batch, n]."""
    earlier = np.tril(np.ones((tracks.shape[1], tracks.shape[1]), dtype=np.bool_), k=-1)
    repeated = ((tracks[:, :, None] == tracks[:, None, :]) & earlier).any(axis=2)
    return np.where(repeated, PAD_ROW, tracks)
