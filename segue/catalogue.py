"""The catalogue: the list of tracks, with their metadata and play counts.

The catalogue converts between a TrackId (the string in logs and requests) and a Row (the integer index of the track in
every array). Row 0 is reserved for padding. Tracks have the rows from 1, in the order of the catalogue file.
`Catalogue.read_parquet` reads a catalogue into memory. `Catalogue.map` memory-maps the files that `write_mapped`
writes. Mapped files need no parsing, and all worker processes of a service share one copy in memory:

    track_ids.bin      UTF-8 ids, concatenated. track_id_ends.npy: [num_rows] int64, end of each id, in bytes
    track_json.bin     JSON members of each track, without braces. track_json_ends.npy: [num_rows] int64, ends in bytes
    rows_by_id.npy     [tracks] int32, rows sorted by the UTF-8 bytes of their ids
    rows_by_plays.npy  [tracks] int32, rows by descending play count, ties by row
    plays.npy          [num_rows] float32, play counts in the training data
    search.arrow       Arrow IPC, uncompressed: row, text (title, artist and id in lower case), by descending play count
    attributes.arrow, attribute_codes.npy: attributes of the tracks, if there are any (segue.attributes)
"""

import bisect
import contextlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Float32, Int, MappedTexts, plain_array, write_texts
from segue.attributes import VALUES_FILE, Attributes
from segue.errors import BadRelease, InputError, UnknownTrack
from segue.safe_files import UNREADABLE, check_footer

Row: TypeAlias = int

PAD_ROW: Row = 0
FIRST_TRACK_ROW: Row = 1

_SCHEMA = {
    "row": pl.Int32,
    "track_id": pl.String,
    "plays": pl.Int64,
    "skips": pl.Int64,
    "title": pl.String,
    "artist": pl.String,
}

_IDS, _ID_ENDS = "track_ids.bin", "track_id_ends.npy"
_JSON, _JSON_ENDS = "track_json.bin", "track_json_ends.npy"
_BY_ID, _BY_PLAYS, _PLAYS, _SEARCH = "rows_by_id.npy", "rows_by_plays.npy", "plays.npy", "search.arrow"
MAPPED_FILES: Final = (_IDS, _ID_ENDS, _JSON, _JSON_ENDS, _BY_ID, _BY_PLAYS, _PLAYS, _SEARCH)

_TRACKS_AT_ONCE: Final = 500_000  # tracks per chunk when the files are written
_REMEMBERED: Final = 100_000  # size of a mapped catalogue's id cache; a few tracks get most plays (Zipf's law)


