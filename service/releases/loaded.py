"""A release made ready to answer: encoder, index, catalogue and the Recommender that joins them.

Knows nothing of HTTP and Redis; `segue recommend` answers from here as well.
"""

import contextlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from index.exact import ExactIndex
from index.tuning import open_index, read_facts
from segue.arrays import Float32
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.errors import BadRelease, UnknownMap
from segue.explain import contributions
from segue.map_projection import NEAREST
from segue.recommend import EncoderRanker, NearestTracks, PopularityRanker, QueryEncoder, Ranked, Recommender, Source
from segue.release import ENCODER, Release, open_release
from segue.sessions import Play
from segue.window import Windows, to_sessions, to_windows
from service.releases.live_map import Places, TrackMap
from service.releases.onnx_encoder import OnnxEncoder


@dataclass(frozen=True, slots=True)
class Track:
    """A track as answers show it; `score` is None where nothing was ranked."""

    track_id: str
    title: str | None
    artist: str | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for one session. Ids in `exclude` that the catalogue does not hold are passed over."""

    plays: Sequence[Play]
    k: int
    exclude: Sequence[str] = ()
    exclude_heard: bool = True


@dataclass(frozen=True, slots=True)
class RecommendResult:
    """The next tracks of one session, best first, and who named them."""

    release: "LoadedRelease"
    source: Source
    rows: list[Row]
    scores: Float32  # [len(rows)] float32
    window_plays: int
    window_skips: int

    @property
    def tracks(self) -> list[Track]:
        """The tracks by name."""
        scored = zip(self.rows, self.scores.tolist(), strict=True)
        return [self.release.track(row, score) for row, score in scored]


@dataclass(frozen=True, slots=True)
class ExcludedTrack:
    """A track that was left out of an answer although it ranks within it."""

    track: Track
    rank: int  # among all tracks, from 1
    heard: bool  # left out as heard in the session; else as one that was not wanted


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an answer is as it is."""

    plays: list[tuple[Track, bool]]  # what the encoder saw, oldest first, and whether it was skipped
    contributions: Float32  # [tracks, plays] float32, see segue.explain; a line adds up to its track's score
    ranks_without_skips: list[int | None]  # of each track, if the session had had no skips; None beyond RANKED_AGAIN
    filtered: list[ExcludedTrack]
    places: Places | None  # None for a release without a map


RANKED_AGAIN: Final = 200


class StepTimer(Protocol):
    """Gives a context that measures the step of the given name: `encode` or `search`."""

    def __call__(self, step: str, /) -> AbstractContextManager[Any]:
        """Start measuring."""
        ...


def _no_timer(_: str) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


