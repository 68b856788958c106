"""A loaded release: encoder, index, catalogue, and the Recommender that uses them.

Independent of HTTP and Redis: `segue recommend` and `segue evaluate` use it too.
"""

import contextlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from index.exact import ExactIndex
from index.tuning import open_index, read_facts
from segue.arrays import Float32
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.errors import BadRelease, UnknownMap, UnknownTrack
from segue.recommend import EncoderRanker, NearestTracks, PopularityRanker, QueryEncoder, Ranked, Recommender, Source
from segue.release import ENCODER, Release, open_release
from segue.sessions import Play
from segue.window import Windows, to_sessions
from service.threads import interrupt_of_this_thread


@dataclass(frozen=True, slots=True)
class Track:
    """A track in an answer; `score` is None if it was not ranked."""

    track_id: str
    title: str | None
    artist: str | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A request for one session. Ids in `exclude` that are not in the catalogue are ignored."""

    plays: Sequence[Play]
    k: int
    exclude: Sequence[str] = ()
    exclude_heard: bool = True


@dataclass(frozen=True, slots=True)
class RecommendResult:
    """The next tracks of one session, best first, and their source."""

    release: "LoadedRelease"
    source: Source
    rows: list[Row]
    scores: Float32  # [len(rows)] float32
    window_plays: int
    window_skips: int

    @property
    def tracks(self) -> list[Track]:
        """The tracks with titles and artists."""
        scored = zip(self.rows, self.scores.tolist(), strict=True)
        return [self.release.track(row, score) for row, score in scored]


class TrackMap:
    """Positions of the tracks of a release, [tracks, 2] float32. Points are in the order of play counts."""

    def __init__(self, release: Release) -> None:
        assert release.track_map is not None, release.name
        self.positions = release.track_map
        self._order = release.mapped_catalogue.by_plays

    def points(self, limit: int) -> bytes:
        """The most played tracks' points, two little-endian float32 each."""
        return self.positions[self._order[:limit]].astype("<f4").tobytes()

    def row(self, position: int) -> int:
        """The catalogue row of a point. Raises UnknownTrack."""
        if position >= len(self._order):
            raise UnknownTrack(
                f"point {position} is not on the map of {len(self._order):,} tracks, which counts from 0"
            )
        return int(self._order[position])


class StepTimer(Protocol):
    """Returns a context that measures a step: `encode` or `search`."""

    def __call__(self, step: str, /) -> AbstractContextManager[Any]:
        """Start measuring."""
        ...


def _no_timer(_: str) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


