"""The histories of services and players that collect scrobbles: plays with a time and, except for Rockbox, no skips."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.delimited import not_utf8
from training.prepare.export_rows import ExportRows, any_given, described, missing, text_of
from training.prepare.formats import DURATION, FLAG, Rule
from training.prepare.json_objects import NOT_A_TEXT, SURROGATE, TEXT
from training.prepare.options import PrepareOptions
from training.prepare.tables import LogTable
from training.prepare.values import Fault

_LASTFM_TIMES: Final = ("uts", "date.uts", "listened_at", "timestamp", "played_at", "date", "utc_time", "time")
_LASTFM_ARTISTS: Final = ("artist", "artist_name", "artist.#text", "artist.name")
_LASTFM_TITLES: Final = ("track", "track_name", "title", "name", "song")

_TIME: Final = re.compile(r"\b[0-9]{1,2} [A-Za-z]{3,9} [0-9]{4}\b|\b[0-9]{4}-[0-9]{2}-[0-9]{2}\b|\b[0-9]{10,13}\b")


def lastfm(table: LogTable, options: PrepareOptions) -> ExportRows:
    """The scrobbles of Last.fm in the forms of several tools. The track that is now playing has no time."""
    found = [
        next((name for name in names if name in table.schema), "")
        for names in (_LASTFM_TIMES, _LASTFM_ARTISTS, _LASTFM_TITLES)
    ]
    if not all(found):
        raise BadLog(
            table.expected("a time (uts or date), artist and track, or artist, album, track and date without a header")
        )
    time, artist, title = found
    at = table.time_ms(time, time_format=options.time_format or None, time_zone=options.time_zone or None)
    artists, titles = text_of(table, artist), text_of(table, title)
    return ExportRows(
        frame=table.frame,
        complete=table.complete,
        track=described(artists, titles),
        title=titles,
        artist=artists,
        at=at.value,
        faults=(*at.faults, *missing(table, artist, title)),
        ignored={"now playing": ~any_given(table, time)},
        notes=("Last.fm keeps plays of more than half a track or 4 minutes, so scrobbles have few skips",),
        columns={"timestamp": time, "artist": artist, "title": title},
    )


def lastfm_table(plain: PlainFile) -> LogTable:
    """The table in a file of scrobbles. Raises BadLog."""
    if plain.content == "json":
        return _lastfm_json(plain)
    if plain.content == "text" and not _has_header(plain):
        return LogTable.open(plain, names=("artist", "album", "track", "date"))
    table = LogTable.open(plain)
    for name in [name for name in table.schema if name.startswith("date#")]:  # the rest is the name of the user
        table.columns = table.columns.rename({name: "date"})
        table.schema["date"] = table.schema.pop(name)
    return table


def _has_header(plain: PlainFile) -> bool:
    """Whether no field of the first line is a time."""
    with plain.path.open("rb") as stream:
        line = stream.readline(1 << 16).decode("utf-8-sig", errors="replace")
    return _TIME.search(line) is None


def _lastfm_json(plain: PlainFile) -> LogTable:
    """The tracks in answers of Last.fm's API and in what tools make of them: pages, lists of pages, lists of tracks."""
    try:
        whole = json.loads(plain.path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise not_utf8(plain) from error
    except (ValueError, RecursionError) as error:
        raise BadLog(f"{plain.name} is no complete JSON: {str(error).splitlines()[0]}") from error
    paths = {
        column: [name.partition(".")[::2] for name in names]
        for column, names in (("date", _LASTFM_TIMES), ("artist", _LASTFM_ARTISTS), ("track", _LASTFM_TITLES))
    }
    columns: dict[str, list[str | None]] = {column: [] for column in paths}
    are_text: list[bool] = []
    for track in _json_tracks(whole):
        found = {column: _json_text(track, names) for column, names in paths.items()}
        are_text.append(not any(text and not text.isascii() and SURROGATE.search(text) for text in found.values()))
        for column, text in found.items():
            columns[column].append(text if are_text[-1] else None)
    schema: dict[str, pl.DataType] = dict.fromkeys(columns, pl.String())
    frame = pl.LazyFrame(columns, schema=schema).with_columns(pl.Series(TEXT, are_text, dtype=pl.Boolean))
    return LogTable(frame, schema, plain, faults=(Fault(~pl.col(TEXT), NOT_A_TEXT, "", ""),))


def _json_text(track: dict[str, Any], paths: Sequence[tuple[str, str]]) -> str | None:
    """The first of these fields with a text or a number."""
    for name, inner in paths:
        value = track.get(name)
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if isinstance(value, str | int | float):
            return str(value)
    return None


def _json_tracks(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The objects in nested lists, and in the lists of pages."""
    if isinstance(value, list) and depth < _MOST_NESTED:
        for inner in value:
            yield from _json_tracks(inner, depth + 1)
    elif isinstance(value, dict):
        lists = [
            value[name] for name in ("scrobbles", "recenttracks", "track") if isinstance(value.get(name), dict | list)
        ]
        if lists and depth < _MOST_NESTED:
            yield from _json_tracks(lists[0], depth + 1)
        else:
            yield value


_MOST_NESTED: Final = 8


_LISTENBRAINZ: Final = "track_metadata.additional_info"


def listenbrainz(table: LogTable, options: PrepareOptions) -> ExportRows:
    """The listens of ListenBrainz. The importer of Spotify's history takes the end of a stream for its time."""
    title, artist = "track_metadata.track_name", "track_metadata.artist_name"
    table.require("listened_at", title, artist)
    at = table.time_ms("listened_at")
    artists, titles = text_of(table, artist), text_of(table, title)
    played = pl.lit(None, dtype=pl.Int64)
    if (name := f"{_LISTENBRAINZ}.ms_played") in table.schema:
        played = table.whole_number(name).value
    imported = (text_of(table, f"{_LISTENBRAINZ}.music_service") == "spotify.com") & (played >= 0)
    rules: list[Rule] = []
    if options.skip_below_s is not None:
        least_ms = options.skip_below_s * 1000
        rules = [(played < least_ms, True, DURATION), (played >= least_ms, False, DURATION)]
    return ExportRows(
        frame=table.frame,
        complete=table.complete,
        track=described(artists, titles),
        title=titles,
        artist=artists,
        at=pl.when(imported).then(at.value - played).otherwise(at.value),
        end=pl.when(imported).then(at.value),
        outcome=rules,
        faults=(*at.faults, *missing(table, "listened_at", title, artist)),
        noted={
            "listens imported from Spotify, whose time is that of their end: they start ms_played earlier": imported
        },
        notes=("ListenBrainz keeps plays of more than half a track or 4 minutes, so listens have few skips",),
        columns={
            "timestamp": "listened_at",
            "artist": artist,
            "title": title,
            "ms_played": f"{_LISTENBRAINZ}.ms_played",
        },
        also_used=(f"{_LISTENBRAINZ}.music_service",),
    )


ROCKBOX_FIELDS: Final = ("artist", "album", "title", "number", "length", "rating", "time", "mbid")


def rockbox(table: LogTable, options: PrepareOptions) -> ExportRows:
    """The .scrobbler.log of Rockbox and other players, whose rating says whether a track was skipped (S)."""
    del options
    table.require("artist", "title", "rating", "time")
    artist, title, rating = (text_of(table, name) for name in ("artist", "title", "rating"))
    at = table.time_ms("time")
    is_header = pl.col("artist").str.starts_with("#") & pl.col("album").is_null()
    return ExportRows(
        frame=table.frame,
        complete=is_header | pl.col("time").is_not_null(),  # version 1.0 has no mbid
        track=described(artist, title),
        title=title,
        artist=artist,
        at=at.value,
        outcome=((rating == "S", True, FLAG), (rating == "L", False, FLAG)),
        faults=(*at.faults, *missing(table, "title", "time")),
        ignored={"header line": is_header},
        columns={"timestamp": "time", "artist": "artist", "title": "title", "skipped": "rating"},
    )
