"""Session in, ranked tracks out: the one step that the service answers with and the evaluator measures.

Knows nothing of HTTP, Redis, ONNX or FAISS: what encodes and what searches are passed in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.window import Sessions, Windows, to_windows

Source: TypeAlias = Literal["model", "popularity"]


class Ranked(NamedTuple):
    """Tracks in falling order of score, one line for each query."""

    rows: Int  # [batch, k] int64, PAD_ROW where there is no further track
    scores: Float32  # [batch, k] float32, -inf where there is no further track


class QueryEncoder(Protocol):
    """Turns windows into query vectors in the item space."""

    def encode(self, windows: Windows) -> Float32:
        """Query vectors. [batch, dimension] float32."""
        ...


class NearestTracks(Protocol):
    """Finds the tracks whose embeddings have the largest inner product with a query."""

    def search(self, queries: Float32, k: int) -> Ranked:
        """The k best tracks for each of `queries` [batch, dimension] float32; an approximate index may miss some."""
        ...


class Ranker(Protocol):
    """Anything that orders tracks for a window: an encoder with an index, popularity, a Markov chain."""

    def rank(self, windows: Windows, k: int) -> Ranked:
        """The k best tracks for each window; never fewer than min(k, tracks)."""
        ...

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Scores of given tracks, `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        ...


class EncoderRanker:
    """Ranks by inner product between the encoder's query and the item embeddings, through an index."""

    def __init__(self, encoder: QueryEncoder, index: NearestTracks, exact: NearestTracks, embeddings: Float32) -> None:
        """`exact` answers where `index`, being approximate, found fewer than asked; `embeddings` [num_rows, dim]."""
        self._encoder = encoder
        self._index = index
        self._exact = exact
        self._embeddings = embeddings

    def rank(self, windows: Windows, k: int) -> Ranked:
        """See Ranker."""
        queries = self._encoder.encode(windows)
        k = min(k, len(self._embeddings) - FIRST_TRACK_ROW)
        found = self._index.search(queries, k)
        short = np.flatnonzero(found.rows[:, -1] == PAD_ROW) if k else np.empty(0, dtype=np.int64)
        if len(short):
            full = self._exact.search(queries[short], k)
            rows, scores = found.rows.copy(), found.scores.copy()
            rows[short], scores[short] = full
            found = Ranked(rows, scores)
        return found

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """See Ranker."""
        queries = self._encoder.encode(windows)
        scores: Float32 = np.einsum("bd,bcd->bc", queries, self._embeddings[rows])
        return scores


