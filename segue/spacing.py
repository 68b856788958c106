"""Artist spacing: how many tracks of an artist a list may have, and how far apart they are.

The tracks are chosen one after another. Each place gets the best remaining track of an artist that has not reached
`max_per_artist` in the list, and that is not the artist of one of the `artist_gap` tracks before it. The latest plays
of the session count as tracks before the list. If no track remains, the gap is given up for this place, and then the
maximum: a list is never shorter because of its spacing. Tracks of an unknown artist are not restricted.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from segue.errors import InputError

MAX_GAP: Final = 20
CANDIDATES_PER_TRACK: Final = 5  # tracks that are ranked for each track of the list, at first
MAX_CANDIDATES: Final = 1_000  # tracks that are ranked if these were not enough

UNKNOWN: Final = -1


@dataclass(frozen=True, slots=True)
class Spacing:
    """The options of artist spacing."""

    max_per_artist: int | None = None  # in one list; None: no maximum
    artist_gap: int = 0  # other artists between two tracks of an artist, at least

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        if self.max_per_artist is not None and self.max_per_artist < 1:
            raise InputError(f"max_per_artist is {self.max_per_artist}, expected at least 1")
        if not 0 <= self.artist_gap <= MAX_GAP:
            raise InputError(f"artist_gap is {self.artist_gap}, expected 0 to {MAX_GAP}")


class Spaced(NamedTuple):
    """The chosen places of a ranking, in the order of the list."""

    places: list[int]
    relaxed: bool  # whether the gap or the maximum was given up for some place


def spaced(artists: Sequence[int], k: int, spacing: Spacing, before: Iterable[int] = ()) -> Spaced:
    """Choose at most `k` places of a ranking.

    `artists` are the numbers of the artists of the ranked tracks, best first; UNKNOWN for none. `before` are those of
    the session's plays, oldest first.
    """
    most = len(artists) if spacing.max_per_artist is None else spacing.max_per_artist
    latest = deque(before, maxlen=spacing.artist_gap)
    counts: Counter[int] = Counter()
    left = list(range(len(artists)))
    places: list[int] = []
    relaxed = False
    while left and len(places) < k:
        chosen = within = None
        for place in left:
            artist = artists[place]
            if artist == UNKNOWN or counts[artist] < most:
                if artist == UNKNOWN or artist not in latest:
                    chosen = place
                    break
                within = place if within is None else within
        relaxed |= chosen is None
        if chosen is None:
            chosen = left[0] if within is None else within
        left.remove(chosen)
        places.append(chosen)
        counts[artists[chosen]] += 1
        latest.append(artists[chosen])
    return Spaced(places, relaxed)
