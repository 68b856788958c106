"""The bodies of requests and answers, as clients and `openapi.yaml` see them."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from segue.events import Event, TrackId
from segue.sessions import Outcome, Play
from service.live_release import RANKED_AGAIN, Answer, Explanation, LiveRelease, Track
from service.releases_folder import NAME_PATTERN

MAX_EVENTS = 100
MAX_TRACKS = 100  # in an answer, and in `exclude`
MAX_SUPPOSED = 500  # events of a session that is only supposed
DEFAULT_K = 20

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _whole(value: object) -> object:
    """JSON knows no integers, so 1000.0 is one: strict checking would refuse it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ReportedEvent(Event):
    """One thing that a listener did."""

    _whole = field_validator("ms_played", mode="before")(_whole)


class EventsRequest(BaseModel):
    """What happened in a session, in its order."""

    model_config = ConfigDict(extra="forbid")

    events: list[ReportedEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class TrackBody(BaseModel):
    """A track of the catalogue."""

    track_id: str
    title: str | None = Field(default=None, description="Absent where the catalogue does not know it")
    artist: str | None = Field(default=None, description="Absent where the catalogue does not know it")

    @classmethod
    def of(cls, track: Track) -> Self:
        """The body for a track."""
        return cls(track_id=track.track_id, title=track.title, artist=track.artist)


class RankedTrackBody(BaseModel):
    """A track in an order."""

    rank: int = Field(ge=1, description="1 is the best")
    track_id: str
    score: float = Field(description="Larger is better; comparable within one answer only")
    title: str | None = Field(default=None, description="Absent where the catalogue does not know it")
    artist: str | None = Field(default=None, description="Absent where the catalogue does not know it")

    @classmethod
    def list_of(cls, tracks: list[Track]) -> list[Self]:
        """The bodies for tracks, best first."""
        return [
            cls(rank=rank, track_id=track.track_id, title=track.title, artist=track.artist, score=track.score or 0.0)
            for rank, track in enumerate(tracks, start=1)
        ]


class WindowBody(BaseModel):
    """What the encoder saw of the session."""

    plays: int = Field(description="Plays in the window that were not skipped")
    skips: int = Field(description="Plays in the window that were skipped")


class ExplainedPlay(TrackBody):
    """A play that the encoder saw."""

    outcome: Outcome


class ExplainedItem(BaseModel):
    """Why a track is where it is."""

    track_id: str
    contributions: list[float] = Field(
        description="What each of `plays` adds to the score, negative where it pushes the track away; they add up to "
        "the score. Shapley values, estimated; empty where popularity answered"
    )
    rank_without_skips: int | None = Field(
        default=None, description=f"Its rank if nothing had been skipped; absent where that is beyond {RANKED_AGAIN}"
    )


class FilteredTrack(TrackBody):
    """A track that ranks within the answer and was left out."""

    rank: int = Field(ge=1, description="Its rank among all tracks")
    reason: Literal["heard", "excluded"]


class ExplanationBody(BaseModel):
    """Why an answer is as it is."""

    plays: list[ExplainedPlay] = Field(description="What the encoder saw, oldest first")
    items: list[ExplainedItem] = Field(description="In the answer's order")
    filtered: list[FilteredTrack] = Field(description="Best first")

    @classmethod
    def of(cls, answer: Answer, explanation: Explanation) -> Self:
        """The body for an answer's explanation."""
        outcomes = (Outcome.PLAYED, Outcome.SKIPPED)
        table = answer.release.table
        lines = zip(answer.rows, explanation.contributions.tolist(), explanation.ranks_without_skips, strict=True)
        return cls(
            plays=[
                ExplainedPlay(outcome=outcomes[skipped], **TrackBody.of(track).model_dump())
                for track, skipped in explanation.plays
            ],
            items=[
                ExplainedItem(track_id=table.track_id(row), contributions=line, rank_without_skips=rank)
                for row, line, rank in lines
            ],
            filtered=[
                FilteredTrack(
                    rank=one.rank, reason="heard" if one.heard else "excluded", **TrackBody.of(one.track).model_dump()
                )
                for one in explanation.filtered
            ],
        )


class NextTracks(BaseModel):
    """The next tracks for plays and skips."""

    release: str = Field(description="The release that answered")
    source: Literal["model", "popularity"] = Field(
        description="`popularity` where the session has no play of a track that the release holds, or where the "
        "session store or the model is away"
    )
    items: list[RankedTrackBody] = Field(description="Best first")
    window: WindowBody
    explanation: ExplanationBody | None = Field(default=None, description="If asked for by `explain`")


class RecommendationsBody(NextTracks):
    """The next tracks for a session."""

    session_id: str


def recommendations_json(session_id: str, answer: Answer, explanation: Explanation | None = None) -> bytes:
    """A RecommendationsBody as JSON, put together from what the track table holds ready."""
    # Ids of sessions need no escapes.
    return b'{"session_id":"%b",%b' % (session_id.encode(), next_tracks_json(answer, explanation)[1:])


def next_tracks_json(answer: Answer, explanation: Explanation | None = None) -> bytes:
    """NextTracks as JSON."""
    table = answer.release.table
    scores = orjson.dumps(answer.scores, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    items = b",".join(
        [
            b'{"rank":%d,"score":%b,%b}' % (rank, score, table.json(row))
            for rank, (row, score) in enumerate(zip(answer.rows, scores, strict=False), start=1)
        ]
    )
    why = b""
    if explanation is not None:
        why = b',"explanation":' + ExplanationBody.of(answer, explanation).model_dump_json(exclude_none=True).encode()
    return b'{"release":%b,"source":"%b","items":[%b],"window":{"plays":%d,"skips":%d}%b}' % (
        orjson.dumps(answer.release.name),
        answer.source.encode(),
        items,
        answer.window_plays,
        answer.window_skips,
        why,
    )


class WhatIfRequest(BaseModel):
    """A session that is only supposed: what would be recommended after these events."""

    model_config = ConfigDict(extra="forbid")

    events: list[ReportedEvent] = Field(
        max_length=MAX_SUPPOSED, description="What happened, in its order; one session, whatever their times"
    )
    k: int = Field(default=DEFAULT_K, ge=1, le=MAX_TRACKS, description="How many tracks to answer with")
    exclude: list[TrackId] = Field(
        default_factory=list, max_length=MAX_TRACKS, description="Tracks that must not be answered"
    )
    exclude_heard: bool = Field(default=True, description="Whether the session's own tracks are left out")
    explain: bool = Field(default=False, description="Whether the answer says why")

    _whole = field_validator("k", mode="before")(_whole)


class EventsAnswer(BaseModel):
    """What became of the events. They are stored when this is sent."""

    session_id: str
    length: int = Field(description="Plays that the session now holds")
    accepted: int = Field(description="Events that had an effect")
    duplicates: int = Field(description="Events whose event_id had been reported before; they had no effect")
    unknown_tracks: list[str] = Field(description="Tracks that the release does not hold: stored, and passed over")
    recommendations: RecommendationsBody | None = Field(default=None, description="If asked for by `recommend`")


class PlayBody(BaseModel):
    """One presentation of a track in a session."""

    track_id: str
    outcome: Outcome
    at: datetime = Field(description="When it began, RFC 3339 in UTC")
    ms_played: int | None = Field(default=None, description="Absent where the client did not say")


class SessionBody(BaseModel):
    """A session's plays, oldest first."""

    session_id: str
    plays: list[PlayBody]

    @classmethod
    def of(cls, session_id: str, plays: list[Play]) -> Self:
        """The body for a session."""
        bodies = [
            PlayBody(
                track_id=play.track_id,
                outcome=play.outcome,
                at=_EPOCH + timedelta(milliseconds=play.at_ms or 0),
                ms_played=play.ms_played,
            )
            for play in plays
        ]
        return cls(session_id=session_id, plays=bodies)


class FoundTracks(BaseModel):
    """Tracks found by title, artist or id, most played first."""

    items: list[TrackBody]


class SimilarTracks(BaseModel):
    """Tracks near another, nearest first."""

    items: list[RankedTrackBody]


class ReleaseBody(BaseModel):
    """Facts about what is served, from the release's manifest."""

    name: str = Field(description="What answers call the release")
    folder: str = Field(description="Its folder: what `PUT /releases/current` takes to serve it again")
    model: str
    tracks: int = Field(description="Tracks in the catalogue")
    dimension: int | None = Field(description="Columns of the item embeddings")
    window: int = Field(description="Latest plays that the encoder sees")
    loss: dict[str, Any] | None = Field(description="The training objective")
    created: datetime
    dataset: dict[str, Any] = Field(description="What the release was trained on")
    evaluation: dict[str, Any] = Field(description="Validation summary of the finished model")
    index: dict[str, Any] = Field(description="How near tracks are searched")

    @classmethod
    def of(cls, live: LiveRelease) -> Self:
        """The body for a release."""
        manifest = live.release.manifest
        return cls(
            name=manifest.name,
            folder=live.folder,
            model=manifest.model,
            tracks=manifest.tracks,
            dimension=manifest.dimension,
            window=manifest.window.length,
            loss=manifest.loss.model_dump() if manifest.loss is not None else None,
            created=manifest.created,
            dataset=manifest.dataset.model_dump(),
            evaluation=manifest.evaluation,
            index=live.index_facts(),
        )


class SwapRequest(BaseModel):
    """Which release to serve."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        pattern=NAME_PATTERN, description="The release's folder in SEGUE_RELEASES_DIR", examples=["sasrec-2026-11"]
    )


class Health(BaseModel):
    """The service is well."""

    status: Literal["live", "ready"]
