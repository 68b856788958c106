"""The listening histories that services and players give to a person who asks for them.

Each reader maps the columns of one export to those of a log and takes the source's own word for skips. Rows that are no
plays of tracks (podcasts, video, private sessions, other events) are ignored and counted by their reason. An export
belongs to one listener. Addresses, user agents and user names are never read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.formats import LINE_COLUMNS, LogFormat, LogLines
from training.prepare.options import LogKind, PrepareOptions
from training.prepare.tables import LogTable
from training.prepare.values import Fault

PLAYED_S: Final = 30  # a play heard for less is a skip where an export has no other sign of one

Rule = tuple[pl.Expr, bool, int]  # where the rule applies, whether the play was skipped, position in EVIDENCE
FLAG, END_REASON, DURATION = 1, 2, 3


@dataclass(frozen=True)
class ExportRows:
    """What the rows of an export mean, as expressions over the columns of `frame`."""

    frame: pl.LazyFrame
    track: pl.Expr  # the key of the track
    title: pl.Expr
    artist: pl.Expr
    at: pl.Expr  # start of the play, ms since 1970
    end: pl.Expr | None = None
    outcome: Sequence[Rule] = ()  # the first rule that applies counts
    faults: tuple[Fault, ...] = ()
    ignored: dict[str, pl.Expr] = field(default_factory=dict)  # rows that are no plays, by their reason
    notes: tuple[str, ...] = ()
    ordered_by_end: bool = False  # the ends of plays are exact in order, the starts are not


def _spotify(table: LogTable, options: PrepareOptions) -> ExportRows:
    if "endtime" in table.schema:
        raise BadLog(
            f"{table.name} is Spotify's account data, expected the extended streaming history, which says what was "
            "skipped: request that one, or read this one with segue prepare spotify-account"
        )
    table.require("ts", "ms_played", "spotify_track_uri")
    end, played = table.time_ms("ts"), table.whole_number("ms_played")
    uri, reason, flag = _text(table, "spotify_track_uri"), _text(table, "reason_end"), _flag(table, "skipped")
    least_s = options.skip_within_s if options.skip_below_s is None else options.skip_below_s
    rules: list[Rule] = [
        (flag, True, FLAG),
        (reason == "fwdbtn", True, END_REASON),  # some years have a flag of false in every row
        (~flag, False, FLAG),
        (reason == "trackdone", False, END_REASON),
        (played.value >= least_s * 1000, False, DURATION),
    ]
    if options.skip_below_s is not None:  # otherwise a skip is inferred from the time of the next play
        rules.append((played.value < least_s * 1000, True, DURATION))
    ignored = {
        "video": pl.lit("video" in table.name.rpartition("/")[2].lower()),
        "podcast": uri.is_null() & _any_given(table, "spotify_episode_uri", "episode_name", "episode_show_name"),
        "audiobook": uri.is_null() & _any_given(table, "audiobook_uri", "audiobook_title", "audiobook_chapter_uri"),
        "no track URI": uri.is_null(),
    }
    if not options.include_private:
        ignored["private session"] = _flag(table, "incognito_mode")
    return ExportRows(
        frame=table.frame,
        track=uri,
        title=_text(table, "master_metadata_track_name"),
        artist=_text(table, "master_metadata_album_artist_name"),
        at=end.value - played.value,
        end=end.value,
        outcome=rules,
        faults=(*end.faults, *played.faults, *_missing(table, "ts", "ms_played"), _negative(played.value, "ms_played")),
        ignored=ignored,
    )


def _spotify_account(table: LogTable, options: PrepareOptions) -> ExportRows:
    if "ms_played" in table.schema:
        raise BadLog(
            f"{table.name} is the extended streaming history, expected Spotify's account data: "
            "read it with segue prepare spotify"
        )
    table.require("endtime", "artistname", "trackname", "msplayed")
    end = table.time_ms("endtime", time_zone=options.time_zone)
    played = table.whole_number("msplayed")
    artist, title = _text(table, "artistname"), _text(table, "trackname")
    brief = played.value < 1000 * (PLAYED_S if options.skip_below_s is None else options.skip_below_s)
    return ExportRows(
        frame=table.frame,
        track=_described(artist, title),
        title=title,
        artist=artist,
        at=end.value - played.value,
        end=end.value,
        outcome=((brief, True, DURATION), (~brief, False, DURATION)),
        faults=(
            *end.faults,
            *played.faults,
            *_missing(table, "endtime", "msplayed", "trackname"),
            _negative(played.value, "msplayed"),
        ),
        ignored={"unknown track": (title == "Unknown Track") & (artist == "Unknown Artist")},
        notes=(
            "account data has whole minutes and no reasons: skips are plays of less than "
            f"{PLAYED_S if options.skip_below_s is None else options.skip_below_s:g} s, and plays of one minute keep "
            "the order of the file; Spotify's extended streaming history says more",
        ),
        ordered_by_end=True,
    )


_LASTFM_TIMES: Final = ("uts", "date.uts", "listened_at", "timestamp", "played_at", "date", "utc_time", "time")
_LASTFM_ARTISTS: Final = ("artist", "artist_name", "artist.#text", "artist.name")
_LASTFM_TITLES: Final = ("track", "track_name", "title", "name", "song")


def _lastfm(table: LogTable, options: PrepareOptions) -> ExportRows:
    times = (*_LASTFM_TIMES, *(name for name in table.schema if name.startswith("date#")))
    found = [
        next((name for name in names if name in table.schema), "") for names in (times, _LASTFM_ARTISTS, _LASTFM_TITLES)
    ]
    if not all(found):
        raise BadLog(
            table.expected("a time (uts or date), artist and track, or artist, album, track and date without a header")
        )
    time, artist, title = found
    at = table.time_ms(time, time_format=options.time_format, time_zone=options.time_zone)
    artists, titles = _text(table, artist), _text(table, title)
    return ExportRows(
        frame=table.frame,
        track=_described(artists, titles),
        title=titles,
        artist=artists,
        at=at.value,
        faults=(*at.faults, *_missing(table, artist, title)),
        ignored={"now playing": ~_any_given(table, time)},
        notes=("Last.fm keeps plays of more than half a track or 4 minutes, so scrobbles have few skips",),
    )


_LISTENBRAINZ: Final = "track_metadata.additional_info"


def _listenbrainz(table: LogTable, options: PrepareOptions) -> ExportRows:
    title, artist = "track_metadata.track_name", "track_metadata.artist_name"
    table.require("listened_at", title, artist)
    at = table.time_ms("listened_at")
    artists, titles = _text(table, artist), _text(table, title)
    played = pl.lit(None, dtype=pl.Int64)
    if (name := f"{_LISTENBRAINZ}.ms_played") in table.schema:
        played = table.whole_number(name).value
    # The importer of Spotify's history takes the time at which a stream ended.
    imported = (_text(table, f"{_LISTENBRAINZ}.music_service") == "spotify.com") & (played >= 0)
    rules: list[Rule] = []
    if options.skip_below_s is not None:
        least_ms = options.skip_below_s * 1000
        rules = [(played < least_ms, True, DURATION), (played >= least_ms, False, DURATION)]
    return ExportRows(
        frame=table.frame,
        track=_described(artists, titles),
        title=titles,
        artist=artists,
        at=pl.when(imported).then(at.value - played).otherwise(at.value),
        end=pl.when(imported).then(at.value),
        outcome=rules,
        faults=(*at.faults, *_missing(table, "listened_at", title, artist)),
        notes=(
            "listens imported from Spotify carry the time of their end: they start ms_played earlier",
            "ListenBrainz keeps plays of more than half a track or 4 minutes, so listens have few skips",
        ),
    )


_APPLE_TITLES: Final = ("song name", "content name")
_APPLE_ARTISTS: Final = ("artist name", "container artist name")
_APPLE_SKIPS: Final = ("TRACK_SKIPPED_FORWARDS", "TRACK_SKIPPED_BACKWARDS")
_APPLE_PAUSES: Final = ("PLAYBACK_MANUALLY_PAUSED", "PLAYBACK_PAUSED_DUE_TO_INACTIVITY", "PAUSED_ON_TIMEOUT")
_APPLE_PARTS: Final = (*_APPLE_PAUSES, "PLAYBACK_SUSPENDED", "SCRUB_BEGIN", "SCRUB_END")  # the play can go on


def _apple_music(table: LogTable, options: PrepareOptions) -> ExportRows:
    table.require("event type", "end reason type", "event end timestamp", "event start timestamp")
    title = table.one_of(_APPLE_TITLES)
    starts, ends = table.time_ms("event start timestamp"), table.time_ms("event end timestamp")
    played = _number(table, "play duration milliseconds")
    played = pl.when(played >= 0).then(played)
    titles, artists = _text(table, title), _text(table, *_APPLE_ARTISTS)
    event, reason = _text(table, "event type"), _text(table, "end reason type")
    ignored = {
        "PLAY_START event": event == "PLAY_START",
        "LYRIC_DISPLAY event": event == "LYRIC_DISPLAY",
        "other event": event.is_null() | (event != "PLAY_END"),
        "video": _text(table, "media type").str.to_uppercase() == "VIDEO",
        "play without a title": titles.is_null(),
    }
    columns = {
        "track": _described(artists, titles),
        "at": pl.coalesce(starts.value, ends.value - played),
        "end": pl.coalesce(ends.value, starts.value + played),
        "from": _number(table, "start position in milliseconds"),
        "played": played,
        "reason": reason,
        "is_play": ~pl.any_horizontal(one.fill_null(value=False) for one in ignored.values()),
    }
    frame = _joined_parts(table.frame.with_columns(**{_own(name): value for name, value in columns.items()}), options)
    rules: list[Rule] = [
        (pl.col(_own("reason")).is_in(_APPLE_SKIPS), True, END_REASON),
        (pl.col(_own("reason")).is_in(("NATURAL_END_OF_TRACK", *_APPLE_PAUSES)), False, END_REASON),
    ]
    least_s = options.skip_within_s if options.skip_below_s is None else options.skip_below_s
    rules.append((pl.col(_own("played")) >= least_s * 1000, False, DURATION))
    if options.skip_below_s is not None:
        rules.append((pl.col(_own("played")) < least_s * 1000, True, DURATION))
    return ExportRows(
        frame=frame,
        track=pl.col(_own("track")),
        title=titles,
        artist=artists,
        at=pl.col(_own("at")),
        end=pl.col(_own("end")),
        outcome=rules,
        faults=(*starts.faults, *ends.faults),
        ignored={**ignored, "continuation of a paused play": pl.col(_own("continued"))},
    )


def _joined_parts(frame: pl.LazyFrame, options: PrepareOptions) -> pl.LazyFrame:
    """Give the first row of a play that was paused the end, the reason and the duration of the whole play."""
    row, part, before = pl.col(_own("row")), pl.col(_own("part")), pl.col(_own("reason")).shift(1)
    track, at, end, is_play = (pl.col(_own(name)) for name in ("track", "at", "end", "is_play"))
    same = is_play & is_play.shift(1) & (track == track.shift(1))
    goes_on = before.is_in(_APPLE_PARTS) & (pl.col(_own("from")).fill_null(1) > 0)
    soon = at - end.shift(1) <= options.idle_gap_s * 1000
    repeated = (at == at.shift(1)) & (end == end.shift(1))  # a row that was delivered twice
    joined = (same & (repeated | (goes_on & soon))).fill_null(value=False)
    whole = {
        _own("end"): end.last(),
        _own("reason"): pl.col(_own("reason")).last(),
        _own("played"): pl.when(~repeated.fill_null(value=False)).then(pl.col(_own("played"))).sum(),
        _own("first"): at.first(),
    }
    ordered = frame.with_row_index(_own("row")).sort(~is_play, at, end, row, nulls_last=True)
    parts = ordered.with_columns((~joined).cum_sum().alias(_own("part")))
    plays = parts.with_columns(value.over(part).alias(name) for name, value in whole.items())
    return plays.with_columns((at > pl.col(_own("first"))).alias(_own("continued"))).sort(row)


_ROCKBOX: Final = ("artist", "album", "title", "number", "length", "rating", "time", "mbid")


def _rockbox(table: LogTable, options: PrepareOptions) -> ExportRows:
    del options
    artist, title, rating = (_text(table, name) for name in ("artist", "title", "rating"))
    at = table.time_ms("time")
    is_header = pl.col("artist").str.starts_with("#") & pl.col("album").is_null()
    return ExportRows(
        frame=table.frame,
        track=_described(artist, title),
        title=title,
        artist=artist,
        at=at.value,
        outcome=((rating == "S", True, FLAG), (rating == "L", False, FLAG)),
        faults=(*at.faults, *_missing(table, "title", "time")),
        ignored={"header line": is_header},
    )


def _own(name: str) -> str:
    """A column that no export has."""
    return f"\x00{name}"


def _text(table: LogTable, *names: str) -> pl.Expr:
    """The first of these columns that the file has as text, null where it is missing or empty."""
    for name in names:
        if name in table.schema and table.schema[name] != pl.Null:
            text = pl.col(name).cast(pl.String)
            return pl.when(text.str.strip_chars() != "").then(text)
    return pl.lit(None, dtype=pl.String)


def _number(table: LogTable, name: str) -> pl.Expr:
    return table.whole_number(name).value if name in table.schema else pl.lit(None, dtype=pl.Int64)


def _flag(table: LogTable, name: str) -> pl.Expr:
    known = name in table.schema and table.schema[name] != pl.Null
    return table.parse_bool(name).value if known else pl.lit(None, dtype=pl.Boolean)


def _any_given(table: LogTable, *names: str) -> pl.Expr:
    return pl.any_horizontal(_text(table, name).is_not_null() for name in names)


def _described(artist: pl.Expr, title: pl.Expr) -> pl.Expr:
    """The key of a track without an id."""
    return pl.concat_str(artist.fill_null("").str.replace_all("\t", " ", literal=True), title, separator="\t")


def _missing(table: LogTable, *names: str) -> tuple[Fault, ...]:
    """The faults of rows without a value in columns that every play needs."""
    return tuple(
        Fault(~_any_given(table, name), "is missing", name, "a value") for name in names if name in table.schema
    )


def _negative(value: pl.Expr, column: str) -> Fault:
    return Fault((value < 0).fill_null(value=False), "is negative", column, "a whole number of milliseconds")


_FORM: Final = LogFormat(sessions_given=False, by_position=False)
_READERS: Final[dict[LogKind, Callable[[LogTable, PrepareOptions], ExportRows]]] = {
    "spotify": _spotify,
    "spotify-account": _spotify_account,
    "lastfm": _lastfm,
    "listenbrainz": _listenbrainz,
    "apple-music": _apple_music,
    "rockbox": _rockbox,
}


def read_export(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file of an export. Raises BadLog."""
    rows = _READERS[kind](_table(kind, plain), options)
    never = pl.lit(value=False)
    ignored = pl.any_horizontal(never, *(where.fill_null(value=False) for where in rows.ignored.values()))
    faulty = pl.any_horizontal(never, *(fault.where for fault in rows.faults))
    skipped, evidence = _outcome(rows.outcome)
    given = {
        "owner": pl.lit("me"),
        "at": rows.at,
        "end": rows.end,
        "track": rows.track,
        "skipped": skipped,
        "evidence": evidence,
        "title": rows.title,
        "artist": rows.artist,
    }
    columns = {
        name: pl.lit(None, dtype=dtype) if (value := given.get(name)) is None else value.cast(dtype)
        for name, dtype in LINE_COLUMNS.items()
    }
    problem = pl.when(rows.track.is_null()).then(3).when(faulty | rows.at.is_null()).then(4).otherwise(0)
    frame = rows.frame.filter(~ignored).select(**columns, text=pl.lit(""), problem=problem.cast(pl.UInt8))
    return LogLines(frame, _FORM)


def _outcome(rules: Sequence[Rule]) -> tuple[pl.Expr, pl.Expr]:
    """Whether a play was skipped, and what says so. Both are null where no rule applies."""
    known = [(where.fill_null(value=False), skipped, evidence) for where, skipped, evidence in rules]
    skipped = [pl.when(where).then(pl.lit(skip)) for where, skip, _ in known]
    evidence = [pl.when(where).then(pl.lit(code)) for where, _, code in known]
    return pl.coalesce(pl.lit(None, dtype=pl.Boolean), *skipped), pl.coalesce(pl.lit(None, dtype=pl.UInt8), *evidence)


def _table(kind: LogKind, plain: PlainFile) -> LogTable:
    if kind == "rockbox":
        return LogTable.open(plain, quoted=False, names=_ROCKBOX)
    return LogTable.open(plain)
