"""Generate synthetic sessions from a known model, for tests, the demo and benchmarks at scale.

One seed determines the whole simulation:

- Every artist has one genre and about 20 tracks. Track popularity follows a Zipf distribution.
- A playlist is an ordered list of tracks of two or three genres in random order. One genre leads.
  A playlist is generated with 22 to 30 places. Repeated tracks are then removed, so the final playlist is often a few
  tracks shorter, rarely with fewer than 18. Nearly every track is in a playlist. Popular tracks are in several.
- A session is one listener with one playlist. Popular playlists have more sessions. The listener has one favourite
  genre, the taste. The taste is drawn from the genres of the playlist, in proportion to their expected shares.
- After each play, the player moves to the next place in the playlist with probability 0.5. Otherwise the player jumps
  to a random other place. If the session has already played the track there, the player advances to the next unplayed
  track. After the whole playlist has been played, all tracks can be played again.
- The listener skips a track with probability 0.05 if the track's genre is the taste, and with probability 0.9 if not.

The playlist and the latest track determine the distribution of the next track. The order of the tracks does not depend
on the taste: only the skips reveal the taste. A next-track model that ignores outcomes therefore gives equal ranks to
tracks that match the taste and tracks that do not. A model that learns from skips can separate the two groups.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from segue.arrays import Bool, Int
from segue.errors import BadOption
from training.data.dataset import Dataset, RawInteractions, write_listening

MIN_TRACKS: Final = 1_000
MAX_TRACKS: Final = 10_000_000
MAX_SESSIONS: Final = 10_000_000

SKIP_PROB_OFF_TASTE: Final = 0.9
SKIP_IF_FIT: Final = 0.05
GO_ON_IN_ORDER: Final = 0.5

_TRACKS_AN_ARTIST: Final = 20
_PLAYLIST_LENGTHS: Final = (22, 30)
_SESSION_LENGTHS: Final = (10, 20)
_PLAYLISTS_A_TRACK: Final = 1.5  # playlist places per track; about a third of all places are filled by popularity
_SHARE_OF_THREE_GENRES: Final = 0.25
# Expected shares of the genres in a playlist. The same shares are the probabilities of the listener's taste.
_TWO_GENRES: Final = (0.65, 0.35, 0.0)
_THREE_GENRES: Final = (0.55, 0.25, 0.20)
_TRACK_ZIPF: Final = 0.9
_PLAYLIST_ZIPF: Final = 0.7
_ZIPF_SHIFT: Final = 10  # added to each rank: flattens the head of the distribution, so that no single track dominates

_FIRST_WORDS: Final = """
    Amber Autumn Blue Borrowed Broken Burning Copper Crooked Distant Electric Empty Endless Faded Golden Hollow
    Idle Ivory Lonely Lost Midnight Neon Northern Paper Quiet Restless Rusty Scarlet Secret Silver Slow Velvet
    Winter
"""
_SECOND_WORDS: Final = """
    Avenue Bell Bridge Carousel Cathedral Coast Compass Echo Engine Feather Garden Harbour Highway Lantern
    Letter Machine Mirror Moon Morning Ocean Orchard Parade Piano Radio Rain River Satellite Shadow Station
    Summer Tide Window
"""
_ENDINGS: Final = ("", "", "", " Again", " Blues", " for Two", " in Colour", " Revisited")
_FORENAMES: Final = """
    Ada Anouk Bela Carmen Dario Edda Emil Farah Greta Hugo Ines Jonas Kaya Lars Mina Nadia Oskar Paula Quentin
    Rosa Samir Tilda Uma Viktor Wanda Yara
