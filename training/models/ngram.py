"""Train `ngram` and the hybrids: count the transitions of the training part, and learn the mixture on validation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from index.exact import ExactIndex
from segue.arrays import Float32, Float64, Int
from segue.catalogue import Catalogue
from segue.hybrid import HybridRanker
from segue.ngram import FOLLOW_DECAY, ORDERS, PAIRS, REACH, TABLES, CountTables, NgramCounts
from segue.recommend import EncoderRanker
from segue.release import Release
from segue.window import Sessions, SessionViews, Windows, to_windows
from training.data.splits import Examples, Split
from training.models.mixture import Targets, every_position, fit_mixture, prior_mixture, repeat_share

if TYPE_CHECKING:
    from training.models.encoders.encoder import Encoder

_PAIRS_AT_ONCE: Final = 1 << 26  # pairs of plays that are sorted at once while counting
Rescoring: TypeAlias = Literal["off", "next", "next-played"]
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
    rescoring: Rescoring = "off",
) -> HybridRanker:
    """Count transitions, learn the mixture and, unless `rescoring` is off, the network that corrects it.

    Args:
        sessions: Sessions of the training part.
        catalogue: The catalogue, with the play counts of the training part.
        validation: Validation targets. Of new sessions, every play is a target, as none of them is training data.
        split: The split that `validation` belongs to.
        window: Latest plays that count.
        max_followers: Stored tracks of each context, the most frequent ones.
        encoder: A trained encoder to mix with, or None.
        origin: A release whose counts are added, or None.
        rescoring: Targets of the network, if there are enough: all next tracks, or those that were not skipped.

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
    not_played = validation.target_skipped  # a target of unknown outcome is not a played one
    if validation.target_known is not None:
        not_played = not_played | ~validation.target_known
    if split == "new-sessions":
        targets = every_position(validation.inputs, validation.targets, not_played, window)
    else:
        targets = Targets(to_windows(validation.inputs.gathered(), window), validation.targets, not_played)
    ranker = replace(ranker, mixture=fit_mixture(ranker, targets))
    if rescoring == "off":
        return ranker
    from training.models.rescoring import fit_network  # noqa: PLC0415 (`ngram` is trained without torch)

    return replace(ranker, network=fit_network(ranker, targets.played() if rescoring == "next-played" else targets))


def arrays_of(ranker: HybridRanker) -> Mapping[str, NDArray[Any]]:
    """Return the arrays to store in a release, by file name."""
    assert isinstance(ranker.counts, NgramCounts)
    network = {} if ranker.network is None else ranker.network.arrays()
    return {**ranker.counts.arrays(), **ranker.mixture.arrays(), **network}


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
    pairs = _pairs(tracks, place, num_rows, max_followers)
    return _stacked(keys, [*parts, pairs], pairs.follow, pairs.follow_totals)


def add_counts(first: CountTables, rows: Int, second: CountTables, num_rows: int, max_followers: int) -> CountTables:
    """Add the counts of two trainings.

    Args:
        first: Counts of another catalogue.
        rows: The row in the catalogue of `second` of each row of the catalogue of `first`.
        second: Counts to add.
        num_rows: Rows of the catalogue of `second`.
        max_followers: Stored counts of each row of the result.

    """
    both = ((first, rows), (second, np.arange(num_rows, dtype=np.int64)))
    ids = [rows for _, rows in both]  # the context in the result of each context of one order
    count, keys, parts = num_rows, [], []
    for number in range(TABLES):
        if number == PAIRS:
            ids, count = [rows for _, rows in both], num_rows
        elif number > 0:
            longer = [_longer_contexts(*one, number, of, num_rows) for one, of in zip(both, ids, strict=True)]
            union = np.unique(np.concatenate(longer))
            ids, count = [np.searchsorted(union, part) for part in longer], len(union)
            keys.append(union)
        found, totals = [], np.zeros(count)
        for (tables, to_row), of in zip(both, ids, strict=True):
            span = slice(int(tables.starts[number]), int(tables.starts[number + 1]))
            lengths = np.diff(tables.offsets[span.start : span.stop + 1])
            entries = slice(int(tables.offsets[span.start]), int(tables.offsets[span.stop]))
            follow = tables.follow if number == PAIRS else np.zeros(entries.stop - entries.start, np.float32)
            at = np.repeat(of, lengths) * num_rows + to_row[tables.tracks[entries]]
            found.append((at, tables.counts[entries], follow))
            totals += np.bincount(of, weights=tables.totals[span], minlength=count)
        merged, counts, follow = map(np.concatenate, zip(*found, strict=True))
        order = np.argsort(merged)
        starts = _first_of_each(merged[order])
        summed = [_sums(values[order], starts) for values in (counts, follow)]
        table = _table(merged[order][starts], summed[0], summed[1], count, num_rows, max_followers)
        parts.append(table._replace(totals=totals.astype(np.float32)))
    of_tracks = sum(np.bincount(to_row, tables.follow_totals, num_rows) for tables, to_row in both)
    return _stacked(keys, parts, parts[-1].follow, np.asarray(of_tracks, dtype=np.float32))


