"""Stations of sessions, and bans of listeners: their calls, and what they mean for a list of recommendations."""

from dataclasses import replace
from typing import Annotated, Final, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field, WithJsonSchema

from segue.sessions import SESSION_ID_PATTERN, Preferences
from service.api.json_body import JsonBody, described_body, read_json
from service.api.state import AppState, Service, SessionId
from service.api.stream import MAX_SEED_ARTISTS, MAX_SEED_TRACKS, StationBody
from service.problems import problem_responses
from service.releases.loaded import LoadedRelease
from service.releases.stations import Pull

router = APIRouter()

_SEEDS: Final = MAX_SEED_TRACKS + MAX_SEED_ARTISTS

ListenerIdQuery = Annotated[
    str | None,
    Query(
        pattern=SESSION_ID_PATTERN,
        description="The listener, whose bans hold. Default: the one that the session's events named",
    ),
    WithJsonSchema({"type": "string", "pattern": SESSION_ID_PATTERN}),
]
ListenerId = Annotated[
    str, PathParameter(pattern=SESSION_ID_PATTERN, description="Your id of the listener", examples=["l-7"])
]


class Wishes(NamedTuple):
    """What a listener's preferences mean for a list."""

    exclude: list[str]
    station: Pull | None
    unknown: list[str]  # seeds that the release does not know


async def wishes_of(
    service: AppState, live: LoadedRelease, preferences: Preferences | None, asked: StationBody | None = None
) -> Wishes:
    """What preferences mean for a list. `asked` replaces their station.

    Raises UnknownSeeds if `asked` has no seed that the release knows.
    """
    known = preferences or Preferences()
    unknown: list[str] = []
    if asked is not None:
        known = replace(known, station=asked.station)
        unknown = await _unknown_seeds(service, live, asked)
    pull = known.pull
    artists = () if pull is None else pull.artists
    if not live.seeds.is_ready(artists, known.artist_bans):
        await service.without_model(live.seeds.find, artists, known.artist_bans)
    exclude = known.unwanted
    if known.artist_bans:
        exclude += live.seeds.of_same_artist(known.artist_bans)
    return Wishes(exclude, None if pull is None else live.seeds.pull(pull)[0], unknown)


async def _unknown_seeds(service: AppState, live: LoadedRelease, asked: StationBody) -> list[str]:
    """The seeds that the release does not know. Raises UnknownSeeds if it knows none."""
    if not live.seeds.is_ready(asked.artists):
        await service.without_model(live.seeds.find, asked.artists)
    return live.seeds.known_pull(asked.station)[1]


# --- calls ---


class StationRequest(JsonBody, StationBody):
    """Seeds that pull the recommendations of a session."""

    max_items = _SEEDS
    remedy = f"send at most {MAX_SEED_TRACKS} tracks and {MAX_SEED_ARTISTS} artists"


class StationAnswer(BaseModel):
    """The station of a session."""

    session_id: str
    station: StationBody
    unknown: list[str] = Field(description="Seeds that the release does not know. A later release may know them")


class ListenerBody(BaseModel):
    """What is stored of a listener."""

    listener_id: str
    bans: list[str] = Field(description="Banned tracks, oldest first")
    artist_bans: list[str] = Field(description="Tracks whose artists are banned, oldest first")


@router.put(
    "/sessions/{session_id}/station",
    tags=["sessions"],
    responses=problem_responses(404, 413, 415, 422, 503),
    openapi_extra=described_body(StationRequest),
)
async def set_station(session_id: SessionId, service: Service, request: Request) -> StationAnswer:
    """Bind a session to seeds: tracks, artists or a playlist. They replace the seeds that it had.

    They pull its recommendations by `weight` until the session ends. A session without plays is answered by the seeds
    alone.
    """
    asked = await read_json(StationRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    unknown = await _unknown_seeds(service, service.releases.for_session(session_id).live, asked)
    await service.store.set_station(session_id, asked.station)
    return StationAnswer(session_id=session_id, station=StationBody.of(asked.station), unknown=unknown)


@router.delete(
    "/sessions/{session_id}/station",
    tags=["sessions"],
    status_code=204,
    response_class=Response,
    responses=problem_responses(422, 503),
)
async def remove_station(session_id: SessionId, service: Service) -> Response:
    """Remove the station of a session. Its plays, likes, dislikes and bans stay."""
    await service.store.set_station(session_id, None)
    return Response(status_code=204)


@router.get("/listeners/{listener_id}", tags=["listeners"], responses=problem_responses(422, 503))
async def listener(listener_id: ListenerId, service: Service) -> ListenerBody:
    """Return what is stored of a listener: the bans, which hold in all sessions. Empty for an unknown listener."""
    bans = await service.store.listeners.bans(listener_id)
    return ListenerBody(listener_id=listener_id, bans=bans.tracks, artist_bans=bans.artists)


@router.delete(
    "/listeners/{listener_id}",
    tags=["listeners"],
    status_code=204,
    response_class=Response,
    responses=problem_responses(422, 503),
)
async def erase_listener(listener_id: ListenerId, service: Service) -> Response:
    """Erase the bans of a listener. Sessions are erased by `DELETE /sessions/{session_id}`."""
    await service.store.listeners.erase(listener_id)
    return Response(status_code=204)
