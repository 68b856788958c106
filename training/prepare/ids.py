"""Encode the ids of a log as integers, and make the track ids of a catalogue.

**Track ids.** Ids in a catalogue have at most 256 characters and no control characters (segue.sessions). An id of the
log that satisfies this is used unchanged. A track that has only an artist and a title (its key is `artist`, tab,
`title`) gets the id `artist — title`. An id that is too long, contains control characters or is also the id of
another track is shortened and ends in ` #` and 16 hexadecimal digits of the key's hash. So distinct tracks never
share an id.
"""

import hashlib
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.sessions import CONTROL_CHARACTERS, MAX_ID_LENGTH

_HASH_DIGITS: Final = 16


_CONTROL: Final = f"[{CONTROL_CHARACTERS}]"


TRACK_NAMES: Final = ("title", "artist")


def assign_track_ids(tracks: pl.DataFrame) -> pl.DataFrame:
    """`track_id` of distinct tracks, with their `title` and `artist` where the frame has these columns."""
    names = {name: strip_control_chars(tracks[name]) for name in TRACK_NAMES if name in tracks.columns}
    return pl.DataFrame({"track_id": track_ids(tracks["track"])} | names)


def played_tracks(tracks: Sequence[pl.DataFrame], track: NDArray[np.uint32]) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """The tracks with plays, and `track` [plays] as positions in them.

    `track` are positions in all tracks, which are frames of `first_names`, one after another.
    """
    known = pl.concat(tracks, how="diagonal")
    used = np.flatnonzero(np.bincount(track, minlength=len(known)))
    position = np.zeros(len(known), dtype=np.int64)
    position[used] = np.arange(len(used))
    return assign_track_ids(known[used]), position[track]


def track_ids(keys: pl.Series) -> pl.Series:
    """Distinct ids for distinct keys, as the docstring of this module describes. [tracks] string."""
    readable = keys.str.strip_prefix("\t").str.replace("\t", " — ", literal=True)
    ids = strip_control_chars(readable)
    unfit = (ids != readable) | (ids.str.len_chars() > MAX_ID_LENGTH) | ids.is_duplicated()
    which = unfit.arg_true()
    if which.is_empty():
        return ids
    kept = MAX_ID_LENGTH - _HASH_DIGITS - 2
    # Only few tracks need it, so a loop is fast enough. Unlike polars' hash, blake2b is the same on every machine.
    digests = [hashlib.blake2b(key.encode(), digest_size=_HASH_DIGITS // 2).hexdigest() for key in keys.gather(which)]
    return ids.scatter(which, ids.gather(which).str.head(kept) + " #" + pl.Series(digests))


def strip_control_chars(texts: pl.Series) -> pl.Series:
    """The texts with a blank instead of every control character."""
    return texts.str.replace_all(_CONTROL, " ")


class EncodedLines(NamedTuple):
    """Lines of a log with ids as integers."""

    owners: pl.Series  # string, distinct
    tracks: pl.Series  # string, distinct
    lines: pl.DataFrame  # `owner` and `track` uint32, positions in `owners` and `tracks`; other columns unchanged


def encode(lines: pl.DataFrame) -> EncodedLines:
    """Encode the categorical columns `owner` and `track`."""
    owners, owner = _distinct(lines["owner"])
    tracks, track = _distinct(lines["track"])
    return EncodedLines(owners, tracks, lines.with_columns(owner=pl.Series(owner), track=pl.Series(track)))


def partitioned(rows: pl.DataFrame, key: str, partitions: int) -> list[pl.DataFrame | None]:
    """The rows of each partition in their order, None if there are none. The texts of the column `key` decide."""
    if partitions == 1:
        return [rows]
    texts = rows[key]
    if texts.dtype == pl.String:
        partition = partitions_of(texts, partitions)
    else:
        distinct, position = _distinct(texts)
        partition = partitions_of(distinct, partitions)[position]
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    ordered = rows[order]
    return [ordered[int(start) : int(end)] if end > start else None for start, end in pairwise(bounds)]


def partitions_of(texts: pl.Series, partitions: int) -> NDArray[np.uint32]:
    """The partition of each text, the same on every machine. [texts] uint32."""
    # crc32, because polars' hash depends on its version and on the processor.
    return np.fromiter((zlib.crc32(text.encode()) % partitions for text in texts), dtype=np.uint32, count=len(texts))


def recode(blocks: Sequence[EncodedLines], owners: pl.Series, tracks: pl.Series) -> pl.DataFrame:
    """The lines of all blocks, one after another, with positions in `owners` and `tracks`, which have all their ids."""
    owner = _positions([block.owners for block in blocks], owners)
    track = _positions([block.tracks for block in blocks], tracks)
    lines = [
        block.lines.with_columns(
            owner=pl.Series(owner_of[block.lines["owner"].to_numpy()]),
            track=pl.Series(track_of[block.lines["track"].to_numpy()]),
        )
        for block, owner_of, track_of in zip(blocks, owner, track, strict=True)
    ]
    return pl.concat(lines, how="diagonal")


def first_names(lines: pl.DataFrame) -> pl.DataFrame:
    """The distinct tracks of the categorical column `track`, each with the first title and artist given for it.

    All columns of the result are strings. Titles and artists are null where no line has one.
    """
    tracks, track = _distinct(lines["track"])
    found = {"track": tracks}
    for name in TRACK_NAMES:
        if name in lines.columns:
            given = np.flatnonzero(lines[name].is_not_null().to_numpy())[::-1]
            first = np.full(len(tracks), -1, dtype=np.int64)
            first[track[given]] = given  # in reverse order, so the first line is written last
            places = pl.Series(first)
            found[name] = lines[name].gather(places.set(places < 0, None)).cast(pl.String)
    return pl.DataFrame(found)


def _distinct(texts: pl.Series) -> tuple[pl.Series, NDArray[np.uint32]]:
    """The distinct values of a categorical column as strings, and the position of each value. [texts] uint32."""
    codes = texts.to_physical().to_numpy()
    size = int(codes.max()) + 1
    if size > len(codes):  # sorting few values is faster than a table of all codes
        _, first, position = np.unique(codes, return_index=True, return_inverse=True)
        return texts.gather(first).cast(pl.String), position.astype(np.uint32)
    line = np.full(size, -1, dtype=np.int64)
    line[codes] = np.arange(len(codes))
    used = np.flatnonzero(line >= 0)
    names = texts.gather(line[used]).cast(pl.String)
    if len(used) == size:
        return names, codes
    position = np.zeros(size, dtype=np.uint32)
    position[used] = np.arange(len(used), dtype=np.uint32)
    return names, position[codes]


def _positions(texts: Sequence[pl.Series], table: pl.Series) -> list[NDArray[np.uint32]]:
    """The position of each text in `table`."""
    if len(texts) == 1 and texts[0].equals(table):  # one split in one partition
        return [np.arange(len(table), dtype=np.uint32)]
    numbered = pl.DataFrame({"text": table, "position": pl.int_range(len(table), dtype=pl.UInt32, eager=True)})
    wanted = pl.concat([column.alias("text") for column in texts]).to_frame()
    found = wanted.join(numbered, on="text", how="left", maintain_order="left")["position"].to_numpy()
    return np.split(found, np.cumsum([len(column) for column in texts])[:-1])
