"""A loaded release: its encoder, index and catalogue, and the Recommender that uses them.

This module does not depend on HTTP or Redis. `segue recommend` and `segue evaluate` use it too.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from index.tuning import read_facts
from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.errors import BadRelease, UnknownMap
from segue.filters import Allowed, Filter, read_filter
from segue.hybrid import HybridRanker
from segue.list_steps import Spacing
from segue.map_projection import TrackMap
from segue.policy import Policy
from segue.recommend import PopularityRanker, QueryEncoder, Ranked, Recommendation, Recommender, Source
from segue.release import Release, open_release
from segue.sessions import ALLOW_REPEATS, Play, RepeatPolicy, repeat_policy
from segue.window import Windows, to_sessions
from service.releases.added import Added, AddedTrack, added_to
from service.releases.added_ranker import AddedRows, Vectors, similar_rows, with_added
from service.releases.lists import Lists, Steps, check_policy, within
from service.releases.rankers import EmbeddingSearch, StepTimer, first_line, open_embeddings, ranker_of, untimed
from service.releases.restricted import RestrictedRecommenders
from service.releases.stations import Pull, Seeds, pulled


@dataclass(frozen=True, slots=True)
class Track:
    """A track in a response. `score` is None if the track was not ranked."""

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
    repeat: RepeatPolicy = ALLOW_REPEATS
    caution: float | None = None  # None: the default of the release
    filter: Filter | None = None  # of the tracks that may be recommended
    spacing: Spacing | None = None  # of the artists and albums in the list
    policy: Policy | None = None  # whose steps make the list; its other options are the fields above
    seed: int | None = None  # of the policy's exploration
    station: Pull | None = None  # seeds that pull the list
    with_propensities: bool = False  # whether to compute the propensities of exploration
    latest: Sequence[str] = ()  # without plays: the latest tracks, from which artists and albums keep their distance


@dataclass(frozen=True, slots=True)
class RecommendResult:
    """The recommended next tracks of one session, best first, and their source."""

    release: "LoadedRelease"
    source: Source
    rows: list[Row]
    scores: Float32  # [len(rows)] float32
    window_plays: int
    window_skips: int
    steps: Steps | None = None  # how the list was made, with a policy or spacing

    @property
    def tracks(self) -> list[Track]:
        """The recommended tracks with titles, artists and scores, best first."""
        scored = zip(self.rows, self.scores.tolist(), strict=True)
        return [self.release.track(row, score) for row, score in scored]


class LoadedRelease:
    """Recommends with one release. Immutable and thread-safe."""

    def __init__(self, release: Release, embeddings: EmbeddingSearch | None, timed: StepTimer = untimed) -> None:
        self.release = release
        self.name = release.name  # in answers and logs
        self.catalogue = release.mapped_catalogue
        # These facts are read now, because the folder may be replaced while this release is live.
        facts = read_facts(release)
        self.index_facts = {"kind": "exact"} if facts is None else facts.model_dump(mode="json", exclude={"tried"})
        self._default_caution = release.default_caution
        track_map = release.track_map
        self._map = TrackMap(track_map, self.catalogue.by_plays) if track_map is not None else None
        self.embeddings = embeddings  # None for a release without an encoder
        popularity = PopularityRanker(self.catalogue.plays, self.catalogue.by_plays)
        self.ranker = ranker_of(release, embeddings, self.catalogue, timed)
        self.recommender = Recommender(self.ranker, popularity, release.manifest.window.length, release.play_head)
        self._restricted = RestrictedRecommenders(self.recommender, self.catalogue)
        self._lists = Lists(self.catalogue)
        self.seeds = Seeds(self.catalogue, release.manifest.window.length)
        self.stored_catalogue, self._stored_recommender = self.catalogue, self.recommender  # without added tracks
        self.added: Added | None = None

    def with_added(self, tracks: Mapping[str, AddedTrack]) -> "LoadedRelease":
        """Return this release with added tracks, and without removed ones. It shares everything that is mapped."""
        live = copy.copy(self)
        live.added = added = added_to(self.stored_catalogue, self.vectors, tracks)
        live.catalogue = added.catalogue
        live.recommender = self._stored_recommender
        if added.rows is not None:
            live.recommender = with_added(live.recommender, added.rows)
        live._lists = Lists(live.catalogue)
        live.seeds = Seeds(live.catalogue, self.release.manifest.window.length, added.rows)
        live._restricted = RestrictedRecommenders(live.recommender, live.catalogue)
        return live

    @property
    def vectors(self) -> Vectors | None:
        """The embeddings of the release; None without an encoder."""
        return Vectors(self.name, self.release.item_embeddings, self.nearest) if self.embeddings is not None else None

    def embeddings_of(self, rows: Int) -> Float32:
        """Return the item embeddings of rows [n] int64, among which may be added tracks. [n, dimension] float32."""
        embeddings, added = self.release.item_embeddings, self.added_rows
        if added is None or added.vectors is None:
            return np.asarray(embeddings[rows])
        found = np.array(embeddings[added.stand_in(rows)])
        of_added = rows >= added.first
        found[of_added] = added.vectors[rows[of_added] - added.first]
        return found

    @property
    def added_rows(self) -> AddedRows | None:
        """The rows of added tracks, which the arrays of the release do not have. None if there are none."""
        return self.added.rows if self.added is not None else None

    @property
    def folder(self) -> str:
        """The name of the folder that the release was opened from."""
        return self.release.path.absolute().name

    def answer(self, questions: Sequence[Question]) -> list[RecommendResult]:
        """Recommend the next tracks for each question. An answer does not depend on the other questions."""
        if not any(one.filter or one.spacing or one.policy or one.station for one in questions):
            return [self._result(one) for one in self.ranked(None, questions, [one.k for one in questions])]
        answers: dict[int, RecommendResult] = {}
        by_recommender: dict[tuple[Filter | None, Pull | None], list[int]] = {}
        for number, question in enumerate(questions):
            by_recommender.setdefault((question.filter, question.station), []).append(number)
        for (wanted, _), numbers in by_recommender.items():
            lists = self._lists.made(self, wanted, [questions[number] for number in numbers])
            for number, (one, steps) in zip(numbers, lists, strict=True):
                answers[number] = self._result(one, steps)
        return [answers[number] for number in range(len(questions))]

    def _result(self, one: Recommendation, steps: Steps | None = None) -> RecommendResult:
        rows = one.rows.tolist()
        return RecommendResult(self, one.source, rows, one.scores, one.window_plays, one.window_skips, steps)

    def ranked(self, wanted: Filter | None, asked: Sequence[Question], k: list[int]) -> list[Recommendation]:
        """Return the best tracks for each question, among those that `wanted` allows. Without spacing and policy.

        All questions have the same station.
        """
        return self.recommender_for(wanted, asked[0].station).recommend(
            to_sessions([question.plays for question in asked], self.catalogue),
            k,
            [self.catalogue.rows(question.exclude) for question in asked],
            repeat=[question.repeat for question in asked],
            caution=[self.caution(question.caution) for question in asked],
        )

    def scores_of(self, question: Question, rows: Int) -> Float32:
        """Return the scores of tracks for a question, as in its ranking. `rows` [n] int64 -> [n] float32."""
        sessions = to_sessions([question.plays], self.catalogue)
        recommender = self.recommender_for(question.filter, question.station)
        scores: Float32 = recommender.scores(sessions, rows[None], self.caution(question.caution))[0]
        return scores

    def check_spacing(self, spacing: Spacing) -> None:
        """Raise UnknownAttribute if the release does not know the artists or albums of a rule."""
        self._lists.check(spacing)

    def check(self, question: Question) -> None:
        """Raise the errors of a question that the release cannot answer, such as UnknownAttribute."""
        self.caution(question.caution)
        filters = [question.filter] if question.filter is not None else []
        if question.spacing is not None:
            self.check_spacing(question.spacing)
        if question.policy is not None:
            filters += self.filters_of(question.policy, question.filter)
        for wanted in filters:
            self.is_ready(wanted)

    def filters_of(self, policy: Policy, wanted: Filter | None) -> list[Filter]:
        """Return the filters whose tracks the steps of a policy need. Raises NoEmbeddings."""
        check_policy(policy, has_embeddings=self.embeddings is not None)
        rules = [*policy.boosts, *policy.pins]
        return [within(wanted, rule.filter) for rule in rules if rule.filter is not None]

    def recommender_for(self, wanted: Filter | None, station: Pull | None = None) -> Recommender:
        """Return the recommender of the allowed tracks, without removed ones, with a station.

        Raises BadFilter or UnknownAttribute.
        """
        if station is not None:
            return pulled(self.recommender_for(wanted), station)
        if wanted is None and self._restricted.has_all:
            return self.recommender
        return self._restricted.recommender(wanted)

    def allowed(self, wanted: Filter | None) -> Allowed | None:
        """Return the tracks that a filter allows, without removed tracks. None: all. Raises as recommender_for."""
        return self._restricted.allowed(wanted)

    def is_ready(self, wanted: Filter | None) -> bool:
        """Return whether `recommender_for` returns at once. Raises BadFilter or UnknownAttribute."""
        return self._restricted.is_ready(wanted)

    def remove(self, track_ids: AbstractSet[str]) -> None:
        """Recommend these tracks no longer, and all others. Ids outside the catalogue are ignored."""
        self._restricted = self._restricted.without(track_ids)

    def caution(self, asked: float | None) -> float:
        """Return the caution of a request: `asked`, or the default of the release. Raises InputError."""
        caution = self._default_caution if asked is None else asked
        self.recommender.ranker_with(caution)
        return caution

    def recommend(
        self,
        plays: Sequence[Play],
        k: int,
        exclude: Sequence[str] = (),
        *,
        repeat: str = "allow",
        caution: float | None = None,
        filter: object = None,  # noqa: A002 (the name of the field)
    ) -> RecommendResult:
        """Recommend the `k` next tracks for one session. The parameters are the fields of Question.

        `repeat` is `allow`, `never` or `after:N`, `filter` a JSON object or a text (segue.filters). Raises BadOption,
        BadFilter or UnknownAttribute.
        """
        wanted = None if filter is None else read_filter(filter)
        return self.answer([Question(plays, k, exclude, repeat_policy(repeat), caution, wanted)])[0]

    def popular(self, question: Question) -> RecommendResult:
        """Recommend the most played tracks, without the encoder and the index. The fallback if the model fails."""
        heard = [play.track_id for play in question.plays[question.repeat.start(len(question.plays)) :]]
        excluded = [*question.exclude, *heard]
        latest = [play.track_id for play in question.plays]
        asked = replace(
            question, plays=(), latest=latest, exclude=excluded, repeat=ALLOW_REPEATS, caution=None, station=None
        )
        return self.answer([asked])[0]

    @property
    def has_map(self) -> bool:
        """Whether the release has a map."""
        return self._map is not None

    @property
    def map(self) -> TrackMap:
        """The map of the tracks. Raises UnknownMap if the release has no map."""
        if self._map is None:
            raise UnknownMap(f"{self.name} has no map: train it again to get one")
        return self._map

    def similar(self, track_id: str, k: int, wanted: Filter | None = None) -> list[Track]:
        """Return the `k` most similar allowed tracks, without the track itself. Raises UnknownTrack.

        The score is the inner product of the embeddings, or, without an encoder, the share of the track's pairs.
        """
        row = self.catalogue.row(track_id)
        allowed = self.allowed(wanted)
        if self.added_rows is not None:
            by = self.vectors or cast("HybridRanker", self.ranker).counts
            ranked = similar_rows(self.added_rows, row, k, allowed, by)
            return [self.track(near, score) for near, score in zip(*ranked, strict=True)]
        if isinstance(self.ranker, HybridRanker) and self.embeddings is None:
            rows, scores = self.ranker.counts.neighbours(row)
            kept = rows != row if allowed is None else (rows != row) & allowed.contains(rows)
            near_by = zip(rows[kept][:k].tolist(), scores[kept][:k].tolist(), strict=True)
            return [self.track(near, share) for near, share in near_by]
        asked = min(k + 1, len(self.catalogue) if allowed is None else allowed.count)
        [rows], [scores] = self.nearest(self.release.item_embeddings[row][None], asked, allowed)
        found = zip(rows.tolist(), scores.tolist(), strict=True)
        return [self.track(near, score) for near, score in found if near not in (row, PAD_ROW)][:k]

    def search(self, query: str, limit: int, wanted: Filter | None = None) -> list[Track]:
        """Return at most `limit` allowed tracks with all words of `query` in title, artist or id, most played first."""
        allowed = self.allowed(wanted)
        keep = None if allowed is None else allowed.contains
        return [self.track(row) for row in self.catalogue.search(query, limit, keep)]

    def unknown(self, track_ids: Sequence[str]) -> list[str]:
        """Return the ids in `track_ids` that are not in the catalogue, without duplicates, in order."""
        return list(dict.fromkeys(track_id for track_id in track_ids if track_id not in self.catalogue))

    def nearest(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        """Return the `k` nearest allowed tracks for each query. `queries` [batch, dimension] float32.

        If the index finds fewer than `k` tracks for a query, the whole batch uses exact search. The release must have
        an encoder.
        """
        assert self.embeddings is not None, self.name
        found = self.embeddings.index.search(queries, k, allowed)
        return self.embeddings.exact.search(queries, k, allowed) if (found.rows == PAD_ROW).any() else found

    def attributes_of(self, tracks: Sequence[Track], names: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the values of the named attributes for each track. None for each of them without names."""
        if not names:
            return [None] * len(tracks)
        rows = self.catalogue.rows([track.track_id for track in tracks])
        return [*self.catalogue.attributes.of_rows(rows.tolist(), names)]

    def track(self, row: Row, score: float | None = None) -> Track:
        """Return the track in a row of the catalogue, with an optional score."""
        facts: dict[str, str] = json.loads(b"{%b}" % self.catalogue.json(row))
        return Track(facts["track_id"], facts.get("title"), facts.get("artist"), score)


