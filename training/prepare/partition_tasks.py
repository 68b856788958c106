"""The tasks that sessions are made in where a log is prepared by many processes: functions of what they are given.

A portion of the log is read and parted: its lines by owner (listener or session), its tracks by name. All lines of an
owner meet in one partition, where training.prepare.sessionize cuts them as it would the whole log; all that is said of
a track meets in another. What depends on the order of the log survives, for pieces are put together in the order of
their portions. Knows neither who runs the tasks nor how they are strung together (training.prepare.partitioned).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from training.prepare.formats import LogFormat, PrepareOptions
from training.prepare.pipeline import LinesRead, LogReader
from training.prepare.sessionize import Plays, Step, session_filters, sessionize, starts_of
from training.prepare.sources import InputSplit, LogKind

_NAMES: Final = ("title", "artist")


class ReadStats(NamedTuple):
    """What is known about the lines of a portion, or of a whole log."""

    read: LinesRead
    first_file: Path
    form: LogFormat
    given: frozenset[str]  # columns with a value on at least one good line
    skips_given: bool  # every good line says whether its play was skipped


class ShuffleBlock(NamedTuple):
    """The lines of one portion that belong to one partition, texts as positions in `owners` and `tracks`."""

    owners: pl.Series  # string
    tracks: pl.Series  # string
    lines: pl.DataFrame  # owner and track uint32, and what else LINE_COLUMNS has but the names, where given


@dataclass(frozen=True, eq=False)
class Partition:
    """The sessions of some owners, before any is dropped. `plays.owner` are positions in `owners`, which is sorted."""

    owners: pl.Series
    plays: Plays


class FilteredPartition(NamedTuple):
    """The sessions of a partition that the rules leave, oldest first within an owner."""

    owners: pl.Series  # string, of these sessions alone
    owner: NDArray[np.uint32]  # [sessions], positions in `owners`
    piece: NDArray[np.uint32]  # [sessions]
    starts: Int | None  # [sessions], as session_making.starts_of has it
    lengths: NDArray[np.uint32]  # [sessions]
    track: NDArray[np.uint32]  # [plays], positions in the tracks of the log
    skipped: Bool  # [plays]
    left: list[tuple[int, int]]  # plays and sessions once made, and after each of session_making.session_filters


def read_portion(
    portion: InputSplit, kind: LogKind, options: PrepareOptions, scratch: Path | None, partitions: int
) -> tuple[Any, ...]:
    """Read a portion: what is known about it (`Reading`), the Piece of each partition, the tracks of each partition."""
    log = LogReader(kind, options.skip_flag, options.played_ratio_pct, scratch=scratch or Path(gettempdir()))
    for part in portion:
        log.read(part)
    lines = pl.concat(log.frames, how="diagonal")
    reading = ReadStats(
        read=log.account,
        first_file=portion[0].file,
        form=log.form,
        given=frozenset(lines.columns),
        skips_given=lines.is_empty() or ("skipped" in lines.columns and lines["skipped"].null_count() == 0),
    )
    if lines.is_empty():
        return (reading, *[None] * (2 * partitions))
    return (reading, *_pieces(lines, partitions), *_tracks(lines, partitions))


def tracks_of_partition(*pieces: pl.DataFrame | None) -> tuple[pl.Series, pl.DataFrame]:
    """The distinct tracks of a partition, alone and with the first title and artist that the log gives for each."""
    given = [piece for piece in pieces if piece is not None]
    found = pl.concat(given, how="diagonal") if given else pl.DataFrame(schema={"track": pl.String})
    tracks = _first_of_each(found)
    return tracks["track"], tracks


def sessions_of_partition(
    log: ReadStats, options: PrepareOptions, portions: int, *pieces_and_tracks: Any
) -> tuple[Partition | None, NDArray[np.int64] | None]:
    """The sessions of a partition and, where rare tracks are to be dropped, the plays of each track. [tracks] int64.

    Given are the Piece that each of `portions` portions has for the partition, then the tracks of every partition.
    Nothing comes of a partition without lines.
    """
    pieces: list[ShuffleBlock] = [piece for piece in pieces_and_tracks[:portions] if piece is not None]
    if not pieces:
        return None, None
    tracks = pl.concat(pieces_and_tracks[portions:])
    owners = pl.concat([piece.owners for piece in pieces]).unique().sort()
    lines = _with_codes(pieces, owners, tracks)
    if "at" in log.given and "at" not in lines.columns:
        lines = lines.with_columns(at=pl.lit(None, pl.Int64))
    if not log.skips_given:
        lines = lines.drop("skipped", strict=False)
    codes = pl.DataFrame({"owner": owners, "code": pl.int_range(len(owners), dtype=pl.UInt32, eager=True)})
    steps: list[Step] = []
    plays = sessionize(lines, codes, log.form, options, steps)
    counts = np.bincount(plays.track, minlength=len(tracks)) if options.min_track_plays > 1 else None
    return Partition(owners, plays), counts


def selected_of_partition(
    options: PrepareOptions, partition: Partition | None, track_plays: Int | None
) -> FilteredPartition | None:
    """What the rules leave of a partition. `track_plays` [tracks] are those of the whole log."""
    if partition is None:
        return None
    plays = partition.plays
    left = [(len(plays.track), len(plays))]
    for rule in session_filters(options, track_plays):
        plays = rule.apply(plays)
        left.append((len(plays.track), len(plays)))
    used, owner = np.unique(plays.owner, return_inverse=True)
    return FilteredPartition(
        owners=partition.owners.gather(used),
        owner=owner.astype(np.uint32),
        piece=plays.piece.astype(np.uint32),
        starts=starts_of(plays),
        lengths=plays.lengths.astype(np.uint32),
        track=plays.track,
        skipped=plays.skipped,
        left=left,
    )


def _pieces(lines: pl.DataFrame, partitions: int) -> list[ShuffleBlock | None]:
    owners, owner = _coded(lines["owner"])
    place = partitions_of(owners, partitions)
    plain = lines.drop("title", "artist", strict=False)
    return [None if part is None else _piece(part) for part in _parted(plain, place[owner], partitions)]


def _piece(lines: pl.DataFrame) -> ShuffleBlock:
    owners, owner = _coded(lines["owner"])
    tracks, track = _coded(lines["track"])
    return ShuffleBlock(owners, tracks, lines.with_columns(owner=pl.Series(owner), track=pl.Series(track)))


def _tracks(lines: pl.DataFrame, partitions: int) -> list[pl.DataFrame | None]:
    given = [name for name in _NAMES if name in lines.columns]
    tracks = _first_of_each(lines.select("track", *given)).cast(pl.String)
    return _parted(tracks, partitions_of(tracks["track"], partitions), partitions)


def _first_of_each(tracks: pl.DataFrame) -> pl.DataFrame:
    """One row a track, with the first title and artist that is given for it."""
    given = [pl.col(name).drop_nulls().first() for name in _NAMES if name in tracks.columns]
    return tracks.group_by("track", maintain_order=True).agg(given)


def partitions_of(texts: pl.Series, partitions: int) -> NDArray[np.uint32]:
    """The partition of each text, the same on every machine. [texts] uint32."""
    # crc32 and not polars' hash, which depends on its version and on the processor.
    return np.fromiter((zlib.crc32(text.encode()) % partitions for text in texts), dtype=np.uint32, count=len(texts))


def _parted(rows: pl.DataFrame, partition: NDArray[np.uint32], partitions: int) -> list[pl.DataFrame | None]:
    """The rows of each partition in their order, None for none. `partition` [rows]."""
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    ordered = rows[order]
    return [ordered[int(start) : int(end)] if end > start else None for start, end in pairwise(bounds)]


def _coded(texts: pl.Series) -> tuple[pl.Series, NDArray[np.uint32]]:
    """The distinct texts of a categorical column, and each one's position among them. [texts] uint32."""
    _, first, code = np.unique(texts.to_physical().to_numpy(), return_index=True, return_inverse=True)
    return texts.gather(first).cast(pl.String), code.astype(np.uint32)


