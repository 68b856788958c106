"""Build sessions from the lines of a log, and infer outcomes: rules 3 and 4 of training.prepare.pipeline.

The functions work on flat arrays of integer codes, of one partition at a time. A partition contains all plays of its
owners. An owner is a user, or a session if the log contains session ids. The rules follow section 4.2 of the paper. The
paper does not specify these details:

- A session ends if the next play of the same user starts more than `idle_gap_s` seconds after the end of a play, or
  after its start if the end is unknown. A pause of exactly `idle_gap_s` seconds does not end the session.
- A play whose outcome the log gives has this outcome. Any other play is skipped if the next play of the same session
  starts at most `skip_within_s` seconds later, and at least `skip_after_s` seconds later. The outcome is unknown if the
  play is the last one of its session, if one of the two times is unknown, or if they are coarser than `skip_within_s`.
  A play with an unknown outcome counts as played. Outcomes are inferred once, before plays are dropped or sessions are
  split.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from training.data.log_facts import MOST_FILES
from training.prepare.formats import LogFormat
from training.prepare.options import PrepareOptions
from training.prepare.play_order import UNKNOWN_TIME, OrderedPlays, Repeats, ordered_plays
from training.prepare.reading import FileTimes

# The outcome of a play is one byte: whether it was skipped (bit 0), where the outcome comes from (bits 1 to 3, 0 if it
# is unknown; 1 to 3 are those of EVIDENCE), and whether the next play began in the same second (bit 4, if skipped).
SKIPPED: Final = 1
TIME: Final = 4
SAME_SECOND: Final = 1 << 4

Outcomes = NDArray[np.uint8]

_DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_TOLERANCE_MS: Final = 2_000  # of times that are whole seconds, and of players that fade tracks into each other
_TIMES_TO_JUDGE: Final = 10  # fewer times can all be whole minutes by chance


def sources_of(outcome: Outcomes) -> NDArray[np.uint8]:
    """Return where each outcome comes from: 0 if it is unknown, 1 to 3 as in EVIDENCE, or TIME. [plays] uint8."""
    return ((outcome >> 1) & 7).astype(np.uint8, copy=False)


def is_skip(outcome: Outcomes) -> Bool:
    """Return whether each play was skipped. [plays] bool."""
    return (outcome & SKIPPED).astype(np.bool_)


@dataclass(frozen=True, eq=False)
class Plays:
    """The plays of many sessions. The plays of session i are offsets[i]:offsets[i + 1], oldest play first."""

    track: NDArray[np.uint32]  # [plays], track codes
    outcome: Outcomes  # [plays]
    at: Int | None  # [plays] int64, ms since 1970; UNKNOWN_TIME for a missing time, None if all times are missing
    offsets: Int  # [sessions + 1] int64
    owner: Int  # [sessions] int64, owner codes
    piece: Int  # [sessions] int64, number of the piece of a split session from 0; 0 if the session was not split

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """Return the number of plays of each session. [sessions] int64."""
        return np.diff(self.offsets)

    def keep_plays(self, kept: Bool) -> "Plays":
        """Return only the plays with a true value in `kept` [plays] bool. Sessions can become empty."""
        offsets = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[self.offsets]
        at = None if self.at is None else self.at[kept]
        return replace(self, track=self.track[kept], outcome=self.outcome[kept], at=at, offsets=offsets)

    def keep_sessions(self, kept: Bool) -> "Plays":
        """Return only the sessions with a true value in `kept` [sessions] bool."""
        fewer = self.keep_plays(np.repeat(kept, self.lengths))
        offsets = np.concatenate([[0], np.cumsum(self.lengths[kept], dtype=np.int64)]).astype(np.int64)
        return replace(fewer, offsets=offsets, owner=self.owner[kept], piece=self.piece[kept])


def last_known(plays: Plays) -> Bool:
    """Return whether the outcome of the last play of each session is known. [sessions] bool."""
    return sources_of(plays.outcome[plays.offsets[1:] - 1]) > 0


class TimeFacts(NamedTuple):
    """What is known of the times of a log. A resolution is the greatest common divisor of times, in ms."""

    resolution_ms: int  # of all times, 1000 if it is a second or less, or if there are too few times to judge
    coarse_files: tuple[int, ...] = ()  # numbers of the files whose times are too coarse to infer skips


def time_facts(times: Mapping[int, FileTimes], options: PrepareOptions) -> TimeFacts:
    """Summarise the times of the files of a log. `times` is by the number of the file."""
    found = functools.reduce(FileTimes.add, times.values(), FileTimes())
    judged = {number: one for number, one in times.items() if one.times >= _TIMES_TO_JUDGE}
    coarse = sorted(number for number, one in judged.items() if too_coarse(one.resolution_ms, options))
    return TimeFacts(found.resolution_ms if found.times >= _TIMES_TO_JUDGE else 1000, tuple(coarse))


def too_coarse(resolution_ms: int, options: PrepareOptions) -> bool:
    """Return whether no skip can be inferred from times with this resolution."""
    return resolution_ms > max(options.skip_within_s * 1000, 1000)


class Neighbours(NamedTuple):
    """How far apart neighbouring plays of a session are, and how long they last: what times and durations must mean."""

    pairs: int = 0  # with two known times
    same_second: int = 0  # pairs that start less than a second apart
    timed: int = 0  # pairs with two known durations
    beyond_next: int = 0  # of `timed`: the first play lasts beyond the second, which no start of a play allows
    longer_than_gap: int = 0  # of `timed`: the second play is longer than the gap, which no end of a play allows
    minutes_apart: int = 0  # of `timed`: start at least a minute apart
    durations: int = 0  # plays with a duration above 0
    below_second: int = 0  # of `durations`: below 1,000 ms


class Counts(NamedTuple):
    """What the rules found in the lines of a partition."""

    lines: int
    repeats: Repeats
    neighbours: Neighbours
    long_sessions: int  # given sessions that last longer than a day
    file_plays: Int  # [files] int64, plays of each of the first MOST_FILES files; the last ones can be missing
    file_skips: Int  # [files] int64, the same for skips


def offsets_where(first: Bool) -> Int:
    """Return session offsets [sessions + 1] int64. `first` [plays] bool is true for the first play of each session."""
    return np.concatenate([np.flatnonzero(first), [len(first)]]).astype(np.int64)


def first_of_owner(owner: NDArray[Any]) -> Bool:
    """Return whether each play is the first play of its owner. [plays] bool. `owner` [plays] must be sorted."""
    first = np.ones(len(owner), dtype=np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    return first


def first_of_session(owner: NDArray[Any], at: Int, end: Int | None, idle_gap_s: float) -> Bool:
    """Return whether each play begins a new session. [plays] bool.

    The plays must be sorted by `owner` [plays], and by their start `at` [plays] in ms. `end` [plays] is their end in
    ms, or UNKNOWN_TIME; None if all ends are unknown.
    """
    first = first_of_owner(owner)
    since = at if end is None else np.maximum(at, end)
    first[1:] |= at[1:] - since[:-1] > idle_gap_s * 1000
    return first


def infer_outcomes(outcome: Outcomes, at: Int, first: Bool, options: PrepareOptions, fine: Bool | None) -> None:
    """Infer the unknown outcomes in place from the start of the next play of the same session.

    `at` [plays] is the start in ms, or UNKNOWN_TIME. `first` [plays] bool is true for the first play of each session.
    `fine` [plays] bool is false for plays whose time is too coarse; None if no time is.
    """
    gap = np.diff(at)
    open_ = ~first[1:] & (outcome[:-1] <= SKIPPED) & (gap >= 0)  # positions can contradict times
    open_ &= (at[1:] != UNKNOWN_TIME) & (at[:-1] != UNKNOWN_TIME)
    if fine is not None:
        open_ &= fine[1:] & fine[:-1]
    skipped = open_ & (gap <= options.skip_within_s * 1000)
    if options.skip_after_s:
        skipped &= gap >= options.skip_after_s * 1000
    inferred = open_.astype(np.uint8)
    inferred *= TIME << 1
    inferred[skipped] |= SKIPPED
    inferred[skipped & (gap < 1000)] |= SAME_SECOND
    outcome[:-1] |= inferred


def sessionize(
    lines: pl.DataFrame, form: LogFormat, options: PrepareOptions, times: TimeFacts | None
) -> tuple[Plays, Counts]:
    """Build sessions from all plays of some owners, without any filter.

    `lines` has the columns `owner` and `track` (uint32), and the other columns of LINE_COLUMNS that the log has. The
    sessions are sorted by owner code. `times` is None if the log has no times.
    """
    within_ms = options.merge_within_s * 1000
    found = ordered_plays(lines, by_position=form.by_position, by_end=form.by_end, merge_within_ms=within_ms)
    line, owner = found.line, found.owner
    at: Int | None = found.place
    if form.by_position or form.by_end:
        at = _values(lines, "at", line) if times is not None else None
    if form.sessions_given or at is None:
        first = first_of_owner(owner)
    else:
        begun = np.where(at == UNKNOWN_TIME, found.place, at) if form.by_end else at
        first = first_of_session(owner, begun, _values(lines, "end", line), options.idle_gap_s)
    outcome = _given_outcomes(lines, line, options)
    if times is not None and at is not None and not options.no_skips:
        infer_outcomes(outcome, at, first, options, _fine(lines, line, times, options))
    offsets = offsets_where(first)
    plays = Plays(
        track=lines["track"].to_numpy()[line],
        outcome=outcome,
        at=at,
        offsets=offsets,
        owner=owner[offsets[:-1]].astype(np.int64),
        piece=np.zeros(len(offsets) - 1, dtype=np.int64),
    )
    return plays, _counts(lines, found, plays, form)


def _values(lines: pl.DataFrame, name: str, line: NDArray[np.uint32]) -> Int | None:
    """The times of a column, UNKNOWN_TIME where missing. [plays] int64. None if the log has no such column."""
    return lines[name].fill_null(UNKNOWN_TIME).to_numpy()[line] if name in lines.columns else None


def _given_outcomes(lines: pl.DataFrame, line: NDArray[np.uint32], options: PrepareOptions) -> Outcomes:
    """The outcomes that the log gives, 0 for the others. [plays]."""
    if options.no_skips or "skipped" not in lines.columns:
        return np.zeros(len(line), dtype=np.uint8)
    skipped = pl.col("skipped")
    evidence = pl.col("evidence") if "evidence" in lines.columns else pl.lit(1, dtype=pl.UInt8)
    given = pl.when(skipped.is_not_null()).then(evidence * 2 + skipped.cast(pl.UInt8)).otherwise(0)
    outcome: Outcomes = lines.select(given.cast(pl.UInt8)).to_series().to_numpy()[line]
    return outcome


def _fine(lines: pl.DataFrame, line: NDArray[np.uint32], times: TimeFacts, options: PrepareOptions) -> Bool | None:
    """Whether skips can be inferred from the time of each play. [plays] bool. None if they can from all times."""
    if too_coarse(times.resolution_ms, options):
        return np.zeros(len(line), dtype=np.bool_)
    if not times.coarse_files or "file" not in lines.columns:
        return None
    return ~np.isin(lines["file"].to_numpy()[line], times.coarse_files)


def _counts(lines: pl.DataFrame, found: OrderedPlays, plays: Plays, form: LogFormat) -> Counts:
    long_sessions = 0
    if form.sessions_given and plays.at is not None and len(plays.at):
        earliest = np.minimum.reduceat(plays.at, plays.offsets[:-1])
        latest = np.maximum.reduceat(plays.at, plays.offsets[:-1])
        long_sessions = int(((earliest != UNKNOWN_TIME) & (latest - earliest > _DAY_MS)).sum())
    skips = is_skip(plays.outcome)
    if "file" in lines.columns:
        file = lines["file"].to_numpy()[found.line]
        listed = file < MOST_FILES
        file_plays, file_skips = np.bincount(file[listed]), np.bincount(file[listed & skips])
    else:
        file_plays, file_skips = np.array([len(skips)]), np.array([skips.sum()])
    neighbours = Neighbours()
    if plays.at is not None and not form.by_position:
        neighbours = _neighbours(plays.at, _values(lines, "end", found.line), plays.offsets)
    return Counts(len(lines), found.repeats, neighbours, long_sessions, file_plays, file_skips)


def _neighbours(at: Int, end: Int | None, offsets: Int) -> Neighbours:
    """`at` and `end` [plays] are the starts and ends in ms, or UNKNOWN_TIME."""
    known = at != UNKNOWN_TIME
    pair = known[1:] & known[:-1]
    pair[offsets[1:-1] - 1] = False  # the last play of a session and the first of the next
    gap = np.diff(at)
    found = Neighbours(int(np.count_nonzero(pair)), int(np.count_nonzero(pair & (np.abs(gap) < 1000))))
    if end is None:
        return found
    lasts = end - at
    lasts[~known | (end == UNKNOWN_TIME)] = 0
    has = lasts > 0
    pair &= has[1:] & has[:-1]
    return found._replace(
        timed=int(np.count_nonzero(pair)),
        beyond_next=int(np.count_nonzero(pair & (lasts[:-1] > gap + _TOLERANCE_MS))),
        longer_than_gap=int(np.count_nonzero(pair & (lasts[1:] > gap + _TOLERANCE_MS))),
        minutes_apart=int(np.count_nonzero(pair & (gap >= _MINUTE_MS))),
        durations=int(np.count_nonzero(has)),
        below_second=int(np.count_nonzero(has & (lasts < 1000))),
    )
