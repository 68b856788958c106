"""The calls for operators: the service at a moment, what it can be swapped to, and the page that shows both."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service.api.pages import WEB
from service.api.state import Service
from service.ops.status import Operations
from service.problems import problem_responses
from service.releases.bodies import Releases

router = APIRouter()


@router.get("/operations", tags=["operations"])
async def operations(service: Service) -> Operations:
    """The service at this moment: traffic, latency, releases, Redis and the event log, over all workers."""
    return await service.live_state.look()


@router.get("/releases", tags=["releases"], responses=problem_responses(503))
async def releases(service: Service) -> Releases:
    """The releases in the service's folder, for `PUT /releases/current`, and the one that was served before."""
    return await service.releases.listing()


@router.get("/ops", include_in_schema=False)
async def operations_page() -> HTMLResponse:
    """The operator's page: it holds nothing secret, and asks for an admin key where the service has keys."""
    return HTMLResponse((WEB / "ops.html").read_bytes())