def _with_codes(pieces: Sequence[ShuffleBlock], owners: pl.Series, tracks: pl.Series) -> pl.DataFrame:
    """The lines of all pieces, `owner` and `track` as positions in `owners` and `tracks`."""
    owner = _positions([piece.owners for piece in pieces], owners)
    track = _positions([piece.tracks for piece in pieces], tracks)
    lines = [
        piece.lines.with_columns(
            owner=pl.Series(owner_of[piece.lines["owner"].to_numpy()]),
            track=pl.Series(track_of[piece.lines["track"].to_numpy()]),
        )
        for piece, owner_of, track_of in zip(pieces, owner, track, strict=True)
    ]
    return pl.concat(lines, how="diagonal")


def _positions(texts: Sequence[pl.Series], table: pl.Series) -> list[NDArray[np.uint32]]:
    """Where each of the texts stands in `table`, which has them all."""
    numbered = pl.DataFrame({"text": table, "position": pl.int_range(len(table), dtype=pl.UInt32, eager=True)})
    wanted = pl.concat([column.alias("text") for column in texts]).to_frame()
    found = wanted.join(numbered, on="text", how="left", maintain_order="left")["position"].to_numpy()
    return np.split(found, np.cumsum([len(column) for column in texts])[:-1])


def add_reading(log: ReadStats | None, later: ReadStats) -> ReadStats:
    """What is known about the portions read so far and the one that follows them."""
    if log is None:
        return later
    log.read.add(later.read)
    return log._replace(given=log.given | later.given, skips_given=log.skips_given and later.skips_given)


def total(counts: Sequence[Int | None]) -> Int | None:
    """The sum of the counts of all partitions; None where nothing was counted."""
    found = [count for count in counts if count is not None]
    return np.sum(found, axis=0) if found else None
