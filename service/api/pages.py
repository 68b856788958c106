"""The pages: the player, the operations page, and the API viewer at `/docs`.

The viewer is Swagger UI (https://swagger.io/tools/swagger-ui/, 2026). Its files come from the package fastapi-offline,
so it works without a network.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

WEB: Final = Path(__file__).parents[1] / "web"
_PACKAGE: Final = "fastapi_offline"
_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})  # no page needs the package's other files

router = APIRouter()


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
