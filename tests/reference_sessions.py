"""A second implementation of `segue prepare`, in plain Python, one line after another: what the engines must give.

It shares no code with training/prepare and uses neither Polars nor NumPy. Parquet is given as rows. It reads the good
lines of a log: a line that it cannot read is left out.

The rules:

1. Reports of one play: the same owner, position and track, or the same owner, start and track. A report with an
   outcome counts before one without, then the newest `written_at`, then the last line, in the place of the first. At
   one position with several tracks, the last line counts. Yambda's lines are one play if they are equal in every
   column, Spotify's if the end, the track and the duration are equal.
2. Sessions: given ones are kept. Otherwise a play starts a session if it starts more than `idle_gap` seconds after the
   end of the play before, or after its start if the end is unknown.
3. Skips: the log's own flag, then the reason of the end, then the played duration, then time: the next play of the
   session starts from `skip_after` to `skip_within` seconds later. Times in steps longer than `skip_within` say
   nothing.
4. Plays of rare tracks are dropped, sessions cut into pieces, and short pieces dropped.
"""

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from tests.reference_logs import Content, Play, read_log

FEWEST_TIMES: Final = 5  # different times, from which their steps are told
_SECONDS: Final = {
    "--idle-gap": "idle_gap",
    "--skip-within": "skip_within",
    "--skip-after": "skip_after",
    "--merge-within": "merge_within",
    "--skip-below-seconds": "skip_below",
    "--skip-below-ratio": "skip_below_pct",
}
_NUMBERS: Final = {
    "--min-session-plays": "least",
    "--max-session-plays": "most",
    "--min-track-plays": "track_plays",
    "--played-ratio": "played_ratio",
}
_TEXTS: Final = {
    "--time-format": "time_format",
    "--time-zone": "time_zone",
    "--timestamp-is": "timestamp_is",
    "--encoding": "encoding",
    "--skip-flag": "skip_flag",
}


@dataclass(frozen=True)
class Options:
    """The options of the command that the reference follows. Durations are in seconds."""

    idle_gap: float = 1200
    skip_within: float = 30
    skip_after: float = 0
    merge_within: float = 0
    skip_below: float = 0
    skip_below_pct: float = 0
    least: int = 5
    most: int = 20
    track_plays: int = 0
    played_ratio: int = 50
    time_format: str = ""
    time_zone: str = "UTC"
    timestamp_is: str = "start"
    encoding: str = "utf-8"
    skip_flag: str = "skip_2"
    no_skips: bool = False
    include_private: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Sequence[tuple[str, str]] = ()
    where_not: Sequence[tuple[str, str]] = ()

    @classmethod
    def parse(cls, text: str, least: int | None = None) -> "Options":
        """The options from a command line, with a minimum of plays of a session."""
        given: dict[str, Any] = {"least": least or 5, "columns": {}}
        words = iter(shlex.split(text))
        for word in words:
            if word in {"--no-skips", "--include-private"}:
                given[word[2:].replace("-", "_")] = True
            elif word in {"--where", "--where-not"}:
                column, _, value = next(words).partition("=")
                given.setdefault(word[2:].replace("-", "_"), []).append((column.lower(), value))
            elif word == "--columns":
                given["columns"] |= dict(part.split("=", 1) for part in next(words).split(","))
            elif word in _SECONDS:
                given[_SECONDS[word]] = float(next(words))
            elif word in _NUMBERS:
                given[_NUMBERS[word]] = int(next(words))
            elif word in _TEXTS:
                given[_TEXTS[word]] = next(words)
            elif word not in {"--all-sessions"}:
                assert word == "--max-malformed", word
                next(words)
        return cls(**given)


@dataclass(frozen=True)
class Session:
    """A session of the dataset. `started_at` is in ms since 1970, or None."""

    owner: tuple[str, ...]
    started_at: int | None
    plays: tuple[tuple[str, bool], ...]  # tracks, and whether they were skipped
    last_known: bool


def reference_sessions(kind: str, files: Mapping[str, Content], options: Options) -> list[Session]:
    """The sessions of the dataset in their order."""
    return sessions_of(read_log(kind, files, options), options)


