"""The canonical columns of a log, and the formats of published datasets.

A parser says what the columns of its format mean (`Fields`), and `lines_of` makes the canonical columns of them. Each
line has a `problem`: 0 for a play, the number of its first fault, or, from IGNORED on, the reason why it is no play.
The sources of the formats:
MSSD (Brost et al. 2019, https://arxiv.org/abs/1901.09851), LFM-1K (Celma 2010, https://zenodo.org/records/6090214),
LFM-1b and LFM-2b (Schedl et al. 2016 and 2022, https://doi.org/10.1145/3498366.3505791), Yambda
(https://arxiv.org/abs/2505.22238).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.options import LogKind, PrepareOptions
from training.prepare.tables import LogTable
from training.prepare.values import Fault

LINE_COLUMNS: Final = {
    "owner": pl.String,  # of the user; in a log with sessions, of the session: its id, or its id, tab, id of the user
    "at": pl.Int64,  # start of the play, milliseconds since 1970-01-01 UTC, null where unknown
    "end": pl.Int64,  # end of the play, milliseconds since 1970-01-01 UTC, null where unknown
    "position": pl.Int64,  # of the play in its session, null where unknown
    "track": pl.String,  # the key of the track: its id or, if it has none, artist, tab, title
    "skipped": pl.Boolean,  # null where it must be inferred from time
    "evidence": pl.UInt8,  # position in EVIDENCE of what `skipped` comes from, null where it must be inferred
    "title": pl.String,
    "artist": pl.String,
    "written_at": pl.Int64,  # microseconds since 1970-01-01 UTC; the newest report of a play counts
    "detail": pl.UInt32,  # other values of the line, where two plays of a track can have the same time
    "file": pl.UInt32,  # number of the file in the log, null in a log of one file
}

EVIDENCE: Final = ("", "flag", "end reason", "played duration")
FLAG, END_REASON, DURATION = 1, 2, 3

IGNORED: Final = 128  # problems from here on are reasons to ignore a line
MISSING: Final = "is missing"

Rule = tuple[pl.Expr, bool, int]  # where the rule applies, whether the play was skipped, position in EVIDENCE

_LFM1K_FIELDS: Final = ("userid", "timestamp", "artist_mbid", "artist", "track_mbid", "title")
_LFM1B_FIELDS: Final = ("user_id", "artist_id", "album_id", "track_id", "timestamp")

_LFM2B_NAMES: Final = {
    "user": ("user_id", "user", "userid"),
    "track": ("track_id", "track", "trackid"),
    "time": ("timestamp", "time", "datetime", "date", "listened_at"),
    "title": ("track_name", "title"),
    "artist": ("artist_name", "artist"),
}

EARLIEST_MS: Final = 631_152_000_000  # 1990-01-01
_YAMBDA_EVENTS: Final = ("like", "dislike", "unlike", "undislike")


class LogFormat(NamedTuple):
    """Facts that are true for all lines of a log."""

    sessions_given: bool  # owners are sessions
    by_position: bool  # plays have positions in their session
    by_end: bool = False  # plays are in the order of their ends: their starts are less exact


@dataclass(frozen=True)
class Fields:
    """What the rows of a table mean, as expressions over its columns."""

    owner: pl.Expr
    track: pl.Expr
    at: pl.Expr | None = None
    end: pl.Expr | None = None
    position: pl.Expr | None = None
    skipped: pl.Expr | None = None
    evidence: pl.Expr | None = None  # None: a flag wherever `skipped` is known
    title: pl.Expr | None = None
    artist: pl.Expr | None = None
    written_at: pl.Expr | None = None
    detail: pl.Expr | None = None
    complete: pl.Expr | None = None  # whether a row has all fields; None: as the table says
    faults: Sequence[Fault] = ()
    checks: Sequence[Fault] = ()  # faults that are judged after `faults`, over LINE_COLUMNS
    ignored: dict[str, pl.Expr] = field(default_factory=dict)  # rows that are no plays, by the reason
    counted: dict[str, pl.Expr] = field(default_factory=dict)  # numbers to sum over all rows
    columns: dict[str, str] = field(default_factory=dict)  # the column of each role, for the report
    also_used: Sequence[str] = ()  # columns without a role that were used
    notes: Sequence[str] = ()  # how values were understood, one sentence each


class Problem(NamedTuple):
    """A fault of a line, for messages."""

    reason: str
    column: str = ""  # empty if the line as a whole cannot be read
    accepted: str = ""


@dataclass(frozen=True)
class LogLines:
    """The lines of one file."""

    frame: pl.LazyFrame  # LINE_COLUMNS, problem (uint8), value and note (string), and the names of `counted`
    form: LogFormat
    table: LogTable
    problems: tuple[Problem, ...]  # the meaning of `problem`, from 1 on
    ignored: tuple[str, ...] = ()  # the meaning of `problem`, from IGNORED on
    counted: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    unused_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def missing(line_column: str, column: str, accepted: str = "") -> Fault:
    """The fault of a line without a value in one of LINE_COLUMNS, for `Fields.checks`. `column` is that of the log."""
    value = pl.col(line_column)
    empty = value.is_null() | (value == "") if LINE_COLUMNS[line_column] == pl.String else value.is_null()
    return Fault(empty, MISSING, column, accepted)


def outcome_of(rules: Sequence[Rule]) -> tuple[pl.Expr, pl.Expr]:
    """Whether a play was skipped, and its evidence: what the first rule that applies says. Null where none applies."""
    known = [(where.fill_null(value=False), skipped, evidence) for where, skipped, evidence in rules]
    skipped = [pl.when(where).then(pl.lit(skip)) for where, skip, _ in known]
    evidence = [pl.when(where).then(pl.lit(code, dtype=pl.UInt8)) for where, _, code in known]
    return pl.coalesce(*skipped, pl.lit(None, dtype=pl.Boolean)), pl.coalesce(*evidence, pl.lit(None, dtype=pl.UInt8))


def lines_of(table: LogTable, fields: Fields, form: LogFormat, frame: pl.LazyFrame | None = None) -> LogLines:
    """The canonical columns of a table. `frame` replaces that of the table, if there are more columns."""
    columns = {
        name: pl.lit(None, dtype=dtype) if (found := getattr(fields, name, None)) is None else found.cast(dtype)
        for name, dtype in LINE_COLUMNS.items()
    }
    if fields.skipped is not None and fields.evidence is None:
        columns["evidence"] = pl.when(fields.skipped.is_not_null()).then(pl.lit(FLAG, dtype=pl.UInt8))
    for name in ("title", "artist"):
        columns[name] = pl.when(columns[name] != "").then(columns[name])
    complete = table.complete if fields.complete is None else fields.complete
    incomplete = pl.lit(value=False) if complete is None else ~complete
    whole_line = Fault(incomplete, "wrong number of fields", "", f"{len(table.schema)} fields")
    if table.plain is not None and table.plain.content != "text":
        whole_line = Fault(incomplete, "is no JSON object", "", "")
    faults = (whole_line, *fields.faults, *fields.checks)
    of_table = len(faults) - len(fields.checks)
    where = {f"\x00fault{number}": fault.where for number, fault in enumerate(faults[:of_table])}
    ignored = {
        f"\x00ignored{number}": found.fill_null(value=False) for number, found in enumerate(fields.ignored.values())
    }
    codes = [
        *((pl.col(name), 1 + number) for number, name in enumerate(list(where)[:1])),
        *((pl.col(name), IGNORED + number) for number, name in enumerate(ignored)),
        *((pl.col(name), 2 + number) for number, name in enumerate(list(where)[1:])),
        *((fault.where, 1 + of_table + number) for number, fault in enumerate(fields.checks)),
    ]
    found = pl.coalesce(*(pl.when(at).then(pl.lit(code, dtype=pl.UInt8)) for at, code in codes)).fill_null(0)
    shown = {f"\x00value{number}": _shown(table, fault) for number, fault in enumerate(faults)}
    notes = {f"\x00note{number}": fault.note for number, fault in enumerate(faults) if fault.note is not None}
    rows = (table.frame if frame is None else frame).select(
        **columns, **where, **ignored, **shown, **notes, **fields.counted
    )
    problem = pl.col("problem")
    lines = rows.with_columns(problem=found).select(
        *LINE_COLUMNS,
        "problem",
        *fields.counted,
        value=_chosen(problem, {int(name.removeprefix("\x00value")): name for name in shown}),
        note=_chosen(problem, {int(name.removeprefix("\x00note")): name for name in notes}),
    )
    used = {*fields.columns.values(), *fields.also_used}
    return LogLines(
        frame=lines,
        form=form,
        table=table,
        problems=tuple(Problem(fault.reason, fault.column, fault.accepted) for fault in faults),
        ignored=tuple(fields.ignored),
        counted=tuple(fields.counted),
        columns=fields.columns,
        unused_columns=tuple(name for name in table.schema if fields.columns and name not in used),
        notes=tuple(fields.notes),
    )


def _shown(table: LogTable, fault: Fault) -> pl.Expr:
    """The value at fault as text, for a message."""
    dtype = table.schema.get(fault.column)
    if dtype is None or dtype.is_nested() or dtype == pl.Binary:
        return pl.lit(None, dtype=pl.String)
    return pl.col(fault.column).cast(pl.String)


def _chosen(problem: pl.Expr, names: dict[int, str]) -> pl.Expr:
    return pl.coalesce(
        pl.lit(None, dtype=pl.String), *(pl.when(problem == number + 1).then(name) for number, name in names.items())
    )


def read_published(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file of a published dataset. Raises BadLog."""
    if plain.content != "text" and kind in ("mssd", "lfm1k", "lfm2b"):
        form = "Parquet" if plain.content == "parquet" else "JSON"
        raise BadLog(f"{plain.name} is {form}, expected text: logs of kind {kind} are published as text")
    if plain.content != "parquet" and kind == "yambda":
        raise BadLog(f"{plain.name} is no Parquet file, expected the listens.parquet of Yambda")
    return _READERS[kind](plain, options)


