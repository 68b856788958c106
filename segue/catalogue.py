"""The catalogue: TrackId (the outside string) <-> Row (the integer row of every array), and what a track is called.

Row 0 is reserved for padding and never names a track; tracks take the rows from 1 on, in the order of the file.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl

from segue.arrays import Int
from segue.errors import InputError, UnknownTrack
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


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what Polars says of a damaged file, a panic of its own included, into InputError with one line."""
    try:
        check_footer(path)
        yield
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{path} cannot be read as Parquet: {reason}; copy it again") from error


class Catalogue:
    """The tracks of a dataset or release.

    `plays` and `skips` count presentations and skips in the data that the catalogue was made from; in a release
    that is the training part alone.
    """

    def __init__(self, tracks: pl.DataFrame) -> None:
        """Take a frame with `track_id` and optionally `plays`, `skips`, `title`, `artist`; its order gives the rows."""
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
        self.frame = tracks.select(rows, *columns)

    @classmethod
    def of(cls, track_ids: Sequence[str]) -> "Catalogue":
        """A catalogue of ids alone, in the given order."""
        return cls(pl.DataFrame({"track_id": list(track_ids)}, schema={"track_id": pl.String}))

    @classmethod
    def read(cls, path: Path) -> "Catalogue":
        """Read `catalogue.parquet`. Raises InputError with one line."""
        with _readable(path):
            frame = pl.read_parquet(path, memory_map=True)
            if "row" in frame.columns:
                frame = frame.sort("row", maintain_order=True)
                if frame["row"].to_list()[:1] not in ([], [FIRST_TRACK_ROW]):
                    raise InputError(f"{path}: rows begin at {frame['row'][0]}, expected {FIRST_TRACK_ROW}")
            return cls(frame)

    @staticmethod
    def count(path: Path) -> int:
        """How many tracks `catalogue.parquet` holds, without reading them. Raises InputError."""
        with _readable(path):
            tracks: int = pl.scan_parquet(path).select(pl.len()).collect().item()
            return tracks

    def write(self, path: Path) -> None:
        """Write `catalogue.parquet`."""
        self.frame.write_parquet(path, compression="zstd")

    def with_counts(self, plays: Int, skips: Int) -> "Catalogue":
        """The same tracks with other counts; both arrays are [num_rows] int64 and indexed by row."""
        counted = self.frame.with_columns(
            pl.Series("plays", plays[FIRST_TRACK_ROW:]), pl.Series("skips", skips[FIRST_TRACK_ROW:])
        )
        return Catalogue(counted)

    def __len__(self) -> int:
        """The number of tracks."""
        return len(self.frame)

    @property
    def num_rows(self) -> int:
        """The number of rows of an array indexed by row, the reserved row included."""
        return len(self) + FIRST_TRACK_ROW

    @cached_property
    def track_ids(self) -> list[str]:
        """All ids in the order of their rows; position 0 belongs to FIRST_TRACK_ROW."""
        return self.frame["track_id"].to_list()

    @cached_property
    def _row_of(self) -> dict[str, Row]:
        return {track_id: row for row, track_id in enumerate(self.track_ids, start=FIRST_TRACK_ROW)}

    def __contains__(self, track_id: object) -> bool:
        """Whether the catalogue holds the track."""
        return track_id in self._row_of

    def row(self, track_id: str) -> Row:
        """The row of a track. Raises UnknownTrack."""
        row = self._row_of.get(track_id)
        if row is None:
            raise UnknownTrack(
                f"track {track_id!r} is not in the catalogue of {len(self):,} tracks: find ids by search"
            )
        return row

    def row_or_pad(self, track_id: str) -> Row:
        """The row of a track, or PAD_ROW for a track outside the catalogue: the window passes over it."""
        return self._row_of.get(track_id, PAD_ROW)

    def rows(self, track_ids: Sequence[str]) -> Int:
        """Rows of many tracks, PAD_ROW for those outside the catalogue. [n] int64."""
        return np.fromiter((self._row_of.get(t, PAD_ROW) for t in track_ids), dtype=np.int64, count=len(track_ids))

    def track_id(self, row: Row) -> str:
        """The id of a row. Raises IndexError for the reserved row and rows beyond the last."""
        if row < FIRST_TRACK_ROW:
            raise IndexError(f"row {row} is reserved and names no track")
        return self.track_ids[row - FIRST_TRACK_ROW]

    @cached_property
    def titles(self) -> list[str | None]:
        """Titles in the order of the rows, None where unknown."""
        return self.frame["title"].to_list()

    @cached_property
    def artists(self) -> list[str | None]:
        """Artists in the order of the rows, None where unknown."""
        return self.frame["artist"].to_list()

    @cached_property
    def plays(self) -> Int:
        """Presentations of each track, skipped ones included. [num_rows] int64, indexed by row."""
        return np.concatenate([[0], self.frame["plays"].to_numpy()]).astype(np.int64)

    @cached_property
    def skips(self) -> Int:
        """Presentations that ended in a skip. [num_rows] int64, indexed by row."""
        return np.concatenate([[0], self.frame["skips"].to_numpy()]).astype(np.int64)
