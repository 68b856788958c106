"""Writes docs/my_spotify_data.zip, the Spotify history of the tutorial: `python -m docs.site.spotify_history`.

All of it is invented: the plays of docs/plays.csv as the streams of one listener, with a podcast after every fortieth
session and a private session after every fiftieth. The zip has the files and fields of a real download.
"""

import csv
import io
import json
import zipfile
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from docs.site.plays import plays

ZIP: Final = Path(__file__).parents[1] / "my_spotify_data.zip"
FOLDER: Final = "Spotify Extended Streaming History"
_START: Final = datetime(2024, 1, 6, 18, 0, tzinfo=UTC)


def track_uri(track_id: str) -> str:
    """The URI of a track of docs/plays.csv: `spotify:track:` and 22 characters."""
    return "spotify:track:INVENTED" + track_id.replace("-", "").rjust(14, "0")


def files() -> dict[str, list[dict[str, Any]]]:
    """The rows of each JSON file by its name."""
    rows: list[dict[str, Any]] = []
    at = _START
    listed = csv.DictReader(io.StringIO(plays()))
    for number, (_, session) in enumerate(groupby(listed, key=lambda play: play["session_id"])):
        for place, play in enumerate(session):
            skipped = play["skipped"] == "1"
            played = timedelta(seconds=4 + place if skipped else 180 + place)
            at += played
            rows.append(_row(at, played, play, skipped=skipped))
        if number % 40 == 0:
            at += timedelta(minutes=31)
            rows.append(_podcast(at))
        if number % 50 == 0:
            at += timedelta(minutes=3)
            rows.append(rows[-2] | {"ts": _text(at), "incognito_mode": True})
        at += timedelta(hours=23)
    half = len(rows) // 2
    return {
        "Streaming_History_Audio_2024_0.json": rows[: half + 20],
        "Streaming_History_Audio_2024-2025_1.json": rows[half:],  # both have 20 of the rows
        "Streaming_History_Video_2024-2025.json": [_row(_START, timedelta(minutes=4), _CLIP, skipped=False)],
    }


def write(path: Path = ZIP) -> None:
    """Write the zip. It is the same each time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        pdf = "ReadMeFirst_ExtendedStreamingHistory.pdf"
        contents = {pdf: "%PDF-1.7\n% invented\n"} | {name: json.dumps(rows) for name, rows in files().items()}
        for name, content in contents.items():
            member = zipfile.ZipInfo(f"{FOLDER}/{name}", date_time=(2026, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content)


_CLIP: Final = {"track_id": "clip-11", "title": "A Clip", "artist": "Paper Hearts"}
_EMPTY: Final = (
    "episode_name",
    "episode_show_name",
    "spotify_episode_uri",
    "audiobook_title",
    "audiobook_uri",
    "audiobook_chapter_uri",
    "audiobook_chapter_title",
)


def _row(end: datetime, played: timedelta, play: dict[str, Any], *, skipped: bool) -> dict[str, Any]:
    return {
        "ts": _text(end),
        "platform": "invented",
        "ms_played": int(played.total_seconds() * 1000),
        "conn_country": "ZZ",
        "ip_addr": "192.0.2.1",
        "master_metadata_track_name": play["title"],
        "master_metadata_album_artist_name": play["artist"],
        "master_metadata_album_album_name": "Invented Album",
        "spotify_track_uri": track_uri(play["track_id"]),
        **dict.fromkeys(_EMPTY),
        "reason_start": "trackdone",
        "reason_end": "fwdbtn" if skipped else "trackdone",
        "shuffle": False,
        "skipped": skipped,
        "offline": False,
        "offline_timestamp": None,
        "incognito_mode": False,
    }


def _podcast(end: datetime) -> dict[str, Any]:
    names = ("master_metadata_track_name", "master_metadata_album_artist_name", "master_metadata_album_album_name")
    row = _row(end, timedelta(minutes=30), _CLIP, skipped=False) | dict.fromkeys((*names, "spotify_track_uri"))
    return row | {
        "episode_name": "Invented Episode",
        "episode_show_name": "Invented Show",
        "spotify_episode_uri": "spotify:episode:INVENTED00000000000001",
    }


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


if __name__ == "__main__":
    write()
