"""Log formats: the options of `segue prepare`, one parser per format, and the reader of input splits.

A parser maps the columns of its format to common ones. It returns a lazy frame with the columns of LINE_COLUMNS, and
with `problem`, the number in PROBLEMS of the first error of a line (0 for none), and `text`, the line for the report.
The sources of the formats:
MSSD (Brost et al. 2019, https://arxiv.org/abs/1901.09851), LFM-1K (Celma 2010, https://zenodo.org/records/6090214),
LFM-2b (Schedl et al. 2022, https://doi.org/10.1145/3498366.3505791), Yambda (https://arxiv.org/abs/2505.22238).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.options import LogKind, PrepareOptions, SkipFlag
from training.prepare.tables import LogTable

PROBLEMS: Final = (
    "",
    "wrong number of fields",
    "no user or session",
    "no track",
    "unreadable time",
    "unreadable position",
    "unreadable skip flag",
)

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
    "file": pl.UInt32,  # number of the file in the log, null in a log of one file
}

EVIDENCE: Final = ("", "flag", "end reason", "played duration")

_LFM1K_FIELDS: Final = ("user", "time", "artist_mbid", "artist", "track_mbid", "title")

_LFM2B_NAMES: Final = {
    "user": ("user_id", "user", "userid"),
    "track": ("track_id", "track", "trackid"),
    "time": ("timestamp", "time", "datetime", "date", "listened_at"),
    "title": ("track_name", "title"),
    "artist": ("artist_name", "artist"),
}


class LogFormat(NamedTuple):
    """Facts that are true for all lines of a log."""

    sessions_given: bool  # owners are sessions
    by_position: bool  # plays have positions in their session
    by_end: bool = False  # plays are in the order of their ends: their starts are less exact


@dataclass(frozen=True)
class LogLines:
    """The lines of one file."""

    frame: pl.LazyFrame  # LINE_COLUMNS, problem (uint8), text (string)
    form: LogFormat


@dataclass(frozen=True)
class _Fields:
    """Expressions for the columns of a line, over the columns of a file."""

    owner: pl.Expr
    track: pl.Expr
    at: pl.Expr | None = None
    time_given: pl.Expr | None = None  # where false, the time may be missing; None: every line needs a time
    position: pl.Expr | None = None
    skipped: pl.Expr | None = None
    end: pl.Expr | None = None
    evidence: pl.Expr | None = None
    file: pl.Expr | None = None
    title: pl.Expr | None = None
    artist: pl.Expr | None = None
    written_at: pl.Expr | None = None
    complete: pl.Expr | None = None  # the line has the expected number of fields


def read_lines(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file. Raises BadLog."""
    name, parquet = plain.name, plain.content == "parquet"
    if parquet and kind in ("mssd", "lfm1k", "lfm2b"):
        raise BadLog(f"{name} is Parquet, expected text: logs of kind {kind} are published as text")
    if not parquet and kind == "yambda":
        raise BadLog(f"{name} is no Parquet file, expected the listens.parquet of Yambda")
    if kind == "lfm1k":
        return _lfm1k(LogTable.open(plain, quoted=False, names=_LFM1K_FIELDS))
    if kind == "mssd":
        return _mssd(LogTable.open(plain, quoted=False), options.skip_flag)
    if kind == "lfm2b":
        return _lfm2b(LogTable.open(plain, quoted=False))
    table = LogTable.open(plain)
    return _yambda(table, options.played_ratio_pct) if kind == "yambda" else _events(table)


def _lfm1k(table: LogTable) -> LogLines:
    title, artist, mbid = pl.col("title"), pl.col("artist"), pl.col("track_mbid")
    # A field contains no tab, so no two pairs of artist and title share a key.
    described = pl.when(title != "").then(pl.concat_str(artist, title, separator="\t"))
    fields = _Fields(
        owner=pl.col("user"),
        track=pl.when(mbid != "").then(mbid).otherwise(described),
        at=pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms", strict=False).dt.epoch("ms"),
        title=title,
        artist=artist,
        complete=table.complete,
    )
    form = LogFormat(sessions_given=False, by_position=False)
    return LogLines(_lines(table.frame, fields, table.text_line), form)


def _mssd(table: LogTable, skip_flag: SkipFlag) -> LogLines:
    table.require("session_id", "session_position", "track_id_clean", skip_flag)
    at = None
    if {"date", "hour_of_day"} <= set(table.schema):
        date = pl.col("date").str.strip_chars()
        # %d-%m-%y first: %Y-%m-%d would parse 15-07-18 as a day in the year 15.
        day = pl.coalesce(date.str.to_date("%d-%m-%y", strict=False), date.str.to_date("%Y-%m-%d", strict=False))
        hour = table.whole_number("hour_of_day").value
        at = day.cast(pl.Datetime("ms")).dt.epoch("ms") + hour * 3_600_000
    fields = _Fields(
        owner=pl.col("session_id"),
        track=pl.col("track_id_clean"),
        at=at,
        time_given=pl.lit(at is not None),
        position=table.whole_number("session_position").value,
        skipped=table.parse_bool(skip_flag).value,
        complete=table.complete,
    )
    return LogLines(_lines(table.frame, fields, table.text_line), LogFormat(sessions_given=True, by_position=True))


