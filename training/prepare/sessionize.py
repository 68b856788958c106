"""Session rules: build sessions from the lines of a log, and filter, sort and sample the sessions.

This module implements rules 2 to 6 of training.prepare.pipeline on flat arrays of integer codes. Rules 2 to 5 are
applied to each partition separately. A partition contains all plays of its owners. An owner is a user, or a session if
the log contains session ids. The rules follow section 4.2 of the paper. The paper does not specify these details:

- A session ends if the next play of the same user starts more than `idle_gap_s` seconds later. A gap of exactly
  `idle_gap_s` seconds does not end the session.
- A play is skipped if the next play of the same session starts at most `skip_within_s` seconds later. The last play of
  a session is never skipped. Skips are inferred once, before plays are dropped or sessions are split.
- Long sessions are split into consecutive sessions of `max_session_plays` plays. The last piece is dropped if it has
  fewer than `min_session_plays` plays.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from training.prepare.formats import LogFormat
from training.prepare.options import PrepareOptions
from training.prepare.report import StepCount


@dataclass(frozen=True, eq=False)
class Plays:
    """The plays of many sessions. The plays of session i are offsets[i]:offsets[i + 1], oldest play first."""

    track: NDArray[np.uint32]  # [plays], track codes
    skipped: Bool  # [plays]
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
        return replace(self, track=self.track[kept], skipped=self.skipped[kept], at=at, offsets=offsets)

    def keep_sessions(self, kept: Bool) -> "Plays":
        """Return only the sessions with a true value in `kept` [sessions] bool."""
        fewer = self.keep_plays(np.repeat(kept, self.lengths))
        offsets = np.concatenate([[0], np.cumsum(self.lengths[kept], dtype=np.int64)]).astype(np.int64)
        return replace(fewer, offsets=offsets, owner=self.owner[kept], piece=self.piece[kept])


UNKNOWN_TIME = np.iinfo(np.int64).min


def offsets_where(first: Bool) -> Int:
    """Return session offsets [sessions + 1] int64. `first` [plays] bool is true for the first play of each session."""
    return np.concatenate([np.flatnonzero(first), [len(first)]]).astype(np.int64)


def first_of_owner(owner: NDArray[Any]) -> Bool:
    """Return whether each play is the first play of its owner. [plays] bool. `owner` [plays] must be sorted."""
    first = np.ones(len(owner), dtype=np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    return first


def first_of_session(owner: NDArray[Any], at: Int, idle_gap_s: float) -> Bool:
    """Return whether each play begins a new session. [plays] bool.

    The plays must be sorted by `owner` [plays], and by time `at` [plays] in ms.
    """
    first = first_of_owner(owner)
    first[1:] |= np.diff(at) > idle_gap_s * 1000
    return first


def inferred_skips(at: Int, first: Bool, skip_within_s: float) -> Bool:
    """Return whether the next play of the same session starts within `skip_within_s` seconds. [plays] bool.

    `at` [plays] is the start in ms. `first` [plays] bool is true for the first play of each session.
    """
    skipped = np.zeros(len(at), dtype=np.bool_)
    skipped[:-1] = ~first[1:] & (np.diff(at) <= skip_within_s * 1000)
    return skipped


def drop_rare_tracks(plays: Plays, min_track_plays: int, track_plays: Int) -> Plays:
    """Drop the plays of tracks with fewer than `min_track_plays` plays.

    `track_plays` [tracks] int64 is the number of plays of each track in the whole log.
    """
    return plays.keep_plays(track_plays[plays.track] >= min_track_plays)


def split_long_sessions(plays: Plays, max_session_plays: int) -> Plays:
    """Split sessions into consecutive pieces of at most `max_session_plays` plays."""
    pieces = np.maximum(-(-plays.lengths // max_session_plays), 1)
    first_piece = np.cumsum(pieces) - pieces
    piece = np.arange(pieces.sum(), dtype=np.int64) - np.repeat(first_piece, pieces)
    starts = np.repeat(plays.offsets[:-1], pieces) + piece * max_session_plays
    offsets = np.concatenate([starts, plays.offsets[-1:]]).astype(np.int64)
    return replace(plays, offsets=offsets, owner=np.repeat(plays.owner, pieces), piece=piece)


def drop_short_sessions(plays: Plays, min_session_plays: int) -> Plays:
    """Drop sessions with fewer than `min_session_plays` plays."""
    return plays.keep_sessions(plays.lengths >= min_session_plays)


def balance_by_skip(plays: Plays, rng: np.random.Generator) -> Plays:
    """Keep all sessions with a skip, and sample an equal number of sessions without a skip.

    If there are fewer sessions without a skip, keep all of them.
    """
    skips_before = np.concatenate([[0], np.cumsum(plays.skipped, dtype=np.int64)])[plays.offsets]
    kept = np.diff(skips_before) > 0
    without = np.flatnonzero(~kept)
    sampled = rng.choice(without, size=min(int(kept.sum()), len(without)), replace=False, shuffle=False)
    kept[sampled] = True
    return plays.keep_sessions(kept)


def limit_sessions(plays: Plays, max_sessions: int, rng: np.random.Generator) -> Plays:
    """Sample at most `max_sessions` sessions. The order of the sessions does not change."""
    if len(plays) <= max_sessions:
        return plays
    kept = np.zeros(len(plays), dtype=np.bool_)
    kept[rng.choice(len(plays), size=max_sessions, replace=False, shuffle=False)] = True
    return plays.keep_sessions(kept)


def sessionize(lines: pl.DataFrame, form: LogFormat, options: PrepareOptions, *, has_skips: bool) -> Plays:
    """Build sessions from all plays of some owners, without any filter.

    `lines` has the columns `owner` and `track` (uint32), and the other columns of LINE_COLUMNS that the log has. The
    sessions are sorted by owner code. If `has_skips` is true, every line of the log has a skip flag. Otherwise the
    skips are inferred.
    """
    if not form.by_position:
        lines = oldest_first(lines)
    owner = lines["owner"].to_numpy()
    order = _order(owner, lines, form)
    owner = owner[order]
    if form.by_position:
        position = lines["position"].to_numpy()[order]
        newest = np.append((owner[1:] != owner[:-1]) | (position[1:] != position[:-1]), True)
        order, owner = order[newest], owner[newest]
    at = lines["at"].fill_null(UNKNOWN_TIME).to_numpy()[order] if "at" in lines.columns else None
    if form.sessions_given or at is None:
        first = first_of_owner(owner)
    else:
        first = first_of_session(owner, at, options.idle_gap_s)
    if has_skips:
        skipped = lines["skipped"].to_numpy()[order]
    else:
        assert at is not None
        skipped = inferred_skips(at, first, options.skip_within_s)
    offsets = offsets_where(first)
    return Plays(
        track=lines["track"].to_numpy()[order],
        skipped=skipped,
        at=at,
        offsets=offsets,
        owner=owner[offsets[:-1]].astype(np.int64),
        piece=np.zeros(len(offsets) - 1, dtype=np.int64),
    )


def oldest_first(lines: pl.DataFrame) -> pl.DataFrame:
    """Reverse the lines of every owner and file whose times fall more often than they rise.

    Afterwards the later of two lines with the same time is the later play. The order of the lines of different owners
    and files can change.
    """
    keys = [name for name in ("owner", "file") if name in lines.columns]
    order = lines.select(pl.arg_sort_by(keys, maintain_order=True)).to_series().to_numpy()
    changes = [lines[name].to_numpy()[order] for name in keys]
    first = np.ones(len(lines), dtype=np.bool_)
    first[1:] = functools.reduce(np.logical_or, (values[1:] != values[:-1] for values in changes))
    at = lines["at"].fill_null(UNKNOWN_TIME).to_numpy()[order]
    step = np.zeros(len(lines), dtype=np.int64)
    step[1:] = np.where(first[1:], 0, np.sign(at[1:].astype(np.float64) - at[:-1]).astype(np.int64))
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(lines))
    falls = np.add.reduceat(step, starts) < 0
    place = np.arange(len(lines))
    mirrored = np.repeat(starts + ends - 1, ends - starts) - place
    return lines[order[np.where(np.repeat(falls, ends - starts), mirrored, place)]]


def _order(owner: NDArray[np.uint32], lines: pl.DataFrame, form: LogFormat) -> Int:
    """Return the sorted order of the lines. [lines] int64 line numbers.

    Lines are sorted by owner, and next by position or time. Several lines of the same play are sorted by `written_at`,
    so the newest line is the last. Lines that are equal in all keys keep their order.
    """
    keys = pl.DataFrame({"owner": owner}).with_columns(lines["position" if form.by_position else "at"].alias("place"))
    if form.by_position and "written_at" in lines.columns:
        keys = keys.with_columns(lines["written_at"])  # a line without this time is treated as the oldest
    return keys.select(pl.arg_sort_by(keys.columns, nulls_last=False, maintain_order=True)).to_series().to_numpy()


class Filter(NamedTuple):
    """A rule that is applied to each session independently."""

    rule: str
    apply: Callable[[Plays], Plays]
    always_reported: bool = True


def session_filters(options: PrepareOptions, track_plays: Int | None) -> list[Filter]:
    """Return the filters of rules 4 and 5 in order.

    `track_plays` [tracks] int64 is the number of plays of each track, or None to keep all tracks.
    """
    min_track, max_session, min_session = options.min_track_plays, options.max_session_plays, options.min_session_plays
    found = []
    if track_plays is not None:
        rule = f"plays of tracks with fewer than {min_track} plays dropped"
        found.append(Filter(rule, lambda plays: drop_rare_tracks(plays, min_track, track_plays)))
    rule = f"sessions cut into pieces of at most {max_session} plays"
    found.append(Filter(rule, lambda plays: split_long_sessions(plays, max_session), always_reported=False))
    rule = f"sessions of fewer than {min_session} plays dropped"
    found.append(Filter(rule, lambda plays: drop_short_sessions(plays, min_session)))
    return found


class FilteredPartition(NamedTuple):
    """The sessions of a partition after rules 2 to 5. Sessions of the same owner are adjacent, oldest first."""

    owners: pl.Series  # string, the ids of the owners that still have sessions
    owner: NDArray[np.uint32]  # [sessions], indices into `owners`
    piece: NDArray[np.uint32]  # [sessions], as in Plays
    starts: Int | None  # [sessions] int64, ms since 1970 or UNKNOWN_TIME; None if all times are missing
    lengths: NDArray[np.uint32]  # [sessions], number of plays
    track: NDArray[np.uint32]  # [plays], indices into all tracks of the log
    skipped: Bool  # [plays]
    counts: list[StepCount]  # one entry per rule; all partitions of a log have the same rules


def filter_sessions(
    owners: pl.Series, plays: Plays, options: PrepareOptions, track_plays: Int | None
) -> FilteredPartition:
    """Apply the filters of rules 4 and 5 to the sessions of a partition.

    `plays.owner` contains indices into `owners`. `track_plays` is as in `session_filters`.
    """
    counts = [
        StepCount("repeated reports of one play merged", len(plays.track), None, always_reported=False),
        StepCount("sessions made", len(plays.track), len(plays), always_reported=True),
    ]
    for rule, apply, always_reported in session_filters(options, track_plays):
        plays = apply(plays)
        counts.append(StepCount(rule, len(plays.track), len(plays), always_reported))
    used, owner = np.unique(plays.owner, return_inverse=True)
    return FilteredPartition(
        owners=owners.gather(used),
        owner=owner.astype(np.uint32),
        piece=plays.piece.astype(np.uint32),
        starts=None if plays.at is None else plays.at[plays.offsets[:-1]],
        lengths=plays.lengths.astype(np.uint32),
        track=plays.track,
        skipped=plays.skipped,
        counts=counts,
    )


class OrderedSessions(NamedTuple):
    """The sessions of all partitions, in the order in which they are written to the dataset."""

    plays: Plays  # `plays.owner` is the index of the session, `plays.at` is None
    owner: Int  # [sessions] int64, indices into `owners`
    owners: pl.Series  # string, sorted owner ids
    starts: Int | None  # [sessions], as in FilteredPartition


def in_order(partitions: Sequence[FilteredPartition]) -> OrderedSessions:
    """Sort the sessions of all partitions by owner id. The sessions of each owner keep their order."""
    owners = pl.concat([one.owners for one in partitions])
    by_id = owners.arg_sort().to_numpy()
    rank = np.empty(len(owners), dtype=np.int64)
    rank[by_id] = np.arange(len(owners))
    first = np.cumsum([0, *(len(one.owners) for one in partitions)])
    owner = np.concatenate([rank[start + one.owner] for start, one in zip(first[:-1], partitions, strict=True)])
    order = np.argsort(owner, kind="stable")
    lengths = np.concatenate([one.lengths for one in partitions]).astype(np.int64)
    begins = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.repeat(begins - offsets[:-1], lengths)
    place += np.arange(len(place))
    plays = Plays(
        track=np.concatenate([one.track for one in partitions])[place],
        skipped=np.concatenate([one.skipped for one in partitions])[place],
        at=None,
        offsets=offsets,
        owner=np.arange(len(order)),
        piece=np.concatenate([one.piece for one in partitions])[order].astype(np.int64),
    )
    starts = [one.starts for one in partitions if one.starts is not None]
    return OrderedSessions(plays, owner[order], owners.gather(by_id), np.concatenate(starts)[order] if starts else None)


def sample_sessions(plays: Plays, options: PrepareOptions) -> Iterator[tuple[str, Plays]]:
    """Apply rule 6 to all sessions of a log.

    For each sampling rule in `options`, yield the description of the rule and the remaining sessions.
    """
    rng = np.random.default_rng(options.seed)
    if options.sample_half_skips:
        plays = balance_by_skip(plays, rng)
        yield "all sessions with a skip kept, and as many without one drawn", plays
    if options.max_sessions is not None:
        plays = limit_sessions(plays, options.max_sessions, rng)
        yield f"at most {options.max_sessions:,} sessions drawn", plays


def session_ids(owner: Int, piece: Int, owners: pl.Series | None) -> pl.Series:
    """Return the ids of sessions as strings.

    If the log has session ids, `owners` contains the session ids. If a session is split, the second piece has the
    suffix `~2`, the third piece `~3`, and so on. If `owners` is None, the sessions are numbered from `s00000001`.
    """
    if owners is None:
        numbers = pl.int_range(1, len(owner) + 1, eager=True).cast(pl.String).str.zfill(8)
        return ("s" + numbers).alias("session_id")
    ids = pl.DataFrame({"id": owners.gather(owner), "piece": piece})
    text = pl.format("{}~{}", "id", pl.col("piece") + 1)
    return ids.select(session_id=pl.when(pl.col("piece") == 0).then("id").otherwise(text)).to_series()


def start_times(starts: Int | None) -> pl.Series | None:
    """Convert session starts from ms since 1970 to UTC date-times. Unknown times become null."""
    if starts is None:
        return None
    at = pl.Series("started_at", starts)
    return at.to_frame().select(pl.when(at != UNKNOWN_TIME).then(at)).to_series().cast(pl.Datetime("ms", "UTC"))
