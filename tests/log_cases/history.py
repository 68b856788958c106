"""One invented history, and the forms in which logs write it down."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

# Letters are tracks, `*` marks a skip, `|` ends a session.
SESSIONS: Final = "a b c* d e* f | b g h* a | c a* e g h"
START_S: Final = 1_709_287_200  # 2024-03-01 10:00:00 UTC
TITLES: Final = {
    "a": ("The Ferrymen", "Paper Lantern"),
    "b": ("The Ferrymen", "Harbour Nine"),
    "c": ("Ostrava Lights", "Slow Copper"),
    "d": ("Ostrava Lights", "Northern Relay"),
    "e": ("Mira Quill", "Glass Orchard"),
    "f": ("Mira Quill", "Tin Parade"),
    "g": ("Mira Quill", "Low Tide Radio"),
    "h": ("Ostrava Lights", "Evening Freight"),
}
_SECONDS: Final = (
    (0, 200, 400, 412, 612, 632),
    (3060, 3250, 3450, 3480),
    (7200, 7440, 7448, 7650, 7860),
)
Content = str | bytes | list[dict[str, Any]]  # rows are written as Parquet


class Play(NamedTuple):
    """A play of the history."""

    user: str
    session: str
    visit: int  # number of the session among those of its user
    position: int
    track: str
    second: int  # since START_S
    skipped: bool

    @property
    def moment(self) -> datetime:
        """The start in UTC."""
        return datetime.fromtimestamp(START_S + self.second, tz=UTC)

    @property
    def number(self) -> int:
        """The track as a number: a is 1."""
        return ord(self.track) - 96


def _history() -> Iterable[Play]:
    for number, (session, seconds) in enumerate(zip(SESSIONS.split(" | "), _SECONDS, strict=True)):
        user, visit = ("u2", 1) if number == 2 else ("u1", number + 1)
        for position, (play, second) in enumerate(zip(session.split(), seconds, strict=True)):
            yield Play(user, f"s{number + 1}", visit, position, play[0], second, play.endswith("*"))


HISTORY: Final = tuple(_history())


def iso(play: Play) -> str:
    """The start as ISO 8601."""
    return f"{play.moment:%Y-%m-%dT%H:%M:%SZ}"


def epoch(play: Play) -> int:
    """The start in seconds since 1970."""
    return START_S + play.second


def at(form: str) -> Callable[[Play], str]:
    """The start in a form of strftime."""
    return lambda play: format(play.moment, form)


FIELDS: Final[dict[str, Callable[[Play], Any]]] = {
    "user_id": lambda play: play.user,
    "session_id": lambda play: play.session,
    "position": lambda play: play.position,
    "track_id": lambda play: play.track,
    "timestamp": iso,
    "skipped": lambda play: int(play.skipped),
    "title": lambda play: TITLES[play.track][1],
}
TIMED: Final = ("user_id", "track_id", "timestamp")
FLAGGED: Final = ("session_id", "position", "track_id", "skipped")


def rows(
    names: Sequence[str] = TIMED, plays: Iterable[Play] = HISTORY, **other: Callable[[Play], Any]
) -> list[dict[str, Any]]:
    """The history as objects. `other` gives the values of a column another form, or adds columns."""
    fields = FIELDS | other
    names = (*names, *(name for name in other if name not in names))
    return [{name: fields[name](play) for name in names} for play in plays]


def table(
    names: Sequence[str] = TIMED,
    plays: Iterable[Play] = HISTORY,
    separator: str = ",",
    header: str = "",
    **other: Callable[[Play], Any],
) -> str:
    """The history as text with a header line: `header`, or the names."""
    lines = [separator.join(str(value) for value in row.values()) for row in rows(names, plays, **other)]
    return "\n".join([header or separator.join([*names, *(name for name in other if name not in names)]), *lines, ""])


def lines(header: str, plays: str) -> str:
    """A table whose lines are written in short.

    Lines end at `;`, fields at blanks. `10:03:20` is a time of 2024-03-01, and `-` an empty field.
    """
    written = [",".join(_field(field) for field in line.split()) for line in plays.split(";")]
    return "\n".join([header, *written, ""])


def _field(field: str) -> str:
    if field == "-":
        return ""
    return f"2024-03-01T{field}Z" if field.count(":") == 2 else field


def json_lines(objects: Iterable[dict[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(one) + "\n" for one in objects)


def lfm1k(plays: Iterable[Play] = HISTORY) -> str:
    """The lines of Last.fm 1K: of each user from new to old."""
    some = list(plays)
    users = sorted({play.user for play in some})
    ordered = [play for user in users for play in reversed(some) if play.user == user]
    return "".join(
        f"{play.user}\t{iso(play)}\t\t{TITLES[play.track][0]}\t\t{TITLES[play.track][1]}\n" for play in ordered
    )


def stream(track: str, end: str, ms_played: int, reason_end: str = "trackdone", **other: Any) -> dict[str, Any]:
    """A row of Spotify's extended streaming history. `track` is a letter, or empty for a row without a track."""
    artist, title = TITLES[track] if track else (None, None)
    return {
        "ts": end if "T" in end or " " in end else f"2024-03-01T{end}Z",
        "platform": "other",
        "ms_played": ms_played,
        "conn_country": "ZZ",
        "ip_addr": "192.0.2.1",
        "master_metadata_track_name": title,
        "master_metadata_album_artist_name": artist,
        "master_metadata_album_album_name": "Invented Album" if track else None,
        "spotify_track_uri": f"spotify:track:INVENTED0000000000000{track.upper()}" if track else None,
        "episode_name": None,
        "audiobook_uri": None,
        "reason_start": "trackdone",
        "reason_end": reason_end,
        "shuffle": False,
        "skipped": reason_end == "fwdbtn",
        "offline": False,
        "offline_timestamp": None,
        "incognito_mode": False,
    } | other


def account_row(track: str, end: str, ms_played: int) -> dict[str, Any]:
    """A row of the history in Spotify's account data: the end of a play in whole minutes."""
    artist, title = TITLES[track]
    return {"endTime": f"2024-03-01 {end}", "artistName": artist, "trackName": title, "msPlayed": ms_played}


def apple_row(track: str, start: str, end: str, ms_played: int, reason: str, **other: Any) -> dict[str, Any]:
    """A row of Apple's Play Activity. Reads `start` and `end` as times of 2024-03-01."""
    artist, title = TITLES[track]
    return {
        "Artist Name": artist,
        "End Position In Milliseconds": ms_played,
        "End Reason Type": reason,
        "Event End Timestamp": f"2024-03-01T{end}Z",
        "Event Start Timestamp": f"2024-03-01T{start}Z",
        "Event Type": "PLAY_END",
        "Media Duration In Milliseconds": 210_000,
        "Media Type": "AUDIO",
        "Play Duration Milliseconds": ms_played,
        "Song Name": title,
        "Start Position In Milliseconds": 0,
        "UTC Offset In Seconds": 0,
    } | other


def quoted(objects: list[dict[str, Any]]) -> str:
    """A CSV with every field in quotes."""
    header = ",".join(f'"{name}"' for name in objects[0])
    return "\n".join([header, *(",".join(f'"{value}"' for value in one.values()) for one in objects), ""])


def write(path: Path, content: Content) -> None:
    """Write a file of a log: text, bytes, or rows as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        pl.DataFrame(content, infer_schema_length=None).write_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
