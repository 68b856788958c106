"""Compute the description of a dataset in one pass over its plays, in blocks of whole sessions.

A block has about a million plays, so memory does not grow with the plays: it is that of a block, 25 bytes a session and
16 bytes a track. benchmarks/README.md states times.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadDataset
from segue.safe_files import UNREADABLE
from training.data.dataset import Dataset
from training.data.describe.description import (
    ByPrevious,
    Description,
    LastPlays,
    LengthCount,
    Lorenz,
    Outcomes,
    Period,
    Popularity,
    PositionRate,
    Rate,
    Repeats,
    Sessions,
    Times,
    TopTrack,
    file_rates,
)
from training.data.describe.find_warnings import find_warnings
from training.data.log_facts import LogFacts
from training.data.sessions_parquet import SESSIONS_FILE

QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
GROUPS: Final = np.array([*range(1, 22), 31, 51, 101, 201, 501, 1001])  # the first positions and lengths of groups
TOP_TRACKS: Final = 10

_BLOCK: Final = 1 << 20  # plays
_GROUP_OF: Final = (
    np.searchsorted(GROUPS, np.arange(1, GROUPS[-1] + 1), side="right").astype(np.int8) - 1
)  # by position
_LORENZ_POINTS: Final = 100
_MOST_PERIODS: Final = 40
_TARGETS_FROM: Final = 3  # plays of the shortest session with targets (training.data.dataset)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1_MS, _YEAR_9999_MS = -62_135_596_800_000, 253_370_764_800_000


def describe(dataset: Dataset, today: datetime | None = None) -> Description:
    """Return the description of a dataset. `today` is the time that warnings call the present.

    Raises BadDataset if a row or the start of a session is damaged.
    """
    facts, log = dataset.facts, dataset.facts.log
    sessions = len(dataset.sessions)
    last_known = np.ones(sessions, dtype=np.bool_) if dataset.last_known is None else dataset.last_known
    counted = _counted(dataset, last_known)
    plays, skips = len(dataset.sessions.rows), counted.skips
    described = Description(
        path=str(dataset.path).encode("utf-8", "backslashreplace").decode(),
        source=facts.source,
        fingerprint=facts.fingerprint,
        options=facts.options,
        malformed_lines=facts.malformed_lines,
        plays=plays,
        skips=skips,
        skip_rate=skips / plays,
        sessions=_sessions(counted),
        times=_times(_starts(dataset), dataset.sessions.lengths - ~last_known, counted.session_skips),
        by_position=_by_position(counted),
        by_previous=ByPrevious(
            first_play=counted.first.rate(), after_play=counted.after_play.rate(), after_skip=counted.after_skip.rate()
        ),
        by_file=file_rates(log.files) if log is not None and log.files else None,
        last_plays=LastPlays(
            plays=counted.last.plays,
            skips=counted.last.skips,
            unknown=int(np.count_nonzero(~last_known)),
            repeated=counted.repeated_last,
        ),
        repeats=Repeats(
            plays=counted.repeats,
            sessions=counted.repeating_sessions,
            immediate=counted.immediate,
            immediate_after_skip=counted.immediate_after_skip,
        ),
        popularity=_popularity(dataset, counted.track_plays, counted.track_skips),
        outcomes=_outcomes(log),
        log=log,
        warnings=[],
    )
    found = find_warnings(described, dataset.catalogue.frame, today or datetime.now(UTC))
    told = list(log.warnings) if log is not None else []
    known = {warning.code for warning in told}
    told += [warning for warning in found if warning.code not in known]
    return described.model_copy(update={"warnings": told})


@dataclass
class _Tally:
    """Plays with a known outcome, and those of them that were skipped."""

    plays: int = 0
    skips: int = 0

    def add(self, plays: Bool, skips: Bool) -> None:
        """Count where `plays` is true, and where both masks are true."""
        self.plays += int(np.count_nonzero(plays))
        self.skips += int(np.count_nonzero(plays & skips))

    def rate(self) -> Rate:
        return Rate(plays=self.plays, skips=self.skips)


@dataclass
class _Counts:
    """The sums over the blocks."""

    track_plays: Int  # [tracks + 1]
    track_skips: Int  # [tracks + 1]
    session_skips: NDArray[np.int32]  # [sessions], skips with a known outcome
    skips: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    position_plays: Int = field(default_factory=lambda: np.zeros(len(GROUPS), dtype=np.int64))
    position_skips: Int = field(default_factory=lambda: np.zeros(len(GROUPS), dtype=np.int64))
    first: _Tally = field(default_factory=_Tally)
    after_play: _Tally = field(default_factory=_Tally)
    after_skip: _Tally = field(default_factory=_Tally)
    last: _Tally = field(default_factory=_Tally)
    with_skip: int = 0
    only_skips: int = 0
    repeats: int = 0
    repeating_sessions: int = 0
    repeated_last: int = 0
    immediate: int = 0
    immediate_after_skip: int = 0


class _Block(NamedTuple):
    """Whole sessions. `plays` are positions in the dataset; the arrays are those of the block."""

    sessions: slice
    rows: NDArray[np.integer[Any]]  # [plays]
    skipped: Bool  # [plays], false where the outcome is unknown
    known: Bool  # [plays], whether the outcome is known
    begins: Int  # [sessions], first play of each session in the block
    lengths: Int  # [sessions]


def _blocks(dataset: Dataset, last_known: Bool) -> Iterator[_Block]:
    offsets, count = dataset.sessions.offsets, len(dataset.sessions)
    start = 0
    while start < count:
        end = int(np.searchsorted(offsets, offsets[start] + _BLOCK, side="right")) - 1
        end = min(max(end, start + 1), count)
        of_block = np.asarray(offsets[start : end + 1])
        plays = slice(int(of_block[0]), int(of_block[-1]))
        begins, lengths = of_block[:-1] - of_block[0], np.diff(of_block)
        rows = dataset.sessions.rows[plays]
        if rows.min() < FIRST_TRACK_ROW or rows.max() > len(dataset.catalogue):
            raise BadDataset(
                f"{dataset.path} is damaged: a play names a track outside its {len(dataset.catalogue):,} tracks: "
                "write it again with `segue prepare`"
            )
        known = np.ones(len(rows), dtype=np.bool_)
        known[(begins + lengths - 1)[~last_known[start:end]]] = False
        yield _Block(slice(start, end), rows, dataset.sessions.skipped[plays] & known, known, begins, lengths)
        start = end


def _counted(dataset: Dataset, last_known: Bool) -> _Counts:
    tracks, sessions = len(dataset.catalogue), len(dataset.sessions)
    counts = _Counts(
        np.zeros(tracks + 1, dtype=np.int64), np.zeros(tracks + 1, dtype=np.int64), np.zeros(sessions, dtype=np.int32)
    )
    counts.skips = int(np.count_nonzero(dataset.sessions.skipped))
    for block in _blocks(dataset, last_known):
        _count_outcomes(counts, block)
        _count_repeats(counts, block, tracks + 1)
        counts.track_plays += np.bincount(block.rows, minlength=tracks + 1)
        counts.track_skips += np.bincount(block.rows[block.skipped], minlength=tracks + 1)
    return counts


def _count_outcomes(counts: _Counts, block: _Block) -> None:
    skipped, known, begins = block.skipped, block.known, block.begins
    numbers, sizes = np.unique(block.lengths, return_counts=True)
    counts.lengths.update(dict(zip(numbers.tolist(), sizes.tolist(), strict=True)))
    position = np.arange(len(skipped), dtype=np.int32)
    position -= np.repeat(begins.astype(np.int32), block.lengths)
    group = _GROUP_OF[np.minimum(position, len(_GROUP_OF) - 1, out=position)]
    counts.position_plays += np.bincount(group[known], minlength=len(GROUPS))
    counts.position_skips += np.bincount(group[skipped], minlength=len(GROUPS))
    counts.first.add(known[begins], skipped[begins])
    later = known.copy()
    later[begins] = False
    # Only the last play of a session may be unknown, so the outcome of a previous play is always known.
    counts.after_skip.add(later[1:] & skipped[:-1], skipped[1:])
    counts.after_play.add(later[1:] & ~skipped[:-1], skipped[1:])
    lasts = begins + block.lengths - 1
    counts.last.add(known[lasts], skipped[lasts])
    session_skips = np.add.reduceat(skipped, begins, dtype=np.int32)
    counts.session_skips[block.sessions] = session_skips
    counts.with_skip += int(np.count_nonzero(session_skips))
    counts.only_skips += int(np.count_nonzero(session_skips == block.lengths))


def _count_repeats(counts: _Counts, block: _Block, rows: int) -> None:
    """Count repeated tracks. `rows` is larger than any row."""
    session = np.repeat(np.arange(len(block.lengths), dtype=np.int64), block.lengths)
    keys = np.sort(session * rows + block.rows)
    repeated = keys[1:][keys[1:] == keys[:-1]]
    counts.repeats += len(repeated)
    counts.repeating_sessions += len(np.unique(repeated // rows))
    again = block.rows[1:] == block.rows[:-1]
    again[block.begins[1:] - 1] = False  # the last play of a session and the first of the next
    counts.immediate += int(np.count_nonzero(again))
    counts.immediate_after_skip += int(np.count_nonzero(again & block.skipped[:-1]))
    last_rows = block.rows[block.begins + block.lengths - 1]
    same = np.add.reduceat(block.rows == np.repeat(last_rows, block.lengths), block.begins, dtype=np.int32)
    counts.repeated_last += int(np.count_nonzero(same > 1))


def _sessions(counts: _Counts) -> Sessions:
    ordered = sorted(counts.lengths.items())
    lengths, numbers = (np.array(values, dtype=np.int64) for values in zip(*ordered, strict=True))
    reached, count = np.cumsum(numbers), int(numbers.sum())
    wanted = [max(math.ceil(share * count), 1) for share in QUANTILES]  # the place of the quantile, from 1
    found = lengths[np.searchsorted(reached, wanted, side="left")]
    sizes = np.bincount(np.searchsorted(GROUPS, lengths, side="right") - 1, weights=numbers, minlength=len(GROUPS))
    return Sessions(
        count=count,
        mean_length=float((lengths * numbers).sum() / count),
        quantiles={f"{share:g}": int(length) for share, length in zip(QUANTILES, found, strict=True)},
        lengths=[
            LengthCount(first=first, last=last, sessions=int(sizes[number]))
            for number, first, last in _groups(int(lengths[-1]))
            if last >= lengths[0]
        ],
        with_skip=counts.with_skip,
        only_skips=counts.only_skips,
        with_targets=int(numbers[lengths >= _TARGETS_FROM].sum()),
    )


def _groups(longest: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first and last of each group of positions up to `longest`."""
    edges = [*GROUPS.tolist(), longest + 1]
    for number, (first, after) in enumerate(pairwise(edges)):
        if first <= longest:
            yield number, first, min(after - 1, longest)


