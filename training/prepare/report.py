"""What the rules of `segue prepare` removed and what remains, and what looks wrong in a log."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from segue.arrays import Bool, Int
from segue.errors import BadLog
from training.data.log_facts import MOST_FILES, DataWarning, LogFacts, LogFile, PrepareStep, SkipSources
from training.prepare.options import EXPORTS, LogKind, PrepareOptions
from training.prepare.play_order import AGAIN_MS, UNKNOWN_TIME, Repeats
from training.prepare.reading import LinesRead, ReadStats
from training.prepare.sessionize import (
    SAME_SECOND,
    TIME,
    Counts,
    Plays,
    is_skip,
    last_known,
    sources_of,
    time_facts,
    too_coarse,
)

# Players report a track to these services after half of it or after four minutes, so a skip is mostly not reported.
_SCROBBLES: Final[tuple[LogKind, ...]] = ("lfm1k", "lfm2b")
_SOURCES: Final = ("flag", "end_reason", "played_duration", "time")  # the fields of SkipSources
_EARLIEST_MS: Final = 631_152_000_000  # 1990-01-01
_DAY_S: Final = 86_400
_MANY_SKIPS: Final = 0.8
_EVENT_COLUMNS: Final = frozenset({"event", "eventname", "eventtype", "action", "type"})
_FILE_DIFFERENCE: Final = 0.3  # between the highest and the lowest skip rate of files
_FILE_PLAYS: Final = 100  # the skip rate of a file with fewer plays is not compared


class StepCount(NamedTuple):
    """The number of plays and sessions that remain after a rule, of a partition or of the whole log."""

    step: str
    plays: int
    sessions: int | None  # None before sessions are built
    option: str = ""  # the option that governs the rule, with its value
    always_reported: bool = True  # if False, the report includes this rule only if the rule changed a count
    refusal: str = ""  # why no play is left, if none is. {} stands for `largest` plays
    largest: int = 0


class Steps:
    """The steps of a whole log."""

    def __init__(self, read: LinesRead, options: PrepareOptions) -> None:
        """Begin with the lines that were read, ignored and malformed."""
        self.done: list[PrepareStep] = []
        self._add(StepCount("lines read", read.lines, None))
        left = read.lines
        for what, lines in sorted(read.ignored.items()):
            left -= lines
            self._add(StepCount(f"ignored: {what}", left, None))
        if read.malformed:
            option = f"--max-malformed {options.max_malformed_pct:g}"
            self._add(StepCount("malformed lines", left - read.malformed, None, option))

    def add_partitions(self, partitions: Sequence[Sequence[StepCount]]) -> None:
        """Add the rules that were applied to each partition separately. Raises BadLog if no play remains."""
        for counts in zip(*partitions, strict=True):
            plays = sum(count.plays for count in counts)
            sessions = None if counts[0].sessions is None else sum(count.sessions or 0 for count in counts)
            largest = max(count.largest for count in counts)
            self.add(counts[0]._replace(plays=plays, sessions=sessions, largest=largest))

    def add(self, step: StepCount) -> None:
        """Add a rule that was applied to the whole log. Raises BadLog if no play remains."""
        before = self.done[-1]
        if step.always_reported or (step.plays, step.sessions) != (before.plays, before.sessions):
            self._add(step)
        if step.plays == 0:
            raise BadLog(self._refusal(before, step))

    def _add(self, step: StepCount) -> None:
        before = self.done[-1].plays if self.done else step.plays
        self.done.append(
            PrepareStep(
                step=step.step,
                removed=before - step.plays,
                plays=step.plays,
                sessions=step.sessions,
                option=step.option or None,
            )
        )

    def _refusal(self, before: PrepareStep, step: StepCount) -> str:
        found = count(before.plays, "play")
        if before.sessions is not None:
            found += f" in {count(before.sessions, 'session')}"
        if not step.refusal:
            return f"no play remains of {found} after the step `{step.step}`"
        return f"no play remains of {found}: {step.refusal.format(count(step.largest, 'play'))}"


class LogCounts(NamedTuple):
    """What was found in the plays of a log. All numbers but those of `files` are of the plays in the dataset."""

    outcomes: SkipSources
    skips: SkipSources
    unknown: int
    unknown_last: int  # sessions whose last play has no known outcome
    same_second: int
    sessions: int
    implausible_starts: int  # sessions whose start is no plausible time
    days: tuple[str, str] | None  # the first and the last day on which a session starts; None without times
    repeats: Repeats
    long_sessions: int
    files: list[LogFile]
    sessions_given: bool
    coarse_ms: int  # the resolution of the times if it is too coarse to infer skips from, else 0


def count(number: int, noun: str) -> str:
    """A number with its noun, such as `1 play` and `2,000 plays`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def log_counts(
    log: ReadStats,
    partitions: Sequence[Counts],
    plays: Plays,
    starts: Int | None,
    files: Sequence[str],
    options: PrepareOptions,
) -> LogCounts:
    """Count the plays in the dataset by outcome, and add up what was found in the partitions of a log.

    `starts` [sessions] is in ms since 1970. `files` are the names of all files of the log.
    """
    of_code = np.bincount(plays.outcome, minlength=2 * SAME_SECOND)
    codes = np.arange(len(of_code), dtype=np.uint8)
    by_source = [
        [int(of_code[(sources_of(codes) == source) & which].sum()) for source in range(TIME + 1)]
        for which in (codes >= 0, is_skip(codes))
    ]
    repeats = Repeats(*(sum(numbers) for numbers in zip(*(one.repeats for one in partitions), strict=True)))
    resolution_ms = time_facts(log.times, options).resolution_ms if "at" in log.columns else 0
    return LogCounts(
        outcomes=SkipSources(**dict(zip(_SOURCES, by_source[0][1:], strict=True))),
        skips=SkipSources(**dict(zip(_SOURCES, by_source[1][1:], strict=True))),
        unknown=by_source[0][0],
        unknown_last=int((~last_known(plays)).sum()),
        same_second=int(of_code[codes >= SAME_SECOND].sum()),
        sessions=len(plays),
        implausible_starts=0 if starts is None else int(((starts != UNKNOWN_TIME) & ~plausible(starts)).sum()),
        days=_days(starts),
        repeats=repeats,
        long_sessions=sum(one.long_sessions for one in partitions),
        files=_files(partitions, files),
        sessions_given=log.form.sessions_given,
        coarse_ms=resolution_ms if too_coarse(resolution_ms, options) else 0,
    )


