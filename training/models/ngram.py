"""Train `ngram` and the hybrids: count the transitions of the training part, and learn the mixture on validation."""

from collections.abc import Mapping, Sequence
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

_PAIRS_AT_ONCE: Final = 1 << 25  # pairs of plays that are sorted at once while counting
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
    parts: list[tuple[Int, Int, Float32, Float32]] = []  # lengths of the rows, tracks, counts, totals
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
        parts.append(_table(context * num_rows + tracks[at + 1], None, contexts, num_rows, max_followers))
    follow = _pairs_within_reach(tracks, place, num_rows)
    near_keys = np.concatenate([follow.keys, follow.keys % num_rows * num_rows + follow.keys // num_rows])
    parts.append(_table(follow.keys, follow.decayed, num_rows, num_rows, max_followers))
    parts.append(_table(near_keys, np.tile(follow.counts, 2), num_rows, num_rows, max_followers))
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
    for table in range(TABLES):
        if FOLLOW > table > 0:
            longer = []
            for one, tables, tracks in zip(ids, (first, second), (rows, np.arange(num_rows)), strict=True):
                start = int(tables.starts[1])
                known = tables.keys[int(tables.starts[table]) - start : int(tables.starts[table + 1]) - start]
                longer.append(one[known // int(tables.starts[1])] * num_rows + tracks[known % int(tables.starts[1])])
            union = np.unique(np.concatenate(longer))
            ids, count = [np.searchsorted(union, part) for part in longer], len(union)
            keys.append(union)
        elif table >= FOLLOW:
            ids, count = [rows, np.arange(num_rows, dtype=np.int64)], num_rows
        found, totals = [], np.zeros(count)
        for one, tables, tracks in zip(ids, (first, second), (rows, np.arange(num_rows)), strict=True):
            span = slice(int(tables.starts[table]), int(tables.starts[table + 1]))
            lengths = np.diff(tables.offsets[span.start : span.stop + 1])
            entries = slice(int(tables.offsets[span.start]), int(tables.offsets[span.stop]))
            found.append((np.repeat(one, lengths) * num_rows + tracks[tables.tracks[entries]], tables.counts[entries]))
            totals += np.bincount(one, weights=tables.totals[span], minlength=count)
        merged = np.concatenate([found[0][0], found[1][0]]), np.concatenate([found[0][1], found[1][1]])
        lengths, tracks_, counts, _ = _table(merged[0], merged[1].astype(np.float64), count, num_rows, max_followers)
        parts.append((lengths, tracks_, counts, totals.astype(np.float32)))
    return _stacked(keys, parts)


def _stacked(keys: Sequence[Int], parts: Sequence[tuple[Int, Int, Float32, Float32]]) -> CountTables:
    """Put tables (lengths of the rows, tracks, counts, totals) below each other."""
    lengths = np.concatenate([part[0] for part in parts])
    return CountTables(
        keys=np.concatenate(keys),
        starts=np.cumsum([0, *(len(part[0]) for part in parts)], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tracks=np.concatenate([part[1] for part in parts]).astype(np.int32),
        counts=np.concatenate([part[2] for part in parts]),
        totals=np.concatenate([part[3] for part in parts]),
    )


class _Pairs(NamedTuple):
    keys: Int  # [pairs] int64, distinct: earlier track times the number of rows, plus later track
    counts: Float64  # [pairs], how often the later track came at most REACH places after the earlier one
    decayed: Float64  # [pairs], the sum of FOLLOW_DECAY^(d-1)


def _pairs_within_reach(tracks: Int, place: Int, num_rows: int) -> _Pairs:
    """Count the pairs of tracks with at most REACH places between them, in blocks of plays that bound the memory."""
    found: list[_Pairs] = []
    block = max(_PAIRS_AT_ONCE // REACH, 1)
    for start in range(0, len(tracks), block):
        at = np.arange(start, min(start + block, len(tracks)), dtype=np.int64)
        keys, counts, decayed = [], [], []
        for distance in range(1, REACH + 1):
            later = at[place[at] >= distance]
            distinct, number = np.unique(tracks[later - distance] * num_rows + tracks[later], return_counts=True)
            keys.append(distinct)
            counts.append(number.astype(np.float64))
            decayed.append(number * FOLLOW_DECAY ** (distance - 1))
        found.append(_summed(_Pairs(*map(np.concatenate, (keys, counts, decayed)))))
    empty = np.empty(0)
    return (
        _summed(_Pairs(*map(np.concatenate, zip(*found, strict=True))))
        if found
        else _Pairs(np.empty(0, dtype=np.int64), empty, empty)
    )


def _summed(pairs: _Pairs) -> _Pairs:
    """Return distinct pairs, with the sums of their counts."""
    order = np.argsort(pairs.keys, kind="stable")
    keys = pairs.keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
    if not len(keys):
        return pairs
    return _Pairs(
        keys[first], np.add.reduceat(pairs.counts[order], first), np.add.reduceat(pairs.decayed[order], first)
    )


def _table(
    keys: Int, weights: Float64 | None, rows: int, num_rows: int, max_followers: int
) -> tuple[Int, Int, Float32, Float32]:
    """Return the lengths of the rows of a table, and its tracks, counts and row totals.

    A key is row * num_rows + track. Keys may repeat. `weights` are their counts, or None for 1 each.
    """
    ones = np.ones(len(keys)) if weights is None else weights
    distinct, counts, _ = _summed(_Pairs(keys, ones, ones))
    row, track = np.divmod(distinct, num_rows)
    totals = np.bincount(row, weights=counts, minlength=rows).astype(np.float32)
    lengths = np.bincount(row, minlength=rows)
    if lengths.max(initial=0) > max_followers:
        best = np.lexsort((track, -counts, row))
        rank = np.arange(len(best), dtype=np.int64) - (np.cumsum(lengths) - lengths)[row[best]]
        kept = np.sort(best[rank < max_followers])
        row, track, counts = row[kept], track[kept], counts[kept]
        lengths = np.minimum(lengths, max_followers)
    return lengths.astype(np.int64), track, counts.astype(np.float32), totals
