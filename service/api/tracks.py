"""The map of the catalogue: its points in one answer, and the track of a point."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Response

from service.api.state import ReleaseName, Service
from service.api.track_bodies import TrackBody
from service.problems import problem_responses

MOST_POINTS: Final = 100_000
_BYTES: Final = "application/octet-stream"

Points = Annotated[int, Query(ge=1, le=MOST_POINTS, description="How many points to answer with at most")]
Position = Annotated[int, Path(ge=0, lt=2**31, description="A point's place in the order of GET /map, from 0")]
IfNoneMatch = Annotated[
    str | None,
    Header(max_length=1000, description="Entity tags that are known; the answer is then a 304 without a body"),
]

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}},
        "description": "Two little-endian float32 for each point, x and y from -1 to 1; the most played track first",
        "headers": {
            "ETag": {"description": "Names release and number of points", "schema": {"type": "string"}},
            "Segue-Release": {"description": "The release whose map it is", "schema": {"type": "string"}},
        },
    },
    304: {"description": "The client has it: `If-None-Match` holds its entity tag"},
}

router = APIRouter()


@router.get("/map", tags=["tracks"], response_class=Response, responses=_ANSWERS | problem_responses(404, 422, 503))
async def track_map(
    service: Service, limit: Points = MOST_POINTS, release: ReleaseName = None, if_none_match: IfNoneMatch = None
) -> Response:
    """The map of the tracks: like ones lie near each other."""
    live = service.releases.named(release).live
    map_ = live.map  # or there is nothing that could have a tag
    tag = f'"{live.name}-{min(limit, len(live.table))}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Segue-Release": live.name}
    if if_none_match is not None and _is_known(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(await service.threads.run(map_.points, limit), media_type=_BYTES, headers=headers)


@router.get(
    "/map/tracks/{position}",
    tags=["tracks"],
    response_model_exclude_none=True,
    responses=problem_responses(404, 422, 503),
)
async def track_on_map(position: Position, service: Service, release: ReleaseName = None) -> TrackBody:
    """The track of a point of the map."""
    live = service.releases.named(release).live
    return TrackBody.of(live.track(live.map.row(position)))


def _is_known(tag: str, header: str) -> bool:
    known = [text.strip().removeprefix("W/") for text in header.split(",")]
    return "*" in known or tag in known
