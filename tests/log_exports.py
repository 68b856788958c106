"""Random logs of the published data sets, and random exports of what a person listened to."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from hypothesis import strategies as st

from tests.log_cases.history import Content, json_lines, quoted
from tests.log_cases.sources import zipped
from tests.log_delivery import START_S, Play

_NAMES: Final = (
    "Tin Parade",
    "Zoë",
    "Low Tide",
    "12\u2033 mix",
    "Slow & Copper",
    "a",
    "B",
    "c c",
    "Tin Parade (live)",
    "7",
    "x",
)
_ARTISTS: Final = ("The Ferrymen", "Ostrava Lights", "Mïra")


def _artist(play: Play) -> str:
    return _ARTISTS[play.track % 3]


def _moment(seconds: float) -> str:
    return f"{Play('', 0, 0, int(seconds), 0, None).moment:%Y-%m-%dT%H:%M:%SZ}"


def _alone(plays: Sequence[Play]) -> list[Play]:
    """The plays of one listener."""
    return [play for play in plays if play.user == plays[0].user]


def _split(draw: st.DrawFn, lines: list[Any]) -> list[list[Any]]:
    """The lines in one or two parts, in their order."""
    at = draw(st.integers(0, len(lines)))
    return [part for part in (lines[:at], lines[at:]) if part]


def _mssd(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    header = "session_id,session_position,session_length,track_id_clean,skip_1,skip_2,skip_3,hour_of_day,date\n"
    length = {(play.user, play.visit): 0 for play in plays}
    for play in plays:
        length[play.user, play.visit] += 1
    lines = [
        f"{play.user}_{play.visit},{play.position + 1},{length[play.user, play.visit]},t_{play.track},"
        f"false,{bool(play.skipped)},{str(bool(play.skipped)).lower()},{play.visit},2018-07-15\n"
        for play in draw(st.permutations(plays))
    ]
    return {f"log_{number}.csv": header + "".join(part) for number, part in enumerate(_split(draw, lines))}


def _lfm1k(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    lines = [
        f"{play.user}\t{_moment(play.second)}\t\t{_artist(play)}\t{f'm-{play.track}' if play.track % 2 else ''}"
        f"\t{_NAMES[play.track]}\n"
        for play in reversed(plays)
    ]
    return {"plays.tsv": "".join(lines)}


def _lfm2b(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    lines = [f"{play.user}\t{play.track}\t9\t{_moment(play.second)[:-1].replace('T', ' ')}\n" for play in plays]
    if draw(st.booleans()):
        lines.reverse()
    return {"events.tsv": "user_id\ttrack_id\talbum_id\ttimestamp\n" + "".join(lines)}


def _yambda(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    rows = [
        {
            "uid": len(play.user),
            "timestamp": play.second // 5 * 5,
            "item_id": play.track,
            "is_organic": 1,
            "played_ratio_pct": draw(st.sampled_from([0, 49, 50, 100, 130])),
            "track_length_seconds": 200 + play.track,
        }
        for play in plays
    ]
    rows += draw(st.lists(st.sampled_from(rows), max_size=3))
    rows.sort(key=lambda row: (row["uid"], row["timestamp"]))
    return {f"listens{number}.parquet": part for number, part in enumerate([rows])}


def _spotify(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    some = _alone(plays)
    rows: list[dict[str, Any]] = []
    for play, following in zip(some, [*some[1:], None], strict=True):
        longest = following.second - play.second if following else 300
        played = draw(st.integers(0, longest * 1000))
        reason = draw(st.sampled_from(["trackdone", "fwdbtn"]))
        end = START_S + play.second + -(-played // 1000)
        rows.append(
            {
                "ts": _moment(end - START_S),
                "ms_played": played,
                "ip_addr": "192.0.2.1",
                "master_metadata_track_name": _NAMES[play.track],
                "master_metadata_album_artist_name": _artist(play),
                "spotify_track_uri": None if draw(st.integers(0, 9)) == 0 and rows else f"spotify:track:{play.track}",
                "episode_name": None,
                "reason_end": reason,
                "skipped": draw(st.sampled_from([None, False, reason == "fwdbtn"])),
                "incognito_mode": bool(rows) and draw(st.integers(0, 9)) == 0,
            }
        )
    rows += draw(st.lists(st.sampled_from(rows), max_size=3))
    parts = _split(draw, draw(st.permutations(rows)))
    files: dict[str, Content] = {
        f"Streaming_History_Audio_{number}.json": json.dumps(part) for number, part in enumerate(parts)
    }
    return {"data.zip": zipped(files)} if draw(st.booleans()) else files


def _account(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    some = _alone(plays)
    rows = []
    for play, following in zip(some, [*some[1:], None], strict=True):
        longest = following.second - play.second if following else 300
        played = draw(st.integers(0, longest * 1000))
        end = _moment(play.second + played // 1000)[:-4].replace("T", " ")
        rows.append({"endTime": end, "artistName": _artist(play), "trackName": _NAMES[play.track], "msPlayed": played})
    return {"StreamingHistory0.json": json.dumps(rows, indent=2)}


def _lastfm(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    some = _alone(plays)[::-1]
    if draw(st.booleans()):
        scrobbles = [
            {"track": _NAMES[play.track], "artist": _artist(play), "album": "", "date": (START_S + play.second) * 1000}
            for play in some
        ]
        return {"stats.json": json.dumps({"username": "listener", "scrobbles": scrobbles})}
    lines = [
        {"uts": START_S + play.second, "utc_time": _moment(play.second), "artist": _artist(play), "artist_mbid": "",
         "album": "", "album_mbid": "", "track": _NAMES[play.track], "track_mbid": ""}
        for play in some
    ]  # fmt: skip
    return {"recent.csv": quoted(lines)}


def _listenbrainz(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    listens = [
        {
            "listened_at": START_S + play.second,
            "track_metadata": {"track_name": _NAMES[play.track], "artist_name": _artist(play), "additional_info": {}},
        }
        for play in reversed(_alone(plays))
    ]
    return {"listens.jsonl": json_lines(listens)}


def _apple(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    some = _alone(plays)
    rows = []
    for play, following in zip(some, [*some[1:], None], strict=True):
        length = following.second - play.second if following else 300
        played = draw(st.integers(0, min(length, 600)))
        reason = draw(st.sampled_from(["NATURAL_END_OF_TRACK", "TRACK_SKIPPED_FORWARDS"]))
        rows.append(
            {"Artist Name": _artist(play), "End Position In Milliseconds": played * 1000, "End Reason Type": reason,
             "Event End Timestamp": _moment(play.second + played), "Event Start Timestamp": _moment(play.second),
             "Event Type": "PLAY_END", "Media Duration In Milliseconds": 600_000, "Media Type": "AUDIO",
             "Play Duration Milliseconds": played * 1000, "Song Name": _NAMES[play.track],
             "Start Position In Milliseconds": 0, "UTC Offset In Seconds": 0}
        )  # fmt: skip
    return {"Apple Music Play Activity.csv": quoted(draw(st.permutations(rows)))}


def _rockbox(draw: st.DrawFn, plays: list[Play]) -> dict[str, Content]:
    lines = [
        f"{_artist(play)}\t\t{_NAMES[play.track]}\t1\t200\t{'S' if play.skipped else 'L'}\t{START_S + play.second}\t\n"
        for play in _alone(plays)
    ]
    return {".scrobbler.log": "#AUDIOSCROBBLER/1.1\n#TZ/UTC\n" + "".join(lines)}


WRITERS: Final[dict[str, Callable[[st.DrawFn, list[Play]], dict[str, Content]]]] = {
    "mssd": _mssd,
    "lfm1k": _lfm1k,
    "lfm2b": _lfm2b,
    "yambda": _yambda,
    "spotify": _spotify,
    "spotify-account": _account,
    "lastfm": _lastfm,
    "listenbrainz": _listenbrainz,
    "apple-music": _apple,
    "rockbox": _rockbox,
}
# Files in which plays that start at once stand in their order.
WITH_TIES: Final = frozenset({"lfm1k", "lfm2b", "yambda", "lastfm", "listenbrainz", "rockbox"})


@st.composite
def exports(draw: st.DrawFn, kind: str, plays: st.SearchStrategy[list[Play]]) -> dict[str, Content]:
    """The files of a log of a kind."""
    return WRITERS[kind](draw, draw(plays))
