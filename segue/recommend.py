"""The recommendation step: rank the next tracks for sessions. The service and the evaluator use the same code.

This module does not depend on HTTP, Redis, ONNX or FAISS: the encoder and the index are parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np

from segue.arrays import Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.errors import InputError, NoPlayHead
from segue.filters import Allowed
from segue.sessions import ALLOW_REPEATS, RepeatPolicy
from segue.window import Sessions, Windows, to_windows

Source: TypeAlias = Literal["model", "popularity"]

MAX_CAUTION: Final = 10.0
CANDIDATES: Final = 100  # tracks that caution re-ranks, or the requested number if that is more
NORMALISED: Final = 100  # the best tracks whose scores of an encoder are normalised to probabilities
_LEAST_PROBABILITY: Final = 1e-38


class Ranked(NamedTuple):
    """Ranked tracks in descending order of score, one row of both arrays per query."""

    rows: Int  # [batch, k] int64, PAD_ROW after the last track
    scores: Float32  # [batch, k] float32, -inf after the last track


class QueryEncoder(Protocol):
    """Turns windows into query vectors in the item space."""

    def encode(self, windows: Windows) -> Float32:
        """Return a query vector for each window. [batch, dimension] float32."""
        ...


class NearestTracks(Protocol):
    """Finds the tracks whose embeddings have the largest inner product with a query."""

    def search(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        """Return the k best tracks for each query in `queries` [batch, dimension] float32, among the allowed ones.

        An approximate index may miss some of the best tracks and may find fewer than k tracks.
        """
        ...


class Ranker(Protocol):
    """Ranks tracks for windows. Examples are an encoder with an index, popularity, and a Markov chain."""

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window, or all tracks if there are fewer. Rows and scores [batch, k]."""
        ...

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        ...


class Outcomes(Protocol):
    """Predicts whether tracks are played or skipped (segue.play_head.PlayHead)."""

    def log_played(self, windows: Windows, rows: Int) -> Float64:
        """Return log P(played) of candidates. `rows` [batch, candidates] int64 -> [batch, candidates] float64."""
        ...


class ServedRanker(Ranker, Protocol):
    """A ranker that can be restricted to the tracks of a filter."""

    def within(self, allowed: Allowed) -> "ServedRanker":
        """Return the same ranker that ranks only allowed tracks. `scores` takes any tracks."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderRanker:
    """Ranks by inner product between the encoder's query and the item embeddings, through an index.

    `exact` searches if `index` finds fewer than k tracks for a query.
    """

    encoder: QueryEncoder
    index: NearestTracks
    exact: NearestTracks
    embeddings: Float32  # [num_rows, dimension]
    allowed: Allowed | None = None
    has_logits: ClassVar[bool] = True  # scores are not probabilities

    def within(self, allowed: Allowed) -> "EncoderRanker":
        """Return the same ranker that ranks only allowed tracks."""
        return replace(self, allowed=allowed)

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window. Queries for which the index finds too few use exact search."""
        return self.nearest(self.encoder.encode(windows), k)

    def nearest(self, queries: Float32, k: int) -> Ranked:
        """Return the k best tracks for each query, as `rank` does. `queries` [batch, dimension] float32."""
        tracks = len(self.embeddings) - FIRST_TRACK_ROW if self.allowed is None else self.allowed.count
        k = min(k, tracks)
        found = self.index.search(queries, k, self.allowed)
        incomplete = np.flatnonzero(found.rows[:, -1] == PAD_ROW) if k else np.empty(0, dtype=np.int64)
        if len(incomplete):
            full = self.exact.search(queries[incomplete], k, self.allowed)
            rows, scores = found.rows.copy(), found.scores.copy()
            rows[incomplete], scores[incomplete] = full
            found = Ranked(rows, scores)
        return found

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the inner product of each query and the embedding of each candidate track.

        `rows` [batch, candidates] int64 are the candidates. Returns [batch, candidates] float32.
        """
        queries = self.encoder.encode(windows)
        scores: Float32 = np.einsum("bd,bcd->bc", queries, self.embeddings[rows])
        return scores


class PopularityRanker:
    """Ranks tracks by their number of plays, then by row; every session gets the same list."""

    def __init__(self, plays: Int | Float32, order: Int | None = None) -> None:
        """Create a ranker from play counts `plays` [num_rows], indexed by row.

        `order` [tracks] contains the rows by descending play count. It is computed if it is None.
        """
        self._plays = plays.astype(np.float32, copy=False)
        self._order = order if order is not None else np.argsort(-plays[FIRST_TRACK_ROW:], kind="stable") + 1
        self._allowed: Allowed | None = None

    def within(self, allowed: Allowed) -> "PopularityRanker":
        """Return the same ranker that ranks only allowed tracks."""
        within = PopularityRanker(self._plays, self._order)
        within._allowed = allowed
        return within

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k most played tracks for every window; the score is the number of plays."""
        first = self._order[:k].astype(np.int64) if self._allowed is None else self._allowed.first(self._order, k)
        best = np.broadcast_to(first, (len(windows), len(first)))
        return Ranked(best, self._plays[best])

    def scores(self, windows: Windows, rows: Int) -> Float32:  # noqa: ARG002 (every session gets the same scores)
        """Return the play counts of the given tracks. `rows` [batch, candidates] int64 -> the same shape, float32."""
        return self._plays[rows]


