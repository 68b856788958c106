"""Put the lines of each owner in order, and merge repeated reports of one play: rule 2 of training.prepare.pipeline.

All functions work on flat arrays of the lines of some owners. An owner is a user or a session.

**Order.** Plays are ordered by position, or else by their start, and next by their end. In a log whose ends are more
exact than its starts, plays are ordered by their end. Of plays that are equal in these, the later line is the later
play, unless the file runs from new to old: if the times of an owner's lines in a file fall more often than they rise,
the later line is the earlier play. The files of such an owner run from new to old as well. A file in which the times
of an owner neither fall nor rise more often runs like the owner's other files.

**Repeated reports.** Lines with the same owner, place (position or start; in a log that is ordered by ends, both end
and start), track and `detail` are one play, also if they are in different files. With `merge_within_ms`, a line that
starts at most that long after another one of its owner and track is a report of the same play. The play starts with
its first report, and stays where that one is. The other values are those of the line with the newest `written_at`, or
else of the last line in the order of files and lines. A line with a known outcome takes precedence over one without.

**Conflicts.** Lines of different tracks at one position cannot all be right: the newest line counts, and the others
are dropped. If reports of one play contradict each other in the outcome, and none of them was written later, the last
one counts as well. Both are counted.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int

UNKNOWN_TIME: Final = np.iinfo(np.int64).min
AGAIN_MS: Final = 2000  # the same track started again within this time is probably a second report

_FOREVER_MS: Final = 1 << 53

LineNumbers = NDArray[np.uint32]


class Repeats(NamedTuple):
    """What merging found in the lines of some owners."""

    merged: int = 0  # lines that were repeated reports of a play
    other_tracks: int = 0  # lines that were dropped because of another track at their position
    places: int = 0  # positions with several tracks
    outcomes: int = 0  # plays with contradicting outcomes
    started_again: int = 0  # plays whose track the same owner starts again within AGAIN_MS


class OrderedPlays(NamedTuple):
    """The plays of some owners, sorted by owner and next by place."""

    line: LineNumbers  # [plays], the line that counts
    owner: NDArray[np.uint32]  # [plays]
    place: Int  # [plays] int64, the position, or the start or end in ms since 1970
    repeats: Repeats


def ordered_plays(
    lines: pl.DataFrame, *, by_position: bool, merge_within_ms: float, by_end: bool = False
) -> OrderedPlays:
    """Order the lines and merge repeated reports.

    `lines` has the columns `owner` and `track` (uint32), and the other columns of LINE_COLUMNS that the log has.
    """
    owner = lines["owner"].to_numpy()
    place = lines["position" if by_position else "end" if by_end else "at"].fill_null(UNKNOWN_TIME).to_numpy()
    line = _by_owner(owner)
    if line is None:
        line = np.arange(len(owner), dtype=np.uint32)
    else:
        owner, place = owner[line], place[line]
    if not by_position:
        turned = _oldest_first(owner, place, lines["file"].to_numpy()[line] if "file" in lines.columns else None)
        if turned is not None:
            line, place = line[turned], place[turned]
    end = lines["end"].fill_null(UNKNOWN_TIME).to_numpy()[line] if "end" in lines.columns and not by_position else None
    order = _by_place(owner, place, end)
    if order is not None:
        line, owner, place = line[order], owner[order], place[order]
    plays = OrderedPlays(line, owner, place, Repeats())
    return _merged(lines, plays, merge_within_ms, by_position=by_position, by_end=by_end)


def _by_owner(owner: NDArray[np.uint32]) -> LineNumbers | None:
    """The lines sorted by owner, in their order. [lines]. None if they are sorted."""
    if (owner[1:] >= owner[:-1]).all():
        return None
    return _sorted({"owner": owner})


def _by_place(owner: NDArray[np.uint32], place: Int, end: Int | None) -> LineNumbers | None:
    """The lines sorted by owner, place and end, else in their order. [lines]. None if they are sorted."""
    rises = place[1:] > place[:-1]
    same = place[1:] == place[:-1]
    if end is not None:
        same &= end[1:] >= end[:-1]
    if (rises | same | (owner[1:] != owner[:-1])).all():
        return None
    keys: dict[str, NDArray[Any]] = {"owner": owner, "place": place}
    return _sorted(keys if end is None else keys | {"end": end})


def _sorted(keys: dict[str, NDArray[Any]]) -> LineNumbers:
    order = pl.DataFrame(keys).select(pl.arg_sort_by(list(keys), maintain_order=True))
    return order.to_series().to_numpy().astype(np.uint32, copy=False)


def _oldest_first(owner: NDArray[np.uint32], at: Int, file: NDArray[np.uint32] | None) -> LineNumbers | None:
    """The lines with those of files that run from new to old in reverse. [lines]. None if there are no such files.

    The lines are sorted by owner, and next by file.
    """
    if len(owner) < 2:
        return None
    fresh = owner[1:] != owner[:-1]
    of_owner = np.concatenate([[0], np.flatnonzero(fresh) + 1])
    if file is not None:
        fresh |= file[1:] != file[:-1]
    change = np.zeros(len(owner), dtype=np.int8)
    change[1:] = at[1:] > at[:-1]
    change[1:] -= at[1:] < at[:-1]
    change[1:][fresh] = 0
    falls = np.add.reduceat(change, of_owner, dtype=np.int64) < 0
    of_file = of_owner if file is None else np.concatenate([[0], np.flatnonzero(fresh) + 1])
    # The whole owner is reversed first, and with it the order of its files. Next, files that run the other way.
    turned = _reversed(None, of_owner, falls, len(owner)) if falls.any() else None
    if file is None:
        return turned
    balance = np.add.reduceat(change, of_file, dtype=np.int64)
    owner_falls = np.repeat(falls, np.diff(np.append(np.searchsorted(of_file, of_owner), len(of_file))))
    differs = np.where(owner_falls, balance > 0, balance < 0)
    if not differs.any():
        return turned
    starts = of_file
    if turned is not None:  # where the files begin in the reversed order
        files = owner[of_file]
        lengths = np.diff(np.append(of_file, len(owner)))
        place = _reversed(None, np.searchsorted(files, owner[of_owner]), falls, len(of_file))
        lengths, differs = lengths[place], differs[place]
        starts = np.cumsum(lengths) - lengths
    return _reversed(turned, starts, differs, len(owner))


def _reversed(values: LineNumbers | None, starts: Int, which: Bool, length: int) -> LineNumbers:
    """Return `values` [length], by default 0, 1, ..., with the ranges in `which` [ranges] reversed."""
    values = np.arange(length, dtype=np.uint32) if values is None else values.copy()
    ends = np.append(starts[1:], length)
    starts, ends = starts[which], ends[which]
    lengths = ends - starts
    total = int(lengths.sum())
    within = np.arange(total, dtype=np.uint32)
    within -= np.repeat((np.cumsum(lengths) - lengths).astype(np.uint32), lengths)
    place = within + np.repeat(starts.astype(np.uint32), lengths)
    mirrored = np.repeat((ends - 1).astype(np.uint32), lengths)
    mirrored -= within
    values[place] = values[mirrored]
    return values


def _merged(
    lines: pl.DataFrame, plays: OrderedPlays, within_ms: float, *, by_position: bool, by_end: bool
) -> OrderedPlays:
    """Merge the lines of one play."""
    line, owner, place, _ = plays
    within = 0 if by_position else int(min(within_ms, _FOREVER_MS))
    near_ms = 0 if by_position else max(within, AGAIN_MS)
    near = (owner[1:] == owner[:-1]) & (place[1:] <= place[:-1] + near_ms)
    if not near.any():
        return plays
    slots = np.flatnonzero(np.append(near, False) | np.append(False, near))
    names = [name for name in ("track", "skipped", "written_at", "detail", "at") if name in lines.columns]
    found = lines.select(names)[line[slots]].with_columns(
        owner=pl.Series(owner[slots]), place=pl.Series(place[slots]), line=pl.Series(line[slots]), slot=pl.Series(slots)
    )
    kept = np.ones(len(line), dtype=np.bool_)
    other_tracks = places = 0
    if by_position:
        found, dropped, places = _of_newest_track(found)
        kept[dropped] = False
        other_tracks = len(dropped)
    found, started_again = _groups(found, within, near_ms, by_end=by_end)
    repeated = found.filter(pl.len().over("group") > 1)
    line = line.copy()
    outcomes = 0
    if len(repeated):
        first = repeated.unique("group", keep="first", maintain_order=True)
        newest = _newest(repeated, ["group"])
        line[first["slot"].to_numpy()] = newest["line"].to_numpy()
        kept[repeated["slot"].to_numpy()] = False
        kept[first["slot"].to_numpy()] = True
        outcomes = _contradicting(repeated)
    repeats = Repeats(len(repeated) - repeated["group"].n_unique(), other_tracks, places, outcomes, started_again)
    if kept.all():
        return plays._replace(repeats=repeats)
    return OrderedPlays(line[kept], owner[kept], place[kept], repeats)


def _groups(found: pl.DataFrame, within_ms: int, again_ms: int, *, by_end: bool) -> tuple[pl.DataFrame, int]:
    """Return the lines sorted, with the number of their play as `group`, and how many plays start again soon."""
    keys = [name for name in ("owner", "track", "detail") if name in found.columns]
    exact = ["at"] if within_ms == 0 and by_end else []
    found = found.sort([*keys, "place", *exact, "line"])
    same = pl.all_horizontal(pl.col(key).eq_missing(pl.col(key).shift()) for key in keys)
    one = pl.all_horizontal(same, *(pl.col(key).eq_missing(pl.col(key).shift()) for key in exact))
    gap = pl.col("place") - pl.col("place").shift()
    again = (one & (gap <= within_ms)).fill_null(value=False)
    soon = (same & (gap > within_ms) & (gap <= again_ms)).fill_null(value=False)
    # The first line has no predecessor: eq_missing would find it equal to another missing value.
    again, soon = (expression & (pl.int_range(pl.len()) > 0) for expression in (again, soon))
    found = found.with_columns(group=(~again).cum_sum(), soon=soon)
    return found, int(found["soon"].sum())


def _of_newest_track(found: pl.DataFrame) -> tuple[pl.DataFrame, Sequence[int], int]:
    """Keep the lines of the newest track at each position.

    Return them, the slots of the other lines, and the number of positions with other tracks.
    """
    newest = _newest(found, ["owner", "place"], known_first=False).select("owner", "place", newest="track")
    found = found.join(newest, on=["owner", "place"], how="left", maintain_order="left")
    other = found.filter(pl.col("track") != pl.col("newest"))
    places = other.select("owner", "place").unique().height
    return found.filter(pl.col("track") == pl.col("newest")), other["slot"].to_list(), places


def _newest(found: pl.DataFrame, keys: list[str], *, known_first: bool = True) -> pl.DataFrame:
    """The newest line of each group of equal `keys`, sorted by them. Lines with a known outcome take precedence."""
    ranks = [name for name in ("written_at",) if name in found.columns]
    if known_first and "skipped" in found.columns:
        found = found.with_columns(known=pl.col("skipped").is_not_null())
        ranks = ["known", *ranks]
    ordered = found.sort([*keys, *ranks, "line"], nulls_last=False)
    return ordered.unique(keys, keep="last", maintain_order=True)


def _contradicting(repeated: pl.DataFrame) -> int:
    """The number of plays whose newest reports contradict each other in the outcome."""
    if "skipped" not in repeated.columns:
        return 0
    known = repeated.filter(pl.col("skipped").is_not_null())
    if "written_at" in known.columns:
        known = known.filter(pl.col("written_at").eq_missing(pl.col("written_at").max().over("group")))
    return int((known.group_by("group").agg(pl.col("skipped").n_unique())["skipped"] > 1).sum())
