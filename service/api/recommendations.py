"""Recommendations: for a stored session, for a hypothetical one, and with explanations."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from segue.arrays import Float32
from segue.filters import MAX_VALUES
from segue.release import RELEASE_NAME_PATTERN
from segue.sessions import Event, Outcome, TrackId, repeat_policy, session_of
from service.api.fallback import answer_or_popular, stored_or_none
from service.api.json_body import JsonBody, described_body, read_json
from service.api.state import (
    DEFAULT_K,
    DEFAULT_REPEAT,
    MAX_TRACKS,
    AppState,
    ArtistGap,
    Caution,
    Fields,
    FilterText,
    K,
    ListOptions,
    MaxPerArtist,
    ReleaseName,
    Repeat,
    SessionIdQuery,
    fields_of,
    filter_of,
    link_responses,
    spacing_of,
)
from service.api.stations import ListenerIdQuery, wishes_of
from service.api.stream import MAX_SEED_ARTISTS, MAX_SEED_TRACKS
from service.api.tracks import RankedTrackBody, TrackBody
from service.http.auth import EXPLANATION_COST, caller_of
from service.problems import problem_responses
from service.releases.explanation import RANKED_AGAIN, Explanation, Places, explain_answer
from service.releases.loaded import Question, RecommendResult
from service.releases.registry import ActiveRelease

MAX_HYPOTHETICAL_EVENTS = 500

router = APIRouter()

# --- explanations ---

MapPosition = Annotated[list[float], Field(min_length=2, max_length=2)]


class ExplainedPlay(TrackBody):
    """A play in the encoder's window."""

    outcome: Outcome


class ExplainedItem(BaseModel):
    """Why a track has its rank."""

    track_id: str
    contributions: list[float] = Field(
        description="The contribution of each of `plays` to the score, negative if the play lowers it. They and "
        "`baseline` add up to the score. Estimated Shapley values; empty if popularity answered"
    )
    baseline: float | None = Field(
        default=None, description="The score without any play. Absent without caution and station, where it is 0"
    )
    parts: dict[str, float] | None = Field(
        default=None,
        description="What each part of a hybrid adds to the score: transition counts (ngram, follow, near, liked), the "
        "session itself (recent, own), popularity, and the encoder. With caution: log P(next) and "
        "caution * log P(played), as `next` and `played`. With a station and no caution: what the plays and the seeds "
        "add, as `session` and `station`. They add up to the score. Absent without counts, caution and station",
    )
    rank_without_skips: int | None = Field(
        default=None, description=f"Its rank if no play had been skipped. Absent beyond rank {RANKED_AGAIN}"
    )


class FilteredTrack(TrackBody):
    """A track that was excluded, although it would rank among the returned ones."""

    rank: int = Field(ge=1, description="Its rank among all tracks")
    reason: Literal["heard", "excluded"] = Field(
        description="`heard`: excluded by `repeat`, because the session contains the track. `excluded`: by `exclude`, "
        "a dislike or a ban"
    )


class PlacesBody(BaseModel):
    """Positions on the release's map, each as [x, y] from -1 to 1."""

    query: MapPosition | None = Field(
        default=None, description="Position of the session's query vector, interpolated between its nearest tracks"
    )
    path: list[MapPosition | None] = Field(
        description="Position of each play of the session, in the order of `GET /sessions/{session_id}`. Null for a "
        "track that is not in the catalogue"
    )
    plays: list[MapPosition] = Field(description="Positions of `plays`, in the same order")
    items: list[MapPosition] = Field(description="Positions of `items`, in the same order")

    @classmethod
    def of(cls, places: Places) -> Self:
        """The body for these positions."""
        query = None if places.query is None else _rounded(places.query)
        path = [None if math.isnan(place[0]) else place for place in _rounded(places.path)]
        return cls(query=query, path=path, plays=_rounded(places.plays), items=_rounded(places.items))


class ExplanationBody(BaseModel):
    """Why the tracks were recommended."""

    plays: list[ExplainedPlay] = Field(description="The plays in the encoder's window, oldest first")
    items: list[ExplainedItem] = Field(description="In the order of the recommended tracks")
    filtered: list[FilteredTrack] = Field(description="Best first")
    places: PlacesBody | None = Field(default=None, description="Absent if the release has no map")

    @classmethod
    def of(cls, answer: RecommendResult, explanation: Explanation) -> Self:
        """The body for the explanation of an answer."""
        outcomes = (Outcome.PLAYED, Outcome.SKIPPED)
        parts = explanation.parts if explanation.parts is not None else itertools.repeat(None)
        baseline = explanation.baseline if explanation.baseline is not None else itertools.repeat(None)
        known = answer.rows, explanation.contributions.tolist(), explanation.ranks_without_skips
        lines = zip(*known, parts, baseline, strict=False)
        track_id = answer.release.catalogue.track_id
        return cls(
            plays=[
                ExplainedPlay(outcome=outcomes[skipped], **TrackBody.of(track).model_dump())
                for track, skipped in explanation.plays
            ],
            items=[
                ExplainedItem(
                    track_id=track_id(row), contributions=line, rank_without_skips=rank, parts=of_parts, baseline=base
                )
                for row, line, rank, of_parts, base in lines
            ],
            filtered=[
                FilteredTrack(
                    rank=one.rank, reason="heard" if one.heard else "excluded", **TrackBody.of(one.track).model_dump()
                )
                for one in explanation.filtered
            ],
            places=PlacesBody.of(explanation.places) if explanation.places is not None else None,
        )


