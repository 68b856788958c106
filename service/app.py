"""Build the FastAPI app of one worker process.

The lifespan of the app opens the release, a Redis client and the event log, and closes them at shutdown. Importing this
module opens and reads nothing. service/server.py starts the worker processes.
"""

import asyncio
import contextlib
import gc
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from redis.asyncio import Redis, RedisCluster
from starlette.staticfiles import StaticFiles

from index.faiss_gpu import refuse_missing_device
from segue.errors import BadOption, SegueError, StoreUnavailable
from service.api import (
    added_tracks,
    batch,
    operations,
    policies,
    rank,
    recommendations,
    releases,
    sessions,
    stations,
    tracks,
)
from service.api.added_tracks import TrackToAdd
from service.api.batch import BatchRequest
from service.api.rank import RankRequest
from service.api.recommendations import WhatIfRequest
from service.api.releases import SwapRequest
from service.api.sessions import EventsRequest
from service.api.state import AppState
from service.api.stations import StationRequest
from service.api.stream import SessionStreams
from service.api.tracks import Takedown
from service.http import auth, middleware
from service.http.admission_control import AdmissionControl
from service.http.middleware import CrossOrigin, HotRoutes, Measured, Preflight
from service.ops.status import Readiness, RedisStatus, ServiceStatus
from service.problems import answer_problems, describe_problems, only_known_parameters
from service.releases.experiment import Attribution
from service.releases.policies import Policies
from service.releases.registry import ReleaseRegistry, check_servable
from service.releases.served_lists import ServedLists
from service.sessions.embedded_redis import embedded_redis, terminate_with_parent
from service.sessions.event_log import EventLog, open_folder
from service.sessions.redis_server import DurabilityCheck, connect
from service.sessions.store import SessionStore
from service.settings import Settings, read_settings
from service.shutdown import CLOSING_S, end_in_time
from service.telemetry import Telemetry, configure_logging
from service.threads import BlockingCalls, Threads

if TYPE_CHECKING:
    from service.ops.tracing import Tracing

ROUTERS = tuple(
    room.router
    for room in (recommendations, batch, rank, policies, sessions, stations, tracks, added_tracks, releases, operations)
)
HOT_ROUTES = frozenset({"report_events", "recommendations"})

_log = structlog.get_logger()


def create_app(settings: Settings) -> FastAPI:
    """Create the app for `settings`. Its lifespan opens all resources at startup and closes them at shutdown."""
    tracing_class = _tracing_class(settings)
    tracing = tracing_class() if tracing_class is not None else None
    telemetry = Telemetry(tracing.span if tracing is not None else None)
    admission_control = AdmissionControl(
        settings.latency_budget_ms / 1000 or math.inf,
        settings.max_connections,
        settings.read_timeout_s,
        on_rejection=telemetry.shed.inc,
        on_invalid=lambda status: telemetry.requests.labels("any", "none", str(status)).inc(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, AdmissionControl]]:
        try:
            async with contextlib.AsyncExitStack() as opened:
                end_in_time(settings.shutdown_grace_s + CLOSING_S)
                if tracing is not None:
                    opened.push_async_callback(BlockingCalls("traces"), tracing.end)
                app.state.service = await _open(settings, telemetry, opened)
                _freeze_gc()
                yield {"admission_control": admission_control}  # service/http/protocol.py reads it
        except SegueError as error:
            app.state.failure = error  # `serve` reports it in one line
            raise

    app = FastAPI(
        title="Segue",
        summary="Skip-aware next-track recommendations: report plays and skips, ask for what comes next.",
        version=version("segue"),
        lifespan=lifespan,
        servers=[{"url": settings.root_path}] if settings.root_path is not None else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(only_known_parameters)])
    app.mount("/web", operations.without_range(StaticFiles(directory=operations.WEB)), name="web")
    app.mount("/docs/files", operations.without_range(operations.ViewerFiles()), name="docs")
    answer_problems(app, [*app.router.routes, *(route for router in ROUTERS for route in router.routes)])
    known = [route for router in ROUTERS for route in router.routes]
    app.add_middleware(
        HotRoutes, routes=[route for route in known if isinstance(route, APIRoute) and route.name in HOT_ROUTES]
    )
    if auth.is_needed(settings):
        app.add_middleware(auth.Access, settings=settings)
    if middleware.is_needed(settings):
        app.add_middleware(middleware.HostCheckMiddleware, settings=settings)
    if settings.cors_origins:
        app.add_middleware(Preflight, origins=settings.cors_origins)
    app.add_middleware(Measured, telemetry=telemetry, admission_control=admission_control)
    if settings.cors_origins:
        app.add_middleware(CrossOrigin, origins=settings.cors_origins)
    if tracing is not None:
        from service.ops.tracing import Traced  # noqa: PLC0415 (an optional dependency)

        app.add_middleware(Traced, tracer=tracing.tracer)
    _describe(app)
    return app


def _tracing_class(settings: Settings) -> "type[Tracing] | None":
    """Return the class that records traces, or None if tracing is off.

    Tracing needs the extra `segue[tracing]`. Raises BadOption if tracing is on but the extra is not installed.
    """
    if not settings.tracing:
        return None
    try:
        from service.ops.tracing import Tracing  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        raise BadOption(
            f"SEGUE_TRACING=true: {error.name} is missing; in your clone of Segue, run `pip install '.[tracing]'`"
        ) from error
    return Tracing