class LoadedRelease:
    """Recommends with one release. Immutable, and safe to use from several threads."""

    def __init__(self, release: Release, encoder: QueryEncoder, index: NearestTracks, exact: NearestTracks) -> None:
        self.release = release
        self.name = release.name  # in answers and logs
        self.catalogue = release.mapped_catalogue
        # Read now: the folder may be replaced while this release is served.
        facts = read_facts(release)
        self._index_facts = {"kind": "exact"} if facts is None else facts.model_dump(mode="json", exclude={"tried"})
        self._map = TrackMap(release) if release.track_map is not None else None
        self.encoder = encoder
        self._index = index
        self._exact = exact
        popularity = PopularityRanker(self.catalogue.plays, self.catalogue.by_plays)
        ranker = EncoderRanker(encoder, index, exact, release.item_embeddings)
        self.recommender = Recommender(ranker, popularity, release.manifest.window.length)

    @property
    def folder(self) -> str:
        """The name of the folder that the release was opened from."""
        return self.release.path.absolute().name

    def answer(self, questions: Sequence[Question]) -> list[RecommendResult]:
        """The next tracks of each session. An answer does not depend on the other questions."""
        found = self.recommender.recommend(
            to_sessions([question.plays for question in questions], self.catalogue),
            [question.k for question in questions],
            [self.catalogue.rows(question.exclude) for question in questions],
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
        """The most played tracks, without encoder and index, for a question that the model cannot answer."""
        heard = [play.track_id for play in question.plays] if question.exclude_heard else []
        [answer] = self.answer([Question((), question.k, [*question.exclude, *heard])])
        return answer

    @property
    def has_map(self) -> bool:
        """Whether the release has a map of its tracks."""
        return self._map is not None

    @property
    def map(self) -> TrackMap:
        """The map of the tracks. Raises UnknownMap."""
        if self._map is None:
            raise UnknownMap(f"{self.name} has no map: train it again to get one")
        return self._map

    def similar(self, track_id: str, k: int) -> list[Track]:
        """The k tracks most similar to a track, by inner product, without itself. Raises UnknownTrack."""
        row = self.catalogue.row(track_id)
        rows, scores = self.nearest(self.release.item_embeddings[row][None], min(k + 1, len(self.catalogue)))
        found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [self.track(near, score) for near, score in found if near not in (row, PAD_ROW)][:k]

    def search(self, query: str, limit: int) -> list[Track]:
        """Tracks with every word of `query` in title, artist or id, most played first."""
        return [self.track(row) for row in self.catalogue.search(query, limit)]

    def unknown(self, track_ids: Sequence[str]) -> list[str]:
        """Those that are not in the catalogue, each once, in order."""
        return list(dict.fromkeys(track_id for track_id in track_ids if track_id not in self.catalogue))

    def index_facts(self) -> dict[str, Any]:
        """The contents of `index.json`, or exact search if the release has no index."""
        return self._index_facts

    def nearest(self, queries: Float32, k: int) -> Ranked:
        """The k tracks nearest to queries [batch, dimension] float32: exactly, where the index finds fewer."""
        found = self._index.search(queries, k)
        return self._exact.search(queries, k) if (found.rows == PAD_ROW).any() else found

    def track(self, row: Row, score: float | None = None) -> Track:
        """The track in a row of the catalogue."""
        facts: dict[str, str] = json.loads(b"{%b}" % self.catalogue.json(row))
        return Track(facts["track_id"], facts.get("title"), facts.get("artist"), score)


_INPUTS = {"tracks": "tensor(int64)", "skipped": "tensor(bool)"}
# ONNX Runtime's fused sum and layer norm takes five times as long on a CPU as the two apart.
_SLOWER = ["SkipLayerNormFusion"]
_OUTPUTS = {"query": "tensor(float)"}


class OnnxEncoder:
    """Implements segue.recommend.QueryEncoder. Safe to call from several threads at once."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load `encoder.onnx`; `threads` work on one call. Raises BadRelease for a file that is no such encoder."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings about the graph are the exporter's business
        # Spinning threads would take the other requests' core while they wait for work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise BadRelease(
                f"{path} is not an encoder that ONNX Runtime can run: {_first_line(error)}; export it again"
            ) from error
        for kind, expected, found in (
            ("inputs", _INPUTS, self._session.get_inputs()),
            ("outputs", _OUTPUTS, self._session.get_outputs()),
        ):
            types = {value.name: value.type for value in found}
            if types != expected:
                raise BadRelease(f"{path} has the {kind} {types}, expected {expected}: export it again")

    def encode(self, windows: Windows) -> Float32:
        """Query vectors of windows [batch, window]. [batch, dimension] float32."""
        inputs = {"tracks": np.ascontiguousarray(windows.tracks), "skipped": np.ascontiguousarray(windows.skipped)}
        queries: Float32 = self._session.run(["query"], inputs, interrupt_of_this_thread(_run_options))[0]
        return queries


def _run_options() -> Any:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # fatal: that a call was interrupted is logged by whoever did it
    return options


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


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
    """The service's recommender, for the evaluator; `exact` searches exactly even if there is an index.

    Raises BadRelease for a release without an encoder.
    """
    encoder = OnnxEncoder(_encoder_file(release), threads)
    exactly = ExactIndex(release.item_embeddings)
    ranker = EncoderRanker(encoder, exactly if exact else open_index(release), exactly, release.item_embeddings)
    return Recommender(ranker, PopularityRanker(release.catalogue.plays), release.manifest.window.length)


def load_release(path: Path, device: str = "cpu", threads: int = 1, timed: StepTimer = _no_timer) -> LoadedRelease:
    """Open and verify a release, and recommend once, so that everything is loaded before the first request.

    `device` of the index: cpu or gpu. `threads`: for one encoding. Raises BadRelease with one line.
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
    first = np.full(shape, FIRST_TRACK_ROW if len(live.catalogue) else PAD_ROW, dtype=np.int64)
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
    for track_id in map(live.catalogue.track_id, range(FIRST_TRACK_ROW, len(live.catalogue) + FIRST_TRACK_ROW)[:1]):
        live.recommend([Play(track_id)], 1)
        live.similar(track_id, 1)