def _rounded(places: Float32) -> Any:
    return np.round(places.astype(np.float64), 5).tolist()


# --- bodies ---


class WindowBody(BaseModel):
    """What the encoder used of the session."""

    plays: int = Field(description="Plays in the window that were not skipped")
    skips: int = Field(description="Plays in the window that were skipped")


class NextTracks(BaseModel):
    """Recommended next tracks."""

    release: str = Field(description="The release that answered")
    source: Literal["model", "popularity"] = Field(
        description="`popularity` if the session has no play of a track in the catalogue, or if the session store or "
        "the model is unavailable"
    )
    items: list[RankedTrackBody] = Field(description="Best first")
    window: WindowBody
    explanation: ExplanationBody | None = Field(default=None, description="Present if you set `explain`")
    unknown_seeds: list[str] | None = Field(
        default=None, description="Seeds of the request's station that the release does not know. Absent if none"
    )


class RecommendationsBody(NextTracks):
    """Recommended next tracks for a session."""

    session_id: str


class WhatIfRequest(JsonBody, ListOptions):
    """A hypothetical session: what would be recommended after these events."""

    max_items = MAX_HYPOTHETICAL_EVENTS
    max_other_values = 2 * MAX_TRACKS + 2 * MAX_VALUES + MAX_SEED_TRACKS + MAX_SEED_ARTISTS
    remedy = (
        f"send at most {MAX_HYPOTHETICAL_EVENTS} events, {MAX_TRACKS} tracks in exclude, {MAX_VALUES} in the filter"
    )

    events: list[Event] = Field(
        max_length=MAX_HYPOTHETICAL_EVENTS,
        description="Events in order. They form one session, even with long pauses",
    )
    exclude: list[TrackId] = Field(default_factory=list, max_length=MAX_TRACKS, description="Tracks not to return")
    explain: bool = Field(default=False, description="Return an explanation. Counts as 13 requests of the API key")
    release: str | None = Field(
        default=None, pattern=RELEASE_NAME_PATTERN, description="A live release to ask instead of the current one"
    )


# --- calls ---

Excluded = Annotated[
    list[TrackId], Query(max_length=MAX_TRACKS, description="A track not to return. Repeat it for several tracks")
]
Explain = Annotated[
    bool,
    Query(
        description="Return an explanation of the ranking. It contains the session's plays, so an API key needs the "
        "scope `read` as well as `client`. Counts as 13 requests"
    ),
]


@router.get(
    "/recommendations",
    tags=["recommendations"],
    response_model=RecommendationsBody,
    responses=problem_responses(404, 409, 422, 503)
    | link_responses(similar=("similar_tracks", {"path.track_id": "$response.body#/items/0/track_id"})),
)
async def recommendations(  # noqa: PLR0913, PLR0917 (parameters of the request)
    session_id: SessionIdQuery,
    request: Request,
    k: K = DEFAULT_K,
    repeat: Repeat = DEFAULT_REPEAT,
    exclude: Excluded = [],  # noqa: B006 (never changed)
    release: ReleaseName = None,
    explain: Explain = False,
    caution: Caution = None,
    filter: FilterText = None,  # noqa: A002 (the name of the parameter)
    fields: Fields = None,
    max_per_artist: MaxPerArtist = None,
    artist_gap: ArtistGap = 0,
    listener_id: ListenerIdQuery = None,
) -> Response:
    """Return the next tracks of a session.

    The most popular tracks are returned if the session has no usable play, or cannot be read at the moment.
    """
    service: AppState = request.app.state.service
    if explain:
        caller = caller_of(request.scope)
        caller.require("read", "explain=true, whose answer has the session's plays,")
        caller.charge(EXPLANATION_COST - 1)
    releases = service.releases
    active = releases.for_session(session_id) if release is None else releases.named(release)
    live = active.live
    asked = live.caution(caution)
    wanted = None if filter is None else await filter_of(service, live, filter)
    names = () if fields is None else fields_of(live, fields)
    spacing = spacing_of(live, max_per_artist, artist_gap) if max_per_artist or artist_gap else None
    found = await stored_or_none(service, session_id, listener_id)
    station = None
    if found.preferences is not None:
        wishes = await wishes_of(service, live, found.preferences)
        exclude, station = [*exclude, *wishes.exclude], wishes.station
    question = Question(found.plays, k, exclude, repeat_policy(repeat), asked, wanted, spacing, station)
    content = await recommend(service, active, session_id, question, explain, names, attributed=release is None)
    return Response(content, media_type="application/json")


