"""The app, and the process that serves it: what is opened, in which order, and who closes it.

`serve` (the parent) starts the embedded Redis and binds the port; each worker's lifespan opens the release, a client
of Redis and the event log. Nothing is opened or read at import.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles
from uvicorn.supervisors import Multiprocess

from segue.errors import BadOption, SegueError
from service import access
from service.bodies import EventsRequest, SwapRequest
from service.credits import Credits
from service.dependencies import Parts
from service.embedded_redis import die_with_parent, embedded_redis
from service.event_log import EventLog, open_folder
from service.middleware import LimitedBody, Measured
from service.problems import answer_problems, describe_problems
from service.quick_path import QuickPath
from service.releases import LiveReleases, refuse_nothing_to_serve
from service.request_head import BoundedHead
from service.routes import WEB, router
from service.session_store import SessionStore, connect
from service.settings import Settings, as_environment, read_settings
from service.telemetry import MULTIPROCESS_DIR, Telemetry, configure_logging
from service.threads import Threads

_log = structlog.get_logger()


def create_app(settings: Settings) -> FastAPI:
    """The app for these settings. What it needs is opened when it starts and closed when it ends."""
    telemetry = Telemetry()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with contextlib.AsyncExitStack() as opened:
                app.state.parts = await _open(settings, telemetry, opened)
                _spare_the_collector()
                yield
        except SegueError as error:
            app.state.failure = error  # for `serve`, which says it in one line
            raise

    app = FastAPI(
        title="Segue",
        summary="Skip-aware next-track recommendations: report plays and skips, ask for what comes next.",
        version=version("segue"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(router)
    app.mount("/web", StaticFiles(directory=WEB), name="web")
    answer_problems(app, [*app.router.routes, *router.routes])
    app.add_middleware(LimitedBody, max_bytes=settings.max_request_bytes)
    app.add_middleware(
        QuickPath,
        routes={route.name: route for route in router.routes if isinstance(route, APIRoute)},
        max_bytes=settings.max_request_bytes,
    )
    if access.is_needed(settings):
        app.add_middleware(access.Access, settings=settings)
    app.add_middleware(Measured, telemetry=telemetry)
    _describe(app)
    return app


def create_app_from_environment() -> FastAPI:
    """The app for the settings in the environment; how uvicorn's workers make theirs."""
    die_with_parent()
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_key)
    return create_app(settings)


async def _open(settings: Settings, telemetry: Telemetry, opened: contextlib.AsyncExitStack) -> Parts:
    """Open the parts; `opened` closes them in the opposite order."""
    if settings.redis_url is None:
        url = opened.enter_context(embedded_redis(settings.data_dir / "redis", settings.redis_fsync))
        settings = settings.model_copy(update={"redis_url": url})
    threads = Threads(settings.ranking_threads)
    releases = await asyncio.to_thread(LiveReleases, settings, threads, telemetry)
    await opened.enter_async_context(_running(releases.watch))
    client = connect(settings)
    opened.push_async_callback(client.aclose)
    if settings.event_log and settings.event_log_writer:
        folder = open_folder(settings.event_log_folder)
        await opened.enter_async_context(_running(EventLog(client, folder, settings.event_log_flush_s, telemetry).run))
    live = releases.current.live
    _log.info("release_opened", release=live.name, tracks=len(live.table), index=live.index_facts()["kind"])
    store = SessionStore(client, settings, telemetry.time_redis)
    return Parts(releases, Credits(store, settings.credit_share, telemetry), store, threads, telemetry)


def _spare_the_collector() -> None:
    """Keep the garbage collector off what lives as long as the process: going through it stops requests for 50 ms."""
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