def _lfm1k(plain: PlainFile, options: PrepareOptions) -> LogLines:
    del options
    table = LogTable.open(plain, quoted=False, names=_LFM1K_FIELDS)
    title, artist, mbid = pl.col("title"), pl.col("artist"), pl.col("track_mbid")
    # A field contains no tab, so no two pairs of artist and title share a key.
    described = pl.when(title != "").then(pl.concat_str(artist, title, separator="\t"))
    accepted = "times such as 2009-05-04T23:08:57Z, from 1990 on"
    fields = Fields(
        owner=pl.col("userid"),
        track=pl.when(mbid != "").then(mbid).otherwise(described),
        at=pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms", strict=False).dt.epoch("ms"),
        title=title,
        artist=artist,
        checks=(
            missing("owner", "userid"),
            missing("track", "title", "an artist and a title, or a MusicBrainz id"),
            Fault(pl.col("at").is_null(), "is no time", "timestamp", accepted),
            Fault(pl.col("at") < EARLIEST_MS, "is no plausible time", "timestamp", accepted),
        ),
    )
    return lines_of(table, fields, LogFormat(sessions_given=False, by_position=False))


def _mssd(plain: PlainFile, options: PrepareOptions) -> LogLines:
    table = LogTable.open(plain, quoted=False)
    flag = options.skip_flag
    if flag not in table.schema and {"session_id", "session_position"} <= set(table.schema):
        raise BadLog(
            f"{table.name} has no column {flag}: it is the second half of sessions without their outcomes "
            "(log_input), expected the logs of training_set"
        )
    table.require("session_id", "session_position", "track_id_clean", flag)
    at, has_time = None, {"date", "hour_of_day"} <= set(table.schema)
    position, skipped = table.whole_number("session_position"), table.parse_bool(flag)
    faults = [*position.faults, *skipped.faults]
    checks = [
        missing("owner", "session_id"),
        missing("track", "track_id_clean"),
        missing("position", "session_position"),
        missing("skipped", flag),
    ]
    if has_time:
        date = pl.col("date").str.strip_chars()
        # %d-%m-%y first: %Y-%m-%d would parse 15-07-18 as a day in the year 15.
        day = pl.coalesce(date.str.to_date("%d-%m-%y", strict=False), date.str.to_date("%Y-%m-%d", strict=False))
        hour = table.whole_number("hour_of_day")
        at = day.cast(pl.Datetime("ms")).dt.epoch("ms") + hour.value * 3_600_000
        faults += hour.faults
        checks.append(Fault(pl.col("at").is_null(), "is no date", "date", "dates such as 2018-07-15 or 15-07-18"))
    counted = {}
    if "session_length" in table.schema:
        length = table.whole_number("session_length").value
        first = position.value == 1
        counted = {
            "sessions begun": first.cast(pl.Int64),
            "sessions ended": (position.value == length).cast(pl.Int64),
            "plays of sessions": pl.when(first).then(length),
        }
    fields = Fields(
        owner=pl.col("session_id"),
        track=pl.col("track_id_clean"),
        at=at,
        position=position.value,
        skipped=skipped.value,
        faults=faults,
        checks=checks,
        counted=counted,
    )
    return lines_of(table, fields, LogFormat(sessions_given=True, by_position=True))