@router.post(
    "/recommendations/what-if",
    tags=["recommendations"],
    response_model=NextTracks,
    responses=problem_responses(404, 409, 413, 415, 422, 503),
    openapi_extra=described_body(WhatIfRequest),
)
async def what_if(request: Request) -> Response:
    """Return the next tracks of a hypothetical session. Nothing is stored, and Redis is not used."""
    service: AppState = request.app.state.service
    asked = await read_json(WhatIfRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    if asked.explain:
        caller_of(request.scope).charge(EXPLANATION_COST - 1)
    active = service.releases.named(asked.release)
    live, found = active.live, session_of(asked.events)
    names = fields_of(live, ",".join(asked.fields))
    wanted = None if asked.filter is None else await filter_of(service, live, asked.filter)
    repeat, caution = repeat_policy(asked.repeat), live.caution(asked.caution)
    spacing = spacing_of(live, asked.max_per_artist, asked.artist_gap)
    wishes = await wishes_of(service, live, found.preferences, asked.station)
    plays, exclude = service.store.kept(found.plays), [*asked.exclude, *wishes.exclude]
    question = Question(plays, asked.k, exclude, repeat, caution, wanted, spacing, wishes.station)
    answer = await active.ranking(question)
    explanation = await _explanation(service, active, question, answer) if asked.explain else None
    content = next_tracks_json(answer, explanation, names, unknown_seeds=wishes.unknown)
    return Response(content, media_type="application/json")


async def recommend(  # noqa: PLR0913 (options of the request)
    service: AppState,
    active: ActiveRelease,
    session_id: str,
    question: Question,
    explain: bool = False,
    fields: Sequence[str] = (),
    *,
    attributed: bool = True,
    unknown_seeds: Sequence[str] = (),
) -> bytes:
    """The next tracks of a session: a RecommendationsBody as JSON, with the attributes `fields` of the tracks.

    `attributed`: whether plays and skips of these tracks count for the release. They do not if the client chose the
    release itself.
    """
    answer = await answer_or_popular(service, active, question)
    service.telemetry.series(service.telemetry.recommendations, active.live.name, answer.source).inc()
    if attributed:
        service.attribution.remember(session_id, answer)
    explanation = await _explanation(service, active, question, answer) if explain else None
    # Session ids need no JSON escapes.
    return b'{"session_id":"%b",%b' % (
        session_id.encode(),
        next_tracks_json(answer, explanation, fields, unknown_seeds)[1:],
    )


def next_tracks_json(
    answer: RecommendResult,
    explanation: Explanation | None = None,
    fields: Sequence[str] = (),
    unknown_seeds: Sequence[str] = (),
) -> bytes:
    """NextTracks as JSON, from pieces that the catalogue keeps ready: pydantic takes longer than the whole search."""
    catalogue = answer.release.catalogue
    scores = orjson.dumps(answer.scores, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    lines = [
        b'"rank":%d,"score":%b,%b' % (rank, score, catalogue.json(row))
        for rank, (row, score) in enumerate(zip(answer.rows, scores, strict=False), start=1)
    ]
    if fields:
        values = catalogue.attributes.of_rows(answer.rows, fields)
        lines = [b'%b,"attributes":%b' % (line, orjson.dumps(one)) for line, one in zip(lines, values, strict=True)]
    items = b"{%b}" % b"},{".join(lines) if lines else b""
    explained = b""
    if explanation is not None:
        body = ExplanationBody.of(answer, explanation)
        explained = b',"explanation":' + body.model_dump_json(exclude_none=True).encode()
    if unknown_seeds:
        explained += b',"unknown_seeds":' + orjson.dumps(unknown_seeds)
    return b'{"release":%b,"source":"%b","items":[%b],"window":{"plays":%d,"skips":%d}%b}' % (
        orjson.dumps(answer.release.name),
        answer.source.encode(),
        items,
        answer.window_plays,
        answer.window_skips,
        explained,
    )


async def _explanation(
    service: AppState, active: ActiveRelease, question: Question, answer: RecommendResult
) -> Explanation:
    return await service.threads.run_long(explain_answer, active.live, question, answer)