def serve(settings: Settings, workers: int = 1, *, open_player: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; prints `http://host:port` on a line of its own once requests are answered.

    `open_player` shows the player page in the user's browser then.

    Raises BadOption, BadRelease or StoreUnavailable with one line if it cannot start.
    """
    configure_logging(settings.log_level, settings.log_key)
    refuse_nothing_to_serve(settings)  # before anything is made: a wrong path shall leave no folder behind
    access.check(settings)
    with contextlib.ExitStack() as opened:
        opened.enter_context(_ended_by_signals())
        if settings.redis_url is None:
            url = opened.enter_context(embedded_redis(settings.data_dir / "redis", settings.redis_fsync))
            settings = settings.model_copy(update={"redis_url": url})
        listening = opened.enter_context(_bind(settings.host, settings.port))
        opened.enter_context(_announced(_address(listening), open_player=open_player))
        if workers == 1:
            _serve_here(settings, listening)
        else:
            _serve_by_workers(settings, workers, listening, opened)


def _serve_here(settings: Settings, listening: socket.socket) -> None:
    app = create_app(settings)
    # A failure to start is raised below and said in one line; uvicorn would log its traceback as well.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not hasattr(app.state, "failure"))
    try:
        uvicorn.Server(_uvicorn(settings, app)).run(sockets=[listening])
    except SystemExit as leaving:
        failure = getattr(app.state, "failure", None)
        if failure is not None:
            raise failure from None
        if leaving.code:
            raise


def _serve_by_workers(settings: Settings, workers: int, listening: socket.socket, opened: contextlib.ExitStack) -> None:
    # A worker cannot say why it failed to start, so whatever is wrong with the release is found here.
    LiveReleases(settings, Threads(1), Telemetry())
    numbers = opened.enter_context(tempfile.TemporaryDirectory(prefix="segue-metrics-"))
    os.environ.update(as_environment(settings), **{MULTIPROCESS_DIR: numbers})
    config = _uvicorn(settings, "service.app:create_app_from_environment", factory=True, workers=workers)
    Multiprocess(config, sockets=[listening]).run()


def _uvicorn(settings: Settings, app: Any, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedHead,
        headers=access.HEADERS,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning" if settings.log_level != "debug" else "info",
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
        **options,
    )


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise BadOption(
            f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port, or 0 for a free one"
        ) from error
    listening.set_inheritable(True)
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _announced(address: str, *, open_player: bool) -> Iterator[None]:
    """Print the address as soon as it answers, from a thread: uvicorn does not say when its workers are ready."""
    leaving = threading.Event()
    unspecified = {"http://0.0.0.0:": "http://127.0.0.1:", "http://[::]:": "http://[::1]:"}
    target = address
    for everywhere, here in unspecified.items():
        target = target.replace(everywhere, here)

    def announce() -> None:
        with httpx.Client(trust_env=False, timeout=0.5) as client:
            while not leaving.wait(0.05):
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{target}/health/live").status_code == 200:
                        sys.stdout.write(f"{address}\n")
                        sys.stdout.flush()
                        if open_player:
                            webbrowser.open(target)
                        return

    thread = threading.Thread(target=announce, name="announce", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave by SystemExit on SIGTERM and SIGINT, so that everything opened is closed, whatever runs at the time."""

    def leave(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (what signal.signal calls)
        raise SystemExit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as leaving:
        if leaving.code:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(app: FastAPI) -> None:
    """Add to the OpenAPI document what FastAPI cannot know."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            describe_problems(schema)
            access.describe_access(schema)
            schemas = schema["components"]["schemas"]
            for model in (EventsRequest, SwapRequest):
                body = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(body.pop("$defs", {}))
                schemas[model.__name__] = body
            schema["components"]["schemas"] = dict(sorted(schemas.items()))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def openapi_yaml() -> str:
    """`openapi.yaml`: what the app says of itself; the same text each time."""
    import yaml  # noqa: PLC0415 (needed by this command alone)

    app = create_app(Settings(release=Path("release")))
    text: str = yaml.safe_dump(app.openapi(), sort_keys=False, allow_unicode=True, width=120)
    return text