def _lfm2b(plain: PlainFile, options: PrepareOptions) -> LogLines:
    if _is_lfm1b(plain):
        table = LogTable.open(plain, quoted=False, names=_LFM1B_FIELDS)
    else:
        table = LogTable.open(plain, quoted=False)
    user, track, time = (table.one_of(_LFM2B_NAMES[role]) for role in ("user", "track", "time"))
    owner_of, track_of = table.id(user), table.id(track)
    at = table.time_ms(time, time_format=options.time_format)
    fields = Fields(
        owner=owner_of.value,
        track=track_of.value,
        at=at.value,
        title=_first_text(table, _LFM2B_NAMES["title"]),
        artist=_first_text(table, _LFM2B_NAMES["artist"]),
        faults=(*owner_of.faults, *track_of.faults, *at.faults),
        checks=(missing("owner", user), missing("track", track), missing("at", time)),
    )
    return lines_of(table, fields, LogFormat(sessions_given=False, by_position=False))


def _is_lfm1b(plain: PlainFile) -> bool:
    """Whether a text file has no header and its first line is a listening event of LFM-1b."""
    with plain.path.open("rb") as stream:
        fields = stream.readline(1 << 12).rstrip(b"\r\n").split(b"\t")
    return len(fields) == len(_LFM1B_FIELDS) and all(one.isdigit() for one in fields)