class Catalogue:
    """The tracks of a dataset or release. Thread-safe. Only an in-memory catalogue has `frame` and `track_ids`."""

    def __init__(self, tracks: "_InMemory | _Mapped") -> None:
        """Create a catalogue. Call `from_frame`, `read_parquet` or `map` instead of this constructor."""
        self._tracks = tracks
        self._find: Callable[[str], Row] = tracks.find

    @classmethod
    def from_frame(cls, tracks: pl.DataFrame) -> "Catalogue":
        """Create a catalogue from a data frame. The order of the lines determines the rows.

        `tracks` needs the column `track_id` and may have `title`, `artist`, `plays` (including skipped plays) and
        `skips`. In a release, the counts are from the training data. All other columns are attributes of the tracks.
        Raises InputError for missing or duplicate ids.
        """
        if "track_id" not in tracks.columns:
            raise InputError(f"a catalogue needs a column track_id, found {', '.join(tracks.columns)}")
        if tracks["track_id"].null_count() or tracks["track_id"].n_unique() != len(tracks):
            raise InputError("a catalogue names every track once: track_id holds a missing or repeated id")
        columns = [
            (pl.col(name) if name in tracks.columns else pl.lit(0 if kind == pl.Int64 else None)).cast(kind).alias(name)
            for name, kind in _SCHEMA.items()
            if name != "row"
        ]
        rows = pl.int_range(FIRST_TRACK_ROW, len(tracks) + FIRST_TRACK_ROW, dtype=pl.Int32).alias("row")
        attributes = [name for name in tracks.columns if name not in _SCHEMA]
        return cls(_InMemory(tracks.select(rows, *columns, *attributes)))

    @classmethod
    def read_parquet(cls, path: Path) -> "Catalogue":
        """Read `catalogue.parquet` into memory. Raises InputError with a one-line message."""
        with _readable(path):
            frame = pl.read_parquet(path, memory_map=True)
            if "row" in frame.columns:
                frame = frame.sort("row", maintain_order=True)
                if frame["row"].to_list()[:1] not in ([], [FIRST_TRACK_ROW]):
                    raise InputError(f"{path}: rows begin at {frame['row'][0]}, expected {FIRST_TRACK_ROW}")
            return cls.from_frame(frame)

    @classmethod
    def map(cls, folder: Path) -> "Catalogue":
        """Memory-map the files that `write_mapped` wrote. Raises BadRelease for inconsistent or damaged files."""
        return cls(_Mapped(folder))

    @staticmethod
    def count(path: Path) -> int:
        """Return the number of tracks in `catalogue.parquet` without reading the tracks. Raises InputError."""
        with _readable(path):
            tracks: int = pl.scan_parquet(path).select(pl.len()).collect().item()
            return tracks

    @property
    def frame(self) -> pl.DataFrame:
        """All tracks in row order: the columns of _SCHEMA, then attributes. Raises TypeError if memory-mapped."""
        return self._in_memory.frame

    @property
    def track_ids(self) -> list[str]:
        """All track ids in row order, from FIRST_TRACK_ROW. Raises TypeError for a memory-mapped catalogue."""
        return self._in_memory.track_ids

    @property
    def _in_memory(self) -> "_InMemory":
        if isinstance(self._tracks, _InMemory):
            return self._tracks
        raise TypeError("a mapped catalogue has neither frame nor track_ids: read catalogue.parquet")

    def write_parquet(self, path: Path) -> None:
        """Write the catalogue to `path` as Parquet, in the format that `read_parquet` reads."""
        self.frame.write_parquet(path, compression="zstd")

    def write_mapped(self, folder: Path) -> None:
        """Write the memory-mappable files, which `map` reads, into `folder`."""
        frame = self.frame
        ids = [part["track_id"] for part in frame.iter_slices(_TRACKS_AT_ONCE)]
        write_texts(folder, _IDS, _ID_ENDS, ids)
        write_texts(folder, _JSON, _JSON_ENDS, [_as_json(part) for part in frame.iter_slices(_TRACKS_AT_ONCE)])
        by_id = frame.select("row", pl.col("track_id").cast(pl.Binary)).sort("track_id")["row"].to_numpy()
        for name, array in (
            (_BY_ID, by_id.astype(np.int32)),
            (_BY_PLAYS, self.by_plays.astype(np.int32)),
            (_PLAYS, self.plays.astype(np.float32)),
        ):
            np.save(folder / name, array, allow_pickle=False)
        self._tracks.searchable.collect().write_ipc(folder / _SEARCH, compression="uncompressed")
        self.attributes.write(folder)

    def with_counts(self, plays: Int, skips: Int) -> "Catalogue":
        """Return a copy of the catalogue with new counts. `plays` and `skips` are [num_rows] int64, indexed by row."""
        counted = self.frame.with_columns(
            pl.Series("plays", plays[FIRST_TRACK_ROW:]), pl.Series("skips", skips[FIRST_TRACK_ROW:])
        )
        return Catalogue.from_frame(counted)

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self._tracks)

    @property
    def num_rows(self) -> int:
        """The length of an array that is indexed by row: the number of tracks plus one for the padding row."""
        return len(self) + FIRST_TRACK_ROW

    def __contains__(self, track_id: str) -> bool:
        """Return True if the catalogue contains the track."""
        return self._find(track_id) != PAD_ROW

    def row(self, track_id: str) -> Row:
        """Return the row of a track. Raises UnknownTrack."""
        row = self._find(track_id)
        if row == PAD_ROW:
            raise UnknownTrack(
                f"track {track_id!r} is not in the catalogue of {len(self):,} tracks: find ids by search"
            )
        return row

    def rows(self, track_ids: Sequence[str]) -> Int:
        """Return the row of each track, or PAD_ROW for a track outside the catalogue. [n] int64."""
        return np.fromiter(map(self._find, track_ids), dtype=np.int64, count=len(track_ids))

    def track_id(self, row: Row) -> str:
        """Return the track id of a row. Raises IndexError for the padding row and for rows beyond the last row."""
        if row < FIRST_TRACK_ROW:
            raise IndexError(f"row {row} is reserved and names no track")
        return self._tracks.track_id(row)

    @property
    def attributes(self) -> Attributes:
        """The attributes of the tracks, with the artist as one of them."""
        return self._tracks.attributes

    @property
    def plays(self) -> NDArray[Any]:
        """Play counts with skipped plays, by row. [num_rows] int64 in memory, float32 if memory-mapped."""
        return self._tracks.plays

    @property
    def by_plays(self) -> Int:
        """Rows of all tracks by descending play count, ties by row. [tracks] int32."""
        return self._tracks.by_plays

    def json(self, row: Row) -> bytes:
        """Return the JSON members of a track, without the braces, in UTF-8: `"track_id":"x","title":"y"`."""
        return self._tracks.json(row)

    def search(self, query: str, limit: int, keep: Callable[[Int], Bool] | None = None) -> list[Row]:
        """Return at most `limit` rows of tracks with each word of `query` in title, artist or id, most played first.

        `keep` tells for rows [n] int64 whether each of them may be returned; None: all of them.
        """
        matching = self._tracks.searchable
        for word in query.lower().split():
            matching = matching.filter(pl.col("text").str.contains(word, literal=True))
        if keep is None:
            matching = matching.head(limit)
        rows = matching.select("row").collect()["row"].to_numpy()
        found: list[Row] = (rows if keep is None else rows[keep(rows)][:limit]).tolist()
        return found


