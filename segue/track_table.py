"""The catalogue as a service needs it: mapped arrays that all workers share, ready as a release is opened.

Rows are those of segue.catalogue. The files lie in the release beside `catalogue.parquet`, from which they are made:

    track_ids.bin    UTF-8 ids, one after another        track_id_ends.npy    [num_rows] int64, where each row's ends
    track_json.bin   the inside of each track's JSON     track_json_ends.npy  [num_rows] int64
    rows_by_id.npy   [tracks] int32, rows in the order of their ids' bytes
    rows_by_plays.npy [tracks] int32, most played first, equal ones by row
    plays.npy        [num_rows] float32, presentations in the training part
    search.arrow     Arrow IPC, uncompressed: row, text (title, artist, id in lower case); most played first
"""

import bisect
import json
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Float32, Int, mapped_array
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Catalogue, Row
from segue.errors import BadRelease, UnknownTrack
from segue.safe_files import UNREADABLE

_IDS, _ID_ENDS = "track_ids.bin", "track_id_ends.npy"
_JSON, _JSON_ENDS = "track_json.bin", "track_json_ends.npy"
_BY_ID, _BY_PLAYS, _PLAYS, _SEARCH = "rows_by_id.npy", "rows_by_plays.npy", "plays.npy", "search.arrow"
TABLE_FILES: Final = (_IDS, _ID_ENDS, _JSON, _JSON_ENDS, _BY_ID, _BY_PLAYS, _PLAYS, _SEARCH)

_TRACKS_AT_ONCE: Final = 500_000  # while the files are written
_REMEMBERED: Final = 100_000  # ids whose rows are kept at hand: plays follow Zipf's law


def write_track_table(catalogue: Catalogue, folder: Path) -> None:
    """Write the files of a table into `folder`."""
    frame = catalogue.frame
    ids = frame["track_id"]
    _write_texts(folder, _IDS, _ID_ENDS, [ids[i : i + _TRACKS_AT_ONCE] for i in range(0, len(ids), _TRACKS_AT_ONCE)])
    _write_texts(folder, _JSON, _JSON_ENDS, [_as_json(part) for part in frame.iter_slices(_TRACKS_AT_ONCE)])
    by_id = frame.select("row", pl.col("track_id").cast(pl.Binary)).sort("track_id")["row"]
    by_plays = frame.select("row", "plays").sort(["plays", "row"], descending=[True, False])["row"]
    for name, array in (
        (_BY_ID, by_id.to_numpy().astype(np.int32)),
        (_BY_PLAYS, by_plays.to_numpy().astype(np.int32)),
        (_PLAYS, catalogue.plays.astype(np.float32)),
    ):
        np.save(folder / name, array, allow_pickle=False)
    text = pl.concat_str(
        [pl.col(name).fill_null("").str.to_lowercase() for name in ("title", "artist", "track_id")], separator="\n"
    )
    searchable = frame.sort(["plays", "row"], descending=[True, False]).select("row", text=text)
    searchable.write_ipc(folder / _SEARCH, compression="uncompressed")