class PopularityRanker:
    """Ranks every session alike: by the number of plays, then by row."""

    def __init__(self, plays: Int | Float32, order: Int | None = None) -> None:
        """`plays` [num_rows], indexed by row; `order` [tracks], rows from the most played on, if it is known."""
        self._plays = plays.astype(np.float32, copy=False)
        self._order = order if order is not None else np.argsort(-plays[FIRST_TRACK_ROW:], kind="stable") + 1

    def rank(self, windows: Windows, k: int) -> Ranked:
        """See Ranker."""
        best = np.broadcast_to(self._order[:k].astype(np.int64), (len(windows), min(k, len(self._order))))
        return Ranked(best, self._plays[best])

    def scores(self, windows: Windows, rows: Int) -> Float32:  # noqa: ARG002 (every session alike)
        """See Ranker."""
        return self._plays[rows]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer for one session."""

    source: Source
    rows: Int  # [n] int64, best first; n is k unless the catalogue has fewer tracks left
    scores: Float32  # [n] float32
    window_plays: int  # plays in the window, skipped ones not counted
    window_skips: int  # skipped plays in the window


@dataclass(frozen=True, slots=True)
class Recommender:
    """What a release recommends with: a ranker, the fallback for sessions without usable plays, the window length."""

    ranker: Ranker
    popularity: PopularityRanker
    window: int

    def recommend(
        self,
        sessions: Sessions,
        k: int | Sequence[int],
        excluded: Sequence[Int] | None = None,
        *,
        exclude_heard: bool | Sequence[bool] = False,
    ) -> list[Recommendation]:
        """The next tracks for each session, best first.

        `excluded` gives, for each session, rows that must not appear; with `exclude_heard` the session's own tracks
        must not appear either; `k` and `exclude_heard` may differ from session to session. Exclusions never shorten an
        answer while the catalogue has tracks left, and a session's answer does not depend on the others.
        """
        count = len(sessions)
        asked = [k] * count if isinstance(k, int) else k
        heard = [exclude_heard] * count if isinstance(exclude_heard, bool) else exclude_heard
        excluded_rows = [_excluded_rows(sessions, i, excluded, heard[i]) for i in range(count)]
        wanted = np.array([_overfetch(asked[i], len(excluded_rows[i])) for i in range(count)], dtype=np.int64)
        windows = to_windows(sessions, self.window)
        ranked: list[tuple[Source, Int, Float32]] = [("popularity", _NO_ROWS, _NO_SCORES)] * count
        for source, ranker, usable in self._by_source(windows):
            for most in np.unique(wanted[usable]).tolist():
                which = usable[wanted[usable] == most]
                found = ranker.rank(windows.select(which), most)
                for line, i in enumerate(which.tolist()):
                    ranked[i] = (source, found.rows[line], found.scores[line])
        skips = windows.skipped.sum(axis=1)
        plays = ((windows.tracks != PAD_ROW).sum(axis=1) - skips).tolist()
        return [
            Recommendation(source, *_first(asked[i], rows, scores, excluded_rows[i]), plays[i], skip)
            for i, ((source, rows, scores), skip) in enumerate(zip(ranked, skips.tolist(), strict=True))
        ]

    def scores(self, sessions: Sessions, rows: Int) -> Float32:
        """Scores of given tracks for each session, `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        windows = to_windows(sessions, self.window)
        result = np.empty(rows.shape, dtype=np.float32)
        for _, ranker, which in self._by_source(windows):
            result[which] = ranker.scores(windows.select(which), rows[which])
        return result

    def _by_source(self, windows: Windows) -> Iterator[tuple[Source, Ranker, Int]]:
        """Who answers which windows: the model those with a usable play, popularity the others."""
        usable = (windows.tracks != PAD_ROW).any(axis=1)
        by: tuple[tuple[Source, Ranker, Int], ...] = (
            ("model", self.ranker, np.flatnonzero(usable)),
            ("popularity", self.popularity, np.flatnonzero(~usable)),
        )
        yield from (line for line in by if len(line[2]))


_NO_ROWS: Int = np.empty(0, dtype=np.int64)
_NO_SCORES: Float32 = np.empty(0, dtype=np.float32)
_MIN_FETCH: Final = 48  # 20 asked, and the window's 20 heard


def _excluded_rows(sessions: Sessions, i: int, excluded: Sequence[Int] | None, heard: bool) -> set[Row]:
    """The rows that must not appear in session i's answer."""
    excluded_rows: set[Row] = set(excluded[i].tolist()) if excluded is not None else set()
    if heard:
        excluded_rows.update(sessions.rows[sessions.offsets[i] : sessions.offsets[i + 1]].tolist())
    excluded_rows.discard(PAD_ROW)
    return excluded_rows


def _overfetch(k: int, excluded: int) -> int:
    """How many tracks to rank so that k are left: in few sizes, so that sessions of one batch share a size."""
    if not excluded:
        return k
    size = _MIN_FETCH
    while size < k + excluded:
        size *= 2
    return size


def _first(k: int, rows: Int, scores: Float32, excluded_rows: set[Row]) -> tuple[Int, Float32]:
    """The first k of a ranking that are tracks and not excluded."""
    if not excluded_rows:
        rows, scores = rows[:k], scores[:k]
        keep = rows != PAD_ROW
        return rows[keep], scores[keep]
    free = [i for i, row in enumerate(rows.tolist()) if row != PAD_ROW and row not in excluded_rows][:k]
    return rows[free], scores[free]
