"""Invented exports of every kind and form, with rows that are no plays and rows that cannot be read."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tests import spotify_export
from tests.log_samples import Play, Sample, plays


def _moment(second: int) -> datetime:
    return datetime.fromtimestamp(second, tz=UTC)


def _history(seed: int) -> list[Play]:
    """The plays of one listener, newest first."""
    one = max((play.owner for play in plays(seed, 20)), key=lambda owner: owner)
    some = [play._replace(second=play.second - play.second % 5) for play in plays(seed, 20) if play.owner <= one]
    distinct = {play.second: play for play in some}
    return [distinct[second] for second in sorted(distinct, reverse=True)]


def _names(play: Play) -> tuple[str, str]:
    """Artist and title, some with quotes, commas and letters of other scripts."""
    title = f'Song "{play.track}", live' if play.track % 5 == 0 else f"曲 {play.track}"
    return f"Artist é {play.track % 40}", title


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]], **form: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", **form).writerows([header, *rows] if header else rows)
    return stream.getvalue()


def _spotify() -> Sample:
    files = spotify_export.files_of(spotify_export.streams(400, seed=3), files=3)
    next(iter(files.values()))[5]["ts"] = "yesterday"
    return Sample("spotify", {name: json.dumps(rows, indent=1) for name, rows in files.items()}, {})


def _account() -> Sample:
    rows: list[dict[str, Any]] = []
    for place, play in enumerate(reversed(_history(11))):
        artist, title = _names(play)
        end = f"{_moment(play.second):%Y-%m-%d %H:%M}"
        rows.append({"endTime": end, "artistName": artist, "trackName": title, "msPlayed": place * 7919 % 240_000})
    rows[3] |= {"artistName": "Unknown Artist", "trackName": "Unknown Track"}
    rows[4]["msPlayed"] = None
    half = len(rows) // 2
    files = {"StreamingHistory0.json": rows[: half + 3], "StreamingHistory1.json": rows[half:]}
    return Sample("spotify-account", {name: json.dumps(part) for name, part in files.items()}, {"skip_below_s": 20})


def _lastfm_csv() -> Sample:
    header = ("uts", "utc_time", "artist", "artist_mbid", "album", "album_mbid", "track", "track_mbid")
    rows: list[Sequence[object]] = [("", "", "Artist", "", "", "", "now", "")]
    for play in _history(12):
        artist, title = _names(play)
        rows.append((play.second, f"{_moment(play.second):%d %b %Y, %H:%M}", artist, "", "Album", "", title, ""))
    rows[4] = ("soon", *rows[4][1:])
    return Sample("lastfm", {"scrobbles.csv": _csv(header, rows, quoting=csv.QUOTE_ALL)}, {"min_session_plays": 2})


def _lastfm_json() -> Sample:
    tracks = []
    for play in _history(12):
        artist, title = _names(play)
        date = {"uts": str(play.second), "#text": "x"}
        tracks.append({"artist": {"#text": artist}, "name": title, "date": date, "url": "https://example.org"})
    pages = [{"@attr": {"page": "1"}, "track": tracks[:90]}, {"@attr": {"page": "2"}, "track": tracks[90:]}]
    return Sample("lastfm", {"scrobbles.json": json.dumps(pages)}, {"min_session_plays": 2})


def _listenbrainz() -> Sample:
    lines = []
    for place, play in enumerate(_history(13)):
        artist, title = _names(play)
        more = {"music_service": "spotify.com", "ms_played": 150_000} if place % 3 == 0 else {"duration_ms": 1}
        names = {"track_name": title, "artist_name": artist, "additional_info": more, "mbid_mapping": None}
        lines.append(json.dumps({"listened_at": play.second, "inserted_at": 1_800_000_000, "track_metadata": names}))
    lines[2:2] = [lines[1], lines[1].replace('"track_name"', '"other"'), "{cut short"]
    third = len(lines) // 3
    files = {"1.jsonl": "\n".join(lines[third:]) + "\n", "2.jsonl": "\n".join(lines[: third + 5]) + "\n"}
    return Sample("listenbrainz", files, {})


def _apple() -> Sample:
    header = (
        *("Artist Name", "End Position In Milliseconds", "End Reason Type", "Event End Timestamp"),
        *("Event Start Timestamp", "Event Type", "Media Type", "Play Duration Milliseconds", "Song Name"),
        *("Start Position In Milliseconds", "IP City"),
    )
    reasons = ("NATURAL_END_OF_TRACK", "TRACK_SKIPPED_FORWARDS", "PLAYBACK_MANUALLY_PAUSED", "OTHER", "")
    rows: list[Sequence[object]] = []
    for place, play in enumerate(_history(14)):
        artist, title = _names(play)
        end = _moment(play.second)
        start, first = _moment(play.second - 40), 0
        reason = reasons[place % len(reasons)]
        if place % 5 == 1:  # the row before, in time, was paused
            artist, title = "Artist", f"Paused {place // 5}"
            first = 50_000
        elif place % 5 == 2:
            artist, title = "Artist", f"Paused {place // 5}"
        times = (f"{end:%Y-%m-%dT%H:%M:%S}.250Z", f"{start:%Y-%m-%dT%H:%M:%S}Z")
        event = "LYRIC_DISPLAY" if place % 17 == 0 else "PLAY_END"
        media = "VIDEO" if place % 19 == 0 else "AUDIO"
        rows.append((artist, first + 40_000, reason, *times, event, media, 40_250, title, first, "Invented City"))
    rows[7] = (*rows[7][:4], "soon", *rows[7][5:])
    return Sample("apple-music", {"Apple Music Play Activity.csv": _csv(header, rows)}, {"min_session_plays": 2})


def _rockbox() -> Sample:
    lines = ["#AUDIOSCROBBLER/1.1", "#TZ/UTC", "#CLIENT/Rockbox invented"]
    for play in reversed(_history(15)):
        artist, title = _names(play)
        lines.append(f"{artist}\tAlbum\t{title}\t1\t200\t{'S' if play.skipped else 'L'}\t{play.second}\t")
    lines[6] = "cut short\tA"
    return Sample("rockbox", {".scrobbler.log": "\n".join(lines) + "\n"}, {})


def export_samples() -> Iterator[tuple[str, Sample]]:
    """All of them, by name."""
    yield "spotify", _spotify()
    yield "spotify account data", _account()
    yield "lastfm, csv", _lastfm_csv()
    yield "lastfm, json", _lastfm_json()
    yield "listenbrainz", _listenbrainz()
    yield "apple music", _apple()
    yield "rockbox", _rockbox()


EXPORT_SAMPLES: Final = dict(export_samples())
