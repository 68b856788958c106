"""Added tracks: new tracks, and new names and attributes of known ones, without training, on all workers and replicas.

`added-tracks.json` (service/releases/tracks_file.py) has them. Each worker fits them to each of its releases
(`added_to`): it finds the neighbours of new tracks, and drops attributes that the release does not have. Added tracks
therefore survive restarts and swaps, and the next training: a release that knows the track uses its trained vector.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, ClassVar, Final, Self

import numpy as np
import polars as pl

from segue.arrays import Int
from segue.attributes import Attribute, Attributes
from segue.catalogue import PAD_ROW, Catalogue, Row
from segue.errors import InputError
from segue.sessions import TEXT_PATTERN
from service.releases.added_ranker import MAX_NEIGHBOURS, NEIGHBOURS, AddedRows, Vectors
from service.releases.changed_catalogue import ChangedCatalogue, ChangedTrack
from service.releases.tracks_file import TracksFile

FILE: Final = "added-tracks.json"
MAX_ADDED: Final = 1_000
MAX_MEMBERS: Final = 500  # of a set
MAX_TEXT: Final = 500  # characters of a name or a value
MAX_COMPONENT: Final = 1_000.0  # of an embedding, in absolute value
RELATED_BY: Final = ("album_id", "artist_id", "artist")  # attributes that give neighbours, in this order

_LARGEST: Final = 2**53
_text: Final = re.compile(TEXT_PATTERN)


@dataclass(frozen=True, slots=True)
class AddedTrack:
    """An added track, or changes to a known one. The values of attributes are those of JSON; None: no value."""

    since: str  # time of the latest change, ISO 8601 in UTC
    title: str | None
    artist: str | None
    attributes: Mapping[str, Any]
    neighbours: Sequence[str] = ()  # of a track with an embedding: the tracks nearest to it
    embedding: Sequence[float] = ()
    release: str | None = None  # the release whose embeddings `embedding` is comparable with

    @classmethod
    def now(cls, **facts: Any) -> Self:
        """Return a track that is added now."""
        return cls(datetime.now(UTC).isoformat(timespec="milliseconds"), **facts)

    def value(self, name: str) -> Any:
        """Return the value of an attribute, with the artist as one of them."""
        return self.artist if name == "artist" else self.attributes.get(name)


class AddedTracksFile(TracksFile[AddedTrack]):
    """The added tracks of a folder of releases by id."""

    file: ClassVar[str] = FILE
    key: ClassVar[str] = "added"
    most: ClassVar[int] = MAX_ADDED
    remedy: ClassVar[str] = "delete those that the current release was trained with, or train again and swap"

    @classmethod
    def read_value(cls, value: Any) -> AddedTrack:
        """Return a track from its JSON. Raises ValueError, KeyError or TypeError."""
        track = AddedTrack(**value)
        texts = (track.since, track.title or "", track.artist or "", track.release or "", *track.neighbours)
        if not all(isinstance(text, str) for text in texts) or not isinstance(track.attributes, dict):
            raise TypeError("expected texts and an object of attributes")
        if not all(isinstance(one, int | float) and abs(one) <= MAX_COMPONENT for one in track.embedding):
            raise ValueError("expected numbers in the embedding")
        return track

    @classmethod
    def as_json(cls, value: AddedTrack) -> Any:
        """Return the JSON of a track, without what it does not have."""
        return {name: one for name, one in asdict(value).items() if one or name in ("title", "artist", "attributes")}

    async def put(self, track_id: str, track: AddedTrack) -> None:
        """Add a track or replace an added one. Raises as `edit`."""

        def change(tracks: dict[str, AddedTrack]) -> bool:
            tracks[track_id] = track
            return True

        await self.edit(change)

    async def delete(self, track_id: str) -> bool:
        """Delete an added track, or the changes of a known one. Return whether there were any. Raises as `edit`."""
        return await self.edit(lambda tracks: tracks.pop(track_id, None) is not None)


# --- values of attributes ---


def check_attributes(given: Mapping[str, Any], attributes: Attributes) -> None:
    """Raise UnknownAttribute or InputError unless a release can have these values of its attributes."""
    for name, value in given.items():
        check_value(name, value, attributes[name])


def check_value(name: str, value: Any, attribute: Attribute) -> None:
    """Raise InputError unless an attribute can have this value. None, which is no value, is allowed."""
    allowed, expected = {
        "boolean": (isinstance(value, bool), "true or false"),
        "text": (_is_text(value), f"a text of 1 to {MAX_TEXT} characters"),
        "number": (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST,
            "a number up to 2^53",
        ),
        "date": (_is_date(value), "a date such as 2026-11-29"),
        "set": (
            isinstance(value, list) and len(value) <= MAX_MEMBERS and all(map(_is_text, value)),
            f"a list of at most {MAX_MEMBERS} texts",
        ),
    }[attribute.kind]
    if value is not None and not allowed:
        raise InputError(
            f"{name} is a {attribute.kind} in this release, and the body has {ascii(value)[:80]}: give {expected}, or "
            "null for no value"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and _text.match(value) is not None


def _is_date(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def check_track(track_id: str, track: AddedTrack, catalogue: Catalogue, vectors: Vectors | None) -> AddedTrack:
    """Return a track that a release can have, with the neighbours of its embedding. `catalogue` has no added tracks.

    Raises UnknownAttribute, or InputError if an attribute, a neighbour or the embedding does not fit the release, or if
    it gives no neighbours for a new track.
    """
    if "artist" in track.attributes:
        raise InputError("artist is in `attributes`: give it beside them, as the member `artist` of the body")
    check_attributes(track.attributes, catalogue.attributes)
    for neighbour in track.neighbours:
        if neighbour not in catalogue:
            raise InputError(
                f"the neighbour {neighbour!r} is not in the catalogue of {len(catalogue):,} tracks: give tracks that "
                "the current release was trained with"
            )
    if track.embedding:
        if vectors is None:
            raise InputError("the current release has no embeddings: give neighbours instead of an embedding")
        dimension = vectors.embeddings.shape[1]
        if len(track.embedding) != dimension:
            raise InputError(
                f"the embedding has {len(track.embedding)} numbers, the current release has {dimension} dimensions"
            )
        near = [catalogue.track_id(row) for row in vectors.near(track.embedding)]
        return replace(track, neighbours=near, release=vectors.release)
    if track_id not in catalogue and not neighbours_of({track_id: track}, catalogue)[track_id]:
        names = ", ".join(name for name in RELATED_BY if name in catalogue.attributes and name != "artist")
        raise InputError(
            f"nothing says what {track_id!r} is like: give neighbours, an embedding, or "
            f"{names + ' or ' if names else ''}artist with the value of a track in the current release"
        )
    return track


# --- added tracks in a release ---


@dataclass(frozen=True, slots=True)
class Added:
    """The added tracks, as a release has them."""

    catalogue: Catalogue
    rows: AddedRows | None  # None: only known tracks were changed
    neighbours: Mapping[str, list[str]]  # of each track that the release does not have; empty: the track is unknown
    dropped: list[str]  # a line for each track that lost something


def added_to(catalogue: Catalogue, vectors: Vectors | None, tracks: Mapping[str, AddedTrack]) -> Added:
    """Fit added tracks to a release with this catalogue. `vectors` is None for a release without an encoder."""
    known = {track_id: catalogue.row(track_id) for track_id in tracks if track_id in catalogue}
    new = {track_id: track for track_id, track in tracks.items() if track_id not in known}
    near = neighbours_of(new, catalogue)
    new = _with_artist_ids(new, catalogue)
    placed = [track_id for track_id in new if near[track_id]]
    changed = [_changed(row, track_id, tracks[track_id], catalogue, ()) for track_id, row in known.items()]
    for place, track_id in enumerate(placed):
        changed.append(_changed(catalogue.num_rows + place, track_id, new[track_id], catalogue, near[track_id]))
    lost = [f"{track_id} has no neighbour in it" for track_id in new if not near[track_id]]
    for track_id, track in tracks.items():
        names = [name for name, value in track.attributes.items() if not _fits(name, value, catalogue.attributes)]
        if names:
            lost.append(f"{', '.join(names)} of {track_id} is no attribute of it, or one of another kind")
    rows = None
    if placed:
        rows = _rows(catalogue.num_rows, [near[name] for name in placed], [new[name] for name in placed], vectors)
    named = {track_id: [catalogue.track_id(row) for row in found] for track_id, found in near.items()}
    return Added(ChangedCatalogue(catalogue, changed), rows, named, lost)


def _with_artist_ids(tracks: Mapping[str, AddedTrack], catalogue: Catalogue) -> dict[str, AddedTrack]:
    """Return the tracks with the `artist_id` of their artist in the release, where only the artist's name is given.

    Bans and spacing go by the id if the release has one.
    """
    known = catalogue.attributes
    if "artist_id" not in known or "artist" not in known:
        return dict(tracks)
    named = {one: track for one, track in tracks.items() if track.artist and "artist_id" not in track.attributes}
    found = dict(tracks)
    for track_id, rows in _related(named, catalogue, "artist").items():
        given = [one.get("artist_id") for one in known.of_rows(rows, ["artist_id"])]
        ids = [one for one in given if one not in (None, [])]
        if ids:
            track = tracks[track_id]
            found[track_id] = replace(track, attributes={**track.attributes, "artist_id": ids[0]})
    return found


def _fits(name: str, value: Any, attributes: Attributes) -> bool:
    try:
        check_attributes({name: value}, attributes)
    except InputError:
        return False
    return True


def _changed(row: Row, track_id: str, track: AddedTrack, catalogue: Catalogue, near: Sequence[Row]) -> ChangedTrack:
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    if not near:  # a known track
        names = json.loads(b"{%b}" % catalogue.json(row))
        [values] = catalogue.attributes.of_rows([row], catalogue.attributes)
    given = {name: value for name, value in track.attributes.items() if _fits(name, value, catalogue.attributes)}
    if track.artist is not None and "artist" in catalogue.attributes:
        given["artist"] = track.artist
    values = {name: value for name, value in (values | given).items() if value is not None}
    title = track.title if track.title is not None else names.get("title")
    artist = track.artist if track.artist is not None else names.get("artist")
    plays = float(catalogue.plays[list(near or [row])].mean())
    return ChangedTrack(row, track_id, title, artist, values, plays)


def _rows(first: Row, near: list[list[Row]], tracks: list[AddedTrack], vectors: Vectors | None) -> AddedRows:
    most = max(map(len, near))
    neighbours = np.array([[*rows, *[rows[0]] * (most - len(rows))] for rows in near], dtype=np.int64)
    weights = np.array([[1 / len(rows)] * len(rows) + [0] * (most - len(rows)) for rows in near], dtype=np.float32)
    if vectors is None:
        return AddedRows(first, neighbours, weights, None)
    means = (vectors.embeddings[neighbours] * weights[:, :, None]).sum(axis=1).astype(np.float32)
    for place, track in enumerate(tracks):
        if track.release == vectors.release and len(track.embedding) == means.shape[1]:
            means[place] = track.embedding
    return AddedRows(first, neighbours, weights, means)


# --- neighbours ---


def neighbours_of(tracks: Mapping[str, AddedTrack], catalogue: Catalogue) -> dict[str, list[Row]]:
    """Return the rows of the neighbours of each track; none if there is nothing to find them by.

    They are the given ones. Without one that the release knows, they are the most played tracks of its album or artist.
    """
    found = {
        track_id: [row for row in catalogue.rows(track.neighbours[:MAX_NEIGHBOURS]).tolist() if row != PAD_ROW]
        for track_id, track in tracks.items()
    }
    for name in RELATED_BY:
        if name in catalogue.attributes:
            left = {track_id: track for track_id, track in tracks.items() if not found[track_id]}
            found |= _related(left, catalogue, name)
    return found


def _related(tracks: Mapping[str, AddedTrack], catalogue: Catalogue, name: str) -> dict[str, list[Row]]:
    """Return the most played tracks with the same value of an attribute; of a set, with one of its members."""
    attribute = catalogue.attributes[name]
    wanted = {track_id: _members(track.value(name)) for track_id, track in tracks.items()}
    kind = attribute.values.dtype.inner if attribute.kind == "set" else attribute.values.dtype  # type: ignore[attr-defined]  # a list
    texts = pl.Series([str(one) for members in wanted.values() for one in members], dtype=pl.String).unique()
    if not len(texts) or kind not in (pl.String, pl.Int64):
        return {}
    stored = pl.DataFrame({"value": attribute.values, "code": np.arange(len(attribute.values), dtype=np.uint32)})
    stored = stored.explode("value") if attribute.kind == "set" else stored
    stored = stored.with_columns(pl.col("value").cast(pl.String)).filter(pl.col("value").is_in(texts))
    is_wanted = np.zeros(len(attribute.values), dtype=np.bool_)
    is_wanted[stored["code"].to_numpy()] = True
    rows: Int = np.flatnonzero(is_wanted[attribute.codes]) + 1
    plays = catalogue.plays[rows]
    related = (
        pl.DataFrame({"row": rows, "plays": plays, "code": attribute.codes[rows - 1].astype(np.uint32)})
        .join(stored, on="code")
        .sort("plays", "row", descending=[True, False])
        .group_by("value", maintain_order=True)
        .head(NEIGHBOURS)
    )
    by_value = {
        str(key[0]): list(zip(part["plays"].to_list(), part["row"].to_list(), strict=True))
        for key, part in related.partition_by("value", as_dict=True).items()
    }
    found = {}
    for track_id, members in wanted.items():
        best = {row: -plays for one in members for plays, row in by_value.get(str(one), ())}
        found[track_id] = sorted(best, key=lambda row: (best[row], row))[:NEIGHBOURS]
    return found


def _members(value: Any) -> list[Any]:
    members = value if isinstance(value, list) else [value] if value is not None else []
    return [int(one) if isinstance(one, float) and one.is_integer() else one for one in members]