def recommender_of(release: Release, *, exact: bool = False, threads: int = 1) -> Recommender:
    """Create the same recommender as the service, for offline evaluation. Raises BadRelease if it cannot be served.

    `exact` uses exact search even if the release has an index. `threads` is the number of threads per encoder call.
    """
    _check_servable(release)
    embeddings = open_embeddings(release, exact=exact, threads=threads)
    ranker = ranker_of(release, embeddings, release.catalogue)
    popularity = PopularityRanker(release.catalogue.plays)
    return Recommender(ranker, popularity, release.manifest.window.length, release.play_head)


def load_release(path: Path, device: str = "cpu", threads: int = 1, timed: StepTimer = untimed) -> LoadedRelease:
    """Open and verify a release, and run every kind of query once as a warm-up before the first request.

    `device` of the index is `cpu` or `gpu`. `threads` is the number of threads per encoder call. `timed` measures the
    ranking steps. Raises BadRelease with a one-line message.
    """
    release = open_release(path)
    _check_servable(release)
    live = LoadedRelease(release, open_embeddings(release, device=device, threads=threads, timed=timed), timed)
    _warm_up(live)
    return live


def _check_servable(release: Release) -> None:
    if not (release.has_encoder or release.has_counts):
        model = release.manifest.model
        raise BadRelease(
            f"{release.path} was trained as {model}, which has no encoder and no transition counts: it can be "
            "evaluated, not served"
        )


