"""The steps that make a list from a ranking: boosts, diversity, spacing, pins and exploration, in this order.

A policy (segue.policy) has options for all of them. A step changes places, never the number of tracks. Candidates are
numbers; 0 is the best of the ranking.

**Spacing** limits how many tracks of an artist or an album a list has, and how close they are. The tracks are chosen
one after another. Each place gets the best remaining track that breaks no rule: its artist has not reached
`max_per_artist` in the list and is not the artist of one of the `artist_gap` tracks before it, and the same for its
album. The latest plays of the session count as tracks before the list. If every remaining track breaks a rule, rules
are given up for this place in the order of RULES: a list is never shorter because of its spacing. Tracks of an unknown
artist or album are not restricted by it.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from segue.arrays import Float32, Float64
from segue.errors import InputError

# Returns those of some candidates that a place of a list may have: (list, place, candidates) -> candidates.
MayHave: TypeAlias = Callable[[list[int], int, list[int]], list[int]]

MAX_GAP: Final = 20
CANDIDATES_PER_TRACK: Final = 5  # tracks that are ranked for each track of the list, at first
MAX_CANDIDATES: Final = 1_000  # tracks that are ranked if these were not enough
UNKNOWN: Final = -1
RULES: Final = ("album_gap", "artist_gap", "max_per_album", "max_per_artist")  # bit i of a set of rules is RULES[i]


def boosted(values: Float64, weights: Float64) -> list[int]:
    """Return the candidates by descending `values` + `weights`, [n] float64 each. Of equal sums, the first comes first.

    `values` are logarithms of probabilities, up to a constant.
    """
    order: list[int] = np.argsort(-(values + weights), kind="stable").tolist()
    return order


def diversified(vectors: Float32, k: int, diversity: float) -> list[int]:
    """Return all candidates: the first `k` by maximal marginal relevance, the others in their order.

    `vectors` [n, dimension] are the embeddings of the candidates, best first. Each place gets the candidate with the
    largest (1 - diversity) * relevance - diversity * similarity. The relevance falls evenly from 1 for the first
    candidate to 1/n for the last one. The similarity is the largest cosine with a track that was chosen before.

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998,
    https://doi.org/10.1145/290941.291025.
    """
    count = len(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    relevance = (1 - diversity) * (1 - np.arange(count) / max(count, 1))
    similar = np.full(count, -np.inf)
    left = np.ones(count, dtype=np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(k, count):
        value = relevance - diversity * similar if chosen else relevance
        best = int(np.argmax(np.where(left, value, -np.inf))) if chosen else 0
        chosen.append(best)
        left[best] = False
        np.maximum(similar, unit @ unit[best], out=similar)
    return [*chosen, *np.flatnonzero(left).tolist()]


def pinned(listed: Sequence[int], pins: Mapping[int, int], k: int) -> list[int]:
    """Return at most `k` candidates of a list, each pinned one in its place. `pins`: candidate by place, from 0.

    Pins behind the end of a list that is shorter than `k` come last.
    """
    fixed = {place: candidate for place, candidate in pins.items() if place < k}
    others = iter([one for one in listed if one not in fixed.values()])
    made: list[int] = []
    for place in range(min(k, len(set(listed) | set(fixed.values())))):
        found = fixed.pop(place, None)
        found = next(others, None) if found is None else found
        made.append(fixed.pop(min(fixed)) if found is None else found)
    return made


def explored(
    listed: Sequence[int],
    pool: Sequence[int],
    rate: float,
    draw: Random,
    fixed: Collection[int] = (),
    may_have: MayHave | None = None,
) -> list[int]:
    """Return a list in which each place gets, with the probability `rate`, a candidate of `pool` that is not in it.

    All candidates of `pool` that are left have the same probability. `fixed` places keep theirs. `may_have` returns
    those of some candidates that a place of the list may have; a place for which none is left keeps its own.
    """
    made = list(listed)
    for place in range(len(made)):
        if place in fixed or draw.random() >= rate:
            continue
        left = _left(made, place, pool, may_have)
        if left:
            made[place] = left[draw.randrange(len(left))]
    return made


def propensities(
    listed: Sequence[int],
    shown: Sequence[int],
    pool: Sequence[int],
    rate: float,
    fixed: Collection[int] = (),
    may_have: MayHave | None = None,
) -> list[float]:
    """Return the probability of each candidate of `shown` at its place, given the places above it.

    `shown` is a list that `explored` returned for the other arguments. Places are drawn from the top, so the product of
    the probabilities is the probability of the whole list. A place that cannot change has 1. A place that kept its
    candidate has 1 - `rate`; a drawn candidate has `rate` divided by the number of candidates that were left.
    """
    made = list(listed)
    chances: list[float] = []
    for place, candidate in enumerate(shown):
        left = [] if place in fixed else _left(made, place, pool, may_have)
        kept = candidate == listed[place]
        chances.append((1.0 - rate if kept else rate / len(left)) if left else 1.0)
        made[place] = candidate
    return chances


def _left(made: list[int], place: int, pool: Sequence[int], may_have: MayHave | None) -> list[int]:
    """Return the candidates of `pool` that exploration may draw for a place."""
    taken = set(made)
    left = [one for one in pool if one not in taken]
    return left if may_have is None else may_have(made, place, left)


@dataclass(frozen=True, slots=True)
class Spacing:
    """The options of spacing. A maximum of None is no maximum."""

    max_per_artist: int | None = None  # in one list
    artist_gap: int = 0  # tracks of other artists between two of an artist, at least
    max_per_album: int | None = None
    album_gap: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        for name, most in (("max_per_artist", self.max_per_artist), ("max_per_album", self.max_per_album)):
            if most is not None and most < 1:
                raise InputError(f"{name} is {most}, expected at least 1")
        for name, gap in (("artist_gap", self.artist_gap), ("album_gap", self.album_gap)):
            if not 0 <= gap <= MAX_GAP:
                raise InputError(f"{name} is {gap}, expected 0 to {MAX_GAP}")

    @property
    def of_artists(self) -> bool:
        """Whether there is a rule for artists."""
        return self.max_per_artist is not None or self.artist_gap > 0

    @property
    def of_albums(self) -> bool:
        """Whether there is a rule for albums."""
        return self.max_per_album is not None or self.album_gap > 0


class Groups(NamedTuple):
    """The numbers of the artists, or of the albums, of tracks; UNKNOWN for none."""

    tracks: Sequence[int]  # of the ranked tracks, best first
    before: Sequence[int] = ()  # of the session's plays, oldest first
    pinned: Sequence[int] = ()  # of further tracks of the list, which count for the maximum


class Spaced(NamedTuple):
    """The chosen places of a ranking, in the order of the list."""

    places: list[int]
    relaxed: bool  # whether a rule was given up for some place
    rules: dict[int, int]  # the rules that moved the track of a place of the ranking, as a set of bits


class _Rules:
    """The two rules for artists or for albums, while a list is made."""

    def __init__(self, groups: Groups, most: int | None, gap: int, most_rule: str, gap_rule: str) -> None:
        self._of = groups.tracks
        self._most = math.inf if most is None else most
        self._latest = deque(groups.before, maxlen=gap)
        self._counts: Counter[int] = Counter(groups.pinned)
        self._most_bit, self._gap_bit = 1 << RULES.index(most_rule), 1 << RULES.index(gap_rule)

    def broken(self, place: int) -> int:
        """Return the rules that the track of this place would break if it came next."""
        group = self._of[place]
        if group == UNKNOWN:
            return 0
        full = self._most_bit if self._counts[group] >= self._most else 0
        return full | self._gap_bit if group in self._latest else full

    def add(self, place: int) -> None:
        self._counts[self._of[place]] += 1
        self._latest.append(self._of[place])


def spaced(k: int, spacing: Spacing, artists: Groups | None, albums: Groups | None = None) -> Spaced:
    """Choose at most `k` places of a ranking. `artists` or `albums` may be None if `spacing` has no rule for them."""
    given = [groups for groups in (artists, albums) if groups is not None]
    rules: list[_Rules] = []
    if artists is not None:
        rules.append(_Rules(artists, spacing.max_per_artist, spacing.artist_gap, "max_per_artist", "artist_gap"))
    if albums is not None:
        rules.append(_Rules(albums, spacing.max_per_album, spacing.album_gap, "max_per_album", "album_gap"))
    left = list(range(len(given[0].tracks)))
    places: list[int] = []
    moved: dict[int, int] = {}
    relaxed = False
    while left and len(places) < k:
        chosen, passed = _next(left, rules, moved)
        if passed:
            moved[chosen] = moved.get(chosen, 0) | passed
        relaxed |= any(one.broken(chosen) for one in rules)
        left.remove(chosen)
        places.append(chosen)
        for one in rules:
            one.add(chosen)
    return Spaced(places, relaxed, moved)


def _next(left: list[int], rules: list[_Rules], moved: dict[int, int]) -> tuple[int, int]:
    """Return the place that comes next, and the rules that held back better ones. They are noted in `moved` as well."""
    broken: list[int] = []
    for place in left:
        of_place = 0
        for one in rules:
            of_place |= one.broken(place)
        if not of_place:
            chosen = place
            break
        broken.append(of_place)
    else:  # the highest bit is the last rule that would have to be given up
        chosen = min(range(len(left)), key=lambda at: (broken[at].bit_length(), at))
        broken, chosen = broken[:chosen], left[chosen]
    passed = 0
    for place, of_place in zip(left, broken, strict=False):
        moved[place] = moved.get(place, 0) | of_place
        passed |= of_place
    return chosen, passed


def forbidden(spacing: Spacing, at: int, listed: Groups, *, albums: bool = False) -> set[int]:
    """Return the artists, or albums, whose tracks would break a rule in the place `at` of a list.

    `listed` are those of the tracks in the list; the one in this place is not considered.
    """
    most, gap = (spacing.max_per_album, spacing.album_gap) if albums else (spacing.max_per_artist, spacing.artist_gap)
    others = [*listed.tracks[:at], UNKNOWN, *listed.tracks[at + 1 :]]
    heard = [*listed.before, *others]
    middle = at + len(listed.before)
    near = set(heard[max(middle - gap, 0) : middle + gap + 1]) if gap else set()
    full = {group for group, count in Counter(others).items() if most is not None and count >= most}
    return (near | full) - {UNKNOWN}


def names_of(rules: int) -> list[str]:
    """Return the names of a set of rules."""
    return [name for bit, name in enumerate(RULES) if rules >> bit & 1]
