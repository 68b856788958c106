"""Filter, sort and sample the sessions of a log: rules 5 to 7 of training.prepare.pipeline.

Long sessions are split into consecutive sessions of `max_session_plays` plays. The last piece is dropped if it has
fewer than `min_session_plays` plays. The filters are applied to each partition separately, sampling to the whole log.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from training.prepare.formats import LogFormat
from training.prepare.options import PrepareOptions
from training.prepare.report import StepCount
from training.prepare.sessionize import SKIPPED, Counts, Outcomes, Plays, is_skip


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
    skips_before = np.concatenate([[0], np.cumsum(plays.outcome & SKIPPED, dtype=np.int64)])[plays.offsets]
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


class Filter(NamedTuple):
    """A rule that is applied to each session independently."""

    apply: Callable[[Plays], Plays]
    step: str
    option: str
    refusal: str  # why no play is left, with the largest number of plays before this rule in place of {}
    largest: Callable[[Plays], int]
    always_reported: bool = True


def session_filters(options: PrepareOptions, track_plays: Int | None) -> list[Filter]:
    """Return the filters of rules 5 and 6 in order.

    `track_plays` [tracks] int64 is the number of plays of each track, or None to keep all tracks.
    """
    min_track, max_session, min_session = options.min_track_plays, options.max_session_plays, options.min_session_plays
    found = []
    if track_plays is not None:
        rare = Filter(
            lambda plays: drop_rare_tracks(plays, min_track, track_plays),
            "rare tracks",
            f"--min-track-plays {min_track}",
            f"the most played track has {{}}: lower --min-track-plays ({min_track})",
            lambda _: int(track_plays.max(initial=0)),
        )
        found.append(rare)
    split = Filter(
        lambda plays: split_long_sessions(plays, max_session),
        "split sessions",
        f"--max-session-plays {max_session}",
        "",
        lambda _: 0,
        always_reported=False,
    )
    short = Filter(
        lambda plays: drop_short_sessions(plays, min_session),
        "short sessions",
        f"--min-session-plays {min_session}",
        f"the longest session has {{}}: lower --min-session-plays ({min_session})",
        lambda plays: int(plays.lengths.max(initial=0)),
    )
    return [*found, split, short]


class Partition(NamedTuple):
    """The sessions of a partition before the filters. `plays.owner` contains indices into `owners`."""

    owners: pl.Series  # string, sorted owner ids
    plays: Plays
    counts: Counts


class FilteredPartition(NamedTuple):
    """The sessions of a partition after rules 2 to 6. Sessions of the same owner are adjacent, oldest first."""

    owners: pl.Series  # string, the ids of the owners that still have sessions
    owner: NDArray[np.uint32]  # [sessions], indices into `owners`
    piece: NDArray[np.uint32]  # [sessions], as in Plays
    starts: Int | None  # [sessions] int64, ms since 1970 or UNKNOWN_TIME; None if all times are missing
    lengths: NDArray[np.uint32]  # [sessions], number of plays
    track: NDArray[np.uint32]  # [plays], indices into all tracks of the log
    outcome: Outcomes  # [plays]
    steps: list[StepCount]  # one entry per rule; all partitions of a log have the same rules
    counts: Counts


def filter_sessions(
    partition: Partition, form: LogFormat, options: PrepareOptions, track_plays: Int | None
) -> FilteredPartition:
    """Apply the filters of rules 5 and 6 to the sessions of a partition.

    `track_plays` is as in `session_filters`.
    """
    owners, plays, counts = partition
    steps = steps_before_filters(counts, plays, options, form)
    for rule in session_filters(options, track_plays):
        largest = rule.largest(plays)
        plays = rule.apply(plays)
        found = StepCount(rule.step, len(plays.track), len(plays), rule.option, rule.always_reported)
        steps.append(found._replace(refusal=rule.refusal, largest=largest))
    used, owner = np.unique(plays.owner, return_inverse=True)
    return FilteredPartition(
        owners=owners.gather(used),
        owner=owner.astype(np.uint32),
        piece=plays.piece.astype(np.uint32),
        starts=None if plays.at is None else plays.at[plays.offsets[:-1]],
        lengths=plays.lengths.astype(np.uint32),
        track=plays.track,
        outcome=plays.outcome,
        steps=steps,
        counts=counts,
    )


def steps_before_filters(counts: Counts, plays: Plays, options: PrepareOptions, form: LogFormat) -> list[StepCount]:
    """Return what rules 2 to 4 left of a partition."""
    merged = counts.lines - counts.repeats.merged
    within = "" if form.by_position else f"--merge-within {options.merge_within_s:g}"
    gap = "" if form.sessions_given else f"--idle-gap {options.idle_gap_s:g}"
    return [
        StepCount("repeated reports", merged, None, within, always_reported=False),
        StepCount("other tracks at one position", len(plays.track), None, "", always_reported=False),
        StepCount("sessions", len(plays.track), len(plays), gap, always_reported=True),
    ]


class OrderedSessions(NamedTuple):
    """The sessions of all partitions, in the order in which they are written to the dataset."""

    plays: Plays  # `plays.owner` is the index of the session, `plays.at` is None
    owner: Int  # [sessions] int64, indices into `owners`
    owners: pl.Series  # string, sorted owner ids
    starts: Int | None  # [sessions], as in FilteredPartition


def in_order(partitions: Sequence[FilteredPartition]) -> OrderedSessions:
    """Sort the sessions of all partitions by owner id. The sessions of each owner keep their order.

    Owners that are sessions of listeners (`session`, tab, `user`) are sorted by user first.
    """
    owners = pl.concat([one.owners for one in partitions])
    keys = owners.to_frame("owner").with_columns(user=pl.col("owner").str.extract(r"(?s)\t(.*)").fill_null(""))
    by_id = keys.select(pl.arg_sort_by("user", "owner")).to_series().to_numpy()
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
        outcome=np.concatenate([one.outcome for one in partitions])[place],
        at=None,
        offsets=offsets,
        owner=np.arange(len(order)),
        piece=np.concatenate([one.piece for one in partitions])[order].astype(np.int64),
    )
    starts = [one.starts for one in partitions if one.starts is not None]
    return OrderedSessions(plays, owner[order], owners.gather(by_id), np.concatenate(starts)[order] if starts else None)


def sample_sessions(plays: Plays, options: PrepareOptions) -> Iterator[tuple[StepCount, Plays]]:
    """Apply rule 7 to all sessions of a log. For each sampling rule in `options`, yield what it left."""
    rng = np.random.default_rng(options.seed)
    if options.sample_half_skips:
        skips = int(is_skip(plays.outcome).sum())
        plays = balance_by_skip(plays, rng)
        step = StepCount("sampled sessions", len(plays.track), len(plays), "--balance-skips")
        refusal = "no session has a skip, so no session is sampled: give --all-sessions instead of --balance-skips"
        yield step._replace(refusal="" if skips else refusal), plays
    if options.max_sessions is not None:
        plays = limit_sessions(plays, options.max_sessions, rng)
        option = f"--max-sessions {options.max_sessions}"
        yield StepCount("sampled sessions", len(plays.track), len(plays), option), plays


def session_ids(owner: Int, piece: Int, owners: pl.Series | None) -> pl.Series:
    """Return distinct ids of sessions as strings, which contain no user id.

    If the log has session ids, `owners` contains them, each followed by a tab and the user id if the log has these. If
    several users have the same session id, the second session has the suffix `#2`, the third one `#3`, and so on. If a
    session is split, the second piece has the suffix `~2`, the third piece `~3`, and so on. If `owners` is None, the
    sessions are numbered from `s00000001`.
    """
    if owners is None:
        numbers = pl.int_range(1, len(owner) + 1, eager=True).cast(pl.String).str.zfill(8)
        return ("s" + numbers).alias("session_id")
    own = owners.to_frame("id").select(pl.col("id").str.extract(r"(?s)^([^\t]*)")).to_series()
    ids = pl.DataFrame({"id": distinct(own, "#").gather(owner), "piece": piece})
    text = pl.format("{}~{}", "id", pl.col("piece") + 1)
    found = ids.select(session_id=pl.when(pl.col("piece") == 0).then("id").otherwise(text)).to_series()
    return distinct(found, "#")


def distinct(texts: pl.Series, mark: str) -> pl.Series:
    """Return distinct texts: the second of equal ones gets the suffix `#2` (with the mark `#`), and so on."""
    name = texts.name
    while texts.n_unique() < len(texts):
        number = pl.int_range(1, pl.len() + 1).over("text")
        suffixed = pl.format("{}" + mark + "{}", "text", number)
        texts = texts.to_frame("text").select(pl.when(number == 1).then("text").otherwise(suffixed)).to_series()
    return texts.alias(name)


def start_times(starts: Int, known: Bool) -> pl.Series:
    """Convert session starts from ms since 1970 to UTC date-times. Starts with a false value in `known` become null."""
    at = pl.DataFrame({"started_at": starts, "known": known})
    return at.select(pl.when("known").then("started_at").alias("started_at")).to_series().cast(pl.Datetime("ms", "UTC"))