def _yambda(plain: PlainFile, options: PrepareOptions) -> LogLines:
    table = LogTable.open(plain)
    if "item_id" in table.schema and table.schema["item_id"].is_nested():
        raise BadLog(f"{table.name} has lists in its columns, expected the flat files of Yambda: one row a listen")
    if "played_ratio_pct" not in table.schema and {"uid", "item_id", "timestamp"} <= set(table.schema):
        raise BadLog(
            f"{table.name} has no column played_ratio_pct: it holds likes or other events, expected the "
            "listens.parquet or multi_event.parquet of Yambda"
        )
    table.require("uid", "item_id", "timestamp", "played_ratio_pct")
    owner, track = table.id("uid"), table.id("item_id")
    at = table.time_ms("timestamp", plausible=False)  # seconds since an unknown day
    ignored = {}
    if "event_type" in table.schema:
        event = pl.col("event_type").cast(pl.String)
        ignored = {f"event {name}": event == name for name in _YAMBDA_EVENTS}
        ignored["other event"] = event != "listen"
    ratio = pl.col("played_ratio_pct")
    fields = Fields(
        owner=owner.value,
        track=track.value,
        at=at.value,
        skipped=ratio < options.played_ratio_pct,
        evidence=pl.when(ratio.is_not_null()).then(pl.lit(DURATION, dtype=pl.UInt8)),
        detail=_yambda_detail(table),
        faults=(*owner.faults, *track.faults, *at.faults),
        checks=(
            missing("owner", "uid"),
            missing("track", "item_id"),
            missing("at", "timestamp"),
            missing("skipped", "played_ratio_pct"),
        ),
        ignored=ignored,
    )
    return lines_of(table, fields, LogFormat(sessions_given=False, by_position=False))


def _yambda_detail(table: LogTable) -> pl.Expr:
    """The other columns as one number: times are in steps of 5 s, so two plays of a track can have the same time."""
    sizes = {"is_organic": 1 << 1, "played_ratio_pct": 1 << 15, "track_length_seconds": 1 << 16}
    detail: pl.Expr = pl.lit(0, dtype=pl.Int64)
    for name, size in sizes.items():
        if name in table.schema and table.schema[name].is_numeric():
            value = pl.col(name).cast(pl.Int64, strict=False).fill_null(0).clip(0, size - 1)
            detail = detail * size + value
    return detail


def _first_text(table: LogTable, names: Sequence[str]) -> pl.Expr | None:
    return next((table.text(name).value for name in names if name in table.schema), None)


_READERS: Final[dict[LogKind, Callable[[PlainFile, PrepareOptions], LogLines]]] = {
    "mssd": _mssd,
    "lfm1k": _lfm1k,
    "lfm2b": _lfm2b,
    "yambda": _yambda,
}
