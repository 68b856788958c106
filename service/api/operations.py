"""Health, metrics and status of the service; and its pages: the player, the operations page, the API viewer at `/docs`.

The viewer is Swagger UI (https://swagger.io/tools/swagger-ui/, 2026). Its files come from the package fastapi-offline,
so it works without a network.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.state import Service
from service.ops.status import Operations
from service.problems import problem_responses

router = APIRouter()

WEB: Final = Path(__file__).parents[1] / "web"
_PACKAGE: Final = "fastapi_offline"
_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})  # no page needs the package's other files


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


@router.get("/operations", tags=["operations"], responses=problem_responses(503))
async def operations(service: Service) -> Operations:
    """Return the status of the service: traffic, latency, releases, Redis and the event log, over all workers."""
    return await service.status.look()


# --- pages ---


@router.get("/", include_in_schema=False)
async def player() -> HTMLResponse:
    """The player page."""
    return HTMLResponse((WEB / "index.html").read_bytes())


@router.get("/ops", include_in_schema=False)
async def operations_page() -> HTMLResponse:
    """The operations page. It contains nothing secret, and asks for an admin key if the service has API keys."""
    return HTMLResponse((WEB / "ops.html").read_bytes())


@router.get("/docs", include_in_schema=False)
async def api_viewer() -> HTMLResponse:
    """The API viewer. It reads `openapi.json`."""
    return HTMLResponse((WEB / "docs.html").read_bytes())


class ViewerFiles(StaticFiles):
    """The files of Swagger UI that the page loads."""

    def __init__(self) -> None:
        found = find_spec(_PACKAGE)  # finds the folder without importing the package
        if found is None or found.origin is None:
            raise ModuleNotFoundError(
                f"{_PACKAGE} is missing, whose files the API viewer needs: pip install {_PACKAGE}"
            )
        super().__init__(directory=Path(found.origin).parent / "static")

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """The file of a path. Files that the page does not load are not found."""
        return super().lookup_path(path) if path in _FILES else ("", None)


def without_range(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that it ignores `Range`, because Starlette answers an invalid range in plain text."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [line for line in scope["headers"] if line[0] != b"range"]
        await app({**scope, "headers": headers}, receive, send)

    return answer
