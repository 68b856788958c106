"""The logs and releases that the golden files of tests/golden are made from. Everything has a fixed seed."""

import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from segue.catalogue import Catalogue
from segue.release import Release
from tests.conftest import write_encoder_release

_GENRES, _TRACKS, _SESSIONS = 4, 80, 120
_WORDS = ("Midnight", "Carousel", "Scarlet", "Radio", "Velvet", "Summer", "Electric", "Orchard", "Coast", "Lantern")
_RECIPE = """\
epochs = 2
dimension = 8
learning_rate = 0.05
negatives = 16
"""


def write_logs(folder: Path, tiny: Release) -> None:
    """Write plays.csv, tracks.csv, sessions.parquet, small.toml, releases/tiny and releases/titled."""
    chance = random.Random(7)
    _write_plays(folder / "plays.csv", chance)
    tracks = pl.DataFrame(
        {
            "track_id": [f"track-{number:02}" for number in range(_TRACKS)],
            "title": [" ".join(chance.sample(_WORDS, 3)) for _ in range(_TRACKS)],
            "artist": [f"The {' '.join(chance.sample(_WORDS, 2))}s" for _ in range(_TRACKS)],
        }
    )
    tracks.write_csv(folder / "tracks.csv")
    (folder / "small.toml").write_text(_RECIPE)
    sessions = {"session_id": ["a", "a", "b"], "position": [0, 1, 0], "track_id": ["g0-t00", "g1-t00", "g2-t03"]}
    pl.DataFrame(sessions | {"skipped": [False, True, False]}).write_parquet(folder / "sessions.parquet")
    _write_event_log(folder / "events", random.Random(7))
    (folder / "releases").mkdir()
    shutil.copytree(tiny.path, folder / "releases" / "tiny")
    _write_titled(folder / "releases" / "titled", chance)


def _write_event_log(folder: Path, chance: random.Random) -> None:
    """Served lists of the tiny release, with and without exploration, and the plays that followed."""
    lists: list[dict[str, Any]] = []
    plays: list[dict[str, Any]] = []
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(300):
        at, explores = start + timedelta(minutes=number), number % 4 > 0
        track_ids, chances = [f"g0-t0{one}" for one in range(3)], [0.8 if explores else 1.0] * 3
        drawn = [explores and chance.random() < 0.2 for _ in track_ids]
        for place in [place for place, is_drawn in enumerate(drawn) if is_drawn]:
            chances[place] = 0.2 / (5 - sum(drawn[:place]))
            track_ids[place] = chance.choice([f"g0-t0{one}" for one in range(3, 8) if f"g0-t0{one}" not in track_ids])
        lists.append(
            {
                "session_id": f"s{number}@0",
                "position": 1,
                "timestamp": at,
                "release": "sasrec-0123456789",
                "arm": None,
                "policy": "radio" if explores else None,
                "track_ids": track_ids,
                "propensities": chances,
                "explored": drawn,
                "written_at": at,
            }
        )
        at_rank = chance.choice([0, 0, 1, 2, None])
        skips = at_rank is not None and chance.random() < (0.6 if drawn[at_rank] else 0.3)
        following = (1, "g3-t00" if at_rank is None else track_ids[at_rank], skips)
        for position, track_id, skipped in ((0, "g0-t09", False), following):
            own = {"session_id": f"s{number}@0", "position": position, "track_id": track_id, "skipped": skipped}
            plays.append(own | {"written_at": at + timedelta(seconds=60 * position)})
    folder.mkdir()
    types = {"arm": pl.String, "policy": pl.String}
    pl.DataFrame(lists, schema_overrides=types, infer_schema_length=None).write_parquet(folder / "lists-1.parquet")
    pl.DataFrame(plays).write_parquet(folder / "events-1.parquet")


def _write_plays(path: Path, chance: random.Random) -> None:
    """Sessions stay in a genre; tracks of other genres are skipped."""
    rows: list[dict[str, Any]] = []
    at = 1_700_000_000
    for session in range(_SESSIONS):
        genre = chance.randrange(_GENRES)
        at += 7_200
        for position in range(chance.randint(6, 12)):
            track = chance.randrange(_TRACKS)
            skipped = track % _GENRES != genre
            rows.append(
                {
                    "user_id": f"listener-{session % 20}",
                    "track_id": f"track-{track:02}",
                    "timestamp": at + position * 200,
                    "skipped": str(skipped).lower(),
                }
            )
    pl.DataFrame(rows).write_csv(path)


def _write_titled(path: Path, chance: random.Random) -> None:
    """A release with long ids, titles and artists, as real catalogues have them."""
    count = 12
    catalogue = Catalogue.from_frame(
        pl.DataFrame(
            {
                "track_id": [f"spotify:track:{number:022}" for number in range(count)],
                "plays": list(range(1000, 1000 - count, -1)),
                "skips": [0] * count,
                "title": [f"{' '.join(chance.sample(_WORDS, 6))} (Remastered)" for _ in range(count)],
                "artist": [f"The {' '.join(chance.sample(_WORDS, 4))} Orchestra" for _ in range(count)],
            }
        )
    )
    embeddings = np.ones((count + 1, 2), dtype=np.float32)
    embeddings[:, 1] = np.arange(count + 1) / 100
    write_encoder_release(path, catalogue, embeddings)
