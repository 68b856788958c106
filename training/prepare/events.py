"""Logs of kind `events`: which column is what, by its name, by another known name or by the option `columns`.

Skips come from the first of these that a line has: a flag, an end reason, the played part of the track
(`skip_below_ratio_pct`), the played duration (`skip_below_s`). All other skips are inferred from time.
"""

import re
import shlex
from typing import Final

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.formats import (
    DURATION,
    EARLIEST_MS,
    END_REASON,
    FLAG,
    Fields,
    LogFormat,
    LogLines,
    Rule,
    counted_values,
    filtered_lines,
    lines_of,
    missing,
    named_columns,
    outcome_of,
)
from training.prepare.options import PrepareOptions, Role
from training.prepare.tables import LogTable
from training.prepare.values import Fault

# Other names of columns in lower case without punctuation: trackId, Track ID and track-id are trackid.
KNOWN_NAMES: Final[dict[Role, tuple[str, ...]]] = {
    "user_id": ("userid", "user", "uid", "username", "listenerid", "listener", "accountid", "memberid", "customerid"),
    "session_id": ("sessionid", "session", "visitid"),
    "position": ("position", "sessionposition", "positioninsession"),
    "timestamp": ("timestamp", "playedat", "listenedat", "ts", "createdat", "startedat", "starttime", "datetime"),
    "track_id": (
        *("trackid", "itemid", "songid", "mediaid", "recordingid", "trackuri", "spotifytrackuri", "item", "song"),
        "media",
    ),
    "skipped": ("skipped", "isskipped", "wasskipped", "skip", "isskip"),
    "played": (
        *("played", "isplayed", "islistened", "listened", "completed", "iscompleted", "finished", "isfinished"),
        *("notskipped", "isnotskipped"),
    ),
    "end_reason": ("endreason", "reasonend", "endreasontype"),
    "ms_played": ("msplayed", "playedms", "playdurationms", "listenedms", "playdurationmilliseconds"),
    "duration_ms": ("durationms", "trackdurationms", "tracklengthms", "mediadurationinmilliseconds"),
    "title": ("title", "trackname", "songname", "tracktitle", "songtitle"),
    "artist": ("artist", "artistname"),
    "written_at": ("writtenat",),
}

_NAMES_OF_TRACKS: Final = ("title", "artist")  # these may be ids of tracks as well
_SPOTIFY: Final = {"ts", "ms_played", "spotify_track_uri"}

_SKIP_REASONS: Final = ("fwdbtn", "skip", "skipped", "next", "forward", "track_skipped_forwards")
_PLAYED_REASONS: Final = ("trackdone", "done", "completed", "complete", "finished", "ended", "natural_end_of_track")