class LoadedRelease:
    """Answers from one release. Immutable and safe to call from several threads at once."""

    def __init__(self, release: Release, encoder: QueryEncoder, index: NearestTracks, exact: NearestTracks) -> None:
        self.release = release
        self.table = release.mapped_catalogue
        # Read now: the folder may be replaced while this release is served.
        facts = read_facts(release)
        self._index_facts = {"kind": "exact"} if facts is None else facts.model_dump(mode="json", exclude={"tried"})
        self._map = TrackMap(release) if release.track_map is not None else None
        self._encoder = encoder
        self._index = index
        self._exact = exact
        popularity = PopularityRanker(self.table.plays, self.table.by_plays)
        ranker = EncoderRanker(encoder, index, exact, release.item_embeddings)
        self._recommender = Recommender(ranker, popularity, release.manifest.window.length)

    @property
    def name(self) -> str:
        """What answers and logs call this release."""
        return self.release.name

    @property
    def folder(self) -> str:
        """The plain name of the folder that the release was opened from."""
        return self.release.path.absolute().name

    def answer(self, questions: Sequence[Question]) -> list[RecommendResult]:
        """The next tracks of each session. An answer does not depend on the other questions."""
        found = self._recommender.recommend(
            to_sessions([question.plays for question in questions], self.table),
            [question.k for question in questions],
            [self.table.rows(question.exclude) for question in questions],
            exclude_heard=[question.exclude_heard for question in questions],
        )
        return [
            RecommendResult(self, one.source, one.rows.tolist(), one.scores, one.window_plays, one.window_skips)
            for one in found
        ]

    def recommend(
        self, plays: Sequence[Play], k: int, exclude: Sequence[str] = (), *, exclude_heard: bool = True
    ) -> RecommendResult:
        """The k next tracks of one session; see Question."""
        [answer] = self.answer([Question(plays, k, exclude, exclude_heard)])
        return answer

    def popular(self, question: Question) -> RecommendResult:
        """The most played tracks for a question that the model does not answer. Asks neither encoder nor index."""
        heard = [play.track_id for play in question.plays] if question.exclude_heard else []
        [answer] = self.answer([Question((), question.k, [*question.exclude, *heard])])
        return answer

    def explain(self, question: Question, answer: RecommendResult) -> Explanation:
        """Why `answer`, this release's to `question`, is as it is. Some hundred encodings."""
        heard = set(
            self.table.rows([play.track_id for play in question.plays]).tolist() if question.exclude_heard else []
        )
        # Popularity knows of no play, whether there is none or the model has failed.
        sessions = to_sessions([question.plays if answer.source == "model" else ()], self.table)
        window = to_windows(sessions, self.release.manifest.window.length)
        seen = np.flatnonzero(window.tracks[0] != PAD_ROW)
        barred = np.array(sorted((heard | set(self.table.rows(question.exclude).tolist())) - {PAD_ROW}), dtype=np.int64)

        [free] = self._recommender.recommend(sessions, len(answer.rows) + len(barred))
        places = {row: rank for rank, row in enumerate(free.rows.tolist(), start=1)}
        last = max((places[row] for row in answer.rows if row in places), default=0)
        left_out = sorted((places[row], row) for row in barred.tolist() if places.get(row, last) < last)

        [unskipped] = self._recommender.recommend(sessions.played(), RANKED_AGAIN, [barred])
        ranks = {row: rank for rank, row in enumerate(unskipped.rows.tolist(), start=1)}
        targets = np.asarray(self.release.item_embeddings)[answer.rows]
        plays: list[Row] = window.tracks[0, seen].tolist()
        return Explanation(
            plays=[(self.track(row), bool(skip)) for row, skip in zip(plays, window.skipped[0, seen], strict=True)],
            contributions=contributions(self._encoder, window, targets),
            ranks_without_skips=[ranks.get(row) for row in answer.rows],
            filtered=[ExcludedTrack(self.track(row), rank, row in heard) for rank, row in left_out],
            places=self._places(question.plays, window, plays, answer.rows),
        )

    @property
    def map(self) -> TrackMap:
        """The map of its tracks. Raises UnknownMap."""
        if self._map is None:
            raise UnknownMap(f"{self.name} has no map: it was written before there were maps; train it again")
        return self._map

    def similar(self, track_id: str, k: int) -> list[Track]:
        """The k tracks nearest to a track by inner product, itself left out. Raises UnknownTrack."""
        row = self.table.row(track_id)
        rows, scores = self._nearest(self.release.item_embeddings[row][None], min(k + 1, len(self.table)))
        found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [self.track(near, score) for near, score in found if near not in (row, PAD_ROW)][:k]

    def search(self, query: str, limit: int) -> list[Track]:
        """Tracks whose title, artist or id hold every word of `query`, most played first."""
        return [self.track(row) for row in self.table.search(query, limit)]

    def unknown(self, track_ids: Sequence[str]) -> list[str]:
        """Those that the catalogue does not hold, each once, in their order."""
        return list(dict.fromkeys(track_id for track_id in track_ids if track_id not in self.table))

    def index_facts(self) -> dict[str, Any]:
        """What `index.json` says of the index that was chosen; exact search where the release has none."""
        return self._index_facts

    def _places(self, session: Sequence[Play], window: Windows, plays: list[Row], items: list[Row]) -> Places | None:
        if self._map is None:
            return None
        rows = self.table.rows([play.track_id for play in session])
        k = min(NEAREST + 1, len(self.table))
        nearest = self._nearest(self._encoder.encode(window), k) if plays else None
        return self._map.places(rows, plays, items, nearest)

    def _nearest(self, queries: Float32, k: int) -> Ranked:
        found = self._index.search(queries, k)
        return self._exact.search(queries, k) if (found.rows == PAD_ROW).any() else found

    def track(self, row: Row, score: float | None = None) -> Track:
        """The track of a row."""
        facts: dict[str, str] = json.loads(b"{%b}" % self.table.json(row))
        return Track(facts["track_id"], facts.get("title"), facts.get("artist"), score)


