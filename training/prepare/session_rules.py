"""The rules that make sessions of plays: where one ends, what counts as skipped, which are kept.

All rules work on flat arrays of integer codes. They are the paper's (section 4.2); what it leaves open is said here:
- A session ends where the next play of the same listener starts more than `idle_gap_s` later; a gap of exactly
  that length does not end it.
- A play is skipped where the next play of the same session starts at most `skip_within_s` later. The last play
  of a session is never a skip. Outcomes are judged before plays are dropped or sessions cut, and never again.
- Long sessions are cut into consecutive sessions of `max_session_plays`; a remainder that is too short is dropped.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segue.arrays import Bool, Int


@dataclass(frozen=True, eq=False)
class Plays:
    """The plays of many sessions; session i is the slice offsets[i]:offsets[i + 1], oldest play first."""

    track: NDArray[np.uint32]  # [plays], codes
    skipped: Bool  # [plays]
    at: Int | None  # [plays] int64, ms since 1970; UNKNOWN_TIME where a time is missing, None where all are
    offsets: Int  # [sessions + 1] int64
    owner: Int  # [sessions] int64, number of the listener or session that the log names
    piece: Int  # [sessions] int64, 0 for the first piece of a session that was cut

    def __len__(self) -> int:
        """The number of sessions."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """Plays in each session. [sessions] int64."""
        return np.diff(self.offsets)

    def keep_plays(self, kept: Bool) -> "Plays":
        """Only the plays where `kept` [plays] holds; sessions may be left without any."""
        offsets = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[self.offsets]
        at = None if self.at is None else self.at[kept]
        return replace(self, track=self.track[kept], skipped=self.skipped[kept], at=at, offsets=offsets)

    def keep_sessions(self, kept: Bool) -> "Plays":
        """Only the sessions where `kept` [sessions] holds."""
        fewer = self.keep_plays(np.repeat(kept, self.lengths))
        offsets = np.concatenate([[0], np.cumsum(self.lengths[kept], dtype=np.int64)]).astype(np.int64)
        return replace(fewer, offsets=offsets, owner=self.owner[kept], piece=self.piece[kept])


UNKNOWN_TIME = np.iinfo(np.int64).min


def offsets_where(first: Bool) -> Int:
    """Offsets of the runs that begin where `first` [plays] holds; the first play always begins one."""
    return np.concatenate([np.flatnonzero(first), [len(first)]]).astype(np.int64)


def first_of_owner(owner: NDArray[Any]) -> Bool:
    """Whether a play is the first of its owner, in plays ordered by owner. [plays] bool."""
    first = np.ones(len(owner), dtype=np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    return first


def first_of_session(owner: NDArray[Any], at: Int, idle_gap_s: float) -> Bool:
    """Whether a play begins a session, in plays ordered by owner and time (ms). [plays] bool."""
    first = first_of_owner(owner)
    first[1:] |= np.diff(at) > idle_gap_s * 1000
    return first


def inferred_skips(at: Int, first: Bool, skip_within_s: float) -> Bool:
    """Whether the next play of the same session starts within `skip_within_s` seconds. [plays] bool."""
    skipped = np.zeros(len(at), dtype=np.bool_)
    skipped[:-1] = ~first[1:] & (np.diff(at) <= skip_within_s * 1000)
    return skipped


def without_rare_tracks(plays: Plays, min_track_plays: int, track_plays: Int | None = None) -> Plays:
    """Without the plays of tracks that have fewer plays; they are counted once, before any is dropped.

    `track_plays` [tracks] are counts to go by where `plays` are not all there are.
    """
    counts = np.bincount(plays.track) if track_plays is None else track_plays
    return plays.keep_plays(counts[plays.track] >= min_track_plays)


def cut(plays: Plays, max_session_plays: int) -> Plays:
    """Sessions cut into consecutive pieces of at most `max_session_plays` plays."""
    pieces = np.maximum(-(-plays.lengths // max_session_plays), 1)
    first_piece = np.cumsum(pieces) - pieces
    piece = np.arange(pieces.sum(), dtype=np.int64) - np.repeat(first_piece, pieces)
    starts = np.repeat(plays.offsets[:-1], pieces) + piece * max_session_plays
    offsets = np.concatenate([starts, plays.offsets[-1:]]).astype(np.int64)
    return replace(plays, offsets=offsets, owner=np.repeat(plays.owner, pieces), piece=piece)


def without_short_sessions(plays: Plays, min_session_plays: int) -> Plays:
    """Without the sessions that have fewer plays."""
    return plays.keep_sessions(plays.lengths >= min_session_plays)


def half_with_skips(plays: Plays, rng: np.random.Generator) -> Plays:
    """All sessions that hold a skip, and as many drawn from those without one (all of them if there are fewer)."""
    skips_before = np.concatenate([[0], np.cumsum(plays.skipped, dtype=np.int64)])[plays.offsets]
    kept = np.diff(skips_before) > 0
    without = np.flatnonzero(~kept)
    drawn = rng.choice(without, size=min(int(kept.sum()), len(without)), replace=False, shuffle=False)
    kept[drawn] = True
    return plays.keep_sessions(kept)


def at_most(plays: Plays, max_sessions: int, rng: np.random.Generator) -> Plays:
    """`max_sessions` sessions drawn at random, in their old order; all of them if there are no more."""
    if len(plays) <= max_sessions:
        return plays
    kept = np.zeros(len(plays), dtype=np.bool_)
    kept[rng.choice(len(plays), size=max_sessions, replace=False, shuffle=False)] = True
    return plays.keep_sessions(kept)
