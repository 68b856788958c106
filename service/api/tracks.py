"""Tracks: search, similar tracks, and the map of the catalogue."""

import asyncio
import heapq
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

from segue.errors import UnknownTrack
from segue.sessions import TrackId
from service.api.json_body import JsonBody, described_body, read_json
from service.api.state import (
    ATTRIBUTES_DESCRIPTION,
    DEFAULT_K,
    MAX_TRACKS,
    AppState,
    Fields,
    FilterText,
    K,
    ReleaseName,
    Service,
    TrackIdPath,
    fields_of,
    filter_of,
    link_responses,
)
from service.problems import problem_responses
from service.releases.loaded import Track

MAX_POINTS: Final = 100_000
MAX_LISTED: Final = 1_000
MAX_CHANGED: Final = 1_000
_BYTES: Final = "application/octet-stream"
_UNKNOWN: Final = "Absent if the catalogue does not know it"

router = APIRouter()


class TrackBody(BaseModel):
    """A track of the catalogue."""

    track_id: str
    title: str | None = Field(default=None, description=_UNKNOWN)
    artist: str | None = Field(default=None, description=_UNKNOWN)
    attributes: dict[str, Any] | None = Field(default=None, description=ATTRIBUTES_DESCRIPTION)

    @classmethod
    def of(cls, track: Track, attributes: dict[str, Any] | None = None) -> Self:
        """The body for a track."""
        return cls(track_id=track.track_id, title=track.title, artist=track.artist, attributes=attributes)


class RankedTrackBody(BaseModel):
    """A track in a ranking."""

    rank: int = Field(ge=1, description="1 is the best")
    track_id: str
    score: float = Field(description="Higher is better. Comparable within one answer only")
    title: str | None = Field(default=None, description=_UNKNOWN)
    artist: str | None = Field(default=None, description=_UNKNOWN)
    attributes: dict[str, Any] | None = Field(default=None, description=ATTRIBUTES_DESCRIPTION)

    @classmethod
    def list_of(cls, tracks: list[Track], attributes: Sequence[dict[str, Any] | None] | None = None) -> list[Self]:
        """The bodies for tracks, best first, with the attributes of each of them."""
        return [
            cls(
                rank=rank,
                track_id=track.track_id,
                title=track.title,
                artist=track.artist,
                score=track.score or 0.0,
                attributes=attributes[rank - 1] if attributes is not None else None,
            )
            for rank, track in enumerate(tracks, start=1)
        ]


class FoundTracks(BaseModel):
    """Tracks found by title, artist or id, most played first."""

    items: list[TrackBody]


class SimilarTracks(BaseModel):
    """Tracks similar to another one, most similar first."""

    items: list[RankedTrackBody]


SearchText = Annotated[
    str,
    Query(alias="query", max_length=200, description="Words of title, artist or id. Empty: the most played tracks"),
]
Limit = Annotated[int, Query(ge=1, le=MAX_TRACKS, description="Maximum number of tracks")]


@router.get(
    "/tracks",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(422, 503)
    | link_responses(similar=("similar_tracks", {"path.track_id": "$response.body#/items/0/track_id"})),
)
async def find_tracks(
    service: Service,
    query: SearchText = "",
    limit: Limit = 20,
    filter: FilterText = None,  # noqa: A002 (the name of the parameter)
    fields: Fields = None,
) -> FoundTracks:
    """Find tracks by words of their title, artist or id."""
    live = service.releases.current.live
    wanted = None if filter is None else await filter_of(service, live, filter)
    names = fields_of(live, fields or "")
    found = await service.threads.run(live.search, query, limit, wanted)
    attributes = live.attributes_of(found, names)
    return FoundTracks(items=[TrackBody.of(*track) for track in zip(found, attributes, strict=True)])


@router.get(
    "/tracks/{track_id:path}/similar",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 422, 503),
)
async def similar_tracks(
    track_id: TrackIdPath,
    service: Service,
    k: K = DEFAULT_K,
    filter: FilterText = None,  # noqa: A002 (the name of the parameter)
    fields: Fields = None,
) -> SimilarTracks:
    """Return the tracks most similar to a track, by the inner product of their embeddings."""
    live = service.releases.current.live
    wanted = None if filter is None else await filter_of(service, live, filter)
    names = fields_of(live, fields or "")
    found = await service.threads.run(live.similar, track_id, k, wanted)
    return SimilarTracks(items=RankedTrackBody.list_of(found, live.attributes_of(found, names)))


# --- takedown ---


class RemovalBody(BaseModel):
    """Whether a track is removed."""

    track_id: str
    removed: bool
    changed: bool = Field(description="Whether this call changed it. False: it was so before")
    in_catalogue: bool = Field(description="Whether the current release has the track")


class Takedown(JsonBody):
    """Tracks to remove, or to restore, in one step."""

    max_items = MAX_CHANGED
    remedy = f"send at most {MAX_CHANGED:,} tracks"

    track_ids: list[TrackId] = Field(min_length=1, max_length=MAX_CHANGED, description="Tracks, known or not")
    removed: bool = Field(default=True, description="true: remove the tracks. false: restore them")


