"""The formats of published datasets.

MSSD (Brost et al. 2019, https://arxiv.org/abs/1901.09851), LFM-1K (Celma 2010, https://zenodo.org/records/6090214),
LFM-1b and LFM-2b (Schedl et al. 2016 and 2022, https://doi.org/10.1145/3498366.3505791), Yambda
(https://arxiv.org/abs/2505.22238).
"""

from collections.abc import Callable, Sequence
from typing import Final

import polars as pl

from segue.errors import BadLog
from training.prepare.content import LFM1B_FIELDS, PlainFile
from training.prepare.formats import (
    DURATION,
    EARLIEST_MS,
    HIDDEN_OUTCOMES,
    Fields,
    LogFormat,
    LogLines,
    lines_of,
    missing,
)
from training.prepare.options import LogKind, PrepareOptions
from training.prepare.tables import LogTable
from training.prepare.values import Fault

_LFM1K_FIELDS: Final = ("userid", "timestamp", "artist_mbid", "artist", "track_mbid", "title")

_LFM2B_NAMES: Final = {
    "user": ("user_id", "user", "userid"),
    "track": ("track_id", "track", "trackid"),
    "time": ("timestamp", "time", "datetime", "date", "listened_at"),
    "title": ("track_name", "title"),
    "artist": ("artist_name", "artist"),
}

# The second halves of the sessions of the test set are published without outcomes: the challenge is to predict them.
_MSSD_OUTCOMES: Final = frozenset({"skip_1", "skip_2", "skip_3", "not_skipped"})

_YAMBDA_EVENTS: Final = ("like", "dislike", "unlike", "undislike")


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
    form = LogFormat(sessions_given=True, by_position=True)
    if not table.schema.keys() & _MSSD_OUTCOMES and {"session_id", "session_position"} <= table.schema.keys():
        table.require("track_id_clean")
        hidden = {HIDDEN_OUTCOMES: pl.col("session_id").is_not_null()}
        return lines_of(table, Fields(pl.col("session_id"), pl.col("track_id_clean"), ignored=hidden), form)
    table.require("session_id", "session_position", "track_id_clean", flag)
    position, flags = _whole("session_position"), table.parse_bool(flag)
    at, checks = None, []
    if {"date", "hour_of_day"} <= set(table.schema):
        date = pl.col("date").str.strip_chars()
        # %d-%m-%y first: %Y-%m-%d would parse 15-07-18 as a day in the year 15.
        day = pl.coalesce(date.str.to_date("%d-%m-%y", strict=False), date.str.to_date("%Y-%m-%d", strict=False))
        at = day.cast(pl.Datetime("ms")).dt.epoch("ms") + _whole("hour_of_day") * 3_600_000
        accepted = "2018-07-15 or 15-07-18, and a whole number in hour_of_day"
        checks = [Fault(pl.col("at").is_null(), "is no date with an hour", "date", accepted)]
    counted = {}
    if "session_length" in table.schema:
        counted = {
            "sessions begun": (position == 1).cast(pl.Int64),
            "sessions ended": (position == _whole("session_length")).cast(pl.Int64),
        }
    fields = Fields(
        owner=pl.col("session_id"),
        track=pl.col("track_id_clean"),
        at=at,
        position=position,
        skipped=flags.value,
        checks=(
            missing("owner", "session_id"),
            missing("track", "track_id_clean"),
            Fault(pl.col("position").is_null(), "is no whole number", "session_position", "whole numbers"),
            Fault(pl.col("skipped").is_null(), flags.faults[0].reason, flag, flags.faults[0].accepted),
            *checks,
        ),
        counted=counted,
    )
    return lines_of(table, fields, form)


def _whole(name: str) -> pl.Expr:
    """Whole numbers of a text column, null where a value is missing or none."""
    return pl.col(name).str.strip_chars().cast(pl.Int64, strict=False)


def _lfm2b(plain: PlainFile, options: PrepareOptions) -> LogLines:
    if plain.is_lfm1b:
        table = LogTable.open(plain, quoted=False, names=LFM1B_FIELDS)
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