def _files(partitions: Sequence[Counts], names: Sequence[str]) -> list[LogFile]:
    """The plays of the first MOST_FILES files of a log."""
    plays, skips = (np.zeros(min(len(names), MOST_FILES), dtype=np.int64) for _ in range(2))
    for one in partitions:
        plays[: len(one.file_plays)] += one.file_plays
        skips[: len(one.file_skips)] += one.file_skips
    return [
        LogFile(name=name, plays=found, skips=skipped)
        for name, found, skipped in zip(names, plays.tolist(), skips.tolist(), strict=False)
    ]


def _days(starts: Int | None) -> tuple[str, str] | None:
    known = np.array([]) if starts is None else starts[starts != UNKNOWN_TIME]
    if not len(known) or not plausible(known).all():
        return None
    first, last = (datetime.fromtimestamp(ms / 1000, tz=UTC).date().isoformat() for ms in (known.min(), known.max()))
    return first, last


def plausible(at: Int) -> Bool:
    """Return whether times in ms since 1970 are from 1990 to tomorrow. [times] bool."""
    return (at >= _EARLIEST_MS) & (at <= (time.time() + _DAY_S) * 1000)


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
            *(_column_warnings(read.unused_columns, counts) if kind == "events" else ()),
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
            f"{count(counts.sessions, 'session')}, because no later play shows it: evaluation counts it neither as "
            "played nor as skipped"
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
    yield from _id_warnings(tracks)


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
                "one play has several lines. Prepare one kind of lines only",
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
    if rate > _MANY_SKIPS:
        causes = {
            "the flag may mean played: --columns played=COLUMN": counts.skips.flag,
            "the reason why plays end may be misread": counts.skips.end_reason,
            "the played duration may be in another unit": counts.skips.played_duration,
            "the times may be no starts of plays": counts.skips.time,
        }
        cause = max(causes, key=lambda name: causes[name])
        yield DataWarning(code="many_skips", message=f"{rate:.1%} of the plays are skipped: {cause}")
    rates = [(file.skips / file.plays, file.name) for file in counts.files if file.plays >= _FILE_PLAYS]
    if len(rates) > 1 and max(rates)[0] - min(rates)[0] > _FILE_DIFFERENCE:
        (low, lowest), (high, highest) = min(rates), max(rates)
        yield DataWarning(
            code="files_differ",
            message=f"{high:.1%} of the plays of {highest} are skipped and {low:.1%} of those of {lowest}: flags may "
            "be missing, or have the opposite meaning, in one of them",
        )


def _id_warnings(tracks: pl.Series) -> Iterator[DataWarning]:
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
