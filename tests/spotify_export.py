"""An invented Spotify download: the zip as it arrives, and the sessions and skips that it says, one play after another.

It has what real ones have: files by years that overlap, rows in no order, no flag in old years and `false` for every
row of later ones, streams that overlap by a second, podcasts, audiobooks, private sessions, rows without a track, a
video file and a PDF. All names, ids and addresses are invented.
"""

import json
import random
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Final

FOLDER: Final = "Spotify Extended Streaming History"
PERSONAL: Final = ("192.0.2.77", "invented-listener", "Invented Agent/1.0", "Invented Phone", "ZZ")
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FIRST: Final = 1_330_000_000  # February 2012
_FLAGS_FALSE_FROM, _FLAGS_FROM = 1_428_883_200, 1_665_878_400  # 2015-04-13 and 2022-10-16

Row = dict[str, Any]
Session = list[tuple[str, bool]]


def uri(number: int) -> str:
    """The invented URI of a track."""
    digits = ""
    for _ in range(22):
        number, digit = divmod(number * 7919 + 12345, 62)
        digits += _BASE62[digit]
    return f"spotify:track:{digits}"


def row(end_s: int, ms_played: int, track: int | None, *, reason_end: str | None, skipped: bool | None) -> Row:
    """A row of a track, or one without a track."""
    played: Row = {
        "ts": f"{datetime.fromtimestamp(end_s, tz=UTC):%Y-%m-%dT%H:%M:%SZ}",
        "platform": PERSONAL[3],
        "ms_played": ms_played,
        "conn_country": PERSONAL[4],
        "ip_addr": PERSONAL[0],
        "master_metadata_track_name": None if track is None else f"Song {track}",
        "master_metadata_album_artist_name": None if track is None else f"Artist {track % 97}",
        "master_metadata_album_album_name": None if track is None else f"Album {track % 211}",
        "spotify_track_uri": None if track is None else uri(track),
    }
    empty = ("episode_name", "episode_show_name", "spotify_episode_uri", "audiobook_title", "audiobook_uri")
    played |= dict.fromkeys((*empty, "audiobook_chapter_uri", "audiobook_chapter_title"))
    played |= {"reason_start": "trackdone", "reason_end": reason_end, "shuffle": False, "skipped": skipped}
    return played | {"offline": False, "offline_timestamp": None, "incognito_mode": False}


def _stream(rng: random.Random, end_s: int, ms_played: int, reason_end: str | None) -> Row:
    skipped: bool | None = None
    if end_s >= _FLAGS_FROM:
        skipped = reason_end in ("fwdbtn", "endplay")
    elif end_s >= _FLAGS_FALSE_FROM:
        skipped = False
    made = row(end_s, ms_played, int(rng.paretovariate(0.6)) % 3000, reason_end=reason_end, skipped=skipped)
    made["incognito_mode"] = rng.random() < 0.02
    if end_s < _FLAGS_FALSE_FROM:
        made["username"] = PERSONAL[1]
        made["ip_addr_decrypted"], made["user_agent_decrypted"] = made.pop("ip_addr"), PERSONAL[2]
        made["offline_timestamp"] = rng.choice((0, 1, end_s, end_s * 1000))
    return made


def _without_track(rng: random.Random, end_s: int, ms_played: int) -> Row:
    made = row(end_s, ms_played, None, reason_end="trackdone", skipped=False)
    what = rng.choice(("podcast", "podcast", "audiobook", "nothing"))
    if what == "podcast":
        made |= {"episode_name": "Episode", "episode_show_name": "Show", "spotify_episode_uri": "spotify:episode:x"}
    elif what == "audiobook":
        made |= {"audiobook_title": "Book", "audiobook_uri": "spotify:show:x", "audiobook_chapter_title": "1"}
    return made