def _warm_up(live: LoadedRelease) -> None:
    if live.embeddings is not None:
        _check_encoder(live, live.embeddings.encoder)
    live.recommend([], 1)
    live.search("a", 1)
    for track_id in map(live.catalogue.track_id, range(FIRST_TRACK_ROW, len(live.catalogue) + FIRST_TRACK_ROW)[:1]):
        for repeat in ("allow", "never"):  # the second one searches for more tracks
            live.recommend([Play(track_id)], 1, repeat=repeat)
        live.similar(track_id, 1)


def _check_encoder(live: LoadedRelease, encoder: QueryEncoder) -> None:
    manifest = live.release.manifest
    shape = (2, manifest.window.length)  # a batch of two: an exported graph may accept only batches of one
    first = np.full(shape, FIRST_TRACK_ROW if len(live.catalogue) else PAD_ROW, dtype=np.int64)
    try:
        query = encoder.encode(Windows(first, np.zeros(shape, dtype=np.bool_)))
    except Exception as error:  # the exceptions of ONNX Runtime have no common base class
        raise BadRelease(
            f"{live.release.path}: the encoder fails on a window of {shape[1]}: {first_line(error)}"
        ) from error
    if query.shape != (2, manifest.dimension):
        raise BadRelease(
            f"{live.release.path}: the encoder answers {query.shape}, the manifest says {(2, manifest.dimension)}; "
            "export it again"
        )
    if not np.isfinite(query).all():
        raise BadRelease(f"{live.release.path}: the encoder answers what is no number: train the release again")
