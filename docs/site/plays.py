"""Writes docs/plays.csv and docs/tracks.csv, the log of the tutorial and its tracks: `python -m docs.site.plays`.

All of it is invented.

Five kinds of music, each of four artists with an album of four tracks. A listener likes two kinds, often hears the next
track of an album, is served something of another kind now and then, and skips most of that.
"""

import csv
import io
import random
from pathlib import Path
from typing import Final

CSV: Final = Path(__file__).parents[1] / "plays.csv"
KINDS: Final = {
    "jazz": ("Ada Quist", "The Low Notes", "Mira Holm Trio", "Oskar Brand"),
    "folk": ("Hazel & Finn", "River Station", "Old Harbour", "Tilda Moss"),
    "techno": ("Kilo Hertz", "Night Bus", "Concrete Choir", "Nadir"),
    "metal": ("Iron Orchard", "Grave Tide", "Wulfen", "Black Meridian"),
    "pop": ("Luna Park", "Sunday Kids", "Vega", "Paper Hearts"),
}
TITLES: Final = ("First Light", "Slow Water", "The Long Way", "Home Again")
SESSIONS: Final = 400


def plays(seed: int = 1) -> str:
    """The log as CSV: session_id, position, track_id, title, artist, skipped."""
    rng, stream = random.Random(seed), io.StringIO()  # noqa: S311 (no secret)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("session_id", "position", "track_id", "title", "artist", "skipped"))
    for session in range(SESSIONS):
        liked = rng.sample(sorted(KINDS), 2)
        kind, artist, track = rng.choice(liked), rng.randrange(4), 0
        for position in range(rng.randint(9, 14)):
            name = KINDS[kind][artist]
            skipped = rng.random() < (0.04 if kind in liked else 0.95)
            writer.writerow(
                (f"s{session:03}", position, f"{kind}-{artist + 1}{track + 1}", TITLES[track], name, int(skipped))
            )
            if track < 3 and not skipped and rng.random() < 0.6:
                track += 1
            else:
                kind = rng.choice(liked if rng.random() < 0.45 else sorted(KINDS))
                artist, track = rng.randrange(4), rng.choice((0, 0, 0, 1, 2))
    return stream.getvalue()


def tracks(seed: int = 1) -> str:
    """The tracks as CSV: track_id and attributes. The years and markets of an album are those of its tracks."""
    rng, stream = random.Random(seed), io.StringIO()  # noqa: S311 (no secret)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("track_id", "genre", "explicit", "markets", "released"))
    for kind, artists in KINDS.items():
        for artist in range(len(artists)):
            markets = "|".join(("DE", "FR", "US") if rng.random() < 0.6 else rng.sample(("DE", "FR", "US"), 2))
            released = f"{rng.randint(1998, 2024)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            for track in range(len(TITLES)):
                explicit = "true" if rng.random() < 0.2 else "false"
                writer.writerow((f"{kind}-{artist + 1}{track + 1}", kind, explicit, markets, released))
    return stream.getvalue()


if __name__ == "__main__":
    CSV.write_text(plays(), encoding="utf-8")
    CSV.with_name("tracks.csv").write_text(tracks(), encoding="utf-8")
