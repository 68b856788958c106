"""The bodies of requests and answers, as clients and `openapi.yaml` see them."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from segue.events import Event, TrackId
from segue.release import RELEASE_NAME_PATTERN
from segue.sessions import Outcome, Play
from service.api.explanations import ExplanationBody
from service.api.track_bodies import RankedTrackBody
from service.releases.bodies import ReleaseBody
from service.releases.loaded import Explanation, LoadedRelease, RecommendResult
from service.settings import FOLDER_NAME_PATTERN

MAX_EVENTS = 100
MAX_TRACKS = 100  # in an answer, and in `exclude`
MAX_SUPPOSED = 500  # events of a session that is only supposed
DEFAULT_K = 20

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _whole(value: object) -> object:
    """JSON knows no integers, so 1000.0 is one: strict checking would refuse it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class EventIn(Event):
    """One thing that a listener did."""

    _whole = field_validator("ms_played", mode="before")(_whole)


class EventsRequest(BaseModel):
    """What happened in a session, in its order."""

    model_config = ConfigDict(extra="forbid")

    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)


class WindowBody(BaseModel):
    """What the encoder saw of the session."""

    plays: int = Field(description="Plays in the window that were not skipped")
    skips: int = Field(description="Plays in the window that were skipped")


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


def recommendations_json(session_id: str, answer: RecommendResult, explanation: Explanation | None = None) -> bytes:
    """A RecommendationsBody as JSON, put together from what the track table holds ready."""
    # Ids of sessions need no escapes.
    return b'{"session_id":"%b",%b' % (session_id.encode(), next_tracks_json(answer, explanation)[1:])


def next_tracks_json(answer: RecommendResult, explanation: Explanation | None = None) -> bytes:
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

    events: list[EventIn] = Field(
        max_length=MAX_SUPPOSED, description="What happened, in its order; one session, whatever their times"
    )
    k: int = Field(default=DEFAULT_K, ge=1, le=MAX_TRACKS, description="How many tracks to answer with")
    exclude: list[TrackId] = Field(
        default_factory=list, max_length=MAX_TRACKS, description="Tracks that must not be answered"
    )
    exclude_heard: bool = Field(default=True, description="Whether the session's own tracks are left out")
    explain: bool = Field(default=False, description="Whether the answer says why; it counts as 13 requests of the key")
    release: str | None = Field(
        default=None, pattern=RELEASE_NAME_PATTERN, description="A release that is live, instead of the current one"
    )

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


class LiveReleaseBody(BaseModel):
    """A release that answers."""

    name: str = Field(description="What answers call it, and what the parameter `release` takes")
    folder: str
    model: str
    loss: dict[str, Any] | None = Field(description="The training objective")
    share: float = Field(description="Share of the sessions that it answers")
    has_map: bool = Field(description="Whether `GET /map` has its tracks")

    @classmethod
    def of(cls, live: LoadedRelease, share: float) -> Self:
        """The body for a release."""
        manifest = live.release.manifest
        return cls(
            name=live.name,
            folder=live.folder,
            model=manifest.model,
            loss=manifest.loss.model_dump() if manifest.loss is not None else None,
            share=share,
            has_map=live.release.track_map is not None,
        )


class CurrentReleaseBody(ReleaseBody):
    """What is served, and what else is live beside it."""

    live: list[LiveReleaseBody] = Field(description="This one, and the one of an experiment (`SEGUE_EXPERIMENT`)")

    @classmethod
    def of_all(cls, live: list[tuple[LoadedRelease, float]]) -> Self:
        """The body for the releases that are live, the current one first, each with its share of the sessions."""
        current, _ = live[0]
        return cls(
            **ReleaseBody.of(current).model_dump(),
            live=[LiveReleaseBody.of(one, share) for one, share in live],
        )


class SwapRequest(BaseModel):
    """Which release to serve."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        pattern=FOLDER_NAME_PATTERN,
        description="The release's folder in SEGUE_RELEASES_DIR",
        examples=["sasrec-2026-11"],
    )


class Health(BaseModel):
    """The service is well."""

    status: Literal["live", "ready"]