class TakedownBody(BaseModel):
    """What a takedown of several tracks changed."""

    removed: bool
    changed: int = Field(description="Number of tracks that this call changed. The others were so before")
    not_in_catalogue: list[str] = Field(
        description="The tracks that the current release does not have. They are changed too"
    )


class RemovedTrack(BaseModel):
    """A removed track."""

    track_id: str
    since: str = Field(description="Time of the removal, ISO 8601 in UTC")


class RemovedTracksBody(BaseModel):
    """The removed tracks."""

    total: int
    items: list[RemovedTrack] = Field(description=f"The latest {MAX_LISTED:,} ones, latest first")


@router.delete("/removed-tracks/{track_id:path}", tags=["tracks"], responses=problem_responses(404, 409, 422, 503))
async def restore_track(track_id: TrackIdPath, service: Service) -> RemovalBody:
    """Allow a removed track in answers again."""
    return await _change(service, track_id, removed=False)


@router.put("/removed-tracks/{track_id:path}", tags=["tracks"], responses=problem_responses(404, 409, 422, 503))
async def remove_track(track_id: TrackIdPath, service: Service) -> RemovalBody:
    """Remove a track from all answers of all releases, at once.

    The other workers and replicas that share the folder of releases follow within a second. It stays removed after a
    restart, a swap and a training. Sessions keep their plays of it.
    """
    return await _change(service, track_id, removed=True)


@router.post(
    "/removed-tracks",
    tags=["tracks"],
    responses=problem_responses(409, 413, 415, 422, 503),
    openapi_extra=described_body(Takedown),
)
async def remove_tracks(request: Request) -> TakedownBody:
    """Remove or restore up to 1,000 tracks, all of them or none.

    The effect on each track is that of the call for one track.
    """
    service: AppState = request.app.state.service
    asked = await read_json(Takedown, request.scope["headers"], request.receive, service.max_request_bytes)
    changed = await service.releases.removed.change_all(asked.track_ids, removed=asked.removed)
    await service.releases.follow_changes()
    catalogue = service.releases.current.live.catalogue
    unknown = [track_id for track_id in dict.fromkeys(asked.track_ids) if track_id not in catalogue]
    return TakedownBody(removed=asked.removed, changed=changed, not_in_catalogue=unknown)


@router.get("/removed-tracks", tags=["tracks"], responses=problem_responses(503))
async def removed_tracks(service: Service) -> RemovedTracksBody:
    """List the removed tracks."""
    since = service.releases.removed.since
    latest = await asyncio.to_thread(heapq.nlargest, MAX_LISTED, since.items(), lambda one: (one[1], one[0]))
    return RemovedTracksBody(
        total=len(since), items=[RemovedTrack(track_id=track_id, since=time) for track_id, time in latest]
    )


async def _change(service: Service, track_id: str, *, removed: bool) -> RemovalBody:
    changed = await service.releases.removed.change(track_id, removed=removed)
    await service.releases.follow_changes()
    known = track_id in service.releases.current.live.catalogue
    return RemovalBody(track_id=track_id, removed=removed, changed=changed, in_catalogue=known)


# --- map ---

Points = Annotated[int, Query(ge=1, le=MAX_POINTS, description="Maximum number of points")]
Position = Annotated[int, Path(ge=0, lt=2**31, description="Index of a point in GET /map, from 0")]
IfNoneMatch = Annotated[
    str | None,
    Header(max_length=1000, description="Entity tags that you have. If one matches, the answer is a 304 with no body"),
]

_MAP: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}},
        "description": "Two little-endian float32 for each point, x and y from -1 to 1; the most played track first",
        "headers": {
            "ETag": {"description": "Identifies the release and the number of points", "schema": {"type": "string"}},
            "Segue-Release": {"description": "The release of the map", "schema": {"type": "string"}},
        },
    },
    304: {"description": "You have this map already: `If-None-Match` contains its entity tag"},
}


@router.get("/map", tags=["tracks"], response_class=Response, responses=_MAP | problem_responses(404, 422, 503))
async def track_map(
    service: Service, limit: Points = MAX_POINTS, release: ReleaseName = None, if_none_match: IfNoneMatch = None
) -> Response:
    """Return the map of the catalogue. Similar tracks are close to each other."""
    live = service.releases.named(release).live
    map_ = live.map  # raises UnknownMap first, as there is no tag without a map
    tag = f'"{live.name}-{min(limit, len(live.catalogue))}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Segue-Release": live.name}
    if if_none_match is not None and _matches(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(await service.threads.run(map_.points, limit), media_type=_BYTES, headers=headers)


@router.get(
    "/map/tracks/{position}",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 422, 503),
)
async def track_on_map(position: Position, service: Service, release: ReleaseName = None) -> TrackBody:
    """Return the track of a point on the map."""
    live = service.releases.named(release).live
    track = live.track(live.map.row(position))
    if track.track_id in service.releases.removed.since:
        raise UnknownTrack(f"the track of point {position} is removed")
    return TrackBody.of(track)


def _matches(tag: str, header: str) -> bool:
    tags = [text.strip().removeprefix("W/") for text in header.split(",")]
    return "*" in tags or tag in tags