def sessions_of(plays: Sequence[Play], options: Options) -> list[Session]:
    """The sessions of plays, given in the order of files and lines."""
    coarse = _coarse(plays, options)
    owners: dict[tuple[str, ...], list[Play]] = defaultdict(list)
    for play in plays:
        owners[play.owner].append(play)
    whole: list[list[Play]] = []
    for owner in sorted(owners):
        ordered = _in_order(_merged(owners[owner], options))
        whole += [_judged(session, options, coarse=coarse) for session in _cut(ordered, options)]
    frequent = Counter(play.track for session in whole for play in session)
    whole = [[play for play in session if frequent[play.track] >= options.track_plays] for session in whole]
    return [
        _session(piece)
        for session in whole
        for start in range(0, len(session), options.most)
        if len(piece := session[start : start + options.most]) >= options.least
    ]


def _session(plays: Sequence[Play]) -> Session:
    outcomes = tuple((play.track, bool(play.skipped)) for play in plays)
    started = plays[0].start if plays[0].dated else None
    return Session(plays[0].owner, started, outcomes, plays[-1].skipped is not None)


def _coarse(plays: Iterable[Play], options: Options) -> bool:
    """Whether the times of the log have steps longer than the rule of skips looks at. Few times say nothing."""
    times = {play.written_time for play in plays if play.written_time is not None}
    return len(times) >= FEWEST_TIMES and math.gcd(*times) > options.skip_within * 1000


def _merged(plays: Sequence[Play], options: Options) -> list[Play]:
    """One of the reports of each play: the newest, of those the last, in the place of the first."""
    newest: dict[Any, Play] = {}
    for play in plays:
        if play.position is not None and play.given:
            place: Any = play.position
        else:
            place = (play.start, play.track, play.other)
        known = newest.get(place)
        if known is None:
            newest[place] = play
        elif (play.skipped is not None, play.written_at or 0) >= (known.skipped is not None, known.written_at or 0):
            newest[place] = replace(play, file=known.file, line=known.line)
    if not options.merge_within:
        return list(newest.values())
    kept: list[Play] = []
    last: dict[str, int] = {}
    for play in _in_order(newest.values()):
        assert play.start is not None
        if play.track not in last or play.start - last[play.track] > options.merge_within * 1000:
            kept.append(play)
        last[play.track] = play.start
    return kept


def _in_order(plays: Iterable[Play]) -> list[Play]:
    """The plays of an owner in order: by position, or by start, end, file and line."""
    some = sorted(plays, key=lambda play: (play.file, play.line))
    if all(play.position is not None and play.given for play in some):
        return sorted(some, key=lambda play: play.position or 0)
    falling = {number: _falls([play for play in some if play.file == number]) for number in {one.file for one in some}}

    def place(play: Play) -> tuple[int, int, int, int]:
        assert play.start is not None
        return (
            play.start if play.order is None else play.order,
            play.rank,
            play.file,
            -play.line if falling[play.file] else play.line,
        )

    return sorted(some, key=place)


def _falls(plays: Sequence[Play]) -> bool:
    """Whether the times of lines in their order fall more often than they rise."""
    steps = [_time(later) - _time(earlier) for earlier, later in pairwise(plays)]
    return sum(step < 0 for step in steps) > sum(step > 0 for step in steps)


def _time(play: Play) -> int:
    assert play.start is not None
    return play.start if play.order is None else play.order


def _cut(plays: Sequence[Play], options: Options) -> Iterator[list[Play]]:
    """The sessions of an owner's plays in order."""
    if plays[0].given:
        yield list(plays)
        return
    session = [plays[0]]
    for earlier, later in pairwise(plays):
        assert earlier.start is not None
        assert later.start is not None
        quiet_since = earlier.start if earlier.end is None else earlier.end
        if later.start - quiet_since > options.idle_gap * 1000:
            yield session
            session = []
        session.append(later)
    yield session


def _judged(plays: Sequence[Play], options: Options, *, coarse: bool) -> list[Play]:
    """The plays of a session with their outcomes; None is unknown, and counts as played."""
    judged = []
    for play, following in zip(plays, [*plays[1:], None], strict=True):
        skipped = play.skipped
        timed = following is not None and following.start is not None and play.start is not None and not coarse
        if skipped is None and timed and not options.no_skips:
            assert following is not None
            assert following.start is not None
            assert play.start is not None
            gap = following.start - play.start
            skipped = options.skip_after * 1000 <= gap <= options.skip_within * 1000
        judged.append(replace(play, skipped=skipped))
    return judged