def log_probabilities(ranker: Ranker, windows: Windows, scores: Float32, best: Float32 | None = None) -> Float64:
    """Return log P(next) of tracks by their scores of `ranker`. `scores` [batch, n] float32 -> [batch, n] float64.

    The scores of counts and hybrids are probabilities. For an encoder it is the log of the softmax over the NORMALISED
    best tracks. `best` [batch, m] are the best scores of each window, in descending order, if they are known.
    """
    if not getattr(ranker, "has_logits", False):
        return np.log(np.maximum(scores.astype(np.float64), _LEAST_PROBABILITY))
    known = ranker.rank(windows, NORMALISED).scores if best is None else best[:, :NORMALISED]
    if not known.shape[1]:  # no track is allowed
        return np.full(scores.shape, np.log(_LEAST_PROBABILITY))
    logits = known.astype(np.float64)
    largest = logits[:, :1]
    log_next: Float64 = scores - (largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))
    return log_next


@dataclass(frozen=True, slots=True)
class CautiousRanker:
    """Ranks by log P(next) + caution * log P(played). The score of a track is this sum.

    It re-ranks the CANDIDATES best tracks of `ranker`, or the k best if that is more. For k up to CANDIDATES, a shorter
    list is therefore the start of a longer one.
    """

    ranker: Ranker
    head: Outcomes
    caution: float  # above 0

    def rank(self, windows: Windows, k: int) -> Ranked:
        """Return the k best tracks for each window. Of equal scores, the track that `ranker` prefers comes first."""
        found = self.ranker.rank(windows, max(CANDIDATES, k))
        log_next = log_probabilities(self.ranker, windows, found.scores, found.scores)
        scores = (log_next + self._played(windows, found.rows)).astype(np.float32)
        scores[found.rows == PAD_ROW] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranked(np.take_along_axis(found.rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def scores(self, windows: Windows, rows: Int) -> Float32:
        """Return the scores of given tracks. `rows` [batch, candidates] int64 -> [batch, candidates] float32."""
        scores: Float32 = self.part_scores(windows, rows).sum(axis=0).astype(np.float32)
        return scores

    def part_scores(self, windows: Windows, rows: Int) -> Float64:
        """Return log P(next) and caution * log P(played) of given tracks. [2, batch, candidates] float64."""
        log_next = log_probabilities(self.ranker, windows, self.ranker.scores(windows, rows))
        return np.stack([log_next, self._played(windows, rows)])

    def _played(self, windows: Windows, rows: Int) -> Float64:
        return self.caution * self.head.log_played(windows, rows)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended tracks for one session."""

    source: Source
    rows: Int  # [n] int64, best first; n is k unless the catalogue has fewer tracks left
    scores: Float32  # [n] float32
    window_plays: int  # plays in the window that were not skipped
    window_skips: int  # skipped plays in the window


@dataclass(frozen=True, slots=True)
class Recommender:
    """Recommends with `ranker`.

    Sessions without a play of a catalogue track get the most popular tracks instead, if the ranker needs plays.
    """

    ranker: Ranker
    popularity: ServedRanker
    window: int
    head: Outcomes | None = None
    needs_plays: bool = True

    def within(self, allowed: Allowed) -> "Recommender":
        """Return the same recommender, for rankers that can be restricted, which recommends only allowed tracks."""
        ranker = cast("ServedRanker", self.ranker).within(allowed)
        return replace(self, ranker=ranker, popularity=self.popularity.within(allowed))

    def ranker_with(self, caution: float) -> Ranker:
        """Return the ranker for a request with this caution. `ranker` itself for 0.

        Raises InputError for a caution outside 0 to MAX_CAUTION, and NoPlayHead above 0 without a play head.
        """
        if not 0 <= caution <= MAX_CAUTION:
            raise InputError(f"caution is {caution}, expected 0 to {MAX_CAUTION:g}")
        if not caution:
            return self.ranker
        if self.head is None:
            raise NoPlayHead(
                f"caution is {caution:g}, but the release has no play head, which predicts skips: its log has no "
                "skips, or an older Segue trained it. Use caution 0 or train again on a log with skips"
            )
        return CautiousRanker(self.ranker, self.head, caution)

    def recommend(
        self,
        sessions: Sessions,
        k: int | Sequence[int],
        excluded: Sequence[Int] | None = None,
        *,
        repeat: RepeatPolicy | Sequence[RepeatPolicy] = ALLOW_REPEATS,
        caution: float | Sequence[float] = 0.0,
    ) -> list[Recommendation]:
        """Recommend the next tracks for each session, best first.

        `excluded` contains, for each session, the rows to exclude. `repeat` says which tracks of the session itself to
        exclude. `caution` is the weight of log P(played) in the score (CautiousRanker); 0 leaves the ranker's order and
        scores. `k`, `repeat` and `caution` are either one value for all sessions or one value per session. A list has
        fewer than k tracks only if the catalogue has fewer tracks that are not excluded. The result for a session does
        not depend on the other sessions in the batch. Raises InputError as `ranker_with` does.
        """
        count = len(sessions)
        k_per_session = [k] * count if isinstance(k, int) else k
        policies = [repeat] * count if isinstance(repeat, RepeatPolicy) else repeat
        excluded_rows = [_excluded_rows(sessions, i, excluded, policies[i]) for i in range(count)]
        cautions = [caution] * count if isinstance(caution, int | float) else caution
        rankers = {value: self.ranker_with(value) for value in set(cautions)}
        # The tracks that caution re-ranks must not depend on k, or an evaluated list would differ from a served one.
        fewest = [max(k, CANDIDATES) if value else k for k, value in zip(k_per_session, cautions, strict=True)]
        needs = [(_overfetch(fewest[i], len(excluded_rows[i])), cautions[i]) for i in range(count)]
        windows = to_windows(sessions, self.window)
        ranked: list[tuple[Source, Int, Float32]] = [("popularity", _NO_ROWS, _NO_SCORES)] * count
        for source, ranker, usable in self._by_source(windows):
            groups: dict[tuple[int, float], list[int]] = {}  # sessions with the same needs share one search
            for i in usable.tolist():
                groups.setdefault(needs[i], []).append(i)
            for (size, value), which in sorted(groups.items()):
                of_group = windows.select(np.array(which, dtype=np.int64))
                found = (rankers[value] if source == "model" else ranker).rank(of_group, size)
                for line, i in enumerate(which):
                    ranked[i] = (source, found.rows[line], found.scores[line])
        skips = windows.skipped.sum(axis=1)
        plays = ((windows.tracks != PAD_ROW).sum(axis=1) - skips).tolist()
        return [
            Recommendation(source, *_top_k(k_per_session[i], rows, scores, excluded_rows[i]), plays[i], skip)
            for i, ((source, rows, scores), skip) in enumerate(zip(ranked, skips.tolist(), strict=True))
        ]

    def scores(self, sessions: Sessions, rows: Int, caution: float = 0.0) -> Float32:
        """Return the scores of the given tracks for each session.

        `rows` [batch, candidates] int64 are the tracks. Returns [batch, candidates] float32.
        """
        cautious = self.ranker_with(caution)
        windows = to_windows(sessions, self.window)
        result = np.empty(rows.shape, dtype=np.float32)
        for source, ranker, which in self._by_source(windows):
            asked = cautious if source == "model" else ranker
            result[which] = asked.scores(windows.select(which), rows[which])
        return result

    def _by_source(self, windows: Windows) -> Iterator[tuple[Source, Ranker, Int]]:
        """Yield source, ranker and window indices: the model for windows with a known track, popularity for others."""
        usable = (windows.tracks != PAD_ROW).any(axis=1)
        if not self.needs_plays:
            usable[:] = True
        assignments: tuple[tuple[Source, Ranker, Int], ...] = (
            ("model", self.ranker, np.flatnonzero(usable)),
            ("popularity", self.popularity, np.flatnonzero(~usable)),
        )
        yield from (assignment for assignment in assignments if len(assignment[2]))


_NO_ROWS: Int = np.empty(0, dtype=np.int64)
_NO_SCORES: Float32 = np.empty(0, dtype=np.float32)
_MIN_FETCH: Final = 48  # enough for k = 20 and a window of 20 excluded plays


def _excluded_rows(sessions: Sessions, i: int, excluded: Sequence[Int] | None, repeat: RepeatPolicy) -> set[Row]:
    """Return the rows that must not be recommended to session i."""
    excluded_rows: set[Row] = set(excluded[i].tolist()) if excluded is not None else set()
    if repeat.plays:
        start, end = sessions.offsets[i : i + 2].tolist()
        excluded_rows.update(sessions.rows[start + repeat.start(end - start) : end].tolist())
    excluded_rows.discard(PAD_ROW)
    return excluded_rows


def _overfetch(k: int, excluded: int) -> int:
    """Return how many tracks to rank so that at least k tracks remain after `excluded` rows are removed.

    The result is rounded up to one of a few sizes, so that sessions with similar needs share one search.
    """
    if not excluded:
        return k
    size = _MIN_FETCH
    while size < k + excluded:
        size *= 2
    return size


def _top_k(k: int, rows: Int, scores: Float32, excluded_rows: set[Row]) -> tuple[Int, Float32]:
    """Return the rows and scores of the first k tracks of a ranking that are not excluded."""
    if not excluded_rows:
        rows, scores = rows[:k], scores[:k]
        keep = rows != PAD_ROW
        return rows[keep], scores[keep]
    kept = [i for i, row in enumerate(rows.tolist()) if row != PAD_ROW and row not in excluded_rows][:k]
    return rows[kept], scores[kept]
