"""The lines of a log become sessions, and rules say which are kept: the steps 2 to 6 of training.prepare.pipeline.

All of it works on the plays of one table, be that a whole log or the part of one that holds all plays of some
listeners or sessions (training.prepare.partition_tasks).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Int
from segue.errors import BadLog
from training.prepare import session_rules as rules
from training.prepare.formats import LogForm
from training.prepare.log_reading import LinesRead
from training.prepare.prepare_options import PrepareOptions
from training.prepare.session_rules import UNKNOWN_TIME, Plays


class Step(NamedTuple):
    """What a rule left."""

    rule: str
    plays: int
    sessions: int | None  # None before sessions are made


def steps_of_reading(read: LinesRead) -> list[Step]:
    """What reading left."""
    steps = [Step("lines read", read.lines, None)]
    if read.malformed:
        steps.append(Step("malformed lines left out", read.lines - read.malformed, None))
    return steps


def owners_of(lines: pl.DataFrame) -> pl.DataFrame:
    """The listeners or sessions by name: `owner` string and `code`, their code in the lines."""
    # By name, for codes depend on which thread met a name first.
    distinct = lines["owner"].unique()
    return pl.DataFrame({"owner": distinct.cast(pl.String), "code": distinct.to_physical()}).sort("owner")


def made_sessions(
    lines: pl.DataFrame, owners: pl.DataFrame, form: LogForm, options: PrepareOptions, steps: list[Step]
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
        first = rules.first_of_owner(owner)
    else:
        first = rules.first_of_session(owner, at, options.idle_gap_s)
    if "skipped" in lines.columns and lines["skipped"].null_count() == 0:
        skipped = lines["skipped"].to_numpy()[order]
    else:
        assert at is not None
        skipped = rules.inferred_skips(at, first, options.skip_within_s)
    offsets = rules.offsets_where(first)
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


def _order(owner: NDArray[np.uint32], lines: pl.DataFrame, form: LogForm) -> Int:
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


def rules_by_session(options: PrepareOptions, track_plays: Int | None = None) -> list[Rule]:
    """The rules of steps 4 and 5. `track_plays` [tracks]: plays of each track, unless `plays` are those of all."""
    least, longest, shortest = options.min_track_plays, options.max_session_plays, options.min_session_plays
    found = []
    if least > 1:
        text = f"plays of tracks with fewer than {least} plays dropped"
        found.append(Rule(text, lambda plays: rules.without_rare_tracks(plays, least, track_plays)))
    text = f"sessions cut into pieces of at most {longest} plays"
    found.append(Rule(text, lambda plays: rules.cut(plays, longest), told_always=False))
    text = f"sessions of fewer than {shortest} plays dropped"
    found.append(Rule(text, lambda plays: rules.without_short_sessions(plays, shortest)))
    return found


def note(steps: list[Step], rule: str, plays: int, sessions: int) -> None:
    """Add what a rule left. Raises BadLog where that is nothing."""
    steps.append(Step(rule, plays, sessions))
    if plays == 0:
        told = "; ".join(f"{step.rule}: {step.plays:,} plays" for step in steps)
        raise BadLog(f"no play is left ({told}): relax the last of these rules")


def kept(plays: Plays, options: PrepareOptions, steps: list[Step]) -> Plays:
    """The plays that the rules of selection leave. Raises BadLog where that is none."""
    for rule in rules_by_session(options):
        sessions = len(plays)
        plays = rule.apply(plays)
        if rule.told_always or len(plays) != sessions:
            note(steps, rule.text, len(plays.track), len(plays))
    return drawn(plays, options, steps)


def drawn(plays: Plays, options: PrepareOptions, steps: list[Step]) -> Plays:
    """The sessions that are drawn of all those of a log, in their order (step 6)."""
    rng = np.random.default_rng(options.seed)
    if options.sample_half_skips:
        plays = rules.half_with_skips(plays, rng)
        note(steps, "all sessions with a skip kept, and as many without one drawn", len(plays.track), len(plays))
    if options.max_sessions is not None:
        plays = rules.at_most(plays, options.max_sessions, rng)
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
