"""The catalogue rows of seeds and of banned artists."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import polars as pl

from segue.arrays import Int
from segue.attributes import Attribute
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Catalogue, Row
from segue.errors import UnknownSeeds
from segue.sessions import Station
from segue.stations import Pull
from service.releases.added_ranker import AddedRows

_SHOWN, _LONGEST = 5, 80  # unknown seeds in a message, and characters of each
# Artists whose rows are kept. Finding them reads a number of each track. Above the bans and seeds of one listener.
_MAX_KEPT: Final = 4096


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
            if self._catalogue.attributes[name].kind in ("text", "number"):
                for same in (exactly, in_any_case):
                    found = self._rows_with(name, same)
                    if len(found):
                        return found
        return np.empty(0, dtype=np.int64)

    def _with(self, track_id: str) -> Int:
        """Return the rows of the artist of a track. [n] int64, empty if it is unknown."""
        [row] = self._catalogue.rows([track_id]).tolist()
        if row != PAD_ROW and self._names:
            name = self._names[0]
            [value] = self._catalogue.attributes.of_rows([row], [name])
            if name in value:
                return self._rows_with(name, lambda values: values == value[name])
        return np.empty(0, dtype=np.int64)

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
    mask = np.zeros(len(attribute.codes), dtype=np.bool_)
    for code in same(attribute.values).fill_null(value=False).arg_true().to_list():
        mask |= attribute.codes == code
    return np.flatnonzero(mask) + FIRST_TRACK_ROW