class TrackTable:
    """The tracks of a release, from its files. Safe to use from several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Map the files that `write_track_table` wrote. Raises BadRelease for files that do not fit each other."""
        self._ids = _Texts(folder / _IDS, folder / _ID_ENDS)
        self._json = _Texts(folder / _JSON, folder / _JSON_ENDS)
        self._by_id = _array(folder / _BY_ID)
        self.by_plays: Int = _array(folder / _BY_PLAYS)
        self.plays: Float32 = _array(folder / _PLAYS)
        # Polars opens the file for every search. By its descriptor it is this one, whatever the folder holds by then.
        search = os.open(folder / _SEARCH, os.O_RDONLY)
        weakref.finalize(self, os.close, search)
        self._searchable = pl.scan_ipc(f"/dev/fd/{search}")
        # Each table has its cache, which must not refer to the table: a release that is swapped away shall be freed at
        # once, and the garbage collector hardly ever looks (service/app.py).
        self.row_or_pad = lru_cache(maxsize=_REMEMBERED)(_Finder(self._ids, self._by_id).find)
        self._refuse_unfit(folder)

    def __len__(self) -> int:
        """The number of tracks."""
        return len(self._by_id)

    def __contains__(self, track_id: str) -> bool:
        """Whether the table holds the track."""
        return self.row_or_pad(track_id) != PAD_ROW

    def row(self, track_id: str) -> Row:
        """The row of a track. Raises UnknownTrack."""
        row = self.row_or_pad(track_id)
        if row == PAD_ROW:
            raise UnknownTrack(
                f"track {track_id!r} is not in the catalogue of {len(self):,} tracks: find ids by search"
            )
        return row

    def rows(self, track_ids: Sequence[str]) -> Int:
        """Rows of many tracks, PAD_ROW for those outside the catalogue. [n] int64."""
        return np.fromiter(map(self.row_or_pad, track_ids), dtype=np.int64, count=len(track_ids))

    def track_id(self, row: Row) -> str:
        """The id of a row of a track."""
        return self._ids.of(row).decode()

    def json(self, row: Row) -> bytes:
        """What a JSON object says of a track, without its braces: `"track_id":"x","title":"y"`. UTF-8."""
        return self._json.of(row)

    def search(self, query: str, limit: int) -> list[Row]:
        """Rows whose title, artist or id hold every word of `query`, most played first; all tracks for no word."""
        matching = self._searchable
        for word in query.lower().split():
            matching = matching.filter(pl.col("text").str.contains(word, literal=True))
        rows: list[Row] = matching.head(limit).collect()["row"].to_list()
        return rows

    def _refuse_unfit(self, folder: Path) -> None:
        """Raise BadRelease unless every row leads somewhere in every file; three tracks are looked up."""
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
        if named != track_id or self.row_or_pad(track_id) != row:
            raise BadRelease(f"{folder}: the files of the catalogue disagree on row {row}: write the release again")

    def _searched_rows(self, folder: Path) -> Int:
        try:
            if self._searchable.collect_schema() != {"row": pl.Int32, "text": pl.String}:
                raise BadRelease(f"{folder / _SEARCH} has other columns than row and text: write the release again")
            # The length of each text, as Polars checks a text only when it is asked for something of it.
            lengths = pl.col("text").str.len_bytes()
            return self._searchable.select("row", lengths).collect()["row"].to_numpy()
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0][:200]
            raise BadRelease(f"{folder / _SEARCH} is not an Arrow file: {reason}; copy the release again") from error


class _Texts:
    """A text for each row: the bytes of a file, and where each ends."""

    def __init__(self, file: Path, ends: Path) -> None:
        self._bytes = _mapped(file)
        self.ends = _array(ends)

    def of(self, row: Row) -> bytes:
        """The text of a row, UTF-8."""
        text: bytes = self._bytes[self.ends[row - 1] : self.ends[row]]
        return text

    def fit(self) -> bool:
        """Whether the ends lie in the bytes, in their order."""
        ends = self.ends
        return ends[0] == 0 and ends[-1] == len(self._bytes) and bool((ends[1:] >= ends[:-1]).all())


class _Finder:
    def __init__(self, ids: _Texts, by_id: Int) -> None:
        self._ids = ids
        self._by_id = by_id

    def find(self, track_id: str) -> Row:
        """The row of a track or PAD_ROW, by bisection."""
        wanted = track_id.encode(errors="surrogatepass")
        at = bisect.bisect_left(self._by_id, wanted, key=self._ids.of)
        if at == len(self._by_id):
            return PAD_ROW
        row = int(self._by_id[at])
        return row if self._ids.of(row) == wanted else PAD_ROW


def _as_json(part: pl.DataFrame) -> pl.Series:
    """Inside an object, absent where unknown. A quote within a value is escaped, so `,"title":null` is a field."""
    whole = part.select(pl.struct("track_id", "title", "artist").struct.json_encode()).to_series()
    for name in ("title", "artist"):
        whole = whole.str.replace(f',"{name}":null', "", literal=True)
    return whole.str.slice(1, whole.str.len_chars() - 2)


def _write_texts(folder: Path, texts: str, ends: str, parts: Sequence[pl.Series]) -> None:
    lengths = [np.zeros(FIRST_TRACK_ROW, dtype=np.int64)]
    with (folder / texts).open("wb") as file:
        for part in parts:
            file.write("".join(part.to_list()).encode())
            lengths.append(part.str.len_bytes().to_numpy().astype(np.int64))
    np.save(folder / ends, np.cumsum(np.concatenate(lengths)), allow_pickle=False)


def _mapped(file: Path) -> Any:
    """The bytes of a file, mapped; slices are bytes."""
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""


def _array(file: Path) -> NDArray[Any]:
    return np.asarray(mapped_array(file))
