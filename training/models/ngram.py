"""Train `ngram` and the hybrids: count the transitions of the training part, and learn the mixture on validation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.exact import ExactIndex
from segue.arrays import Float32, Float64, Int
from segue.catalogue import Catalogue
from segue.hybrid import HybridRanker
from segue.ngram import FOLLOW, FOLLOW_DECAY, ORDERS, REACH, TABLES, CountTables, NgramCounts
from segue.recommend import EncoderRanker
from segue.release import Release
from segue.window import Sessions, SessionViews, Windows, to_windows
from training.data.splits import Examples, Split
from training.models.mixture import Targets, every_position, fit_mixture, prior_mixture, repeat_share

if TYPE_CHECKING:
    from training.models.encoders.encoder import Encoder

_PAIRS_AT_ONCE: Final = 1 << 26  # pairs of plays that are sorted at once while counting
MAX_FOLLOWERS: Final = 64  # stored tracks of each context; benchmarks/README.md has the loss


@dataclass(frozen=True)
class _TorchEncoder:
    encoder: "Encoder"

    def encode(self, windows: Windows) -> Float32:
        import torch  # noqa: PLC0415 (`ngram` is trained without torch)

        with torch.no_grad():
            queries = self.encoder.query(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped))
        return np.asarray(queries.numpy(), dtype=np.float32)


def fit_ngram(  # noqa: PLR0913 (all of a training job)
    sessions: SessionViews,
    catalogue: Catalogue,
    validation: Examples,
    split: Split,
    *,
    window: int,
    max_followers: int = MAX_FOLLOWERS,
    encoder: "Encoder | None" = None,
    origin: Release | None = None,
) -> HybridRanker:
    """Count transitions and learn the mixture.

    Args:
        sessions: Sessions of the training part.
        catalogue: The catalogue, with the play counts of the training part.
        validation: Validation targets. Of new sessions, every play is a target, as none of them is training data.
        split: The split that `validation` belongs to.
        window: Latest plays that count.
        max_followers: Stored tracks of each context, the most frequent ones.
        encoder: A trained encoder to mix with, or None.
        origin: A release whose counts are added, or None.

    """
    gathered = sessions.gathered()
    tables = count_transitions(gathered, catalogue.num_rows, max_followers)
    if origin is not None and origin.has_counts:
        tables = add_counts(*_counts_of(origin, catalogue), tables, catalogue.num_rows, max_followers)
    ranker = HybridRanker(
        NgramCounts(tables, catalogue.plays),
        prior_mixture(repeat_share(gathered, window)),
        catalogue.by_plays.astype(np.int64),
        None if encoder is None else _ranker_of(encoder),
    )
    if split == "new-sessions":
        targets = every_position(validation.inputs, validation.targets, window)
    else:
        targets = Targets(to_windows(validation.inputs.gathered(), window), validation.targets)
    return replace(ranker, mixture=fit_mixture(ranker, targets))


def arrays_of(ranker: HybridRanker) -> Mapping[str, NDArray[Any]]:
    """Return the arrays to store in a release, by file name."""
    assert isinstance(ranker.counts, NgramCounts)
    return {**ranker.counts.arrays(), **ranker.mixture.arrays()}


def _ranker_of(encoder: "Encoder") -> EncoderRanker:
    encoder.cpu().eval()
    matrix: Float32 = encoder.item_embeddings.weight.detach().numpy().astype(np.float32)
    exact = ExactIndex(matrix)
    return EncoderRanker(_TorchEncoder(encoder), exact, exact, matrix)


def _counts_of(origin: Release, catalogue: Catalogue) -> tuple[CountTables, Int]:
    """Return the counts of a release, and the row in `catalogue` of each of its rows."""
    rows = np.concatenate([[0], catalogue.rows(origin.catalogue.track_ids)]).astype(np.int64)
    return origin.count_tables, rows


def count_transitions(sessions: Sessions, num_rows: int, max_followers: int) -> CountTables:
    """Count the transitions of training sessions.

    Keep the `max_followers` largest counts of each row; of equal counts those of lower track rows.
    """
    usable = sessions.usable()
    tracks = usable.rows.astype(np.int64, copy=False)
    place = np.arange(len(tracks), dtype=np.int64) - np.repeat(usable.offsets[:-1], usable.lengths)
    keys: list[Int] = []
    parts: list[_Table] = []
    has_next = np.zeros(len(tracks), dtype=np.bool_)
    has_next[:-1] = place[1:] > 0
    at = np.flatnonzero(has_next)  # the newest play of each context
    context, contexts = tracks[at], num_rows
    for order in range(1, ORDERS + 1):
        if order > 1:
            longer = place[at] >= order - 1
            at, context = at[longer], context[longer]
            distinct, context = np.unique(context * num_rows + tracks[at - order + 1], return_inverse=True)
            keys.append(distinct)
            contexts = len(distinct)
        parts.append(_counted(context * num_rows + tracks[at + 1], contexts, num_rows, max_followers))
    parts += _reach_tables(tracks, place, num_rows, max_followers)
    return _stacked(keys, parts)


def add_counts(first: CountTables, rows: Int, second: CountTables, num_rows: int, max_followers: int) -> CountTables:
    """Add the counts of two trainings.

    Args:
        first: Counts of another catalogue.
        rows: The row in the catalogue of `second` of each row of the catalogue of `first`.
        second: Counts to add.
        num_rows: Rows of the catalogue of `second`.
        max_followers: Stored counts of each row of the result.

    """
    ids = [rows, np.arange(num_rows, dtype=np.int64)]  # the context in the result of each context of one order
    count, keys, parts = num_rows, [], []
    for number in range(TABLES):
        if FOLLOW > number > 0:
            longer = []
            for one, tables, tracks in zip(ids, (first, second), (rows, np.arange(num_rows)), strict=True):
                start = int(tables.starts[1])
                known = tables.keys[int(tables.starts[number]) - start : int(tables.starts[number + 1]) - start]
                longer.append(one[known // int(tables.starts[1])] * num_rows + tracks[known % int(tables.starts[1])])
            union = np.unique(np.concatenate(longer))
            ids, count = [np.searchsorted(union, part) for part in longer], len(union)
            keys.append(union)
        elif number >= FOLLOW:
            ids, count = [rows, np.arange(num_rows, dtype=np.int64)], num_rows
        found, totals = [], np.zeros(count)
        for one, tables, tracks in zip(ids, (first, second), (rows, np.arange(num_rows)), strict=True):
            span = slice(int(tables.starts[number]), int(tables.starts[number + 1]))
            lengths = np.diff(tables.offsets[span.start : span.stop + 1])
            entries = slice(int(tables.offsets[span.start]), int(tables.offsets[span.stop]))
            found.append((np.repeat(one, lengths) * num_rows + tracks[tables.tracks[entries]], tables.counts[entries]))
            totals += np.bincount(one, weights=tables.totals[span], minlength=count)
        merged, counts = (np.concatenate(both) for both in zip(*found, strict=True))
        order = np.argsort(merged)
        starts = _first_of_each(merged[order])
        summed = np.add.reduceat(counts[order], starts, dtype=np.float64) if len(order) else np.empty(0)
        table = _table(merged[order][starts], summed, count, num_rows, max_followers)
        parts.append(table._replace(totals=totals.astype(np.float32)))
    return _stacked(keys, parts)


def _stacked(keys: Sequence[Int], parts: Sequence["_Table"]) -> CountTables:
    """Put tables below each other."""
    lengths = np.concatenate([part.lengths for part in parts])
    return CountTables(
        keys=np.concatenate(keys),
        starts=np.cumsum([0, *(len(part.lengths) for part in parts)], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tracks=np.concatenate([part.tracks for part in parts]).astype(np.int32),
        counts=np.concatenate([part.counts for part in parts]),
        totals=np.concatenate([part.totals for part in parts]),
    )


def _reach_tables(tracks: Int, place: Int, num_rows: int, max_followers: int) -> tuple["_Table", "_Table"]:
    """Count the pairs of tracks with at most REACH places between them: the tables FOLLOW and NEAR.

    Works through ranges of rows, so that the pairs sorted at once are bounded.
    """
    weights = FOLLOW_DECAY ** np.arange(REACH)
    follow, near = [], []
    for low, high in _row_ranges(tracks, num_rows):
        after, around = [], []
        for distance in range(1, REACH + 1):
            later = np.flatnonzero(place >= distance)
            first, second = tracks[later - distance], tracks[later]
            inside = (first >= low) & (first < high)
            forward = (first[inside] - low) * num_rows + second[inside]
            after.append(forward * REACH + (distance - 1))
            inside = (second >= low) & (second < high)
            around += [forward, (second[inside] - low) * num_rows + first[inside]]
        keys = np.sort(np.concatenate(after))
        starts = _first_of_each(keys // REACH)
        summed = np.add.reduceat(weights[keys % REACH], starts) if len(keys) else np.empty(0)
        follow.append(_table(keys[starts] // REACH, summed, high - low, num_rows, max_followers))
        near.append(_counted(np.concatenate(around), high - low, num_rows, max_followers))
    return _Table(*map(np.concatenate, zip(*follow, strict=True))), _Table(
        *map(np.concatenate, zip(*near, strict=True))
    )


def _row_ranges(tracks: Int, num_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that have about _PAIRS_AT_ONCE pairs each, or one row."""
    pairs = np.cumsum(np.bincount(tracks, minlength=num_rows)) * (2 * REACH)
    low = 0
    while low < num_rows:
        before = int(pairs[low - 1]) if low else 0
        high = max(int(np.searchsorted(pairs, before + _PAIRS_AT_ONCE, side="right")), low + 1)
        yield low, high
        low = high


