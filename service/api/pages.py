"""Pages that are not part of the API: the player with its session stream, and the API viewer at `/docs`.

The viewer is Swagger UI (https://swagger.io/tools/swagger-ui/, 2026). Its files come from the package fastapi-offline,
so it works without a network.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from service.api.state import Service, SessionId
from service.api.stream import SessionStreams
from service.http.admission_control import AdmissionControl
from service.problems import NotAcceptable, problem_responses

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


WEB = Path(__file__).parents[1] / "web"

_EVENTS = "text/event-stream"

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {_EVENTS: {"schema": {"type": "string"}}},
        "description": "Server-sent events: `session`, whose data are as GET /sessions/{session_id} answers them, "
        "without plays where there are none; `away` while the session store is",
    }
}


@router.get("/", include_in_schema=False)
async def player() -> HTMLResponse:
    """The player page."""
    return HTMLResponse((WEB / "index.html").read_bytes())


@router.get(
    "/sessions/{session_id}/stream",
    tags=["sessions"],
    response_class=StreamingResponse,
    responses=_ANSWERS | problem_responses(406, 422, 503),
)
async def watch_session(session_id: SessionId, service: Service, request: Request) -> StreamingResponse:
    """The plays of a session now and after each change, for five minutes or as long as the client listens.

    To be asked with `Accept: text/event-stream`: a client that knows nothing of it would wait for an end.
    """
    if _EVENTS not in request.headers.get("accept", ""):
        raise NotAcceptable(f"this answer has no end: ask for it with Accept: {_EVENTS}")
    door: AdmissionControl = request.state.door
    answer = _Stream(service.streams, session_id, door)
    door.stay_outside(request.scope)
    return answer


class _Stream(StreamingResponse):
    """A session's changes, for as long as they are listened to. It has its place from when it is made."""

    def __init__(self, streams: SessionStreams, session_id: str, door: AdmissionControl) -> None:
        """Raises Overloaded where no other can be opened."""
        streams.acquire_slot()
        self._streams = streams
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would gather them
        super().__init__(streams.changes(session_id, door.closing), media_type=_EVENTS, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. A client may have gone before the first."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.release_slot()