def _lfm2b(table: LogTable) -> LogLines:
    fields = _Fields(
        owner=pl.col(table.one_of(_LFM2B_NAMES["user"])),
        track=pl.col(table.one_of(_LFM2B_NAMES["track"])),
        at=table.time_ms(table.one_of(_LFM2B_NAMES["time"])).value,
        title=_first_text(table, _LFM2B_NAMES["title"]),
        artist=_first_text(table, _LFM2B_NAMES["artist"]),
        complete=table.complete,
    )
    return LogLines(_lines(table.frame, fields, table.text_line), LogFormat(sessions_given=False, by_position=False))


def _yambda(table: LogTable, played_ratio_pct: int) -> LogLines:
    table.require("uid", "item_id", "timestamp", "played_ratio_pct")
    if table.schema["item_id"].is_nested():
        raise BadLog(f"{table.name} has lists in its columns, expected the flat files of Yambda: one row a listen")
    fields = _Fields(
        owner=pl.col("uid").cast(pl.String),
        track=pl.col("item_id").cast(pl.String),
        at=table.time_ms("timestamp", plausible=False).value,
        skipped=pl.col("played_ratio_pct") < played_ratio_pct,
    )
    return LogLines(_lines(table.frame, fields, table.text_line), LogFormat(sessions_given=False, by_position=False))


def _events(table: LogTable) -> LogLines:
    columns = set(table.schema)
    by_position = "position" in columns
    whole = {"track_id", "session_id", "skipped"} <= columns and (by_position or "timestamp" in columns)
    if not whole and not {"track_id", "user_id", "timestamp"} <= columns:
        raise BadLog(
            table.expected("track_id with session_id, skipped and position or timestamp, or with user_id, timestamp")
        )
    has_time = "timestamp" in columns
    owner, track = table.id("session_id" if whole else "user_id").value, table.id("track_id").value
    time = table.time_ms("timestamp", plausible=not whole) if has_time else None
    fields = _Fields(
        owner=owner,
        track=track,
        at=time.value if time else None,
        time_given=(time.faults[0].where if time else pl.lit(value=False)) if whole and by_position else None,
        position=table.whole_number("position").value if whole and by_position else None,
        skipped=table.parse_bool("skipped").value if "skipped" in columns else None,
        title=_first_text(table, ("title",)),
        artist=_first_text(table, ("artist",)),
        written_at=_written_at(table),
        complete=table.complete,
    )
    form = LogFormat(sessions_given=whole, by_position=whole and by_position)
    return LogLines(_lines(table.frame, fields, table.text_line), form)


def _written_at(table: LogTable) -> pl.Expr | None:
    if "written_at" not in table.schema:
        return None
    if isinstance(table.schema["written_at"], pl.Datetime):
        return pl.col("written_at").dt.epoch("us")
    return table.time_ms("written_at", plausible=False).value * 1000


def _lines(frame: pl.LazyFrame, fields: _Fields, text: pl.Expr) -> pl.LazyFrame:
    """The columns of LINE_COLUMNS with `problem` and `text`."""
    columns = {
        name: pl.lit(None, dtype=dtype) if (found := getattr(fields, name)) is None else found.cast(dtype)
        for name, dtype in LINE_COLUMNS.items()
    }
    if fields.skipped is not None:
        columns["evidence"] = pl.when(fields.skipped.is_not_null()).then(pl.lit(1, dtype=pl.UInt8))
    for name in ("title", "artist"):
        columns[name] = pl.when(columns[name] != "").then(columns[name])
    complete = pl.lit(value=True) if fields.complete is None else fields.complete
    time_given = pl.lit(value=True) if fields.time_given is None else fields.time_given
    owner, track = pl.col("owner"), pl.col("track")
    faults = {
        1: ~pl.col("_complete"),
        2: owner.is_null() | (owner == ""),
        3: track.is_null() | (track == ""),
        4: pl.col("_time_given") & pl.col("at").is_null(),
    }
    if fields.position is not None:
        faults[5] = pl.col("position").is_null()
    if fields.skipped is not None:
        faults[6] = pl.col("skipped").is_null()
    first = pl.coalesce(*(pl.when(fault).then(pl.lit(number, dtype=pl.UInt8)) for number, fault in faults.items()))
    return frame.select(**columns, text=text, _complete=complete, _time_given=time_given).select(
        *LINE_COLUMNS, "text", first.fill_null(0).alias("problem")
    )


def _first_text(table: LogTable, names: Sequence[str]) -> pl.Expr | None:
    return next((table.text(name).value for name in names if name in table.schema), None)
