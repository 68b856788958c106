"""The process that serves: it starts the embedded Redis, binds the port, and serves itself or by workers.

A supervisor of workers holds no release and imports none of what serves one, as its memory would be that of another
worker: hence the imports within functions.
"""

import contextlib
import errno
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from types import FrameType
from typing import Any, Final
from urllib.parse import urlsplit

import uvicorn
from uvicorn.supervisors import Multiprocess

from segue.errors import BadOption, BadRelease, SegueError
from service.http.middleware import ANSWER_HEADERS
from service.sessions.embedded_redis import embedded_redis, terminate_with_parent
from service.settings import Settings, as_environment
from service.shutdown import CLOSING_S, end_in_time
from service.telemetry import MULTIPROCESS_DIR, configure_logging

_OTHER_FILES: Final = 256  # of the release, the event log, connections to Redis


def serve(settings: Settings, workers: int = 1, *, open_player: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; prints `http://host:port` on a line of its own once requests are answered.

    `open_player` shows the player page in the user's browser then.

    Raises BadOption, BadRelease or StoreUnavailable with one line if it cannot start.
    """
    configure_logging(settings.log_level, settings.log_hash_key)
    _raise_file_limit(settings.max_connections)
    _check_settings(settings, workers)  # before anything is made: a wrong path shall leave no folder behind
    with contextlib.ExitStack() as opened:
        opened.enter_context(_exit_on_signals())
        if settings.redis_url is None:
            url = opened.enter_context(embedded_redis(**settings.embedded_redis))
            settings = settings.model_copy(update={"redis_url": url})
        listening = opened.enter_context(_bind(settings.host, settings.port))
        opened.enter_context(_announce_address(_address(listening), open_player=open_player))
        if workers == 1:
            _serve_here(settings, listening)
        else:
            _serve_by_workers(settings, workers, listening, opened)


def _raise_file_limit(number: int) -> None:
    """Have the kernel let each process open as many; its usual limit is 1,024 files. Raises BadOption."""
    needed = number + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise BadOption(
                f"max_connections is {number}, and this process may open {hard} files, of which it needs "
                f"{_OTHER_FILES} itself: raise `ulimit -n`, or lower SEGUE_MAX_CONNECTIONS"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_settings(settings: Settings, workers: int) -> None:
    if workers == 1:
        from service import app  # noqa: PLC0415 (see above)

        app.check_settings(settings)
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        try:
            child.submit(_try_in_a_child, settings).result()
        except SegueError as error:
            raise error from None  # where in the child it was raised says nothing to a user
        except BrokenProcessPool:
            raise BadRelease(
                f"{settings.release} ends the process that opens it: it is damaged, or larger than the memory; "
                "copy it again, or serve a smaller one"
            ) from None


def _try_in_a_child(settings: Settings) -> None:
    from service import app  # noqa: PLC0415 (see above)

    terminate_with_parent()
    configure_logging(settings.log_level, settings.log_hash_key)
    app.check_startup(settings)


def _serve_here(settings: Settings, listening: socket.socket) -> None:
    from service.app import create_app  # noqa: PLC0415 (see above)

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
    numbers = opened.enter_context(tempfile.TemporaryDirectory(prefix="segue-metrics-"))
    os.environ.update(as_environment(settings), **{MULTIPROCESS_DIR: numbers})
    config = _uvicorn(settings, "service.app:create_app_from_environment", factory=True, workers=workers)
    supervisor = Multiprocess(config, sockets=[listening])
    end_in_time(settings.shutdown_grace_s + CLOSING_S + 1)  # its workers end first
    supervisor.run()


def _uvicorn(settings: Settings, app: Any, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="service.http.protocol:Connection",
        headers=ANSWER_HEADERS,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning" if settings.log_level != "debug" else "info",
        server_header=False,
        proxy_headers=False,  # nothing asks for a client's address
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        **options,
    )


def _bind(host: str, port: int) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # no name of a host is longer than 63 characters between two dots
        reason = error.strerror if isinstance(error, OSError) else "this is no name of a host"
        raise BadOption(f"{shown} cannot be listened on: {reason}; {_remedy(error, host, port)}") from error
    listening.set_inheritable(True)
    return listening


def _remedy(error: OSError | UnicodeError, host: str, port: int) -> str:
    """What to do about an address that cannot be listened on: the port is at fault only for some errors."""
    if isinstance(error, UnicodeError | socket.gaierror):
        return f"{host!r} names no address of this machine: set --host to one, or to 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return "choose another --port, or 0 for a free one"
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return "set --host to an address of this machine, such as 127.0.0.1"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            f"port {port} is for privileged processes: choose a --port from 1024"
            if port < 1024
            else "its use is denied"
        )
    return "choose another --host or --port"


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _announce_address(address: str, *, open_player: bool) -> Iterator[None]:
    """Print the address as soon as it answers, from a thread: uvicorn does not say when its workers are ready."""
    leaving = threading.Event()
    unspecified = {"http://0.0.0.0:": "http://127.0.0.1:", "http://[::]:": "http://[::1]:"}
    target = address
    for everywhere, here in unspecified.items():
        target = target.replace(everywhere, here)

    def announce() -> None:
        while not leaving.wait(0.05):
            if _is_live(target):
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


def _is_live(address: str) -> bool:
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=0.5)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
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
