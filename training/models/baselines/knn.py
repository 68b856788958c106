"""Session kNN: recommend the tracks of the training sessions that share recent tracks with the current one.

This module implements VMIS-kNN (Kersbergen, Sprangers and Schelter, Serenade, SIGMOD 2022,
https://doi.org/10.1145/3514221.3517901). VMIS-kNN is session kNN with position weights (Ludewig and Jannach, User
Modeling and User-Adapted Interaction 28, 2018, https://arxiv.org/abs/1803.09587), computed with an index from tracks to
sessions. The ranking for a window has three steps:

1. Weight each distinct track of the window by decay^age. The newest play has age 0. If `idf` is set, multiply the
   weight by idf(track) = log(1 + sessions / sessions with the track).
2. For each track of the window, take the `sample` most recent training sessions with the track as candidates. The
   similarity of a candidate is the sum of the weights of the tracks that it shares with the window. Keep the
   `neighbours` most similar candidates. Ties go to the more recent session.
3. Score each track by the sum over all neighbours of similarity times a position factor. The anchor of a neighbour is
   the shared track that the window played last. Let d be the distance in plays from the anchor to the scored track in
   the neighbour. The factor is exp(-(d - 1) / reach) if the scored track comes after the anchor (as the third factor
   of STAN, Garg et al., SIGIR 2019, https://doi.org/10.1145/3331184.3331322). If the scored track comes before the
   anchor, the factor is `before` times exp(-(d - 1) / reach). The factor is 0 for the anchor itself.

Tracks that are in no neighbour rank last, by popularity. Sessions later in the dataset count as more recent. A
repeated track of a session counts at its last position. Skips are treated like other plays.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple, Self

import numpy as np
import scipy.sparse

from segue.arrays import Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.recommend import PopularityRanker, Ranked
from segue.release import Release
from segue.window import Sessions, Windows, distinct
from training.options import VmisKnnOptions, check_options

_BATCH: Final = 64  # windows per batch, so that a batch has at most 64 * window * sample candidates in memory
_POPULARITY_WEIGHT: Final = 1e-9  # breaks ties between neighbour scores; far smaller than any of them


class Neighbours(NamedTuple):
    """The neighbours of all windows of a batch. Each entry is a pair of a window and a training session."""

    windows: Int  # [found] int64, index of the window in the batch
    sessions: Int  # [found] int64, index of the training session
    similarities: Float64  # [found] float64
    places: Int  # [found] int64, position in the session of the shared track that the window played last


class VmisKnn:
    """Session kNN ranker. Six arrays map training sessions to tracks, and tracks to training sessions."""

    files = tuple(
        f"knn_{name}.npy"
        for name in ("tracks", "places", "offsets", "recent_sessions", "recent_places", "recent_offsets")
    )

    def __init__(self, arrays: Mapping[str, Int], plays: Int, options: VmisKnnOptions) -> None:
        """Create the ranker from stored arrays.

        Args:
            arrays: Six int64 arrays by file name, in the format of `arrays()`. The slice offsets[i]:offsets[i + 1] of
                tracks [pairs] and places [pairs] gives the tracks of session i and their positions in the session. The
                slice recent_offsets[t]:recent_offsets[t + 1] of recent_sessions [entries] and recent_places [entries]
                gives the most recent sessions with track t and the positions of the track in them.
            plays: [num_rows] int64, the number of plays of each track.
            options: The hyperparameters.

        """
        self._arrays = dict(arrays)
        self._tracks, self._places, self._offsets, *recent = (self._arrays[name] for name in self.files)
        self._recent_sessions, self._recent_places, self._recent_offsets = recent
        self._options = options
        self._popularity = PopularityRanker(plays)
        self._share = _POPULARITY_WEIGHT * plays / (plays.sum() + 1.0)
        holders = np.bincount(self._tracks, minlength=len(plays))
        sessions = max(len(self._offsets) - 1, 1)
        self._weight = np.log1p(sessions / np.maximum(holders, 1)) if options.idf else np.ones(len(plays))

    @classmethod
    def fit(cls, sessions: Sessions, num_rows: int, plays: Int, options: VmisKnnOptions) -> Self:
        """Index the training sessions. Sessions later in the dataset count as more recent.

        `plays` [num_rows] int64 is the number of plays of each track.
        """
        usable = sessions.usable()
        session = np.repeat(np.arange(len(usable), dtype=np.int64), usable.lengths)
        place = np.arange(len(usable.rows), dtype=np.int64) - usable.offsets[session]
        _, from_end = np.unique((session * num_rows + usable.rows)[::-1], return_index=True)
        kept = np.sort(len(session) - 1 - from_end)  # the last position of each track in each session
        tracks, places = usable.rows[kept], place[kept]
        offsets = np.searchsorted(session[kept], np.arange(len(usable) + 1, dtype=np.int64))
        by_track = np.argsort(tracks, kind="stable")  # sorted by track, then by session
        ends = np.searchsorted(tracks[by_track], np.arange(num_rows, dtype=np.int64), side="right")
        recent = by_track[ends[tracks[by_track]] - np.arange(len(by_track)) <= options.sample]
        recent_offsets = np.searchsorted(tracks[recent], np.arange(num_rows + 1, dtype=np.int64))
        found = (tracks, places, offsets, session[kept][recent], places[recent], recent_offsets)
        return cls(dict(zip(cls.files, (array.astype(np.int64) for array in found), strict=True)), plays, options)

    @classmethod
    def of_release(cls, release: Release) -> Self:
        """Open the model from the arrays of a release."""
        options = check_options(VmisKnnOptions, release.manifest.options)
        return cls({name: release.array(name) for name in cls.files}, release.catalogue.plays, options)

    def arrays(self) -> dict[str, Int]:
        """Return the arrays to store in a release, by file name."""
        return self._arrays

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the `k` best tracks for each window, with scores. Ties between neighbour scores go by popularity."""
        k = min(k, len(self._share) - FIRST_TRACK_ROW)
        popular = self._popularity.rank(windows.select(slice(0, 1)), len(self._share)).rows
        lines = [
            self._best(found.indices[start:end], found.data[start:end], popular[0], k)
            for found in self._scored(windows)
            for start, end in pairwise(found.indptr)
        ]
        rows = np.array([rows for rows, _ in lines], dtype=np.int64).reshape(len(windows), k)
        return Ranked(rows, np.array([scores for _, scores in lines], dtype=np.float32).reshape(rows.shape))

    def _best(self, reached: Int, values: Float64, popular: Int, k: int) -> tuple[Int, Float32]:
        """Return the `k` best tracks of one window and their scores.

        The candidates are the tracks of the neighbours (`reached`, with scores `values`) and the most popular others.
        """
        others = popular[: k + len(reached)]
        rows = np.concatenate([reached, others[~np.isin(others, reached)]])
        scores = self._share[rows]
        scores[: len(reached)] += values
        rounded = scores.astype(np.float32)
        best = np.lexsort((rows, -self._share[rows], -rounded))[:k]
        return rows[best], rounded[best]

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks for each window. [batch, candidates] float32.

        `rows` [batch, candidates] int64 are the tracks to score.
        """
        result = self._share[rows]
        for number, found in enumerate(self._scored(windows)):
            lines = slice(number * _BATCH, number * _BATCH + found.shape[0])
            result[lines] += found[np.arange(found.shape[0])[:, None], rows[lines]].toarray()
        scored: Float32 = result.astype(np.float32)
        return scored

    def _scored(self, windows: Windows) -> Iterator[scipy.sparse.csr_array]:
        """Yield the summed neighbour scores of each batch of windows, [up to _BATCH, num_rows] float64."""
        for start in range(0, len(windows), _BATCH):
            batch = windows.select(slice(start, start + _BATCH))
            near = self._neighbours(batch)
            line, position = _spans(self._offsets, near.sessions)
            distance = self._places[position] - near.places[line]
            side = np.where(distance > 0, 1.0, self._options.before) * (distance != 0)
            values = near.similarities[line] * side * np.exp((1 - np.abs(distance)) / self._options.reach)
            where = (near.windows[line], self._tracks[position])
            found = scipy.sparse.coo_array((values, where), shape=(len(batch), len(self._share))).tocsr()
            found.eliminate_zeros()
            yield found

    def _neighbours(self, windows: Windows) -> Neighbours:
        """Return the most similar candidates of each window. Ties go to the more recent session."""
        tracks = windows.tracks[:, ::-1]  # the newest in column 0
        window, age = np.nonzero(distinct(tracks))
        track = tracks[window, age]
        line, entry = _spans(self._recent_offsets, track)
        session = self._recent_sessions[entry]
        pair = window[line] * len(self._offsets) + session  # one number for each window and session
        order = np.argsort(
            pair * tracks.shape[1] + age[line]
        )  # sorted by pair, then from the newest shared track to the oldest
        firsts = np.flatnonzero(np.diff(pair[order], prepend=-1))
        weights = (self._options.decay**age * self._weight[track])[line[order]]
        similarities = np.add.reduceat(weights, firsts) if len(firsts) else weights
        newest = order[firsts]
        return _most_similar(
            Neighbours(window[line[newest]], session[newest], similarities, self._recent_places[entry[newest]]),
            self._options.neighbours,
        )


def _most_similar(found: Neighbours, k: int) -> Neighbours:
    """Return the first `k` neighbours of each window, by similarity, then by recency."""
    order = np.lexsort((-found.sessions, -found.similarities, found.windows))
    windows = found.windows[order]
    kept = order[np.arange(len(order)) - np.searchsorted(windows, windows) < k]
    return Neighbours(found.windows[kept], found.sessions[kept], found.similarities[kept], found.places[kept])


def _spans(offsets: Int, which: Int) -> tuple[Int, Int]:
    """Return all positions in the slices offsets[i]:offsets[i + 1] for i in `which`.

    For each position, the first array gives the index into `which`, the second array the position. [n] int64 each.
    """
    starts, lengths = offsets[which], offsets[which + 1] - offsets[which]
    line = np.repeat(np.arange(len(which), dtype=np.int64), lengths)
    shift = starts - (np.cumsum(lengths) - lengths)
    return line, np.arange(len(line), dtype=np.int64) + shift[line]
