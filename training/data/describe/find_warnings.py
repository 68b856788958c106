"""Warnings that follow from the figures of a dataset. docs/how-to/check-your-log.md explains each code.

Each rule is a threshold on a figure that ordinary listening logs do not reach. A warning is no error: a dataset with
warnings can be trained on.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl

from training.data.describe.description import Description, FileRate, Rate
from training.data.log_facts import (
    FILES_APART,
    HIGH_SKIP_RATE,
    MANY_REPEATS,
    PLAYS_OF_A_FILE,
    PLAYS_TO_JUDGE,
    DataWarning,
)

SMALL_CATALOGUE: Final = 20  # tracks: the longest list that metrics look at
FEW_SESSIONS: Final = 100
MANY_TRACKS: Final = 100  # in a smaller catalogue one track may well have a tenth of the plays
MOSTLY: Final = 0.5
REPEATED_SKIPS: Final = 0.5  # share of skips that are followed by the same track
DOMINANT_TRACK: Final = 0.1  # share of plays
MALFORMED_PERCENT: Final = 1
MISSING_SKIPS: Final = 20  # skipped last plays expected from the skip rate of the other plays
COARSE_S: Final = 30  # seconds: skips are inferred from gaps of at most this length
_PRESENT: Final = timedelta(days=1)
_EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
_RELATIVE_TIMES: Final = ("yambda",)  # sources whose times are no dates
_FROM_TIME: Final = ("lfm1k", "lfm2b")  # sources whose skips are always inferred from time


def find_warnings(of: Description, tracks: pl.DataFrame, now: datetime) -> list[DataWarning]:
    """Return the warnings about a described dataset. `tracks` is its catalogue with the column track_id."""
    found = [*_skips(of), *_files(of.by_file or []), *_last_plays(of), *_sessions(of), *_tracks(of, tracks)]
    found += [*_times(of, now), *_lines(of)]
    return [DataWarning(code=code, message=message) for code, message in found]


def _skips(of: Description) -> Iterator[tuple[str, str]]:
    if of.skips == 0 and of.options.get("no_skips"):
        yield (
            "no_skips",
            "Every play counts as played, because of --no-skips. The skip loss has nothing to learn from: train with "
            "--no-nce.",
        )
    elif of.skips == 0:
        yield (
            "no_skips",
            "No play is skipped. The skip loss has nothing to learn from, and skipped targets cannot be measured. "
            "Check the skip column, or train with --no-nce.",
        )
    elif of.skip_rate > HIGH_SKIP_RATE:
        yield (
            "many_skips",
            f"{of.skip_rate:.1%} of the plays are skipped. Likely causes: plays reported twice, wrong times, or a skip "
            "flag with the opposite meaning.",
        )
    if of.skips and of.repeats.immediate_after_skip >= REPEATED_SKIPS * of.skips:
        yield (
            "skips_before_repeats",
            f"{of.repeats.immediate_after_skip:,} of {of.skips:,} skips are followed by the same track. Likely cause: "
            "plays are reported twice. Prepare the log again with --merge-within.",
        )
    pairs = of.plays - of.sessions.count
    if pairs >= PLAYS_TO_JUDGE and of.repeats.immediate > MANY_REPEATS * pairs:
        yield (
            "many_repeats",
            f"{of.repeats.immediate / pairs:.1%} of the plays repeat the track of the play before. Likely cause: a "
            "play is reported several times. Prepare the log again with --merge-within.",
        )


def _files(files: list[FileRate]) -> Iterator[tuple[str, str]]:
    rated = [(file.skip_rate, file) for file in files if file.plays >= PLAYS_OF_A_FILE and file.skip_rate is not None]
    if len(rated) < 2:
        return
    (low, lowest), (high, highest) = (choose(rated, key=lambda of: of[0]) for choose in (min, max))
    if high - low >= FILES_APART:
        yield (
            "files_differ",
            f"The skip rate is {low:.1%} in {lowest.name} and {high:.1%} in {highest.name}. Likely cause: skips have "
            "another meaning, or are missing, in one of the files.",
        )


def _last_plays(of: Description) -> Iterator[tuple[str, str]]:
    last, count = of.last_plays, of.sessions.count
    if last.unknown and not of.options.get("no_skips"):
        yield (
            "unknown_last_outcomes",
            f"The outcome of the last play is unknown in {last.unknown / count:.1%} of the sessions, because skips "
            "were inferred from the next play. Evaluate with --targets known.",
        )
    if last.unknown:
        return
    others = Rate(plays=of.plays - last.plays, skips=of.skips - last.skips)
    if last.skips == 0 and (others.skip_rate or 0) * last.plays >= MISSING_SKIPS:
        yield (
            "last_plays_never_skipped",
            f"No last play of a session is skipped, but {others.skip_rate or 0:.1%} of the other plays are. Likely "
            "cause: skips were inferred from the next play. There are no skipped targets to evaluate.",
        )


def _sessions(of: Description) -> Iterator[tuple[str, str]]:
    sessions, longest = of.sessions, of.sessions.quantiles["1"]
    if sessions.count == 1:
        yield (
            "one_session",
            "There is only one session. A model cannot be evaluated on it. Check the columns of listener and session.",
        )
        return
    if sessions.count < FEW_SESSIONS:
        yield (
            "few_sessions",
            f"There are only {sessions.count} sessions. Confidence intervals of an evaluation will be wide.",
        )
    cut_at = of.options.get("max_session_plays")
    if sessions.quantiles["0"] == longest:
        yield (
            "equal_lengths",
            f"Every session has exactly {longest} plays. Sessions of real listeners differ in length: they were cut, "
            "or only sessions of one length were exported.",
        )
    elif longest == cut_at and sessions.lengths[-1].first == longest:
        cut = sessions.lengths[-1].sessions / sessions.count
        if cut >= MOSTLY:
            yield (
                "sessions_cut",
                f"{cut:.1%} of the sessions have exactly {longest} plays, the longest allowed, so most were cut. "
                "Raise --max-session-plays, or check that sessions end (--idle-gap).",
            )
    if sessions.with_targets < MOSTLY * sessions.count:
        yield (
            "short_sessions",
            f"Only {sessions.with_targets / sessions.count:.1%} of the sessions have 3 plays or more. The others have "
            "no targets in the last-play split. Check --idle-gap and the session column.",
        )


def _tracks(of: Description, tracks: pl.DataFrame) -> Iterator[tuple[str, str]]:
    played = of.popularity
    if played.tracks < SMALL_CATALOGUE:
        yield (
            "small_catalogue",
            f"The catalogue has {played.tracks:,} tracks. A list of {SMALL_CATALOGUE} contains all of them, so HR@20 "
            "is 1 for any model.",
        )
        return
    top = played.top[0]
    if played.tracks >= MANY_TRACKS and top.plays > DOMINANT_TRACK * of.plays:
        yield (
            "dominant_track",
            f"One track ({top.track_id}) has {top.plays / of.plays:.1%} of all plays. Check that its id does not stand "
            "for missing values.",
        )
    if played.played_once > MOSTLY * played.played:
        yield (
            "rare_tracks",
            f"{played.played_once / played.played:.1%} of the tracks are played once and can hardly be learned. "
            "Remove them with --min-track-plays, or check that a track has the same id everywhere.",
        )
    if tracks["track_id"].str.contains(r"^\d+\.0$").all():
        yield (
            "float_ids",
            "All track ids end in .0: they were whole numbers and became decimal numbers in an export. Requests to the "
            "service must use the same ids.",
        )


def _times(of: Description, now: datetime) -> Iterator[tuple[str, str]]:
    first, last, step = of.times.first, of.times.last, of.times.resolution_s
    if first is None or last is None or of.source in _RELATIVE_TIMES:
        return
    if first < _EARLIEST or last > now + _PRESENT:
        yield (
            "implausible_times",
            f"Sessions start between {first.date()} and {last.date()}. Some of these times are no dates: check the "
            "time column and its unit.",
        )
    inferred = of.source in _FROM_TIME if of.outcomes.sources is None else of.outcomes.sources.time > 0
    if inferred and step is not None and step >= COARSE_S and of.sessions.count >= FEW_SESSIONS:
        yield (
            "coarse_times",
            f"All sessions start at multiples of {step:,g} seconds. Such times are too coarse to infer skips from: "
            "add a skip column, or prepare the log with --no-skips.",
        )


def _lines(of: Description) -> Iterator[tuple[str, str]]:
    if 100 * of.malformed_lines > MALFORMED_PERCENT * (of.plays + of.malformed_lines):
        yield (
            "malformed_lines",
            f"{of.malformed_lines:,} lines could not be read and are missing from the middle of sessions. "
            "`segue prepare` shows the first of them.",
        )
