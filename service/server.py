"""The server process: start the embedded Redis, bind the port, and serve in this process or in worker processes.

With several workers, this process only supervises them. It does not load a release or import the serving code, because
that would use as much memory as one more worker. Some imports are therefore inside functions.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from types import FrameType
from typing import Any, Final
from urllib.parse import urlsplit

import uvicorn
from uvicorn.supervisors import Multiprocess

from segue.errors import BadOption, BadRelease, SegueError
from service.http.middleware import RESPONSE_HEADERS
from service.sessions.embedded_redis import embedded_redis, terminate_with_parent
from service.settings import Settings, as_environment
from service.shutdown import CLOSING_S, end_in_time
from service.telemetry import MULTIPROCESS_DIR, configure_logging

_REDIS_PORT: Final = 6379
_OTHER_FILES: Final = 256  # file descriptors for the release, the event log and connections to Redis


def serve(
    settings: Settings,
    workers: int = 1,
    *,
    open_player: bool = False,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Print the line `http://host:port` when the service is ready.

    `open_player` opens the player page in the user's browser when the service is ready. `announce` is called with the
    address in place of printing it.

    Raises BadOption, BadRelease or StoreUnavailable with a one-line message if the service cannot start.
    """
    configure_logging(settings.log_level, settings.log_hash_key)
    _raise_file_limit(settings.max_connections)
    _check_settings(settings, workers)  # first, so that a wrong path leaves no new folder behind
    with contextlib.ExitStack() as opened:
        opened.enter_context(_exit_on_signals())
        if settings.redis_url is None:
            url = opened.enter_context(embedded_redis(**settings.embedded_redis))
            settings = settings.model_copy(update={"redis_url": url})
        listening = opened.enter_context(_bind(settings.host, settings.port))
        announcement = partial(_print_address, settings) if announce is None else announce
        opened.enter_context(_announce_address(_address(listening), announcement, open_player=open_player))
        if workers == 1:
            _serve_in_process(settings, listening)
        else:
            _serve_with_workers(settings, workers, listening, opened)


def _raise_file_limit(number: int) -> None:
    """Raise the limit of open files so that `number` connections fit. Raises BadOption if the hard limit is too low.

    The usual default of the limit is 1,024 files.
    """
    needed = number + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise BadOption(
                f"max_connections is {number}, but this process may open only {hard} files and needs {_OTHER_FILES} "
                "for other purposes: raise `ulimit -n`, or lower SEGUE_MAX_CONNECTIONS"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_settings(settings: Settings, workers: int) -> None:
    if workers == 1:
        from service import app  # noqa: PLC0415 (a supervisor must not import it)

        app.check_settings(settings)
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        try:
            child.submit(_check_in_child, settings).result()
        except SegueError as error:
            raise error from None  # the child's traceback does not help a user
        except BrokenProcessPool:
            raise BadRelease(
                f"{settings.release} crashes the process that loads it: it is damaged or does not fit into memory; "
                "copy it again, or serve a smaller one"
            ) from None


def _check_in_child(settings: Settings) -> None:
    from service import app  # noqa: PLC0415 (a supervisor must not import it)

    terminate_with_parent()
    configure_logging(settings.log_level, settings.log_hash_key)
    app.check_startup(settings)


def _serve_in_process(settings: Settings, listening: socket.socket) -> None:
    from service.app import create_app  # noqa: PLC0415 (a supervisor must not import it)

    app = create_app(settings)
    # The code below raises a startup failure again, and the command reports it in one line. Without this filter,
    # uvicorn would also log the traceback.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not hasattr(app.state, "failure"))
    try:
        uvicorn.Server(_uvicorn_config(settings, app)).run(sockets=[listening])
    except SystemExit as leaving:
        failure = getattr(app.state, "failure", None)
        if failure is not None:
            raise failure from None
        if leaving.code:
            raise


def _serve_with_workers(
    settings: Settings, workers: int, listening: socket.socket, opened: contextlib.ExitStack
) -> None:
    metrics_folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="segue-metrics-"))
    os.environ.update(as_environment(settings), **{MULTIPROCESS_DIR: metrics_folder})
    config = _uvicorn_config(settings, "service.app:create_app_from_environment", factory=True, workers=workers)
    supervisor = Multiprocess(config, sockets=[listening])
    end_in_time(settings.shutdown_grace_s + CLOSING_S + 1)  # one second more than the limit of the workers
    supervisor.run()


def _uvicorn_config(settings: Settings, app: Any, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="service.http.protocol:Connection",
        headers=RESPONSE_HEADERS,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning" if settings.log_level != "debug" else "info",
        server_header=False,
        proxy_headers=False,  # nothing uses the client's address
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        **options,
    )


def _bind(host: str, port: int) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of the host name has more than 63 characters
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise BadOption(f"cannot listen on {shown}: {reason}; {_remedy(error, host, port)}") from error
    listening.set_inheritable(True)
    return listening


def _remedy(error: OSError | UnicodeError, host: str, port: int) -> str:
    """Return advice for the error message if the address cannot be bound. The host or the port may be the cause."""
    if isinstance(error, UnicodeError | socket.gaierror):
        return f"{host!r} is not an address of this machine: set --host to one, or to 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return "choose another --port, or 0 for a free one"
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return "set --host to an address of this machine, such as 127.0.0.1"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            f"port {port} requires privileges: choose a --port of 1024 or above"
            if port < 1024
            else "permission was denied"
        )
    return "choose another --host or --port"


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _announce_address(address: str, announce: Callable[[str], None], *, open_player: bool) -> Iterator[None]:
    """Announce the address as soon as the service responds. `open_player` also opens the address in a browser.

    A thread polls the service, because uvicorn does not report when its workers are ready.
    """
    leaving = threading.Event()
    unspecified = {"http://0.0.0.0:": "http://127.0.0.1:", "http://[::]:": "http://[::1]:"}
    target = address
    for any_address, loopback in unspecified.items():
        target = target.replace(any_address, loopback)

    def poll() -> None:
        while not leaving.wait(0.05):
            if _status(target, "/health/live") == HTTPStatus.OK:
                announce(address)
                if open_player:
                    webbrowser.open(target)
                return

    thread = threading.Thread(target=poll, name="announce", daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


def _status(address: str, path: str) -> int | None:
    """Return the status of the response to GET `path`; None without a response."""
    url = urlsplit(address)
    connection = HTTPConnection(url.hostname or "", url.port, timeout=0.5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _print_address(settings: Settings, address: str) -> None:
    """Print the address. On a terminal, a line before it says if Redis is not reachable. The log says so as JSON."""
    if sys.stderr.isatty() and settings.redis_url is not None and not _accepts_connections(settings.redis_url):
        url = urlsplit(settings.redis_url)
        does = "serving the most played tracks" if settings.fallback == "popularity" else "requests get a 503"
        sys.stderr.write(f"Redis at {url.hostname}:{url.port or _REDIS_PORT} is not reachable; {does}.\n")
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()


def _accepts_connections(redis_url: str) -> bool:
    url = urlsplit(redis_url)
    if url.hostname is None:  # a Unix socket
        return True
    try:
        socket.create_connection((url.hostname, url.port or _REDIS_PORT), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Convert SIGTERM and SIGINT to SystemExit within the block, so that all context managers close their resources."""

    def leave(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of signal handlers)
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
