"""Transition counts, and the probabilities of the next track that they give.

The counts of all tables are one sparse matrix in CSR format. Its rows are the contexts of one to four tracks, then,
for each track, the tracks near it. The arrays are stored in a release, memory-mapped, and shared by the workers of a
service.

Notation: h_1, ..., h_T are the tracks of a window, h_T is the newest; c(u, x) is the number of times that track x
followed context u, n(u) the sum over x, f(x) the plays of x. All plays count, also skipped ones,
except in `liked`.

    p_0(x)      = (f(x) + 0.01) / sum_y (f(y) + 0.01)
    ngram(x)    = max(c(u, x) - D, 0) / n(u) + backoff(u) * ngram of the next shorter context; u = the last o tracks
    follow(x)   = sum_d w_d F(h_(T-d+1), x) / (sum_y F(h_(T-d+1), y) + K)   + the rest of the mass * p_0(x)
    near(x)     = sum_d v_d N(h_(T-d+1), x) / (sum_y N(h_(T-d+1), y) + K)   + the rest of the mass * p_0(x)
    liked(x)    = near(x) over the plays of the window that were not skipped
    recent(x)   = sum of 0.8^(T-t) over t with h_t = x, normalised
    own(x)      = times that x followed h_T earlier in this window, normalised
    popular(x)  = p_0(x)

F(i, x) sums 0.7^(d-1) over all pairs with x exactly d places after i in a session, d <= 8. N(i, x) is the number of
pairs with at most 8 places between i and x, in either order. Every part sums to 1 over the catalogue (`own` also to 0,
if h_T is new in the window). `backoff(u)` is the mass that discounting, and the cap on stored followers, take from u.

Sources: interpolated absolute discounting, Ney, Essen and Kneser, Computer Speech and Language 1994; the cache, Kuhn
and De Mori, IEEE PAMI 1990; sequential rules and item kNN for sessions, Ludewig and Jannach, UMUAI 2018,
https://arxiv.org/abs/1803.09587.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.errors import BadRelease
from segue.window import Windows

ORDERS: Final = 4  # tracks of the longest context
REACH: Final = 8  # places between two tracks that count as a pair
DISCOUNT: Final = 0.5
SHRINKAGE: Final = 1.2
FOLLOW_DECAY: Final = 0.7  # per place, in the counts and over the plays of a window
NEAR_DECAY: Final = 0.9  # per play of a window
RECENT_DECAY: Final = 0.8
POPULARITY_PRIOR: Final = 0.01  # plays added to each track
PAIRS: Final = ORDERS  # the number of the table of pairs; those before are the orders
TABLES: Final = ORDERS + 1
_NAMES: Final = ("keys", "starts", "offsets", "tracks", "counts", "totals", "follow", "follow_totals")
FILES: Final = tuple(f"ngram_{name}.npy" for name in _NAMES)
PARTS: Final = ("ngram", "follow", "near", "liked", "recent", "own", "popular")
_DTYPES: Final = ("<i8", "<i8", "<i8", "<i4", "<f4", "<f4", "<f4", "<f4")


class CountTables(NamedTuple):
    """The counts as arrays, in the order of FILES."""

    keys: Int  # [contexts of 2 to ORDERS tracks] int64, ascending for each order: the id of the context without its
    # oldest track, times the number of catalogue rows, plus that oldest track
    starts: Int  # [TABLES + 1] int64, the first row of each table, and the number of rows
    offsets: Int  # [rows + 1] int64, the first entry of each row
    tracks: NDArray[np.int32]  # [entries] int32, ascending within a row
    counts: Float32  # [entries] float32, above 0; of pairs, N
    totals: Float32  # [rows] float32, the sum of all counts of a row, also of those that are not stored
    follow: Float32  # [entries of the table of pairs] float32, F
    follow_totals: Float32  # [catalogue rows] float32, as `totals`


class Found(NamedTuple):
    """The candidates of a batch of windows, and the probability of each part.

    Candidates of one window are contiguous and ascending. PAD_ROW is a candidate of a window with padding; all its
    probabilities are 0. Tracks that are no candidates have only the `base` mass.
    """

    lines: Int  # [candidates] int64, the window of each candidate
    rows: Int  # [candidates] int64, catalogue rows
    parts: Float64  # [parts + 1, candidates] float64, probabilities in the order of PARTS, and zeros for another part
    base: Float64  # [parts, batch] float64, the factor of p_0 in each part
    seen: Float64  # [batch, 3] float64: the order of the longest known context, its total, and its distinct followers
    places: Int  # [batch, window] int64, the candidate of each play
    given: Int  # [batch, extra] int64, the candidate of each row in `extra`


class NgramCounts:
    """Reads probabilities from counts. Immutable and thread-safe."""

    def __init__(self, tables: CountTables, plays: Int) -> None:
        """Create the model from its arrays and the play counts `plays` [num_rows] int64 of the training part."""
        # Plain views: indexing a memmap object costs more than the look-up itself.
        self.tables = CountTables(*(np.asarray(array) for array in _as_tuple(tables)))
        self._num_rows = len(plays)
        self._row_bits = self._num_rows.bit_length()
        smoothed = np.asarray(plays, dtype=np.float64) + POPULARITY_PRIOR
        smoothed[PAD_ROW] = 0.0
        self.popularity: Float64 = smoothed / max(smoothed.sum(), POPULARITY_PRIOR)
        self._starts = [int(start) for start in tables.starts]
        self._first_pair = int(tables.offsets[self._starts[PAIRS]])

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], plays: Int, name: str = "the release") -> Self:
        """Create the model from arrays by file name. Raises BadRelease if they are not counts of `plays`."""
        tables = CountTables(*(arrays[file] for file in FILES))
        _check(tables, len(plays), name)
        return cls(tables, plays)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store in a release, by file name."""
        return {
            name: np.asarray(array).astype(dtype, copy=False)
            for name, array, dtype in zip(FILES, self.tables, _DTYPES, strict=True)
        }

    @cached_property
    def _key_starts(self) -> list[int]:
        """The first key of each order, from 2 on, and the number of keys."""
        return [start - self._starts[1] for start in self._starts[1 : ORDERS + 1]]

    def lookup(self, windows: Windows, extra: Int) -> Found:
        """Return all tracks that the counts know for each window, with the tracks of the window and those in `extra`.

        `windows` has [batch, window] arrays, `extra` [batch, n] int64 rows, PAD_ROW for none.
        """
        tracks = windows.tracks
        batch = len(tracks)
        rows = self._rows(tracks)
        column, line = np.nonzero(rows.T >= 0)  # by column: those of contexts, then those of pairs
        starts = self.tables.offsets[rows[line, column]]
        lengths = self.tables.offsets[rows[line, column] + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        contexts = int(np.searchsorted(column, PAIRS))
        pairs = slice(int(ends[contexts - 1]) if contexts else 0, None)  # the entries of pairs
        owner = np.repeat(np.arange(len(line), dtype=np.int64), lengths)
        entries = np.repeat(starts - ends + lengths, lengths) + np.arange(total, dtype=np.int64)
        counts = self.tables.counts[entries].astype(np.float64)
        follow = self.tables.follow[entries[pairs] - self._first_pair]
        kept = np.zeros((2, *rows.shape))
        kept[0, line, column] = np.bincount(owner, weights=counts, minlength=len(line))
        kept[1, line, column] = np.bincount(owner[pairs], weights=follow, minlength=len(line))
        stored = np.zeros(rows.shape)
        stored[line, column] = lengths
        factors, base, seen = self._factors(rows, _latest(windows.skipped), kept, stored)
        factor = factors[:, line, column]
        value = counts * np.repeat(factor[0], lengths)
        value[: pairs.start] -= np.repeat(factor[0, :contexts] * DISCOUNT, lengths[:contexts])  # less than each count

        window_lines = np.repeat(np.arange(batch, dtype=np.int64), tracks.shape[1])
        extra_lines = np.repeat(np.arange(batch, dtype=np.int64), extra.shape[1])
        keys = np.concatenate([np.repeat(line, lengths), window_lines, extra_lines]) << self._row_bits
        keys |= np.concatenate([self.tables.tracks[entries], tracks.ravel(), extra.ravel()])
        candidates, where = _distinct(keys)
        count = len(candidates)
        in_entries, in_window, in_extra = np.split(where, [total, total + tracks.size])
        in_contexts, in_pairs = in_entries[: pairs.start], in_entries[pairs]
        probabilities = np.zeros((len(PARTS) + 1, count))
        probabilities[0] = np.bincount(in_contexts, weights=value[: pairs.start], minlength=count)
        follow_factor, liked_factor = np.repeat(factor[1:, contexts:], lengths[contexts:], axis=1)
        for number, weights in ((1, follow * follow_factor), (2, value[pairs]), (3, counts[pairs] * liked_factor)):
            probabilities[number] = np.bincount(in_pairs, weights=weights, minlength=count)
        own = _own_transitions(tracks)
        for number, weights in ((4, _recency(tracks)), (5, own)):
            probabilities[number] = np.bincount(in_window, weights=weights.ravel(), minlength=count)
        found_lines, found_rows = candidates >> self._row_bits, candidates & ((1 << self._row_bits) - 1)
        popularity = self.popularity[found_rows]
        per_window = np.bincount(found_lines, minlength=batch)
        probabilities[:_BACKED_OFF] += np.repeat(base[:_BACKED_OFF], per_window, axis=1) * popularity
        probabilities[PARTS.index("popular")] = popularity
        return Found(
            found_lines,
            found_rows,
            probabilities,
            base,
            seen,
            in_window.reshape(tracks.shape),
            in_extra.reshape(extra.shape),
        )

    def _rows(self, tracks: Int) -> Int:
        """Return the rows of the matrix to read for each window. [batch, columns] int64, -1 for none.

        The columns are the contexts of 1 to ORDERS tracks, then the pairs of the latest REACH plays.
        """
        rows = np.empty((len(tracks), _COLUMNS), dtype=np.int64)
        rows[:, :ORDERS] = self._contexts(tracks)
        latest = _latest(tracks)
        rows[:, ORDERS:] = np.where(latest != PAD_ROW, self._starts[PAIRS] + latest, -1)
        rows[(rows >= 0) & (self.tables.totals[np.maximum(rows, 0)] <= 0)] = -1
        return rows

    def _factors(self, rows: Int, skipped: Bool, kept: Float64, stored: Float64) -> tuple[Float64, Float64, Float64]:
        """Return the factors of the counts, the factors of p_0 [parts, batch], and `Found.seen`.

        `kept` [2, batch, columns] are the sums of the stored counts, and of F; `stored` [batch, columns] their number.
        `skipped` [batch, REACH] are the latest plays. The factors [3, batch, columns] are of the counts, of F, and of
        the counts in `liked`.
        """
        batch = len(rows)
        known = rows >= 0
        total = np.where(known, self.tables.totals[np.maximum(rows, 0)], 1.0).astype(np.float64)
        factors, base = np.zeros((3, *rows.shape)), np.zeros((len(PARTS), batch))
        contexts = known[:, :ORDERS]
        discounted = (kept[0, :, :ORDERS] - DISCOUNT * stored[:, :ORDERS]) / total[:, :ORDERS]
        # The mass that each context leaves to shorter ones; the product over the longer contexts is its own share.
        left = np.ones((batch, ORDERS + 1))
        np.multiply.accumulate(np.where(contexts, 1.0 - discounted, 1.0)[:, ::-1], axis=1, out=left[:, 1:])
        factors[0, :, :ORDERS] = np.where(contexts, left[:, ORDERS - 1 :: -1] / total[:, :ORDERS], 0.0)
        base[0] = left[:, -1]
        longest = contexts.sum(axis=1)  # contexts nest
        at = np.arange(batch), np.maximum(longest - 1, 0)
        seen = np.stack([longest, total[at], stored[at]], axis=1) * (longest > 0)[:, None]
        pairs = known[:, ORDERS:]
        track = np.where(pairs, rows[:, ORDERS:] - self._starts[PAIRS], 0)
        follow_total = np.where(pairs, self.tables.follow_totals[track], 0.0).astype(np.float64)
        near_total = np.where(pairs, total[:, ORDERS:], 0.0)
        totals = np.stack([near_total, follow_total, np.where(skipped, 0.0, near_total)])
        weights: Float64 = np.where(totals > 0, _WEIGHTS[:, None], 0.0)
        weights /= np.maximum(weights.sum(axis=2, keepdims=True), 1e-30)
        factors[:, :, ORDERS:] = weights / (totals + SHRINKAGE)
        missing = 1.0 - (factors[:, :, ORDERS:] * kept[[0, 1, 0], :, ORDERS:]).sum(axis=2)
        base[1:4] = missing[[1, 0, 2]]
        base[PARTS.index("popular")] = 1.0
        return factors, base, seen

    def _contexts(self, tracks: Int) -> Int:
        """Return the row of the context of each order. [batch, ORDERS] int64, -1 if it does not occur in training."""
        batch, length = tracks.shape
        found = np.full((batch, ORDERS), -1, dtype=np.int64)
        newest = tracks[:, -1]
        context = np.where(newest != PAD_ROW, newest, -1)
        found[:, 0] = context
        starts = self._key_starts
        for order in range(2, min(ORDERS, length) + 1):
            keys = self.tables.keys[starts[order - 2] : starts[order - 1]]
            oldest = tracks[:, length - order]
            key = np.where((context >= 0) & (oldest != PAD_ROW), context * self._num_rows + oldest, -1)
            place = np.minimum(np.searchsorted(keys, key), max(len(keys) - 1, 0))
            context = np.where((key >= 0) & (keys[place] == key), place, -1) if len(keys) else np.full(batch, -1)
            found[:, order - 1] = np.where(context >= 0, self._starts[order - 1] + context, -1)
        return found

    def neighbours(self, row: int) -> tuple[Int, Float64]:
        """Return the tracks near a track, best first, and their share of all its pairs. [n] int64 and [n] float64."""
        place = self._starts[PAIRS] + row
        span = slice(int(self.tables.offsets[place]), int(self.tables.offsets[place + 1]))
        share = self.tables.counts[span] / max(float(self.tables.totals[place]), 1e-30)
        best = np.argsort(-share, kind="stable")
        return self.tables.tracks[span][best].astype(np.int64), share[best].astype(np.float64)


_COLUMNS: Final = ORDERS + REACH
_BACKED_OFF: Final = PARTS.index("recent")  # the parts before it have a share of p_0
_WEIGHTS: Final = np.array([[NEAR_DECAY], [FOLLOW_DECAY], [NEAR_DECAY]]) ** np.arange(REACH)  # of each play; [3, REACH]


def _latest(plays: NDArray[Any]) -> NDArray[Any]:
    """Return the latest REACH columns of windows, latest first; zeros for columns that a window does not have."""
    latest = plays[:, : -REACH - 1 : -1]
    missing = REACH - latest.shape[1]
    return np.pad(latest, ((0, 0), (0, missing))) if missing else latest


def _as_tuple(tables: CountTables) -> tuple[NDArray[Any], ...]:
    return tables


def _distinct(keys: Int) -> tuple[Int, Int]:
    """Return the distinct keys, ascending, and the index of each key among them. Keys are not negative.

    `np.unique` sorts the positions by the keys; a plain sort of keys with their positions in the low bits is faster.
    """
    bits = max(len(keys) - 1, 1).bit_length()
    if len(keys) and int(keys.max()) >= 1 << (63 - bits):
        distinct, where = np.unique(keys, return_inverse=True)
        return distinct, where
    ordered = np.sort((keys << bits) | np.arange(len(keys), dtype=np.int64))
    positions = ordered & ((1 << bits) - 1)
    ordered >>= bits
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    where = np.empty(len(keys), dtype=np.int64)
    where[positions] = np.cumsum(first) - 1
    return ordered[first], where


def _recency(tracks: Int) -> Float64:
    """Return the weight of each play in the part `recent`. [batch, window] float64; each row sums to 1, or to 0."""
    length = tracks.shape[1]
    weights = np.where(tracks != PAD_ROW, RECENT_DECAY ** np.arange(length - 1, -1, -1), 0.0)
    normalised: Float64 = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    return normalised


def _own_transitions(tracks: Int) -> Float64:
    """Return the weight of each play in the part `own`: plays that follow an earlier play of the newest track."""
    weights = np.zeros(tracks.shape)
    if tracks.shape[1] > 1:
        newest = tracks[:, -1:]
        weights[:, 1:] = (tracks[:, :-1] == newest) & (newest != PAD_ROW)
    normalised: Float64 = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return normalised


def _check(tables: CountTables, num_rows: int, name: str) -> None:
    """Raise BadRelease if an array has the wrong shape or dtype, or refers to a row that does not exist."""
    for file, array, dtype in zip(FILES, _as_tuple(tables), _DTYPES, strict=True):
        if array.ndim != 1 or array.dtype != np.dtype(dtype):
            raise BadRelease(f"{name}: {file} is {array.dtype} {array.shape}, expected one dimension of {dtype}")
    starts, offsets, entries = tables.starts, tables.offsets, len(tables.tracks)
    rows = len(tables.totals)
    fits = (
        len(starts) == TABLES + 1
        and starts[0] == 0
        and starts[-1] == rows
        and (np.diff(starts) >= 0).all()
        and starts[1] == num_rows
        and rows - starts[PAIRS] == num_rows
        and len(tables.keys) == starts[PAIRS] - starts[1]
        and len(offsets) == rows + 1
        and offsets[0] == 0
        and offsets[-1] == entries
        and (np.diff(offsets) >= 0).all()
        and len(tables.counts) == entries
        and len(tables.follow) == entries - offsets[starts[PAIRS]]
        and len(tables.follow_totals) == num_rows
        and (entries == 0 or (tables.tracks.min() >= FIRST_TRACK_ROW and tables.tracks.max() < num_rows))
        and all(np.isfinite(array).all() for array in (tables.totals, tables.follow_totals))
    )
    if not fits:
        raise BadRelease(f"{name}: the arrays of transition counts do not fit each other: copy the release again")


class Best(NamedTuple):
    """The most probable candidates of each window; of equal ones, lower rows first."""

    places: Int  # [batch, k] int64 candidates, -1 after the last
    scores: Float32  # [batch, k] float32, -inf after the last


def best_of(found: Found, probabilities: Float64, forbidden: Bool, batch: int, k: int) -> Best:
    """Return the k most probable candidates of each window, without the forbidden ones.

    `probabilities` and `forbidden` [candidates]; `batch` is the number of windows.
    """
    keys = _keys(probabilities, np.arange(len(probabilities), dtype=np.int64))
    keys[forbidden] = 0
    counts = np.bincount(found.lines, minlength=batch)
    width = max(int(counts.max(initial=0)), k)
    table = np.zeros((batch, width), dtype=np.uint64)
    table[np.arange(width) < counts[:, None]] = keys
    return _largest(table, k)


def in_order(best: Best, k: int) -> Best:
    """Return the k best of `best` by its scores, which need not be in order."""
    keys = _keys(best.scores, best.places)
    keys[best.places < 0] = 0
    return _largest(keys, k)


def _keys(probabilities: Float64 | Float32, places: Int) -> NDArray[np.uint64]:
    """Return keys in the order of the probabilities. Of equal ones the lower place, so the lower row, is larger."""
    # Bits of positive floats order like the floats.
    bits = np.maximum(probabilities, 0.0).astype(np.float32).view(np.uint32).astype(np.uint64)
    return (bits << np.uint64(32)) | (0xFFFFFFFF - places).astype(np.uint64)


def _largest(keys: NDArray[np.uint64], k: int) -> Best:
    """Return the candidates of the k largest keys of each line, 0 for none. `keys` [batch, n], n at least k."""
    if k < keys.shape[1]:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, keys.shape[1] - k :]
    keys = np.sort(keys, axis=1)[:, ::-1]
    places = 0xFFFFFFFF - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    scores = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    empty = keys == 0
    return Best(np.where(empty, -1, places), np.where(empty, np.float32(-np.inf), scores).astype(np.float32))
