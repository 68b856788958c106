"""The histories of streaming services, which say how long a track was played and why it ended.

Spotify ends a play at `ts`, so it starts `ms_played` earlier. Its extended history says what was skipped: `skipped` is
true, or `reason_end` is fwdbtn, since some years have a flag of false in every row. A play of which neither says enough
counts as played if it was not brief; otherwise its outcome is inferred from the start of the next play. Sources: the
description that comes with a download, and https://support.spotify.com/article/understanding-my-data/.
"""

from typing import Final

import polars as pl

from segue.errors import BadLog
from training.prepare.export_rows import (
    PLAYED_S,
    ExportRows,
    any_given,
    described,
    flag_of,
    missing,
    negative,
    number_of,
    text_of,
)
from training.prepare.formats import DURATION, END_REASON, FLAG, Rule
from training.prepare.options import PrepareOptions
from training.prepare.tables import LogTable

_EPISODE: Final = ("spotify_episode_uri", "episode_name", "episode_show_name")
_AUDIOBOOK: Final = ("audiobook_uri", "audiobook_title", "audiobook_chapter_uri", "audiobook_chapter_title")


def spotify(table: LogTable, options: PrepareOptions) -> ExportRows:
    """The extended streaming history of Spotify."""
    if "endtime" in table.schema:
        raise BadLog(
            f"{table.name} is Spotify's account data, expected the extended streaming history, which says what was "
            "skipped: request that one, or read this one with segue prepare spotify-account"
        )
    table.require("ts", "ms_played", "spotify_track_uri")
    end, played = table.time_ms("ts"), table.whole_number("ms_played")
    uri, reason, flag = text_of(table, "spotify_track_uri"), text_of(table, "reason_end"), flag_of(table, "skipped")
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
        "podcast": uri.is_null() & any_given(table, *_EPISODE),
        "audiobook": uri.is_null() & any_given(table, *_AUDIOBOOK),
        "no track URI": uri.is_null(),
    }
    if not options.include_private:
        ignored["private session"] = flag_of(table, "incognito_mode")
    return ExportRows(
        frame=table.frame,
        complete=table.complete,
        track=uri,
        title=text_of(table, "master_metadata_track_name"),
        artist=text_of(table, "master_metadata_album_artist_name"),
        at=end.value - played.value,
        end=end.value,
        outcome=rules,
        faults=(*end.faults, *played.faults, *missing(table, "ts", "ms_played"), negative(played.value, "ms_played")),
        ignored=ignored,
        columns={
            "timestamp": "ts",
            "ms_played": "ms_played",
            "track_id": "spotify_track_uri",
            "title": "master_metadata_track_name",
            "artist": "master_metadata_album_artist_name",
            "skipped": "skipped",
            "end_reason": "reason_end",
        },
        also_used=("incognito_mode", *_EPISODE, *_AUDIOBOOK),
    )


def spotify_account(table: LogTable, options: PrepareOptions) -> ExportRows:
    """The short history in the account data of Spotify: ends in whole minutes, and no reasons."""
    if "ms_played" in table.schema:
        raise BadLog(
            f"{table.name} is the extended streaming history, expected Spotify's account data: "
            "read it with segue prepare spotify"
        )
    table.require("endtime", "artistname", "trackname", "msplayed")
    end = table.time_ms("endtime", time_zone=options.time_zone or None)
    played = table.whole_number("msplayed")
    artist, title = text_of(table, "artistname"), text_of(table, "trackname")
    brief = played.value < 1000 * (PLAYED_S if options.skip_below_s is None else options.skip_below_s)
    return ExportRows(
        frame=table.frame,
        complete=table.complete,
        track=described(artist, title),
        title=title,
        artist=artist,
        at=end.value - played.value,
        end=end.value,
        outcome=((brief, True, DURATION), (~brief, False, DURATION)),
        faults=(
            *end.faults,
            *played.faults,
            *missing(table, "endtime", "msplayed", "trackname"),
            negative(played.value, "msplayed"),
        ),
        ignored={"unknown track": (title == "Unknown Track") & (artist == "Unknown Artist")},
        notes=(
            "account data has whole minutes and no reasons: skips are plays of less than "
            f"{PLAYED_S if options.skip_below_s is None else options.skip_below_s:g} s, and plays of one minute keep "
            "the order of the file; Spotify's extended streaming history says more",
        ),
        ordered_by_end=True,
        columns={"timestamp": "endtime", "ms_played": "msplayed", "artist": "artistname", "title": "trackname"},
    )


_APPLE_TITLES: Final = ("song name", "content name")
_APPLE_ARTISTS: Final = ("artist name", "container artist name")
_APPLE_SKIPS: Final = ("TRACK_SKIPPED_FORWARDS", "TRACK_SKIPPED_BACKWARDS")
_APPLE_PAUSES: Final = ("PLAYBACK_MANUALLY_PAUSED", "PLAYBACK_PAUSED_DUE_TO_INACTIVITY", "PAUSED_ON_TIMEOUT")
_APPLE_PARTS: Final = (*_APPLE_PAUSES, "PLAYBACK_SUSPENDED", "SCRUB_BEGIN", "SCRUB_END")  # the play can go on


def apple_music(table: LogTable, options: PrepareOptions) -> ExportRows:
    """The Play Activity of Apple Music: a row for each event, and one for each part of a play that was paused."""
    table.require("event type", "end reason type", "event end timestamp", "event start timestamp")
    title = table.one_of(_APPLE_TITLES)
    starts, ends = table.time_ms("event start timestamp"), table.time_ms("event end timestamp")
    played = number_of(table, "play duration milliseconds")
    played = pl.when(played >= 0).then(played)
    titles, artists = text_of(table, title), text_of(table, *_APPLE_ARTISTS)
    event, reason = text_of(table, "event type"), text_of(table, "end reason type")
    ignored = {
        "PLAY_START event": event == "PLAY_START",
        "LYRIC_DISPLAY event": event == "LYRIC_DISPLAY",
        "other event": event.is_null() | (event != "PLAY_END"),
        "video": text_of(table, "media type").str.to_uppercase() == "VIDEO",
        "play without a title": titles.is_null(),
    }
    columns = {
        "track": described(artists, titles),
        "at": pl.coalesce(starts.value, ends.value - played),
        "end": pl.coalesce(ends.value, starts.value + played),
        "from": number_of(table, "start position in milliseconds"),
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
        complete=table.complete,
        track=pl.col(_own("track")),
        title=titles,
        artist=artists,
        at=pl.col(_own("at")),
        end=pl.col(_own("end")),
        outcome=rules,
        faults=(*starts.faults, *ends.faults),
        ignored={**ignored, "continuation of a paused play": pl.col(_own("continued"))},
        noted={"plays without an artist, whose track is known by its title alone": artists.is_null()},
        columns={
            "timestamp": "event start timestamp",
            "title": title,
            "artist": next((name for name in _APPLE_ARTISTS if name in table.schema), ""),
            "end_reason": "end reason type",
            "ms_played": "play duration milliseconds",
        },
        also_used=("event type", "event end timestamp", "media type", "start position in milliseconds"),
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


def _own(name: str) -> str:
    """A column that no export has."""
    return f"\x00{name}"
