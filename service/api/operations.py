"""Operations: health, metrics, and the status of the service."""

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.api.state import Service
from service.ops.status import Operations
from service.problems import problem_responses

router = APIRouter()


class Health(BaseModel):
    """The service is healthy."""

    status: Literal["live", "ready"]


@router.get("/health/live", tags=["operations"])
async def live() -> Health:
    """Check that the process answers."""
    return Health(status="live")


@router.get("/health/ready", tags=["operations"], responses=problem_responses(503))
async def ready(service: Service) -> Health:
    """Check that requests can be served: Redis accepts a write with the promised durability, and the release ranks."""
    await service.readiness.check()
    return Health(status="ready")


@router.get(
    "/metrics",
    tags=["operations"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text"}},
)
async def metrics(service: Service) -> Response:
    """Return the Prometheus metrics of all workers."""
    return Response(service.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/operations", tags=["operations"])
async def operations(service: Service) -> Operations:
    """Return the status of the service: traffic, latency, releases, Redis and the event log, over all workers."""
    return await service.status.look()