def _by_position(counts: _Counts) -> list[PositionRate]:
    return [
        PositionRate(
            first=first,
            last=last,
            plays=int(counts.position_plays[number]),
            skips=int(counts.position_skips[number]),
        )
        for number, first, last in _groups(max(counts.lengths))
    ]


def _starts(dataset: Dataset) -> pl.Series:
    """Return the start of each session, datetime (ms, UTC) with nulls. Raises BadDataset."""
    again = "write it again with `segue prepare`"
    try:
        starts = pl.read_parquet(dataset.path / SESSIONS_FILE, columns=["started_at"])["started_at"]
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadDataset(f"{dataset.path} is damaged: {SESSIONS_FILE}: {reason}: {again}") from error
    if starts.dtype != pl.Datetime("ms", "UTC"):
        raise BadDataset(f"{dataset.path} is damaged: {SESSIONS_FILE} has no times in column started_at: {again}")
    ms = starts.to_physical().drop_nulls()
    if len(ms) and not ms.is_between(_YEAR_1_MS, _YEAR_9999_MS - 1).all():
        raise BadDataset(f"{dataset.path} is damaged: a start in {SESSIONS_FILE} is outside years 1 to 9998: {again}")
    return starts


_PERIODS: Final[tuple[tuple[Literal["day", "week", "month", "year"], str, int], ...]] = (
    ("day", "1d", 1),
    ("week", "1w", 7),
    ("month", "1mo", 30),
    ("year", "1y", 366),
)


