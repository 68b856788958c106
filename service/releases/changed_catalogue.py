"""A catalogue with tracks that were added or changed while the service runs, over the mapped files of a release.

The mapped files stay as they are. Added tracks have the rows after those of the catalogue. The few changed tracks are
Python objects, and every question about a row asks them first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import orjson
import polars as pl

from segue.arrays import Bool, Float32, Int
from segue.attributes import Attribute, Attributes, Changes, Kind
from segue.catalogue import FIRST_TRACK_ROW, Catalogue, Row


@dataclass(frozen=True, slots=True)
class ChangedTrack:
    """What a catalogue says of an added or a changed track."""

    row: Row
    track_id: str
    title: str | None
    artist: str | None
    attributes: Mapping[str, Any]  # the values as in JSON; absent: no value
    plays: float

    @property
    def json(self) -> bytes:
        """The JSON members, as Catalogue.json returns them."""
        names = {"track_id": self.track_id, "title": self.title, "artist": self.artist}
        return orjson.dumps({name: text for name, text in names.items() if text is not None})[1:-1]

    @property
    def text(self) -> str:
        """The text that a search looks at."""
        return "\n".join((self.title or "", self.artist or "", self.track_id)).lower()


class ChangedCatalogue(Catalogue):
    """The tracks of `whole`, with changed and added ones. Immutable and thread-safe."""

    def __init__(self, whole: Catalogue, changed: Sequence[ChangedTrack]) -> None:
        """`changed` are tracks of `whole` in any order, and added ones with the rows after its last row, in order."""
        super().__init__(whole._tracks)
        self._whole = whole
        self._changed = {track.row: track for track in changed}
        self._added_rows = {track.track_id: track.row for track in changed if track.row >= whole.num_rows}
        self._added = [track for track in changed if track.row >= whole.num_rows]
        find_stored, added = whole._find, self._added_rows
        if added:
            self._find = lambda track_id: added.get(track_id) or find_stored(track_id)
        self._attributes = _ChangedAttributes(whole.attributes, self._changed)
        self._jsons = {track.row: track.json for track in changed}

    def __len__(self) -> int:
        """Return the number of tracks, with the added ones."""
        return len(self._whole) + len(self._added_rows)

    def track_id(self, row: Row) -> str:
        """Return the track id of a row. Raises IndexError for the padding row and for rows beyond the last row."""
        changed = self._changed.get(row)
        return changed.track_id if changed is not None else self._whole.track_id(row)

    @property
    def attributes(self) -> Attributes:
        """The attributes of the tracks, with the artist as one of them."""
        return self._attributes

    @property
    def plays(self) -> Float32:
        """Play counts by row; of an added track those that it is ranked by. A new array [num_rows] float32."""
        added = np.array([track.plays for track in self._added], dtype=np.float32)
        return np.concatenate([self._whole.plays.astype(np.float32, copy=False), added])

    def json(self, row: Row) -> bytes:
        """Return the JSON members of a track, without the braces, in UTF-8."""
        found = self._jsons.get(row)
        return found if found is not None else self._whole.json(row)

    def search(self, query: str, limit: int, keep: Callable[[Int], Bool] | None = None) -> list[Row]:
        """Return at most `limit` rows of tracks with each word of `query` in title, artist or id, most played first.

        `keep` is that of Catalogue.search.
        """
        rows = np.array(list(self._changed), dtype=np.int64)

        def stored(asked: Int) -> Bool:
            other: Bool = ~np.isin(asked, rows)
            return other if keep is None else other & keep(asked)

        words = query.lower().split()
        found = self._whole.search(query, limit, keep if len(rows) == len(self._added) else stored)
        kept = np.ones(len(rows), dtype=np.bool_) if keep is None else keep(rows)
        matching = [self._changed[row] for row in rows[kept].tolist()]
        plays = {track.row: track.plays for track in matching if all(word in track.text for word in words)}
        plays |= {row: float(self._whole.plays[row]) for row in found}
        return sorted(plays, key=lambda row: (-plays[row], row))[:limit]


class _ChangedAttributes(Attributes):
    """Attributes of a catalogue with those of changed tracks."""

    def __init__(self, whole: Attributes, changed: Mapping[Row, ChangedTrack]) -> None:
        super().__init__(dict(whole))
        self._whole = whole
        self._changed = changed
        columns = [
            _column(name, one, [track.attributes.get(name) for track in changed.values()])
            for name, one in whole.items()
        ]
        rows = np.array(list(changed), dtype=np.int64)
        self.changes = Changes(rows, Attributes.from_frame(pl.DataFrame(columns)))
        self._codes: dict[str, dict[Row, int]] = {}

    def of_rows(self, rows: Iterable[int], names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the values of the named attributes for each row, as Attributes.of_rows does."""
        asked, names = list(rows), list(names)
        stored = [row if row not in self._changed else FIRST_TRACK_ROW for row in asked]
        found = self._whole.of_rows(stored, names)
        for place, row in enumerate(asked):
            track = self._changed.get(row)
            if track is not None:
                values = track.attributes
                found[place] = {name: values[name] for name in names if values.get(name) is not None}
        return found

    def codes_of(self, name: str, rows: Int) -> Int:
        """Return a number for the value of each row, as Attributes.codes_of does. -1: no stored track has no value."""
        of_changed = self._codes_of_changed(name)
        codes = self._whole.codes_of(name, np.where(np.isin(rows, list(of_changed)), FIRST_TRACK_ROW, rows))
        for place in np.flatnonzero(np.isin(rows, list(of_changed))).tolist():
            codes[place] = of_changed[int(rows[place])]
        return codes

    def _codes_of_changed(self, name: str) -> dict[Row, int]:
        if name not in self._codes:
            attribute = self[name]
            assert self.changes is not None
            rows, changed = self.changes
            small = changed[name]
            # A new value gets a number after those of the stored values.
            stored = {_key(value): code for code, value in _positions(attribute, small)}
            codes = [
                stored.get(_key(value), -1 if value is None else len(attribute.values) + place)
                for place, value in enumerate(small.values.to_list())
            ]
            self._codes[name] = {
                row: codes[code] for row, code in zip(rows.tolist(), small.codes.tolist(), strict=True)
            }
        return self._codes[name]


def _key(value: Any) -> Any:
    return tuple(sorted(value)) if isinstance(value, list) else value


def _positions(attribute: Attribute, small: Attribute) -> Iterable[tuple[int, Any]]:
    """Return position and value of the stored values that are also values of a small attribute."""
    values = attribute.values
    if attribute.kind == "set":  # the members of a set have no order
        return enumerate(values.to_list())
    same = values.is_in(small.values.cast(values.dtype).implode(), nulls_equal=True)
    return zip(np.flatnonzero(same.to_numpy()).tolist(), values.filter(same).to_list(), strict=True)


_DTYPES: dict[Kind, Any] = {"boolean": pl.Boolean, "text": pl.String, "date": pl.Date, "set": pl.List(pl.String)}


def _column(name: str, attribute: Attribute, values: list[Any]) -> pl.Series:
    if attribute.kind == "date":
        values = [None if value is None else date.fromisoformat(value) for value in values]
    if attribute.kind == "number":
        return pl.Series(name, values, dtype=pl.Float64)
    return pl.Series(name, values, dtype=_DTYPES[attribute.kind])