class _Table(NamedTuple):
    lengths: Int  # [rows] int64, stored entries
    tracks: Int  # [entries]
    counts: Float32  # [entries]
    totals: Float32  # [rows]


def _first_of_each(ordered: Int) -> Int:
    """Return the positions where a new value begins in a sorted array."""
    if not len(ordered):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _counted(keys: Int, rows: int, num_rows: int, max_followers: int) -> _Table:
    """Return the table of keys that may repeat. A key is row * num_rows + track."""
    ordered = np.sort(keys)
    starts = _first_of_each(ordered)
    counts = np.diff(np.append(starts, len(ordered))).astype(np.float64)
    return _table(ordered[starts], counts, rows, num_rows, max_followers)


def _table(keys: Int, counts: Float64, rows: int, num_rows: int, max_followers: int) -> _Table:
    """Return the table of distinct, ascending keys and their counts, with at most `max_followers` entries a row."""
    row, track = np.divmod(keys, num_rows)
    totals = np.bincount(row, weights=counts, minlength=rows).astype(np.float32)
    lengths = np.bincount(row, minlength=rows).astype(np.int64)
    if lengths.max(initial=0) > max_followers:
        long = np.flatnonzero(lengths[row] > max_followers)
        best = long[np.lexsort((track[long], -counts[long], row[long]))]
        rank = np.arange(len(best), dtype=np.int64) - np.searchsorted(row[long], row[best])
        kept = np.ones(len(keys), dtype=np.bool_)
        kept[best[rank >= max_followers]] = False
        track, counts = track[kept], counts[kept]
        lengths = np.minimum(lengths, max_followers)
    return _Table(lengths, track, counts.astype(np.float32), totals)
