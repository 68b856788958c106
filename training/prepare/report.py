"""What the rules of `segue prepare` removed, and what was counted in the plays that remain."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from segue.arrays import Bool, Int
from segue.errors import BadLog
from training.data.log_facts import MOST_FILES, LogFile, PrepareStep, SkipSources
from training.prepare.formats import FILTER
from training.prepare.options import PrepareOptions
from training.prepare.play_order import UNKNOWN_TIME, Repeats
from training.prepare.reading import LinesRead, ReadStats
from training.prepare.sessionize import (
    SAME_SECOND,
    TIME,
    Counts,
    Neighbours,
    Plays,
    is_skip,
    last_known,
    sources_of,
    time_facts,
    too_coarse,
)

_SOURCES: Final = ("flag", "end_reason", "played_duration", "time")  # the fields of SkipSources
_EARLIEST_MS: Final = 631_152_000_000  # 1990-01-01
_DAY_S: Final = 86_400


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
            filtered = what.startswith(FILTER)
            name, option = ("filtered lines", what) if filtered else (f"ignored: {what}", "")
            self._add(StepCount(name, left, None, option))
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
    resolution_ms: int  # of the times, 1000 if it is a second or less; 0 without times
    neighbours: Neighbours  # of all plays of the log
    immediate_repeats: int  # plays of the same track as the play before
    odd_owners: int  # listeners or sessions whose id differs from another one only by surrounding white space


def count(number: int, noun: str) -> str:
    """A number with its noun, such as `1 play` and `2,000 plays`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def log_counts(
    log: ReadStats,
    partitions: Sequence[Counts],
    plays: Plays,
    starts: Int | None,
    owners: pl.Series,
    files: Sequence[str],
    options: PrepareOptions,
) -> LogCounts:
    """Count the plays in the dataset by outcome, and add up what was found in the partitions of a log.

    `starts` [sessions] is in ms since 1970. `owners` are the ids of the listeners or sessions of the log, and `files`
    the names of all its files.
    """
    of_code = np.bincount(plays.outcome, minlength=2 * SAME_SECOND)
    codes = np.arange(len(of_code), dtype=np.uint8)
    by_source = [
        [int(of_code[(sources_of(codes) == source) & which].sum()) for source in range(TIME + 1)]
        for which in (codes >= 0, is_skip(codes))
    ]
    repeats = Repeats(*(sum(numbers) for numbers in zip(*(one.repeats for one in partitions), strict=True)))
    neighbours = Neighbours(*(sum(numbers) for numbers in zip(*(one.neighbours for one in partitions), strict=True)))
    again = plays.track[1:] == plays.track[:-1]
    again[plays.offsets[1:-1] - 1] = False  # the last play of a session and the first of the next
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
        resolution_ms=resolution_ms,
        neighbours=neighbours,
        immediate_repeats=int(np.count_nonzero(again)),
        odd_owners=differ_by_space(owners),
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


def differ_by_space(ids: pl.Series) -> int:
    """The number of ids that are the same as others but for white space around them. `ids` are distinct."""
    bare = ids.str.strip_chars()
    return len(ids) - bare.n_unique() if (bare != ids).any() else 0