def create_app_from_environment() -> FastAPI:
    """Create the app from settings in environment variables. uvicorn calls this function in each worker process."""
    terminate_with_parent()
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_hash_key)
    return create_app(settings)


async def _open(settings: Settings, telemetry: Telemetry, opened: contextlib.AsyncExitStack) -> AppState:
    """Open all resources of the app. `opened` closes them in reverse order."""
    if settings.redis_url is None:
        url = opened.enter_context(embedded_redis(**settings.embedded_redis))
        settings = settings.model_copy(update={"redis_url": url})
    threads = Threads(
        settings.ranking_threads,
        settings.ranking_timeout_s,
        on_timeout=telemetry.ranking_timeouts.inc,
        on_stuck=telemetry.ranking_threads_stuck.inc,
    )
    opened.callback(threads.close)
    registry = await BlockingCalls("a release")(ReleaseRegistry, settings, threads, telemetry)
    policies = await BlockingCalls("the policies")(Policies, settings.policies_dir)
    await opened.enter_async_context(_running(policies.watch))
    await opened.enter_async_context(_running(registry.watch))
    for changes in (registry.removed, registry.added):
        await opened.enter_async_context(_running(partial(changes.watch, on_change=registry.apply_changes)))
    opened.callback(registry.leave)
    client = connect(settings)
    opened.push_async_callback(client.aclose)
    await _check_durability(client, settings)
    if settings.event_log and settings.event_log_writer:
        folder = open_folder(settings.event_log_folder)
        await opened.enter_async_context(_running(EventLog(client, folder, settings.event_log_flush_s, telemetry).run))
    live = registry.current.live
    _log.info("release_loaded", release=live.name, tracks=len(live.catalogue), index=live.index_facts["kind"])
    store = SessionStore(client, settings, telemetry)
    opened.push_async_callback(store.aclose)
    served_lists = ServedLists(store, registry, settings.list_log_rate, telemetry) if settings.list_log_rate else None
    if served_lists is not None:
        await opened.enter_async_context(_running(served_lists.run))
    return AppState(
        releases=registry,
        policies=policies,
        attribution=Attribution(store, settings.attribution_sample_rate, telemetry),
        served_lists=served_lists,
        store=store,
        streams=SessionStreams(store),
        threads=threads,
        telemetry=telemetry,
        status=ServiceStatus(RedisStatus(client), registry, settings, telemetry),
        readiness=Readiness(store, registry, threads),
        max_request_bytes=settings.max_request_bytes,
        fallback=settings.fallback == "popularity",
    )


def _freeze_gc() -> None:
    """Exclude all current objects from garbage collection and make collections rare.

    These objects live as long as the process. Scanning them would delay requests by 50 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@contextlib.asynccontextmanager
async def _running(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    leaving = asyncio.Event()
    task = asyncio.create_task(run(leaving))
    try:
        yield
    finally:
        leaving.set()
        await task


def check_settings(settings: Settings) -> None:
    """Raise BadRelease or BadOption for invalid settings, without opening or creating anything."""
    check_servable(settings)
    auth.check(settings)
    _tracing_class(settings)
    if settings.index_device == "gpu":
        refuse_missing_device("SEGUE_INDEX_DEVICE=gpu")


def check_startup(settings: Settings) -> None:
    """Run `check_settings`, load the releases and check Redis, in a child process that exits afterwards.

    The server calls this function before it starts workers, because a worker cannot report why it fails to start.
    Raises the SegueError that would prevent the start.
    """
    check_settings(settings)
    Policies(settings.policies_dir)
    ReleaseRegistry(settings, Threads(1), Telemetry())

    async def ask() -> None:
        client = connect(settings)
        try:
            await _check_durability(client, settings)
        finally:
            await client.aclose()

    if settings.redis_url is not None:
        asyncio.run(ask())


async def _check_durability(client: "Redis | RedisCluster", settings: Settings) -> None:
    """Raise BadOption if Redis is less durable than SEGUE_DURABILITY requires.

    If Redis is unreachable, log a warning that says what clients get. The readiness check repeats the test later.
    """
    try:
        await DurabilityCheck(client, settings.durability).check()
    except StoreUnavailable as error:
        served = "the most played tracks" if settings.fallback == "popularity" else "a 503"
        _log.warning(
            "redis_unreachable",
            reason=error.reason,
            until_it_answers=f"events get a 503, recommendations are {served}, and /health/ready fails",
        )


def _describe(app: FastAPI) -> None:
    """Add problem responses, access rules and the schemas of request bodies to the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            describe_problems(schema)
            auth.describe_access(schema)
            schemas = schema["components"]["schemas"]
            bodies = (
                *(BatchRequest, EventsRequest, RankRequest, StationRequest),
                *(SwapRequest, Takedown, TrackToAdd, WhatIfRequest),
            )
            for model in bodies:
                body = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(body.pop("$defs", {}))
                schemas[model.__name__] = body
            schema["components"]["schemas"] = dict(sorted(schemas.items()))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def openapi_yaml() -> str:
    """Return the contents of `openapi.yaml`, the API description of the app. The output is deterministic."""
    import yaml  # noqa: PLC0415 (only this function needs it)

    app = create_app(Settings(release=Path("release")))
    text: str = yaml.safe_dump(app.openapi(), sort_keys=False, allow_unicode=True, width=120)
    return text
