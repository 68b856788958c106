"""Stations: recommendations that seeds keep pulling, whatever the session plays.

`Seeds` finds the catalogue rows of seeds, and of banned artists. The score of a track is the probability
(1 - w) * P(next | session) + w * P(next | seeds). P(next | seeds) is the same ranker's, asked about windows of seeds;
of several windows it is the mean. Without plays the seeds alone count.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from segue.arrays import Float32, Float64, Int
from segue.attributes import Attribute
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Catalogue, Row
from segue.errors import UnknownSeeds
from segue.recommend import CANDIDATES, Ranked, Ranker, Recommender, log_probabilities
from segue.sessions import Station
from segue.window import Windows
from service.releases.added_ranker import AddedRows

MAX_WINDOWS: Final = 4  # each is a query of the model, in every answer

_SHOWN, _LONGEST = 5, 80  # unknown seeds in a message, and characters of each
# Artists whose rows are kept. Finding them reads a number of each track. Above the bans and seeds of one listener.
_MAX_KEPT: Final = 4096


class Pull(NamedTuple):
    """The seeds of a station as catalogue rows, and their weight."""

    seeds: tuple[tuple[Row, ...], ...]  # for each seed (an artist, or all named tracks) its rows, the best first
    weight: float  # above 0, at most 1


class SeedWindows(NamedTuple):
    """The windows that the ranker is asked about."""

    windows: Windows
    shares: Float64  # [windows] of each window in P(next | seeds), with the sum 1


def seed_windows(seeds: Sequence[Sequence[Row]], length: int) -> SeedWindows:
    """Return the windows of seeds. Each seed has at least one row.

    Each seed has the same share. A seed with more rows than a window has is dealt to several windows. If that makes
    more than MAX_WINDOWS windows, the seeds take turns, and their first MAX_WINDOWS * `length` rows are dealt to
    MAX_WINDOWS windows. The first row of a window is its latest play.
    """
    counts = [-(-len(seed) // length) for seed in seeds]
    if sum(counts) > MAX_WINDOWS:
        turns = itertools.chain.from_iterable(itertools.zip_longest(*seeds, fillvalue=PAD_ROW))
        mixed = [row for row in dict.fromkeys(turns) if row != PAD_ROW][: MAX_WINDOWS * length]
        seeds, counts = [mixed], [min(MAX_WINDOWS, len(mixed))]
    dealt = [seed[start::count] for seed, count in zip(seeds, counts, strict=True) for start in range(count)]
    tracks = np.full((len(dealt), length), PAD_ROW, dtype=np.int64)
    for line, rows in enumerate(dealt):
        tracks[line, length - len(rows) :] = rows[::-1]
    shares = np.repeat([1 / (len(seeds) * count) for count in counts], counts)
    return SeedWindows(Windows(tracks, np.zeros(tracks.shape, dtype=np.bool_)), shares)


@dataclass(frozen=True, slots=True)
class StationRanker:
    """Ranks by a mixture of P(next | session) and P(next | seeds) of `ranker`. The score of a track is a probability.

    The candidates are the best tracks for the session and for each window of seeds, at least CANDIDATES of each. All of
    them have both parts.
    """

    ranker: Ranker
    seeds: SeedWindows
    weight: float

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window, by probability, then by row. Rows and scores [batch, k]."""
        known, shown = self._known(windows)
        found = self.ranker.rank(_joined(shown, self.seeds.windows), max(CANDIDATES, k))
        of_seeds = found.rows[len(known) :].ravel()
        lines = {line: found.rows[place] for place, line in enumerate(known.tolist())}
        nothing = np.empty(0, dtype=np.int64)
        each = [np.unique(np.concatenate([lines.get(line, nothing), of_seeds])) for line in range(len(windows))]
        each = [rows[rows != PAD_ROW] for rows in each]
        k = min(k, max(map(len, each), default=0))
        rows = np.full((len(windows), max(map(len, each), default=0)), PAD_ROW, dtype=np.int64)
        for line, of_line in enumerate(each):
            rows[line, : len(of_line)] = of_line
        scores = self._part_scores(windows, rows, found.scores).sum(axis=0).astype(np.float32)
        scores[rows == PAD_ROW] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranked(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the probability of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        scores: Float32 = self.part_scores(windows, rows).sum(axis=0).astype(np.float32)
        return scores

    def part_scores(self, windows: Windows, rows: Int) -> Float64:
        """Return what the session and the seeds add to the score of given tracks. They add up to `scores`.

        `rows` [batch, candidates] int64. Returns [2, batch, candidates] float64. A window without plays has 0 as the
        part of the session, and P(next | seeds) as that of the seeds.
        """
        return self._part_scores(windows, rows, None)

    def _part_scores(self, windows: Windows, rows: Int, best: Float32 | None) -> Float64:
        """As `part_scores`. `best` are the best scores for the known windows, then for those of the seeds, if known."""
        parts = np.zeros((2, *rows.shape))
        known, shown = self._known(windows)
        pool, places = np.unique(rows, return_inverse=True)
        asked = np.broadcast_to(pool, (len(self.seeds.windows), len(pool)))
        of_seeds = self._probability(self.seeds.windows, asked, None if best is None else best[len(known) :])
        parts[1] = (self.seeds.shares @ of_seeds)[places.reshape(rows.shape)]
        if len(known):
            of_session = self._probability(shown, rows[known], None if best is None else best[: len(known)])
            parts[0, known] = (1 - self.weight) * of_session
            parts[1, known] *= self.weight
        return parts

    def _probability(self, windows: Windows, rows: Int, best: Float32 | None) -> Float64:
        probability: Float64 = np.exp(log_probabilities(self.ranker, windows, self.ranker.scores(windows, rows), best))
        return probability

    def _known(self, windows: Windows) -> tuple[Int, Windows]:
        """Return the indices of the windows with plays, and these windows. An encoder need not accept others."""
        known = np.flatnonzero((windows.tracks != PAD_ROW).any(axis=1))
        return known, windows.select(known)


def _joined(first: Windows, second: Windows) -> Windows:
    return Windows(np.concatenate([first.tracks, second.tracks]), np.concatenate([first.skipped, second.skipped]))


def pulled(recommender: Recommender, pull: Pull) -> Recommender:
    """Return a recommender whose sessions `pull` pulls. It never answers by popularity."""
    seeds = seed_windows(pull.seeds, recommender.window)
    return replace(recommender, ranker=StationRanker(recommender.ranker, seeds, pull.weight), needs_plays=False)


class Seeds:
    """Finds tracks by their artists. Thread-safe."""

    def __init__(self, catalogue: Catalogue, window: int, added: AddedRows | None = None) -> None:
        """`window` is the number of tracks that stand for an artist: the most played ones.

        `added` are the added tracks of the catalogue.
        """
        self._catalogue = catalogue
        self._window = window
        self._added = added
        self._names = [name for name in ("artist_id", "artist") if name in catalogue.attributes]
        self._kept: dict[tuple[str, str], tuple[Row, ...]] = {}

    def pull(self, station: Station) -> tuple[Pull | None, list[str]]:
        """Return the pull of a station, None if no seed is known, and the unknown seeds.

        All tracks together are one seed, and each artist is one. An added track is a seed as its first neighbour, as in
        a window. The pull therefore stays valid when the added tracks change.
        """
        rows = self._catalogue.rows(station.tracks)
        unknown = [track for track, row in zip(station.tracks, rows.tolist(), strict=True) if row == PAD_ROW]
        seeds = [tuple(dict.fromkeys(rows[rows != PAD_ROW].tolist()))]
        for artist in station.artists:
            of_artist = self._found("named", artist)
            seeds.append(of_artist[: self._window])
            if not of_artist:
                unknown.append(artist)
        if self._added is not None:
            seeds = [tuple(self._added.stand_in(np.array(seed, dtype=np.int64)).tolist()) for seed in seeds]
        seeds = list(filter(None, seeds))
        return (Pull(tuple(seeds), station.weight) if seeds else None), unknown

    def known_pull(self, station: Station) -> tuple[Pull, list[str]]:
        """Return the pull of a station, and the unknown seeds. Raises UnknownSeeds if no seed is known."""
        pull, unknown = self.pull(station)
        if pull is None:
            shown = ", ".join(ascii(seed[:_LONGEST]) for seed in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise UnknownSeeds(
                f"the release knows none of the seeds {shown}{more}: expected ids of tracks and artists in its "
                "catalogue"
            )
        return pull, unknown

    def is_ready(self, artists: Sequence[str], track_ids: Sequence[str] = ()) -> bool:
        """Return whether the other methods return at once for these artists, and for the artists of these tracks."""
        keys = [*(("named", artist) for artist in artists), *(("with", track_id) for track_id in track_ids)]
        return all(key in self._kept for key in keys)

    def find(self, artists: Sequence[str], track_ids: Sequence[str] = ()) -> None:
        """Find what the other methods need for these artists, and for the artists of these tracks."""
        for how, names in (("named", artists), ("with", track_ids)):
            for name in names:
                self._found(how, name)

    def of_same_artist(self, track_ids: Sequence[str]) -> list[str]:
        """Return these tracks and all others of their artists. Ids outside the catalogue stay."""
        found = dict.fromkeys(track_ids)
        for track_id in track_ids:
            found |= dict.fromkeys(map(self._catalogue.track_id, self._found("with", track_id)))
        return list(found)

    def _found(self, how: str, text: str) -> tuple[Row, ...]:
        """Return the rows of an artist by name ("named") or by one of the tracks ("with"), most played first."""
        rows = self._kept.get((how, text))
        if rows is None:
            found = self._named(text) if how == "named" else self._with(text)
            order = np.argsort(-self._catalogue.plays[found].astype(np.int64), kind="stable")
            rows = self._kept[how, text] = tuple(found[order].tolist())
            if len(self._kept) > _MAX_KEPT:
                self._kept.pop(next(iter(self._kept)), None)
        return rows

    def _named(self, artist: str) -> Int:
        """Return the rows of an artist by `artist_id`, else by name, else by name in any case. [n] int64."""

        def as_text(values: pl.Series) -> pl.Series:
            # The numbers of changed tracks are floats.
            return (
                values.cast(pl.String).str.strip_suffix(".0") if values.dtype.is_numeric() else values.cast(pl.String)
            )

        def exactly(values: pl.Series) -> pl.Series:
            return as_text(values) == (artist.removesuffix(".0") if values.dtype.is_numeric() else artist)

        def in_any_case(values: pl.Series) -> pl.Series:
            return as_text(values).str.to_lowercase() == artist.lower()

        for name in self._names:
            if self._catalogue.attributes[name].kind in ("text", "number", "set"):
                for same in (exactly, in_any_case):
                    found = self._rows_with(name, same)
                    if len(found):
                        return found
        return np.empty(0, dtype=np.int64)

    def _with(self, track_id: str) -> Int:
        """Return the rows of the artists of a track. [n] int64, empty if they are unknown.

        A track without `artist_id` is of the artists with the same name.
        """
        [row] = self._catalogue.rows([track_id]).tolist()
        if row == PAD_ROW or not self._names:
            return np.empty(0, dtype=np.int64)
        attributes = self._catalogue.attributes
        [of_track] = attributes.of_rows([row], self._names)
        found = [np.empty(0, dtype=np.int64)]
        for name, value in of_track.items():
            members = value if isinstance(value, list) else [value]
            rows = self._rows_with(name, partial(_is_one_of, members))
            if name != self._names[0] and of_track.get(self._names[0]) not in (None, []):  # those without an id
                rows = rows[np.isin(rows, self._rows_with(self._names[0], pl.Series.is_null))]
            found.append(rows)
        return np.unique(np.concatenate(found))

    def _rows_with(self, name: str, same: Callable[[pl.Series], pl.Series]) -> Int:
        """Return the rows whose value of an attribute is one of those that `same` finds. [n] int64."""
        attributes = self._catalogue.attributes
        found = _rows_of(attributes[name], same)
        if attributes.changes is None:
            return found
        rows, changed = attributes.changes
        of_changed = rows[_rows_of(changed[name], same) - FIRST_TRACK_ROW]
        return np.union1d(found[~np.isin(found, rows)], of_changed)


def _rows_of(attribute: Attribute, same: Callable[[pl.Series], pl.Series]) -> Int:
    """Return the rows whose value, or a member of whose set, is one that `same` finds. [n] int64."""
    values = pl.DataFrame({"value": attribute.values, "code": np.arange(len(attribute.values))})
    if attribute.kind == "set":  # null for an empty set, in every version of Polars
        value = pl.col("value")
        values = values.with_columns(pl.when(value.list.len() > 0).then(value)).explode("value")
    wanted = np.zeros(len(attribute.values), dtype=np.bool_)
    wanted[values.filter(same(values["value"]).fill_null(value=False))["code"].to_numpy()] = True
    return np.flatnonzero(wanted[attribute.codes]) + FIRST_TRACK_ROW


def _is_one_of(members: Sequence[Any], values: pl.Series) -> pl.Series:
    """Return whether each value is one of some, [n] boolean or null. The numbers of changed tracks are floats."""
    if values.dtype.is_numeric():
        return values.cast(pl.Float64).is_in([float(one) for one in members])
    return values.is_in(members)
