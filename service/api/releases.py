"""Releases: which one is current, which ones there are, and swapping to another."""

from typing import Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.api.json_body import JsonBody, described_body, read_json
from service.api.state import AppState, Service
from service.problems import problem_responses
from service.releases.folder import ReleaseBody, ReleaseList
from service.releases.loaded import LoadedRelease
from service.settings import FOLDER_NAME_PATTERN

router = APIRouter()


class LiveReleaseBody(BaseModel):
    """A live release: one that answers sessions."""

    name: str = Field(description="Its name in answers and in the parameter `release`")
    folder: str
    model: str
    loss: dict[str, Any] | None = Field(description="The training loss")
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
            has_map=live.has_map,
        )


class CurrentReleaseBody(ReleaseBody):
    """The current release, and all live ones."""

    live: list[LiveReleaseBody] = Field(
        description="The current release first, then the challenger of an A/B test (`SEGUE_EXPERIMENT`)"
    )

    @classmethod
    def of_all(cls, live: list[tuple[LoadedRelease, float]]) -> Self:
        """The body for the live releases, the current one first, each with its share of the sessions."""
        current, _ = live[0]
        return cls(
            **ReleaseBody.of(current).model_dump(),
            live=[LiveReleaseBody.of(one, share) for one, share in live],
        )


class SwapRequest(JsonBody):
    """Which release to swap to."""

    max_items = 0
    max_bytes = 4096
    remedy = "send the name of a release"

    name: str = Field(
        pattern=FOLDER_NAME_PATTERN,
        description="The release's folder in SEGUE_RELEASES_DIR",
        examples=["sasrec-2026-11"],
    )
    end_experiment: bool = Field(
        default=False,
        description="End the running A/B test. Without it, a swap that would change one of its releases gets a 409",
    )


@router.get("/releases", tags=["releases"], responses=problem_responses(503))
async def releases(service: Service) -> ReleaseList:
    """List the releases that you can swap to, and the one to roll back to."""
    return await service.releases.listing()


@router.get("/releases/current", tags=["releases"])
async def current_release(service: Service) -> CurrentReleaseBody:
    """Return the current release. In an A/B test some sessions get another one, which their answers name."""
    return _current(service)


@router.put(
    "/releases/current",
    tags=["releases"],
    responses=problem_responses(404, 409, 413, 415, 422, 503),
    openapi_extra=described_body(SwapRequest),
)
async def swap_release(request: Request) -> CurrentReleaseBody:
    """Swap to another release, once it is verified and warm. If it is rejected, the current release stays live.

    While an A/B test is running, a swap ends it and needs `end_experiment`. All sessions then get the new release.
    """
    service: AppState = request.app.state.service
    wanted = await read_json(SwapRequest, request.scope["headers"], request.receive, service.max_request_bytes)
    await service.releases.swap(wanted.name, end_experiment=wanted.end_experiment)
    return _current(service)


def _current(service: AppState) -> CurrentReleaseBody:
    return CurrentReleaseBody.of_all([(active.live, share) for active, share in service.releases.live()])
