"""The API viewer at `/docs`: Swagger UI, with its files from the package fastapi-offline, so it works offline.

https://swagger.io/tools/swagger-ui/ (2026)
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service.api.player import WEB

_PACKAGE: Final = "fastapi_offline"
_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})  # the package has others, which no page needs

router = APIRouter()


@router.get("/docs", include_in_schema=False)
async def api_viewer() -> HTMLResponse:
    """The viewer's page. It reads `openapi.json`."""
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