"""


@dataclass(frozen=True, eq=False)
class SyntheticData:
    """Simulated plays with their ground truth. Tracks are numbered from 0; the id of track 42 is `t0000042`."""

    seed: int
    genre: Int  # [tracks], genre of each track
    artist: Int  # [tracks], artist of each track
    playlist_tracks: Int  # [places], track numbers; playlist p is the slice playlist_offsets[p]:playlist_offsets[p + 1]
    playlist_offsets: Int  # [playlists + 1]
    session_playlist: Int  # [sessions], playlist of each session
    session_taste: Int  # [sessions], favourite genre of each listener
    track: Int  # [plays], track numbers; session s is the slice offsets[s]:offsets[s + 1]
    skipped: Bool  # [plays]
    offsets: Int  # [sessions + 1]

    @property
    def fits(self) -> Bool:
        """Return whether the genre of each play's track is the listener's favourite genre. [plays] bool."""
        return np.equal(self.genre[self.track], np.repeat(self.session_taste, np.diff(self.offsets)))

    @property
    def track_ids(self) -> pl.Series:
        """Return the track ids in order of track number. [tracks] string."""
        return _ids("t", len(self.genre))

    @property
    def session_ids(self) -> pl.Series:
        """Return the session ids in order of session number. [sessions] string."""
        return _ids("s", len(self.session_taste))

    @property
    def plays(self) -> pl.DataFrame:
        """Return one row per play, in play order.

        The columns are session_id, track_id, skipped, fits, genre (of the track) and taste (of the session).
        """
        session = np.repeat(np.arange(len(self.session_taste)), np.diff(self.offsets))
        return pl.DataFrame(
            {
                "session_id": self.session_ids.gather(session),
                "track_id": self.track_ids.gather(self.track),
                "skipped": self.skipped,
                "fits": self.fits,
                "genre": self.genre[self.track],
                "taste": self.session_taste[session],
            }
        )


def simulate(tracks: int, sessions: int, out: Path, seed: int = 0, *, overwrite: bool = False) -> Dataset:
    """Write a dataset of `sessions` synthetic sessions to `out` and return the dataset.

    The catalogue has `tracks` tracks and includes tracks that no session plays. Raises BadOption if `tracks`,
    `sessions` or `seed` is out of range, and InputError if `out` exists and `overwrite` is false.
    """
    world = simulate_sessions(tracks, sessions, seed)
    listening = RawInteractions(
        tracks=pl.DataFrame({"track_id": world.track_ids, **_names(world), **_attributes(world)}),
        codes=world.track,
        skipped=world.skipped,
        offsets=world.offsets,
        session_ids=world.session_ids,
    )
    settings = {"tracks": tracks, "sessions": sessions, "seed": seed}
    return write_listening(out, listening, "synthetic", settings, overwrite=overwrite)


def simulate_sessions(tracks: int, sessions: int, seed: int = 0) -> SyntheticData:
    """Simulate `sessions` sessions over a catalogue of `tracks` tracks.

    `seed` determines the result. Raises BadOption if an argument is out of range.
    """
    for name, value, low, high in (
        ("tracks", tracks, MIN_TRACKS, MAX_TRACKS),
        ("sessions", sessions, 1, MAX_SESSIONS),
        ("seed", seed, 0, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise BadOption(f"{name} is {value:,}, expected {low:,} to {high:,}")
    rng = np.random.default_rng(seed)
    genres = int(np.clip(tracks // 100, 8, 40))
    artists = -(-tracks // _TRACKS_AN_ARTIST)
    artist = rng.permutation(np.arange(tracks, dtype=np.int64) // _TRACKS_AN_ARTIST)
    genre = rng.permutation(np.arange(artists, dtype=np.int64) % genres)[artist]
    playlist_genres, place_genre, offsets = _playlist_shapes(rng, tracks, genres)
    playlist_tracks = _fill(rng, genre, place_genre, genres)
    playlist_tracks, offsets = _without_repeats(playlist_tracks, offsets)
    playlist = _zipf(rng, len(offsets) - 1, _PLAYLIST_ZIPF, sessions)
    taste = _tastes(rng, playlist_genres[playlist])
    track, session_offsets = _walk(rng, playlist_tracks, offsets, playlist)
    fits = genre[track] == np.repeat(taste, np.diff(session_offsets))
    skipped = rng.random(len(track)) < np.where(fits, SKIP_IF_FIT, SKIP_PROB_OFF_TASTE)
    return SyntheticData(
        seed, genre, artist, playlist_tracks, offsets, playlist, taste, track, skipped, session_offsets
    )


def _playlist_shapes(rng: np.random.Generator, tracks: int, genres: int) -> tuple[Int, Int, Int]:
    """Draw the genres of each playlist, the genre of each place, and the playlist offsets.

    The shapes are [playlists, 3], [places] and [playlists + 1], all int64. The third genre is -1 if there are only two.
    """
    shortest, longest = _PLAYLIST_LENGTHS
    count = round(tracks * _PLAYLISTS_A_TRACK / ((shortest + longest) / 2))
    lead = rng.integers(genres, size=count)
    second = (lead + 1 + rng.integers(genres - 1, size=count)) % genres
    third = rng.integers(genres - 2, size=count)
    third += third >= np.minimum(lead, second)
    third += third >= np.maximum(lead, second)
    three = rng.random(count) < _SHARE_OF_THREE_GENRES
    chosen = np.stack([lead, second, np.where(three, third, -1)], axis=1)
    lengths = rng.integers(shortest, longest, size=count, endpoint=True)
    playlist = np.repeat(np.arange(count), lengths)
    place_genre = chosen[playlist, _which_genre(rng, three[playlist])]
    return chosen, place_genre, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _which_genre(rng: np.random.Generator, three: Bool) -> Int:
    """Draw the index (0, 1 or 2) of one genre of each playlist, with the genre shares as probabilities. [n] int64.

    `three` [n] bool marks the playlists with three genres.
    """
    bounds = np.cumsum([_TWO_GENRES, _THREE_GENRES], axis=1)
    draw = rng.random(len(three))
    kind = three.astype(np.int64)
    which: Int = np.add(draw >= bounds[kind, 0], draw >= bounds[kind, 1], dtype=np.int64)
    return which


def _tastes(rng: np.random.Generator, genres_of_playlist: Int) -> Int:
    which = _which_genre(rng, genres_of_playlist[:, 2] >= 0)
    return np.take_along_axis(genres_of_playlist, which[:, None], axis=1)[:, 0]


def _fill(rng: np.random.Generator, genre: Int, place_genre: Int, genres: int) -> Int:
    """Draw a track of the required genre for every place. [places] int64.

    The places of a genre first take each track of the genre once. The remaining places draw tracks by popularity.
    """
    by_genre = np.argsort(genre + rng.random(len(genre)))  # tracks grouped by genre, in random order within each genre
    ends = np.cumsum(np.bincount(genre, minlength=genres))
    starts = ends - np.bincount(genre, minlength=genres)
    weight = (rng.permutation(len(genre)) + _ZIPF_SHIFT) ** -_TRACK_ZIPF
    reached = np.concatenate([[0.0], np.cumsum(weight[by_genre])])
    places = np.argsort(place_genre + rng.random(len(place_genre)))
    wanted = place_genre[places]
    place_starts = np.cumsum(np.bincount(wanted, minlength=genres)) - np.bincount(wanted, minlength=genres)
    turn = np.arange(len(places)) - place_starts[wanted] + starts[wanted]
    draw = reached[starts[wanted]] + rng.random(len(places)) * (reached[ends[wanted]] - reached[starts[wanted]])
    popular = np.clip(np.searchsorted(reached, draw, side="right") - 1, starts[wanted], ends[wanted] - 1)
    filled = np.empty(len(places), dtype=np.int64)
    filled[places] = by_genre[np.where(turn < ends[wanted], turn, popular)]
    return filled


def _without_repeats(tracks: Int, offsets: Int) -> tuple[Int, Int]:
    """Remove repeated tracks from each playlist; the first place of each track is kept. Return tracks and offsets."""
    playlist = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    order = np.lexsort((tracks, playlist))
    repeated = np.zeros(len(tracks), dtype=np.bool_)
    same = (tracks[order][1:] == tracks[order][:-1]) & (playlist[order][1:] == playlist[order][:-1])
    repeated[order[1:][same]] = True
    kept = np.concatenate([[0], np.cumsum(~repeated, dtype=np.int64)])
    return tracks[~repeated], kept[offsets]


EXPLICIT: Final = 0.15  # share of the tracks
SOLD_EVERYWHERE: Final = 0.7  # share of the artists whose tracks are sold in all markets
SOLD_IN_A_MARKET: Final = 0.6  # share of the others that are sold in a market
_MARKETS: Final = ("BR", "DE", "GB", "JP", "US")
_GENRES: Final = [
    "rock",
    "pop",
    "hip-hop",
    "jazz",
    "classical",
    "techno",
    "house",
    "metal",
    "folk",
    "soul",
    "funk",
    "blues",
    "country",
    "reggae",
    "ambient",
    "punk",
    "disco",
    "indie",
    "trance",
    "gospel",
    "salsa",
    "samba",
    "grime",
    "dub",
    "ska",
    "swing",
    "opera",
    "drone",
    "garage",
    "electro",
    "latin",
    "bluegrass",
    "chanson",
    "fado",
    "flamenco",
    "afrobeat",
    "k-pop",
    "j-pop",
    "synthwave",
    "lo-fi",
]


def _zipf(rng: np.random.Generator, count: int, exponent: float, draws: int) -> Int:
    """Draw integers below `count` from a Zipf distribution. Small integers are more frequent. [draws] int64."""
    reached = np.cumsum((np.arange(count) + _ZIPF_SHIFT) ** -exponent)
    drawn: Int = np.searchsorted(reached, rng.random(draws) * reached[-1], side="right").astype(np.int64)
    return drawn


def _walk(rng: np.random.Generator, tracks: Int, offsets: Int, playlist: Int) -> tuple[Int, Int]:
    """Draw the tracks of every session in play order. Return the tracks [plays] and the offsets [sessions + 1]."""
    shortest, longest = _SESSION_LENGTHS
    lengths = rng.integers(shortest, longest, size=len(playlist), endpoint=True)
    starts, size = offsets[playlist], np.diff(offsets)[playlist]
    heard = np.empty((len(playlist), longest), dtype=np.int32)
    everyone = np.arange(len(playlist))
    visited = np.zeros((len(playlist), size.max(initial=0)), dtype=np.bool_)
    place = rng.integers(size)
    for step in range(longest):
        heard[:, step] = tracks[starts + place]
        visited[everyone, place] = True
        visited[visited.sum(axis=1) == size] = (
            False  # the whole playlist was played: all its tracks can be played again
        )
        jump = 1 + rng.integers(size - 1)  # from 1 to size - 1: a jump never returns to the same place
        place = (place + np.where(rng.random(len(place)) < GO_ON_IN_ORDER, 1, jump)) % size
        while (again := np.flatnonzero(visited[everyone, place])).size:
            place[again] = (place[again] + 1) % size[again]
    real = np.arange(longest) < lengths[:, None]
    return heard[real].astype(np.int64), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ids(letter: str, count: int) -> pl.Series:
    return letter + pl.int_range(count, eager=True).cast(pl.String).str.zfill(7)


def _names(world: SyntheticData) -> dict[str, pl.Series]:
    """Return random titles and artist names, one of each per track. Titles may repeat, as in a real catalogue."""
    rng = np.random.default_rng([world.seed, 1])  # a separate generator: names do not affect the simulated plays
    tracks, artists = len(world.genre), int(world.artist.max()) + 1

    def drawn(words: str | tuple[str, ...], count: int) -> pl.Series:
        choices = pl.Series(words.split() if isinstance(words, str) else words)
        return choices.gather(rng.integers(len(choices), size=count))

    titles = drawn(_FIRST_WORDS, tracks) + " " + drawn(_SECOND_WORDS, tracks) + drawn(_ENDINGS, tracks)
    singers = drawn(_FORENAMES, artists) + " " + drawn(_SECOND_WORDS, artists)
    bands = "The " + drawn(_FIRST_WORDS, artists) + " " + drawn(_SECOND_WORDS, artists) + "s"
    bands = bands.str.replace("(ss|Echo)s$", "${1}es")
    artist = singers.zip_with(pl.Series(rng.random(artists) < 0.5), bands)
    return {"title": titles, "artist": artist.gather(world.artist)}


def _attributes(world: SyntheticData) -> dict[str, pl.Series]:
    """Return attributes of the tracks: the genre that listeners like or dislike, and others that no play depends on."""
    rng = np.random.default_rng([world.seed, 2])  # a separate generator: attributes do not affect the simulated plays
    tracks, artists = len(world.genre), int(world.artist.max()) + 1
    names = pl.Series(_GENRES)
    everywhere = rng.random(artists) < SOLD_EVERYWHERE
    sold = rng.random((artists, len(_MARKETS))) < SOLD_IN_A_MARKET
    sold |= everywhere[:, None]
    markets = pl.Series(
        [[market for market, held in zip(_MARKETS, line, strict=True) if held] for line in sold.tolist()]
    )
    first_release = date(1960, 1, 1).toordinal()
    days = (
        rng.integers(first_release, date(2025, 12, 31).toordinal(), size=tracks, endpoint=True)
        - date(1970, 1, 1).toordinal()
    )
    return {
        "genre": names.gather(world.genre % len(names)),
        "explicit": pl.Series(rng.random(tracks) < EXPLICIT),
        "released": pl.Series(days.astype(np.int32)).cast(pl.Date),
        "markets": markets.gather(world.artist),
        "artist_id": ("a" + pl.Series(world.artist).cast(pl.String).str.zfill(6)),
    }