class _InMemory:
    """Tracks in a data frame, in row order: _SCHEMA, then attributes. Lookup tables are built at their first use."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame)

    def find(self, track_id: str) -> Row:
        """Return the row of a track, or PAD_ROW if the track is unknown."""
        return self._row_of.get(track_id, PAD_ROW)

    def track_id(self, row: Row) -> str:
        return self.track_ids[row - FIRST_TRACK_ROW]

    def json(self, row: Row) -> bytes:
        text: str = _as_json(self.frame.slice(row - FIRST_TRACK_ROW, 1)).item()
        return text.encode()

    @cached_property
    def track_ids(self) -> list[str]:
        return self.frame["track_id"].to_list()

    @cached_property
    def _row_of(self) -> dict[str, Row]:
        return {track_id: row for row, track_id in enumerate(self.track_ids, start=FIRST_TRACK_ROW)}

    @cached_property
    def attributes(self) -> Attributes:
        known = self.frame["artist"].null_count() < len(self.frame)
        return Attributes.from_frame(self.frame.drop(name for name in _SCHEMA if name != "artist" or not known))

    @cached_property
    def plays(self) -> Int:
        return np.concatenate([[0], self.frame["plays"].to_numpy()]).astype(np.int64)

    @property
    def by_plays(self) -> Int:
        return self._most_played_first["row"].to_numpy()

    @property
    def searchable(self) -> pl.LazyFrame:
        names = ("title", "artist", "track_id")
        texts = [pl.col(name).fill_null("").str.to_lowercase() for name in names]
        return self._most_played_first.select("row", text=pl.concat_str(texts, separator="\n")).lazy()

    @property
    def _most_played_first(self) -> pl.DataFrame:
        return self.frame.sort(["plays", "row"], descending=[True, False])


class _Mapped:
    """Tracks in memory-mapped files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._ids = MappedTexts(folder / _IDS, folder / _ID_ENDS)
        self._json = MappedTexts(folder / _JSON, folder / _JSON_ENDS)
        self._by_id = plain_array(folder / _BY_ID)
        self.by_plays: Int = plain_array(folder / _BY_PLAYS)
        self.plays: Float32 = plain_array(folder / _PLAYS)
        # Polars opens the file for every search. The path of a file descriptor stays valid if the folder is replaced.
        search = os.open(folder / _SEARCH, os.O_RDONLY)
        weakref.finalize(self, os.close, search)
        self.searchable = pl.scan_ipc(f"/dev/fd/{search}")
        # The cache must not refer to the catalogue: the service rarely collects reference cycles (service/app.py).
        self.find = lru_cache(maxsize=_REMEMBERED)(_Finder(self._ids, self._by_id).find)
        self.track_id = self._ids.text
        self.json = self._json.of
        self._validate(folder)
        has_attributes = (folder / VALUES_FILE).exists()
        self.attributes = Attributes.map(folder, len(self)) if has_attributes else Attributes({})

    def __len__(self) -> int:
        return len(self._by_id)

    def _validate(self, folder: Path) -> None:
        """Raise BadRelease unless the shapes, dtypes and rows of all files are valid. Also look up three tracks."""
        tracks = len(self)
        for name, found, shape, dtype in (
            (_ID_ENDS, self._ids.ends, (tracks + 1,), np.int64),
            (_JSON_ENDS, self._json.ends, (tracks + 1,), np.int64),
            (_BY_ID, self._by_id, (tracks,), np.int32),
            (_BY_PLAYS, self.by_plays, (tracks,), np.int32),
            (_PLAYS, self.plays, (tracks + 1,), np.float32),
        ):
            if found.shape != shape or found.dtype != dtype:
                raise BadRelease(f"{folder / name} is {found.dtype} {found.shape}, expected {np.dtype(dtype)} {shape}")
        for name, rows in ((_BY_ID, self._by_id), (_BY_PLAYS, self.by_plays), (_SEARCH, self._searched_rows(folder))):
            if len(rows) != tracks or (tracks and not (rows.min() >= FIRST_TRACK_ROW and rows.max() <= tracks)):
                raise BadRelease(f"{folder / name} does not name the rows 1 to {tracks} and no other")
        for name, texts in ((_IDS, self._ids), (_JSON, self._json)):
            if not texts.fit():
                raise BadRelease(f"{folder / name} does not fit the ends that are stated of its texts")
        if not np.isfinite(self.plays).all():
            raise BadRelease(f"{folder / _PLAYS} holds what is no number")
        for row in {FIRST_TRACK_ROW, (FIRST_TRACK_ROW + tracks) // 2, tracks} if tracks else ():
            self._check_consistency(folder, row)

    def _check_consistency(self, folder: Path, row: Row) -> None:
        try:
            track_id = self.track_id(row)
            named = json.loads(b"{%b}" % self.json(row))["track_id"]
        except (ValueError, KeyError) as error:
            raise BadRelease(
                f"{folder / _JSON} or {_IDS} says nothing of row {row}: write the release again"
            ) from error
        if named != track_id or self.find(track_id) != row:
            raise BadRelease(f"{folder}: the files of the catalogue disagree on row {row}: write the release again")

    def _searched_rows(self, folder: Path) -> Int:
        try:
            if self.searchable.collect_schema() != {"row": pl.Int32, "text": pl.String}:
                raise BadRelease(f"{folder / _SEARCH} has other columns than row and text: write the release again")
            # Polars validates a text only when an expression reads it, so the query computes the text lengths.
            lengths = pl.col("text").str.len_bytes()
            return self.searchable.select("row", lengths).collect()["row"].to_numpy()
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0][:200]
            raise BadRelease(f"{folder / _SEARCH} is not an Arrow file: {reason}; copy the release again") from error


class _Finder:
    def __init__(self, ids: MappedTexts, by_id: Int) -> None:
        self._ids = ids
        self._by_id = by_id

    def find(self, track_id: str) -> Row:
        """Return the row of a track by binary search, or PAD_ROW if the track is unknown."""
        wanted = track_id.encode(errors="surrogatepass")
        at = bisect.bisect_left(self._by_id, wanted, key=self._ids.of)
        if at == len(self._by_id):
            return PAD_ROW
        row = int(self._by_id[at])
        return row if self._ids.of(row) == wanted else PAD_ROW


def _as_json(part: pl.DataFrame) -> pl.Series:
    """Return the JSON members of each track, without braces and without null titles and artists.

    JSON escapes quotes in values, so the text `,"title":null` can only be a member.
    """
    whole = part.select(pl.struct("track_id", "title", "artist").struct.json_encode()).to_series()
    for name in ("title", "artist"):
        whole = whole.str.replace(f',"{name}":null', "", literal=True)
    return whole.str.slice(1, whole.str.len_chars() - 2)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert errors and panics of Polars for a damaged file to InputError with a one-line message."""
    try:
        check_footer(path)
        yield
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{path} cannot be read as Parquet: {reason}; copy it again") from error
