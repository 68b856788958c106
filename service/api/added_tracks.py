"""Added tracks: new tracks, and changes of known ones, without training."""

from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from segue.attributes import NAME_PATTERN
from segue.sessions import TEXT_PATTERN, TrackId
from service.api.json_body import JsonBody, described_body, read_json
from service.api.state import AppState, Service, TrackIdPath
from service.problems import problem_responses
from service.releases.added import MAX_COMPONENT, MAX_MEMBERS, MAX_TEXT, AddedTrack, check_track
from service.releases.added_ranker import MAX_NEIGHBOURS

MAX_DIMENSION: Final = 4_096
MAX_ATTRIBUTES: Final = 64

router = APIRouter()

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=TEXT_PATTERN)]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
Value = bool | int | float | Text | Annotated[list[Text], Field(max_length=MAX_MEMBERS)] | None
Component = Annotated[float, Field(ge=-MAX_COMPONENT, le=MAX_COMPONENT, allow_inf_nan=False)]


class TrackToAdd(JsonBody):
    """A track to add, or changes of a known one. It replaces what was added for the track before."""

    max_items = 0
    max_other_values = MAX_DIMENSION + MAX_ATTRIBUTES * (MAX_MEMBERS + 1)
    max_bytes = 262_144
    remedy = f"send at most {MAX_DIMENSION:,} numbers in embedding and {MAX_ATTRIBUTES} attributes"

    title: Text | None = Field(default=None, description="Absent or null for a known track: its title stays")
    artist: Text | None = Field(default=None, description="Absent or null for a known track: its artist stays")
    attributes: dict[Name, Value] = Field(
        default_factory=dict,
        max_length=MAX_ATTRIBUTES,
        description="Values of attributes that the current release has: texts, numbers, true or false, dates such as "
        "2026-11-29, lists of texts. null: no value. A known track keeps its other values",
    )
    neighbours: list[TrackId] = Field(
        default_factory=list,
        max_length=MAX_NEIGHBOURS,
        description="Tracks of the current release that a new track is like. Its score is the mean of theirs. Default: "
        "the most played tracks with its album_id, artist_id or artist",
    )
    embedding: list[Component] = Field(
        default_factory=list,
        max_length=MAX_DIMENSION,
        description="The embedding of a new track in the space of the current release, instead of `neighbours`",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.neighbours and self.embedding:
            raise PydanticCustomError("one_way", "Send either neighbours or embedding")
        return self

    def track(self) -> AddedTrack:
        """Return the track, added now."""
        return AddedTrack.now(
            title=self.title,
            artist=self.artist,
            attributes=self.attributes,
            neighbours=list(dict.fromkeys(self.neighbours)),
            embedding=self.embedding,
        )


class AddedTrackBody(BaseModel):
    """An added track, or a known one with changes."""

    track_id: str
    in_catalogue: bool = Field(
        description="Whether the current release was trained with the track. Then only its title, artist and "
        "attributes are changed"
    )
    neighbours: list[str] | None = Field(
        default=None,
        description="The tracks of the current release whose scores give its score. Empty: this release has none, so "
        "the track is in no answer. Absent if `in_catalogue`",
    )
    removed: bool = Field(description="Whether the track is removed (`PUT /removed-tracks/{track_id}`): it stays so")
    title: str | None = None
    artist: str | None = None
    attributes: dict[str, Any] = Field(description="As they were sent")
    since: str = Field(description="Time of the latest change, ISO 8601 in UTC")

    @classmethod
    def of(cls, service: AppState, track_id: str, track: AddedTrack) -> Self:
        """The body for a track."""
        live = service.releases.current.live
        known = track_id in live.stored_catalogue
        near = live.added.neighbours.get(track_id, []) if live.added is not None else []
        return cls(
            track_id=track_id,
            in_catalogue=known,
            neighbours=None if known else near,
            removed=track_id in service.releases.removed.since,
            title=track.title,
            artist=track.artist,
            attributes=dict(track.attributes),
            since=track.since,
        )


class AddedTracks(BaseModel):
    """The added tracks and changes."""

    items: list[AddedTrackBody] = Field(description="Latest first")


class DeletionBody(BaseModel):
    """Whether an added track, or the changes of a known one, were deleted."""

    track_id: str
    deleted: bool = Field(description="False: there was nothing to delete")
    in_catalogue: bool = Field(description="Whether the current release was trained with the track. Then it remains")


@router.put(
    "/added-tracks/{track_id:path}",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 409, 413, 415, 422, 503),
    openapi_extra=described_body(TrackToAdd),
)
async def add_track(track_id: TrackIdPath, request: Request) -> AddedTrackBody:
    """Add a track, or change the title, artist and attributes of a known one, without training.

    The other workers and replicas that share the folder of releases follow within a second. It stays added after a
    restart, a swap and a training.
    """
    service: AppState = request.app.state.service
    asked = await read_json(TrackToAdd, request.scope["headers"], request.receive, service.max_request_bytes)
    live, given = service.releases.current.live, asked.track()
    track = await service.threads.run_long(check_track, track_id, given, live.stored_catalogue, live.vectors)
    await service.releases.added.put(track_id, track)
    await service.releases.follow_changes()
    return AddedTrackBody.of(service, track_id, track)


@router.get("/added-tracks", tags=["tracks"], response_model_exclude_none=True, responses=problem_responses(503))
async def added_tracks(service: Service) -> AddedTracks:
    """List the added tracks and the changes of known ones."""
    latest = sorted(service.releases.added.tracks.items(), key=lambda one: (one[1].since, one[0]), reverse=True)
    return AddedTracks(items=[AddedTrackBody.of(service, *one) for one in latest])


@router.delete("/added-tracks/{track_id:path}", tags=["tracks"], responses=problem_responses(404, 409, 422, 503))
async def delete_added_track(track_id: TrackIdPath, service: Service) -> DeletionBody:
    """Delete an added track, or the changes of a known one. Sessions keep their plays of it."""
    deleted = await service.releases.added.delete(track_id)
    await service.releases.follow_changes()
    known = track_id in service.releases.current.live.stored_catalogue
    return DeletionBody(track_id=track_id, deleted=deleted, in_catalogue=known)