def read_events(plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file of a log of kind `events`. Raises BadLog."""
    return _Events(LogTable.open(plain, fields=named_columns(options)), options).lines()


def columns_of(table: LogTable, options: PrepareOptions) -> dict[Role, str]:
    """The column of each role. Raises BadLog if `columns` names one that is not there, or if several fit."""
    found = _named_columns(table, options)
    taken = set(found.values())
    # A dot in a name of JSON separates the names of nested objects.
    signs = r"[^\w\x00-\x1f]|_" if table.plain.content in ("text", "parquet") else r"[^\w.\x00-\x1f]|_"
    plain_names: dict[str, list[str]] = {}
    for name in table.schema:
        if name not in taken:
            plain_names.setdefault(re.sub(signs, "", name), []).append(name)
    for role, names in KNOWN_NAMES.items():
        if role in found:
            continue
        if role in table.schema and role not in taken:
            found[role] = role
            continue
        candidates = [column for name in names for column in plain_names.get(name, ())]
        if len(candidates) > 1:
            raise BadLog(
                table.expected(
                    f"one {role}, found {' and '.join(map(table.as_written, candidates))}: --columns {role}=COLUMN"
                )
            )
        if candidates:
            found[role] = candidates[0]
    return found


def _named_columns(table: LogTable, options: PrepareOptions) -> dict[Role, str]:
    """The columns that the option `columns` names. Raises BadLog."""
    found: dict[Role, str] = {}
    for role, column in options.columns.items():
        name = column.strip().lower()
        if name not in table.schema:
            raise table.expected_column(column.strip(), f"--columns {role}={column.strip()}")
        twice = [other for other, known in found.items() if known == name and not {role, other} & set(_NAMES_OF_TRACKS)]
        if twice:
            raise BadLog(f"{table.name}: --columns names {column.strip()} for {twice[0]} and {role}: name it for one")
        found[role] = name
    return found


class _Events:
    """The meaning of the columns of one file."""

    def __init__(self, table: LogTable, options: PrepareOptions) -> None:
        self.table = table
        self.options = options
        self.found = columns_of(table, options)
        self.faults: list[Fault] = []
        self.checks: list[Fault] = []
        self.sessions = "session_id" in self.found
        self.by_position = self.sessions and "position" in self.found
        self.used: dict[str, str] = {}

    def lines(self) -> LogLines:
        self._require_no_export()
        self._require_columns()
        owner, track = self._owner(), self._value("track_id")
        self.checks.append(missing("track", self.found["track_id"], "an id"))
        position = None
        if self.by_position:
            position = self._value("position")
            self.checks.append(missing("position", self.found["position"], "a whole number"))
        skipped, evidence, played = self._outcome()
        at, end = self._times(played, has_outcomes=skipped is not None)
        self._require_outcomes(has_outcomes=skipped is not None, has_times=at is not None)
        fields = Fields(
            owner=owner,
            track=track,
            at=at,
            end=end,
            position=position,
            skipped=skipped,
            evidence=evidence,
            title=self._text("title"),
            artist=self._text("artist"),
            written_at=self._written_at(),
            faults=self.faults,
            checks=self.checks,
            ignored=filtered_lines(self.table, self.options),
            counted=counted_values(self.table, self.options),
            columns=self.used,
            also_used=[name.lower() for name in named_columns(self.options)],
            notes=self._notes(),
        )
        return lines_of(
            self.table, fields, LogFormat(self.sessions, self.by_position, by_end=self.options.timestamp_is == "end")
        )

    def _require_no_export(self) -> None:
        is_json = self.table.plain.content in ("json", "json_lines")
        if is_json and self.table.schema.keys() >= _SPOTIFY and not self.options.columns:
            raise BadLog(
                f"{self.table.name} is Spotify's extended streaming history: read it with `segue prepare spotify`"
            )

    def _require_columns(self) -> None:
        lacking = ["track_id"] if "track_id" not in self.found else []
        if not self.sessions and "user_id" not in self.found:
            lacking.append("user_id or session_id")
        if "timestamp" not in self.found and not self.by_position:
            lacking.append("timestamp, or session_id and position")
        if not lacking:
            return
        roles = [re.split(r"\W", text)[0] for text in lacking]
        for role, name in self.found.items():
            if name in roles:
                raise BadLog(
                    f"{self.table.name}: --columns {role}={name} leaves no column for {name}: name another one with "
                    f"--columns {name}=COLUMN"
                )
        options = dict.fromkeys(roles, "COLUMN")
        where = ""
        if "timestamp" in options:
            where = "no column has a known name for a time or a position in a session; "
            free = [name for name in self.table.like_times() if name not in self.found.values()]
            times = [self.table.as_written(name) for name in free]
            if times:
                where = f"no column has a known name for a time, but these look like times: {', '.join(times)}; "
                options["timestamp"] = times[0]
        option = ",".join(f"{role}={column}" for role, column in options.items())
        raise BadLog(
            self.table.expected(f"{'; '.join(lacking)}: {where}name columns with --columns {shlex.quote(option)}")
        )

    def _value(self, role: Role) -> pl.Expr:
        name = self.found[role]
        read = {"position": self.table.whole_number, "ms_played": self.table.milliseconds}
        read["duration_ms"] = self.table.milliseconds
        value = read.get(role, self.table.id)(name)
        self.faults.extend(value.faults)
        self.used[role] = name
        return value.value

    def _text(self, role: Role) -> pl.Expr | None:
        if role not in self.found:
            return None
        self.used[role] = self.found[role]
        return self.table.text(self.found[role]).value

    def _owner(self) -> pl.Expr:
        if not self.sessions:
            owner = self._value("user_id")
            self.checks.append(missing("owner", self.found["user_id"], "an id"))
            return owner
        session = self._value("session_id")
        self.checks.append(missing("owner", self.found["session_id"], "an id"))
        if "user_id" not in self.found:
            return session
        # Ids of sessions are often unique for a listener only. A listener without an id is one as well.
        user = self._value("user_id").fill_null("")
        return pl.concat_str(session, user, separator="\t")

    def _outcome(self) -> tuple[pl.Expr | None, pl.Expr | None, pl.Expr | None]:
        """Whether plays were skipped, what says so, and the played duration in ms, which is negative nowhere."""
        rules: list[Rule] = []
        flag = self._flag()
        if flag is not None:
            rules += [(flag, True, FLAG), (~flag, False, FLAG)]
        if "end_reason" in self.found and not self.options.no_skips:
            reason = self._text("end_reason")
            assert reason is not None
            word = reason.str.strip_chars().str.to_lowercase()
            rules += [(word.is_in(_SKIP_REASONS), True, END_REASON), (word.is_in(_PLAYED_REASONS), False, END_REASON)]
        played = self._duration("ms_played") if "ms_played" in self.found else None
        rules += self._duration_rules(played)
        if not rules:
            return None, None, played
        skipped, evidence = outcome_of(rules)
        return skipped, evidence, played

    def _flag(self) -> pl.Expr | None:
        role: Role = "skipped" if "skipped" in self.found else "played"
        if role not in self.found:
            return None
        name = self.found[role]
        if self.options.no_skips:
            raise BadLog(
                f"{self.table.name} has the column {name}, which says what was skipped: omit --no-skips, which is for "
                "logs that do not"
            )
        value = self.table.parse_bool(name, inverted=role == "played")
        self.faults.extend(value.faults)
        self.used[role] = name
        return value.value

    def _duration_rules(self, played: pl.Expr | None) -> list[Rule]:
        rules: list[Rule] = []
        ratio, seconds = self.options.skip_below_ratio_pct, self.options.skip_below_s
        for option, role in (
            *([("--skip-below-ratio", "ms_played"), ("--skip-below-ratio", "duration_ms")] if ratio else ()),
            *([("--skip-below-seconds", "ms_played")] if seconds else ()),
        ):
            if role not in self.found:
                raise BadLog(self.table.expected(f"{role} for {option}: name it with --columns {role}=COLUMN"))
        if ratio is not None and played is not None:
            duration = self._duration("duration_ms")
            heard = pl.when(duration > 0).then(played * 100.0 < ratio * duration)
            rules += [(heard, True, DURATION), (~heard, False, DURATION)]
        if seconds is not None and played is not None:
            rules += [(played < seconds * 1000, True, DURATION), (played >= seconds * 1000, False, DURATION)]
        return rules

    def _duration(self, role: Role) -> pl.Expr:
        value = self._value(role)
        negative = (value < 0).fill_null(value=False)
        self.faults.append(Fault(negative, "is negative", self.found[role], "milliseconds"))
        return value

    def _times(self, played: pl.Expr | None, *, has_outcomes: bool) -> tuple[pl.Expr | None, pl.Expr | None]:
        """The start and the end of plays."""
        ends = self.options.timestamp_is == "end"
        if "timestamp" not in self.found:
            if ends:
                raise BadLog(
                    self.table.expected("a time for --timestamp-is end: name it with --columns timestamp=COLUMN")
                )
            return None, None
        name = self.found["timestamp"]
        if ends and played is None:
            raise BadLog(
                self.table.expected("ms_played for --timestamp-is end: name it with --columns ms_played=COLUMN")
            )
        if name == "ts" and played is not None and "timestamp" not in self.options.columns:
            raise BadLog(
                f"{self.table.name} has the columns ts and {self.found['ms_played']}, as the history of Spotify, whose "
                "ts is the end of a play: add --columns timestamp=ts, and --timestamp-is end if it is the end here"
            )
        ordered_only = self.sessions and (has_outcomes or self.options.no_skips)
        time = self.table.time_ms(
            name, time_format=self.options.time_format, time_zone=self.options.time_zone, plausible=not ordered_only
        )
        self.faults.extend(time.faults)
        self.used["timestamp"] = name
        if ordered_only and not self.options.no_skips:
            dateless = pl.col("skipped").is_null() & (pl.col("at") < EARLIEST_MS)
            self.checks.append(Fault(dateless, "is no plausible time to infer a skip from", name, "times from 1990 on"))
        if ends and played is not None:
            at, end = time.value - played, time.value
            if not self.by_position:
                missing_duration = missing("at", self.found["ms_played"], "milliseconds, for --timestamp-is end")
                self.checks += [missing("end", name, "a time"), missing_duration]
            return at, end
        if not self.by_position:
            self.checks.append(missing("at", name, "a time"))
        return time.value, None if played is None else time.value + played

    def _require_outcomes(self, *, has_outcomes: bool, has_times: bool) -> None:
        """A log needs outcomes, or times from which they can be inferred."""
        if self.options.no_skips:
            return
        if not has_outcomes and not has_times:
            raise BadLog(
                self.table.expected(
                    "skipped, or timestamp to infer skips from: name one with --columns skipped=COLUMN, or count every "
                    "play as played with --no-skips"
                )
            )

    def _written_at(self) -> pl.Expr | None:
        if "written_at" not in self.found:
            return None
        name = self.used["written_at"] = self.found["written_at"]
        if isinstance(self.table.schema[name], pl.Datetime):
            return pl.col(name).dt.epoch("us")
        return self.table.time_ms(name, plausible=False).value * 1000

    def _notes(self) -> list[str]:
        notes = []
        durations = [self.found[role] for role in ("ms_played", "duration_ms") if role in self.found]
        asked = self.options.skip_below_s is not None or self.options.skip_below_ratio_pct is not None
        if durations and not asked and not {"skipped", "played"} & set(self.used):
            were = "was" if len(durations) == 1 else "were"
            notes.append(
                f"{' and '.join(durations)} {were} not used for skips: --skip-below-seconds uses the played duration, "
                "and --skip-below-ratio its share of the duration of the track"
            )
        return notes