def streams(number: int, seed: int = 1) -> list[Row]:
    """Rows over twelve years, in the order of their time."""
    rng, start_s, end_s, found = random.Random(seed), _FIRST, _FIRST, []
    for _ in range(number):
        reason = rng.choices(
            ("trackdone", "fwdbtn", "endplay", "backbtn", "logout", "unexpected-exit", "trackerror", "", None),
            (60, 22, 6, 3, 2, 2, 1, 1, 3),
        )[0]
        ms_played = rng.randint(90_000, 320_000) if reason == "trackdone" else rng.choice((0, rng.randint(1, 60_000)))
        if rng.random() < 0.002:
            ms_played += 1_500_000  # a long mix
        end_s = max(end_s + 1, round(start_s + ms_played / 1000))  # no two end at once, so their order is certain
        found.append(
            _without_track(rng, end_s, ms_played) if rng.random() < 0.04 else _stream(rng, end_s, ms_played, reason)
        )
        pause = rng.choices((0, -1, rng.randint(1, 1200), rng.randint(1201, 95_000)), (60, 8, 25, 7))[0]
        start_s = end_s + pause
    return found


def files_of(rows: list[Row], seed: int = 1, files: int = 6) -> dict[str, list[Row]]:
    """The rows by the files of the download: each repeats some rows of the one before, and is in no order."""
    rng, found = random.Random(seed), {}
    size = -(-len(rows) // files)
    for number in range(files):
        part = rows[max(0, number * size - size // 50) : (number + 1) * size]
        years = sorted({one["ts"][:4] for one in part})
        span = years[0] if len(years) == 1 else f"{years[0]}-{years[-1]}"
        found[f"Streaming_History_Audio_{span}_{number}.json"] = rng.sample(part, len(part))
    video = [row(1_710_000_000 + 300 * n, 60_000, n, reason_end="trackdone", skipped=False) for n in range(7)]
    return found | {"Streaming_History_Video_2024.json": video}


def write_zip(path: Path, files: dict[str, list[Row]]) -> Path:
    """The download."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{FOLDER}/ReadMeFirst_ExtendedStreamingHistory.pdf", b"%PDF-1.7\x00\xff invented")
        for name, rows in files.items():
            archive.writestr(f"{FOLDER}/{name}", json.dumps(rows, indent=2))
    return path


def own_outcome(played: Row) -> bool | None:
    """Whether a play was skipped, as far as the row says so."""
    if played["skipped"] is True or played["reason_end"] == "fwdbtn":
        return True
    if played["skipped"] is False or played["reason_end"] == "trackdone" or played["ms_played"] >= 30_000:
        return False
    return None


def sessions_of_files(files: dict[str, list[Row]], *, private: bool = False) -> Iterator[Session]:
    """The sessions that `segue prepare spotify` must give, by its default rules, worked out one play after another."""
    distinct: dict[tuple[int, str], tuple[int, int, int, Row]] = {}
    for name, rows in files.items():
        for played in rows if "Audio" in name else ():
            if played["spotify_track_uri"] is None or (played["incognito_mode"] and not private):
                continue
            end = round(datetime.fromisoformat(played["ts"]).timestamp() * 1000)
            start = end - played["ms_played"]
            distinct[start, played["spotify_track_uri"]] = (start, end, len(distinct), played)
    plays = sorted(distinct.values(), key=lambda play: play[:2])
    number, last_end = 0, None
    numbered = []
    for start, end, _, played in plays:
        number += last_end is not None and start - last_end > 1_200_000
        numbered.append((number, start, played))
        last_end = end
    for _, group in groupby(numbered, key=lambda play: play[0]):
        session = [(start, played["spotify_track_uri"], own_outcome(played)) for _, start, played in group]
        following = [start for start, _, _ in session[1:]]
        soon = [*(after - play[0] <= 30_000 for play, after in zip(session, following, strict=False)), False]
        judged = [
            (track, early if outcome is None else outcome)
            for (_, track, outcome), early in zip(session, soon, strict=True)
        ]
        for first in range(0, len(judged), 20):
            if len(piece := judged[first : first + 20]) >= 5:
                yield piece