def _longer_contexts(tables: CountTables, to_row: Int, order: int, shorter: Int, num_rows: int) -> Int:
    """Return the keys of the contexts of `order` + 1 tracks in the result. `shorter` are its contexts of `order`."""
    start, before = int(tables.starts[1]), int(tables.starts[1])
    known = tables.keys[int(tables.starts[order]) - start : int(tables.starts[order + 1]) - start]
    keys: Int = shorter[known // before] * num_rows + to_row[known % before]
    return keys


def _stacked(keys: Sequence[Int], parts: Sequence["_Table"], follow: Float32, follow_totals: Float32) -> CountTables:
    """Put tables below each other; the last one is the table of pairs."""
    lengths = np.concatenate([part.lengths for part in parts])
    return CountTables(
        keys=np.concatenate(keys),
        starts=np.cumsum([0, *(len(part.lengths) for part in parts)], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tracks=np.concatenate([part.tracks for part in parts]).astype(np.int32),
        counts=np.concatenate([part.counts for part in parts]),
        totals=np.concatenate([part.totals for part in parts]),
        follow=follow,
        follow_totals=follow_totals,
    )


def _pairs(tracks: Int, place: Int, num_rows: int, max_followers: int) -> "_Table":
    """Count the pairs of tracks with at most REACH places between them: N and F.

    Works through ranges of rows, so that the pairs sorted at once are bounded.
    """
    weights = np.append(FOLLOW_DECAY ** np.arange(REACH), 0.0)  # the last one is of the other direction
    found = []
    for low, high in _row_ranges(tracks, num_rows):
        keys = []
        for distance in range(1, REACH + 1):
            later = np.flatnonzero(place >= distance)
            first, second = tracks[later - distance], tracks[later]
            inside = (first >= low) & (first < high)
            forward = (first[inside] - low) * num_rows + second[inside]
            inside = (second >= low) & (second < high)
            backward = (second[inside] - low) * num_rows + first[inside]
            keys += [forward * (REACH + 1) + distance - 1, backward * (REACH + 1) + REACH]
        ordered = np.sort(np.concatenate(keys))
        pairs = ordered // (REACH + 1)
        starts = _first_of_each(pairs)
        near = np.diff(np.append(starts, len(pairs))).astype(np.float64)
        follow = _sums(weights[ordered % (REACH + 1)], starts)
        found.append(_table(pairs[starts], near, follow, high - low, num_rows, max_followers))
    return _Table(*map(np.concatenate, zip(*found, strict=True)))


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
    follow: Float32  # [entries]
    follow_totals: Float32  # [rows]


def _first_of_each(ordered: Int) -> Int:
    """Return the positions where a new value begins in a sorted array."""
    if not len(ordered):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _sums(values: NDArray[Any], starts: Int) -> Float64:
    """Return the sums of the values from each start to the next one."""
    if not len(values):
        return np.empty(0)
    return np.add.reduceat(values, starts, dtype=np.float64)


def _counted(keys: Int, rows: int, num_rows: int, max_followers: int) -> _Table:
    """Return the table of keys that may repeat. A key is row * num_rows + track."""
    ordered = np.sort(keys)
    starts = _first_of_each(ordered)
    counts = np.diff(np.append(starts, len(ordered))).astype(np.float64)
    return _table(ordered[starts], counts, np.zeros(len(starts)), rows, num_rows, max_followers)


def _table(keys: Int, counts: Float64, follow: Float64, rows: int, num_rows: int, max_followers: int) -> _Table:
    """Return the table of distinct, ascending keys and their counts, with at most `max_followers` entries a row.

    Entries with the largest sum of both counts are kept.
    """
    row, track = np.divmod(keys, num_rows)
    totals = [np.bincount(row, weights=values, minlength=rows).astype(np.float32) for values in (counts, follow)]
    lengths = np.bincount(row, minlength=rows).astype(np.int64)
    if lengths.max(initial=0) > max_followers:
        long = np.flatnonzero(lengths[row] > max_followers)
        best = long[np.lexsort((track[long], -(counts + follow)[long], row[long]))]
        rank = np.arange(len(best), dtype=np.int64) - np.searchsorted(row[long], row[best])
        kept = np.ones(len(keys), dtype=np.bool_)
        kept[best[rank >= max_followers]] = False
        track, counts, follow = track[kept], counts[kept], follow[kept]
        lengths = np.minimum(lengths, max_followers)
    return _Table(lengths, track, counts.astype(np.float32), totals[0], follow.astype(np.float32), totals[1])
