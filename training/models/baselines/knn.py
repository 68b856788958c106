"""Session kNN: recommend the tracks of the training sessions that share recent tracks with the current one.

VMIS-kNN (Kersbergen, Sprangers and Schelter, Serenade, SIGMOD 2022, https://doi.org/10.1145/3514221.3517901), which is
the session kNN with position weights of Ludewig and Jannach (User Modeling and User-Adapted Interaction 28, 2018,
https://arxiv.org/abs/1803.09587) over an index of tracks. For a window:

1. Its distinct tracks weigh decay^age, with age 0 for the newest play, times idf(track) = log(1 + sessions / sessions
   with the track) where `idf` is set.
2. Of each track the `sample` most recent training sessions are candidates. A candidate's similarity is the sum of the
   weights of the tracks that it shares; the `neighbours` most similar stay, the more recent of equals.
3. A neighbour adds its similarity to each of its tracks, times a factor for where it holds the track: with d plays
   from the window's newest track that it shares to this one, exp(-(d - 1) / reach) behind it (as the third factor of
   STAN, Garg et al., SIGIR 2019, https://doi.org/10.1145/3331184.3331322), `before` times exp(-(d - 1) / reach)
   ahead of it, and 0 at the shared track itself.

Tracks in no neighbour follow, ordered by popularity. A session is more recent the later it is in the dataset. A track
that a session contains twice counts at its last position. Outcomes are ignored.
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

_BATCH: Final = 64  # windows at a time, so that memory stays near 64 * window * sample candidates
_POPULARITY_WEIGHT: Final = 1e-9  # breaks ties between neighbour scores, and is far below them


class Neighbours(NamedTuple):
    """The neighbours of a batch of windows: one session per entry."""

    windows: Int  # [found] int64, number of the window in the batch
    sessions: Int  # [found] int64
    similarities: Float64  # [found]
    places: Int  # [found] int64, where the session holds the newest track that both hold


class VmisKnn:
    """Ranks by the neighbours of a window. Its six arrays map sessions to tracks, and tracks to sessions."""

    files = tuple(
        f"knn_{name}.npy"
        for name in ("tracks", "places", "offsets", "recent_sessions", "recent_places", "recent_offsets")
    )

    def __init__(self, arrays: Mapping[str, Int], plays: Int, options: VmisKnnOptions) -> None:
        """`arrays` by file name, as `arrays()` gives them; `plays` [num_rows] int64.

        All are int64. Session i holds tracks [pairs] at places [pairs], from offsets[i] to offsets[i + 1]; track t is
        held by recent_sessions [entries] at recent_places [entries], from recent_offsets[t] to recent_offsets[t + 1].
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
        """Index the training sessions; the later ones of the dataset are the more recent."""
        usable = sessions.usable()
        session = np.repeat(np.arange(len(usable), dtype=np.int64), usable.lengths)
        place = np.arange(len(usable.rows), dtype=np.int64) - usable.offsets[session]
        _, from_end = np.unique((session * num_rows + usable.rows)[::-1], return_index=True)
        kept = np.sort(len(session) - 1 - from_end)  # the last place of each track in each session
        tracks, places = usable.rows[kept], place[kept]
        offsets = np.searchsorted(session[kept], np.arange(len(usable) + 1, dtype=np.int64))
        by_track = np.argsort(tracks, kind="stable")  # within a track by session
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
        """Return the k best tracks for each window by the sum over its neighbours, then by popularity."""
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
        """The k best of the reached tracks and the most popular others."""
        others = popular[: k + len(reached)]
        rows = np.concatenate([reached, others[~np.isin(others, reached)]])
        scores = self._share[rows]
        scores[: len(reached)] += values
        rounded = scores.astype(np.float32)
        best = np.lexsort((rows, -self._share[rows], -rounded))[:k]
        return rows[best], rounded[best]

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks. `rows` [batch, candidates] int64 -> the same shape, float32."""
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
        """The most similar candidates of each window, the newest session first among equals."""
        tracks = windows.tracks[:, ::-1]  # the newest in column 0
        window, age = np.nonzero(distinct(tracks))
        track = tracks[window, age]
        line, entry = _spans(self._recent_offsets, track)
        session = self._recent_sessions[entry]
        pair = window[line] * len(self._offsets) + session  # one number for each window and session
        order = np.argsort(pair * tracks.shape[1] + age[line])  # by pair, the newest shared track first
        firsts = np.flatnonzero(np.diff(pair[order], prepend=-1))
        weights = (self._options.decay**age * self._weight[track])[line[order]]
        similarities = np.add.reduceat(weights, firsts) if len(firsts) else weights
        newest = order[firsts]
        return _most_similar(
            Neighbours(window[line[newest]], session[newest], similarities, self._recent_places[entry[newest]]),
            self._options.neighbours,
        )


def _most_similar(found: Neighbours, k: int) -> Neighbours:
    """The first k of each window by similarity, then by recency."""
    order = np.lexsort((-found.sessions, -found.similarities, found.windows))
    windows = found.windows[order]
    kept = order[np.arange(len(order)) - np.searchsorted(windows, windows) < k]
    return Neighbours(found.windows[kept], found.sessions[kept], found.similarities[kept], found.places[kept])


def _spans(offsets: Int, which: Int) -> tuple[Int, Int]:
    """All positions of the spans offsets[i]:offsets[i + 1] for i in `which`: the place in `which`, and the position."""
    starts, lengths = offsets[which], offsets[which + 1] - offsets[which]
    line = np.repeat(np.arange(len(which), dtype=np.int64), lengths)
    shift = starts - (np.cumsum(lengths) - lengths)
    return line, np.arange(len(line), dtype=np.int64) + shift[line]
