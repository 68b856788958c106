"""Sessions from the lines of a log, and the filters on them: steps 2 to 6 of training.prepare.pipeline.

Everything works on flat arrays of integer codes: on a whole log, or on the part of one that has all plays of some
listeners or sessions (training.prepare.partition_tasks). The rules are the paper's (section 4.2), with these choices
where it leaves something open:

- A session ends if the next play of the same listener starts more than `idle_gap_s` later. A gap of exactly that length
  does not end it.
- A play is skipped if the next play of the same session starts at most `skip_within_s` later. The last play of a
  session is never a skip. Skips are inferred once, before plays are dropped or sessions cut.
- Long sessions are cut into consecutive sessions of `max_session_plays`. A remainder that is too short is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from segue.errors import BadLog
from training.prepare.formats import LogFormat, PrepareOptions


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


def drop_rare_tracks(plays: Plays, min_track_plays: int, track_plays: Int | None = None) -> Plays:
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


def drop_short_sessions(plays: Plays, min_session_plays: int) -> Plays:
    """Without the sessions that have fewer plays."""
    return plays.keep_sessions(plays.lengths >= min_session_plays)


def balance_by_skip(plays: Plays, rng: np.random.Generator) -> Plays:
    """All sessions that hold a skip, and as many drawn from those without one (all of them if there are fewer)."""
    skips_before = np.concatenate([[0], np.cumsum(plays.skipped, dtype=np.int64)])[plays.offsets]
    kept = np.diff(skips_before) > 0
    without = np.flatnonzero(~kept)
    drawn = rng.choice(without, size=min(int(kept.sum()), len(without)), replace=False, shuffle=False)
    kept[drawn] = True
    return plays.keep_sessions(kept)


def limit_sessions(plays: Plays, max_sessions: int, rng: np.random.Generator) -> Plays:
    """`max_sessions` sessions drawn at random, in their old order; all of them if there are no more."""
    if len(plays) <= max_sessions:
        return plays
    kept = np.zeros(len(plays), dtype=np.bool_)
    kept[rng.choice(len(plays), size=max_sessions, replace=False, shuffle=False)] = True
    return plays.keep_sessions(kept)


class Step(NamedTuple):
    """What a rule left."""

    rule: str
    plays: int
    sessions: int | None  # None before sessions are made


def owners_of(lines: pl.DataFrame) -> pl.DataFrame:
    """The listeners or sessions by name: `owner` string and `code`, their code in the lines."""
    # By name, for codes depend on which thread met a name first.
    distinct = lines["owner"].unique()
    return pl.DataFrame({"owner": distinct.cast(pl.String), "code": distinct.to_physical()}).sort("owner")


def sessionize(
    lines: pl.DataFrame, owners: pl.DataFrame, form: LogFormat, options: PrepareOptions, steps: list[Step]
) -> Plays:
    """All plays as sessions, before any is dropped."""
    if form.newest_first:  # of two plays at the same second the later line is then the earlier play
        lines = lines.reverse()
    number_of_code = np.zeros(int(owners["code"].max()) + 1, dtype=np.uint32)  # type: ignore[arg-type]
    number_of_code[owners["code"].to_numpy()] = np.arange(len(owners), dtype=np.uint32)
    owner = number_of_code[lines["owner"].to_physical().to_numpy()]
    order = _order(owner, lines, form)
    owner = owner[order]
    if form.by_position:
        position = lines["position"].to_numpy()[order]
        latest = np.append((owner[1:] != owner[:-1]) | (position[1:] != position[:-1]), True)
        order, owner = order[latest], owner[latest]
        if len(order) < len(lines):
            steps.append(Step("repeated reports of one play merged", len(order), None))
    at = lines["at"].fill_null(UNKNOWN_TIME).to_numpy()[order] if "at" in lines.columns else None
    if form.whole_sessions or at is None:
        first = first_of_owner(owner)
    else:
        first = first_of_session(owner, at, options.idle_gap_s)
    if "skipped" in lines.columns and lines["skipped"].null_count() == 0:
        skipped = lines["skipped"].to_numpy()[order]
    else:
        assert at is not None
        skipped = inferred_skips(at, first, options.skip_within_s)
    offsets = offsets_where(first)
    plays = Plays(
        track=lines["track"].to_physical().to_numpy()[order],
        skipped=skipped,
        at=at,
        offsets=offsets,
        owner=owner[offsets[:-1]].astype(np.int64),
        piece=np.zeros(len(offsets) - 1, dtype=np.int64),
    )
    steps.append(Step("sessions made", len(order), len(plays)))
    return plays


def _order(owner: NDArray[np.uint32], lines: pl.DataFrame, form: LogFormat) -> Int:
    """Line numbers by owner, then by position (of one play the newest report last) or time, then as they stand."""
    keys = pl.DataFrame({"owner": owner}).with_columns(lines["position" if form.by_position else "at"].alias("place"))
    if form.by_position and "written_at" in lines.columns:
        keys = keys.with_columns(lines["written_at"])  # a report without this time counts as the oldest
    return keys.select(pl.arg_sort_by(keys.columns, nulls_last=False, maintain_order=True)).to_series().to_numpy()


class Rule(NamedTuple):
    """A rule of selection that looks at one session at a time, given how often each track was played."""

    text: str
    apply: Callable[[Plays], Plays]
    told_always: bool = True  # False: only where it changed the number of sessions


def session_filters(options: PrepareOptions, track_plays: Int | None = None) -> list[Rule]:
    """The rules of steps 4 and 5. `track_plays` [tracks]: plays of each track, unless `plays` are those of all."""
    least, longest, shortest = options.min_track_plays, options.max_session_plays, options.min_session_plays
    found = []
    if least > 1:
        text = f"plays of tracks with fewer than {least} plays dropped"
        found.append(Rule(text, lambda plays: drop_rare_tracks(plays, least, track_plays)))
    text = f"sessions cut into pieces of at most {longest} plays"
    found.append(Rule(text, lambda plays: cut(plays, longest), told_always=False))
    text = f"sessions of fewer than {shortest} plays dropped"
    found.append(Rule(text, lambda plays: drop_short_sessions(plays, shortest)))
    return found


def note(steps: list[Step], rule: str, plays: int, sessions: int) -> None:
    """Add what a rule left. Raises BadLog where that is nothing."""
    steps.append(Step(rule, plays, sessions))
    if plays == 0:
        told = "; ".join(f"{step.rule}: {step.plays:,} plays" for step in steps)
        raise BadLog(f"no play is left ({told}): relax the last of these rules")


def kept(plays: Plays, options: PrepareOptions, steps: list[Step]) -> Plays:
    """The plays that the rules of selection leave. Raises BadLog where that is none."""
    for rule in session_filters(options):
        sessions = len(plays)
        plays = rule.apply(plays)
        if rule.told_always or len(plays) != sessions:
            note(steps, rule.text, len(plays.track), len(plays))
    return drawn(plays, options, steps)


def drawn(plays: Plays, options: PrepareOptions, steps: list[Step]) -> Plays:
    """The sessions that are drawn of all those of a log, in their order (step 6)."""
    rng = np.random.default_rng(options.seed)
    if options.sample_half_skips:
        plays = balance_by_skip(plays, rng)
        note(steps, "all sessions with a skip kept, and as many without one drawn", len(plays.track), len(plays))
    if options.max_sessions is not None:
        plays = limit_sessions(plays, options.max_sessions, rng)
        note(steps, f"at most {options.max_sessions:,} sessions drawn", len(plays.track), len(plays))
    return plays


def session_ids(owner: Int, piece: Int, owners: pl.Series | None) -> pl.Series:
    """The ids of sessions: numbers in their order or, where `owners` names whole sessions, those names."""
    if owners is None:
        numbers = pl.int_range(1, len(owner) + 1, eager=True).cast(pl.String).str.zfill(8)
        return ("s" + numbers).alias("session_id")
    ids = pl.DataFrame({"id": owners.gather(owner), "piece": piece})
    text = pl.format("{}~{}", "id", pl.col("piece") + 1)
    return ids.select(session_id=pl.when(pl.col("piece") == 0).then("id").otherwise(text)).to_series()


def starts_of(plays: Plays) -> Int | None:
    """When each session began. [sessions] int64, ms since 1970 or UNKNOWN_TIME; None where no time is known."""
    return None if plays.at is None else plays.at[plays.offsets[:-1]]


def times_of_starts(starts: Int | None) -> pl.Series | None:
    """The same as date-times, null where unknown."""
    if starts is None:
        return None
    at = pl.Series("started_at", starts)
    return at.to_frame().select(pl.when(at != UNKNOWN_TIME).then(at)).to_series().cast(pl.Datetime("ms", "UTC"))
