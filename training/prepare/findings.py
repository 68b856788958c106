"""What a person must know about a log: how it was understood, and what looks wrong in it, with the likely cause.

docs/how-to/check-your-log.md explains each warning. Those that need only the dataset are in
training.data.describe.find_warnings.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl

from training.data.log_facts import (
    FILES_APART,
    HIGH_SKIP_RATE,
    MANY_REPEATS,
    PLAYS_OF_A_FILE,
    PLAYS_TO_JUDGE,
    DataWarning,
    LogFacts,
    SkipSources,
)
from training.prepare.options import EXPORTS, LogKind, PrepareOptions
from training.prepare.play_order import AGAIN_MS
from training.prepare.reading import AFTERNOON, CLOCK_TIMES, LinesRead
from training.prepare.report import LogCounts, Steps, count, differ_by_space

# Players report a track to these services after half of it or after four minutes, so a skip is mostly not reported.
_SCROBBLES: Final[tuple[LogKind, ...]] = ("lfm1k", "lfm2b")
_EVENT_COLUMNS: Final = frozenset({"event", "eventname", "eventtype", "action", "type"})
_MOSTLY: Final = 0.5
_EXACT_S: Final = 5  # in coarser steps, a play can seem to last beyond the next one
_IMPOSSIBLE: Final = 0.2  # share of plays that contradict what their times should mean
_CLOCK_TIMES_TO_JUDGE: Final = 1_000  # fewer times can all be before 13:00 by chance


def log_facts(
    kind: LogKind, options: PrepareOptions, read: LinesRead, counts: LogCounts, steps: Steps, tracks: pl.Series
) -> LogFacts:
    """The field `log` of dataset.json. `tracks` are the ids of the tracks in the dataset."""
    return LogFacts(
        files=counts.files,
        sessions_given=counts.sessions_given,
        skips_from=counts.outcomes,
        skipped_by=counts.skips,
        unknown_outcomes=counts.unknown,
        same_second_skips=counts.same_second,
        merged=counts.repeats.merged,
        conflicts=counts.repeats.places + counts.repeats.outcomes,
        ignored=dict(sorted(read.ignored.items())),
        columns=dict(read.columns),
        unused_columns=list(read.unused_columns),
        steps=steps.done,
        notes=[*read.all_notes, *_notes(kind, options, counts)],
        warnings=[
            *_warnings(options, counts, tracks),
            *(_event_warnings(options, read, counts) if kind == "events" else ()),
        ],
    )


def total(sources: SkipSources) -> int:
    """The sum of the numbers of all sources."""
    return sources.flag + sources.end_reason + sources.played_duration + sources.time


def _notes(kind: LogKind, options: PrepareOptions, counts: LogCounts) -> Iterator[str]:
    """How the log was understood, one sentence each."""
    if counts.days and kind in EXPORTS:
        yield f"the sessions start from {counts.days[0]} to {counts.days[1]}"
    inferred = counts.outcomes.time
    given = total(counts.outcomes) - inferred
    if options.no_skips:
        yield "every play counts as played, because of --no-skips"
    elif given and (inferred or counts.unknown):
        parts = {
            "given by the log": given,
            "inferred from time": inferred,
            "unknown, which count as played": counts.unknown,
        }
        yield "outcomes of plays: " + ", ".join(f"{number:,} {what}" for what, number in parts.items() if number)
    elif inferred:
        yield f"outcomes are inferred from time: {_inference(options)}"
    if counts.coarse_ms and counts.unknown and not options.no_skips:
        yield (
            f"the times are in steps of {counts.coarse_ms / 1000:g} s, coarser than --skip-within "
            f"{options.skip_within_s:g}: no skip was inferred from them"
        )
    if counts.unknown_last and not counts.coarse_ms and not options.no_skips:
        yield (
            f"the outcome of the last play is unknown in {counts.unknown_last:,} of "
            f"{count(counts.sessions, 'session')}, because {'neither the log nor a' if given else 'no'} later play "
            f"{'says' if given else 'shows'} it: evaluation counts it neither as played nor as skipped"
        )
    if counts.same_second:
        few = ". Logs of this kind hold few true skips" if kind in _SCROBBLES else ""
        yield (
            f"{counts.same_second:,} of {count(counts.skips.time, 'skip')} inferred from time "
            f"{'begins' if counts.same_second == 1 else 'begin'} in the same second as the next play: "
            f"--skip-after 1 leaves them out{few}"
        )
    if counts.implausible_starts and kind != "yambda":
        yield (
            f"the times of {count(counts.implausible_starts, 'session')} are no dates: they only order the plays, and "
            "started_at is empty"
        )


def _inference(options: PrepareOptions) -> str:
    after = f"at least {options.skip_after_s:g} s and " if options.skip_after_s else ""
    return f"a play is skipped if the next one of its session starts {after}at most {options.skip_within_s:g} s later"


def _warnings(options: PrepareOptions, counts: LogCounts, tracks: pl.Series) -> Iterator[DataWarning]:
    """What looks wrong, with the likely cause."""
    yield from _skip_rate_warnings(options, counts)
    again, places, outcomes = counts.repeats.started_again, counts.repeats.places, counts.repeats.outcomes
    if again:
        seconds = AGAIN_MS // 1000
        yield DataWarning(
            code="started_again",
            message=f"the same listener starts the track of {count(again, 'play')} again within {seconds} seconds. "
            f"These are probably second reports: --merge-within {seconds} merges them",
        )
    if places:
        yield DataWarning(
            code="other_tracks",
            message=f"{count(places, 'position')} {_have(places)} several different tracks; the last line counts. If "
            "session ids are unique per listener only, name the column of the listener: --columns user_id=COLUMN",
        )
    if outcomes:
        yield DataWarning(
            code="other_outcomes",
            message=f"{count(outcomes, 'play')} {_have(outcomes)} reports of different outcomes: the last one counts",
        )
    if counts.long_sessions:
        yield DataWarning(
            code="long_sessions",
            message=f"{count(counts.long_sessions, 'session')} of the log "
            f"{'lasts' if counts.long_sessions == 1 else 'last'} longer than a day: session ids may be used again, or "
            "be unique per listener only (--columns user_id=COLUMN)",
        )
    yield from _repeat_warnings(counts)
    yield from _id_warnings(counts, tracks)


def _repeat_warnings(counts: LogCounts) -> Iterator[DataWarning]:
    pairs = total(counts.outcomes) + counts.unknown - counts.sessions
    if pairs >= PLAYS_TO_JUDGE and counts.immediate_repeats > MANY_REPEATS * pairs:
        yield DataWarning(
            code="many_repeats",
            message=f"{counts.immediate_repeats / pairs:.1%} of the plays repeat the track of the play before. If the "
            "log reports a play several times, --merge-within merges the reports",
        )


def _event_warnings(options: PrepareOptions, read: LinesRead, counts: LogCounts) -> Iterator[DataWarning]:
    """What looks wrong in a log whose columns have no fixed meaning."""
    yield from _column_warnings(read.unused_columns, counts)
    yield from _flag_warnings(options, read, counts)
    yield from _time_warnings(options, counts)
    clock, afternoon = read.counted[CLOCK_TIMES], read.counted[AFTERNOON]
    if clock >= _CLOCK_TIMES_TO_JUDGE and not afternoon:
        yield DataWarning(
            code="twelve_hour_times",
            message=f"the hour of all {clock:,} times without a zone is from 1 to 12: these may be 12-hour times whose "
            "AM or PM is lost. Export 24-hour times, or AM and PM (--time-format with %I and %p)",
        )


def _flag_warnings(options: PrepareOptions, read: LinesRead, counts: LogCounts) -> Iterator[DataWarning]:
    """A flag that always has the same value, although the log has other outcomes."""
    role = "skipped" if "skipped" in read.columns else "played"
    flagged, skipped = counts.outcomes.flag, counts.skips.flag
    others = total(counts.outcomes) + counts.unknown - flagged
    if not flagged or not others or options.no_skips or 0 < skipped < flagged:
        return
    value = "true" if (role == "skipped") == (skipped > 0) else "false"
    other, meaning = ("false", "played") if skipped else ("true", "skipped")
    if role == "played":
        other = "true" if skipped else "false"
    yield DataWarning(
        code="constant_flag",
        message=f"the column {repr(read.columns.get(role, role))[1:-1]} is {value} for {count(flagged, 'play')}, never "
        f"{other}, and empty for {others:,}. If empty means {meaning}, write {other} there. Otherwise the outcome of "
        "these plays is inferred or unknown",
    )


def _time_warnings(options: PrepareOptions, counts: LogCounts) -> Iterator[DataWarning]:
    """Times and played durations that mean something else than they should."""
    found = counts.neighbours
    if found.pairs >= PLAYS_TO_JUDGE and found.same_second > _MOSTLY * found.pairs:
        yield DataWarning(
            code="equal_times",
            message=f"{found.same_second / found.pairs:.1%} of the plays start within a second of the play before: "
            "these may be the times at which lines were loaded. Name the column with the start of plays: --columns "
            "timestamp=COLUMN",
        )
    seconds = counts.resolution_ms / 1000
    if not counts.sessions_given and seconds > options.idle_gap_s:
        yield DataWarning(
            code="coarse_sessions",
            message=f"the times are in steps of {seconds:,g} s, longer than --idle-gap {options.idle_gap_s:g}: "
            "sessions end at each step. Export exact times, name a session_id, or raise --idle-gap",
        )
    if found.timed < PLAYS_TO_JUDGE:
        return
    if found.below_second > _MOSTLY * found.durations and found.minutes_apart > _MOSTLY * found.timed:
        yield DataWarning(
            code="durations_in_seconds",
            message=f"{found.below_second / found.durations:.1%} of the played durations are below 1,000, but plays "
            "start minutes apart: these may be seconds. Write milliseconds",
        )
    starts, ends = found.beyond_next / found.timed, found.longer_than_gap / found.timed
    exact = seconds <= _EXACT_S
    if exact and options.timestamp_is == "start" and starts > _IMPOSSIBLE and ends < starts / 4:
        yield DataWarning(
            code="times_are_ends",
            message=f"{starts:.1%} of the plays last beyond the start of the next play: the times may be the ends of "
            "plays. Prepare the log with --timestamp-is end",
        )


def _column_warnings(unused: Sequence[str], counts: LogCounts) -> Iterator[DataWarning]:
    """Columns that were not used, and probably should have been."""
    for column in unused:
        name = repr(column)[1:-1]
        if "skip" in name.lower() and counts.skips.time:
            yield DataWarning(
                code="unused_skips",
                message=f"skips were inferred from time, but the log has the column {name}: if it says what was "
                f"skipped, add --columns skipped={name}",
            )
        if name.lower().rpartition(".")[2].replace("_", "") in _EVENT_COLUMNS:
            yield DataWarning(
                code="several_events",
                message=f"the log has the column {name}: if its lines are of several kinds (start, end, like), "
                f"one play has several lines. Prepare one kind of lines only: --where {name}=VALUE",
            )


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _skip_rate_warnings(options: PrepareOptions, counts: LogCounts) -> Iterator[DataWarning]:
    skips, plays = total(counts.skips), total(counts.outcomes) + counts.unknown
    rate = skips / plays
    if skips == 0 and not options.no_skips:
        yield DataWarning(
            code="no_skips",
            message="no play is skipped: the log may hold no skips, or its skips are in a column that was not used. "
            "There is nothing for the skip loss to learn from: train with --no-nce",
        )
    if rate > HIGH_SKIP_RATE:
        causes = {
            "the flag may mean played: --columns played=COLUMN": counts.skips.flag,
            "the reason why plays end may be misread": counts.skips.end_reason,
            "the played duration may be in another unit": counts.skips.played_duration,
            "the times may be no starts of plays": counts.skips.time,
        }
        cause = max(causes, key=lambda name: causes[name])
        yield DataWarning(code="many_skips", message=f"{rate:.1%} of the plays are skipped: {cause}")
    rates = [(file.skips / file.plays, file.name) for file in counts.files if file.plays >= PLAYS_OF_A_FILE]
    if len(rates) > 1 and max(rates)[0] - min(rates)[0] > FILES_APART:
        (low, lowest), (high, highest) = min(rates), max(rates)
        yield DataWarning(
            code="files_differ",
            message=f"{high:.1%} of the plays of {highest} are skipped and {low:.1%} of those of {lowest}: flags may "
            "be missing, or have the opposite meaning, in one of them",
        )


def _id_warnings(counts: LogCounts, tracks: pl.Series) -> Iterator[DataWarning]:
    for odd, what in ((differ_by_space(tracks), "track id"), (counts.odd_owners, "listener or session id")):
        if odd:
            yield DataWarning(
                code="space_in_ids",
                message=f"{count(odd, what)} {'differs' if odd == 1 else 'differ'} from another one only by white "
                "space at the beginning or end. Ids are compared exactly: remove the white space",
            )
    floats = tracks.filter(tracks.str.contains(r"^\d+\.0$"))
    if len(floats):
        both = int(floats.str.strip_suffix(".0").is_in(tracks.implode()).sum())
        also = f", and {both:,} of them without it as well" if both else ""
        yield DataWarning(
            code="float_ids",
            message=f"{count(len(floats), 'track id')} end in `.0`{also}: a tool has read them as numbers, so one "
            "track may have two ids. Export ids as text",
        )
    rounded = int(tracks.str.contains(r"^-?\d(\.\d+)?[eE]\+?\d+$").sum())
    if rounded:
        yield DataWarning(
            code="rounded_ids",
            message=f"{count(rounded, 'track id')} look like rounded numbers, such as 8.00000E+14: a spreadsheet has "
            "rounded them, so several tracks may have one id. Export ids as text",
        )