def _times(starts: pl.Series, plays: Int, skips: NDArray[np.int32]) -> Times:
    """`plays` and `skips` [sessions]: those with a known outcome."""
    known = starts.drop_nulls()
    if known.is_empty():
        return Times(first=None, last=None, unknown=len(starts), resolution_s=None, period=None, periods=[])
    ms = known.to_physical().to_numpy()
    days = (int(ms.max()) - int(ms.min())) / 86_400_000
    period, every = next(
        ((name, every) for name, every, length in _PERIODS if days / length < _MOST_PERIODS), ("year", "1y")
    )
    frame = (
        pl.DataFrame({"start": starts, "plays": plays, "skips": skips})
        .drop_nulls("start")
        .group_by(pl.col("start").dt.truncate(every))
        .agg(pl.len().alias("sessions"), pl.col("plays", "skips").cast(pl.Int64).sum())
        .sort("start")
    )
    return Times(
        first=_EPOCH + timedelta(milliseconds=int(ms.min())),
        last=_EPOCH + timedelta(milliseconds=int(ms.max())),
        unknown=starts.null_count(),
        resolution_s=int(np.gcd.reduce(ms)) / 1000 or None,
        period=period,
        periods=[Period(**row) for row in frame.iter_rows(named=True)],
    )


def _popularity(dataset: Dataset, plays: Int, skips: Int) -> Popularity:
    """`plays` and `skips` [tracks + 1], the counts of each row."""
    order = np.argsort(-plays, kind="stable")  # ties stay in the order of rows, which is that of the ids
    ordered = plays[order]
    heard = ordered[ordered > 0]
    reached, total, tracks = np.cumsum(heard), int(heard.sum()), len(heard)
    # Gini index of ascending values x_i: 2 * sum(i * x_i) / (n * sum(x)) - (n + 1) / n
    # (Dixon et al., https://doi.org/10.2307/1939238, 1987).
    weighted = float(np.arange(tracks, 0, -1) @ heard)
    points = np.unique(np.linspace(1, tracks, min(_LORENZ_POINTS, tracks)).round().astype(np.int64))
    frame = dataset.catalogue.frame
    names = frame[order[:TOP_TRACKS][ordered[:TOP_TRACKS] > 0] - FIRST_TRACK_ROW].select("track_id", "title", "artist")
    return Popularity(
        tracks=len(dataset.catalogue),
        played=tracks,
        played_once=int(np.count_nonzero(heard == 1)),
        top_1_percent=int(reached[-(-tracks // 100) - 1]) / total,
        top_10_percent=int(reached[-(-tracks // 10) - 1]) / total,
        tracks_of_half=int(np.searchsorted(reached * 2, total)) + 1,
        gini=max(2 * weighted / (tracks * total) - (tracks + 1) / tracks, 0.0),
        with_title=int(frame["title"].count()),
        top=[
            TopTrack(**row, plays=int(plays[at]), skips=int(skips[at]))
            for at, row in zip(order, names.iter_rows(named=True), strict=False)
        ],
        lorenz=[Lorenz(tracks=int(at) / tracks, plays=int(reached[at - 1]) / total) for at in points],
    )


def _outcomes(log: LogFacts | None) -> Outcomes:
    if log is None:
        return Outcomes(sources=None, inferred=None, unknown=None)
    sources = log.skips_from
    every = sum(sources.model_dump().values()) + log.unknown_outcomes
    return Outcomes(sources=sources, inferred=sources.time / every if every else None, unknown=log.unknown_outcomes)