@dataclass(frozen=True, slots=True)
class _TimedEncoder:
    encoder: QueryEncoder
    timed: StepTimer

    def encode(self, windows: Windows) -> Float32:
        with self.timed("encode"):
            return self.encoder.encode(windows)


@dataclass(frozen=True, slots=True)
class _TimedIndex:
    index: NearestTracks
    timed: StepTimer

    def search(self, queries: Float32, k: int) -> Ranked:
        with self.timed("search"):
            return self.index.search(queries, k)


def recommender_of(release: Release, *, exact: bool = False, threads: int = 1) -> Recommender:
    """What the service recommends with, for the evaluator; `exact` searches exactly although there is an index.

    Raises BadRelease for a release without an encoder.
    """
    encoder = OnnxEncoder(_encoder_file(release), threads)
    exactly = ExactIndex(release.item_embeddings)
    ranker = EncoderRanker(encoder, exactly if exact else open_index(release), exactly, release.item_embeddings)
    return Recommender(ranker, PopularityRanker(release.catalogue.plays), release.manifest.window.length)


def load_release(path: Path, device: str = "cpu", threads: int = 1, timed: StepTimer = _no_timer) -> LoadedRelease:
    """Open a release, verify it and answer once, so that the first request finds everything loaded.

    `device` is where the index is searched, `threads` work on one encoding. Raises BadRelease with one line.
    """
    release = open_release(path)
    encoder = _TimedEncoder(OnnxEncoder(_encoder_file(release), threads), timed)
    index = _TimedIndex(open_index(release, device), timed)
    live = LoadedRelease(release, encoder, index, ExactIndex(release.item_embeddings))
    _warm_up(live, encoder)
    return live


def _encoder_file(release: Release) -> Path:
    if not release.has_encoder:
        model = release.manifest.model
        raise BadRelease(
            f"{release.path} was trained as {model}, which has no encoder: it can be evaluated, not served"
        )
    return release.path / ENCODER


def _warm_up(live: LoadedRelease, encoder: QueryEncoder) -> None:
    manifest = live.release.manifest
    shape = (2, manifest.window.length)  # two, as a graph may be made for one alone
    first = np.full(shape, FIRST_TRACK_ROW if len(live.table) else PAD_ROW, dtype=np.int64)
    try:
        query = encoder.encode(Windows(first, np.zeros(shape, dtype=np.bool_)))
    except Exception as error:  # ONNX Runtime's errors share no class of their own
        reason = str(error).splitlines()[0][:200]
        raise BadRelease(f"{live.release.path}: the encoder fails on a window of {shape[1]}: {reason}") from error
    if query.shape != (2, manifest.dimension):
        raise BadRelease(
            f"{live.release.path}: the encoder answers {query.shape}, the manifest says {(2, manifest.dimension)}; "
            "export it again"
        )
    if not np.isfinite(query).all():
        raise BadRelease(f"{live.release.path}: the encoder answers what is no number: train the release again")
    live.recommend([], 1)
    live.search("a", 1)
    for track_id in map(live.table.track_id, range(FIRST_TRACK_ROW, len(live.table) + FIRST_TRACK_ROW)[:1]):
        live.recommend([Play(track_id)], 1)
        live.similar(track_id, 1)
