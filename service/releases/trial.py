"""Validation of a release in a child process, before a worker loads it.

C++ libraries (ONNX Runtime, FAISS) read the encoder and the index. A malicious or damaged file may crash or hang the
process that loads the file. Validation therefore runs in a child process with time and memory limits.

Python's `forkserver` forks the child process. The fork server starts with the first validation and has already imported
all libraries, so validation takes about as long as loading the release.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadRelease, SegueError, SwapRefused
from segue.sessions import Outcome, Play
from service.batching import MAX_BATCH_SIZE
from service.releases.loaded import LoadedRelease, Question, load_release
from service.sessions.embedded_redis import terminate_with_parent

_SPARE_BYTES: Final = 2 * 2**30  # memory on top of the address space in use before loading
_SIZE_FACTOR: Final = 4  # bytes of memory per byte of the release, for mapped files, copies and ONNX Runtime
_MAX_LINE: Final = 4096
_MAX_REASON: Final = 200
_STDERR_BYTES: Final = 65_536  # capacity of a pipe
_POLL_INTERVAL_S: Final = 0.1  # how often to check if the service shuts down
_K: Final = 100  # maximum k of a request
_SESSION_PLAYS: Final = 1000  # default of SEGUE_MAX_SESSION_PLAYS
_TRACKS_READ: Final = 10_000  # tracks whose metadata is read
_VALID: Final = b"valid"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def validate_in_child(path: Path, limit_s: float, leaving: threading.Event | None = None) -> None:
    """Load a release in a child process and run test queries, within `limit_s` seconds. Blocks until the child ends.

    The child always searches the index on the CPU. Raises BadRelease with a one-line message if the release is invalid,
    and SwapRefused as soon as `leaving` is set.
    """
    receiver, sender = _context.Pipe(duplex=False)
    errors, stderr = _context.Pipe(duplex=False)
    service_ends, held_open = _context.Pipe(duplex=False)
    arguments = (path, sender, stderr, service_ends, limit_s)
    child = _context.Process(target=_try, args=arguments, name="release-trial", daemon=True)
    with receiver, errors, held_open:
        with sender, stderr, service_ends:
            child.start()
        try:
            reply = receiver.recv_bytes(_MAX_LINE) if _wait_for_reply(receiver, limit_s, leaving) else None
        except (EOFError, OSError):  # the child sent no reply or an invalid reply
            reply = b""
        finally:
            child.kill()
            child.join()
        last_line = _last_line(errors)
    if reply is None:
        raise BadRelease(
            f"{path} does not respond within {limit_s:g} s: it is damaged, or too large for "
            "SEGUE_RELEASE_VALIDATION_TIMEOUT_S"
        )
    if not reply:
        raise BadRelease(
            f"{path} crashes the process that loads it ({_exit_text(child.exitcode)}): "
            f"{last_line or _likely_cause(child.exitcode)}; copy it again, or serve a smaller one"
        )
    if reply != _VALID:
        raise BadRelease(reply.decode(errors="replace").partition("\n")[0])


def _wait_for_reply(receiver: Connection, limit_s: float, leaving: threading.Event | None) -> bool:
    """Return True if a reply arrives within `limit_s` seconds. Raises SwapRefused if the service shuts down."""
    until = time.monotonic() + limit_s
    while (left_s := until - time.monotonic()) > 0:
        if leaving is not None and leaving.is_set():
            raise SwapRefused("the service is shutting down: retry the swap after the restart")
        if receiver.poll(min(left_s, _POLL_INTERVAL_S)):
            return True
    return False


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0 and -code != signal.SIGKILL:  # this module itself sends SIGKILL
        return signal.Signals(-code).name
    return "killed" if code is not None and code < 0 else f"exit code {code}"


def _likely_cause(code: int | None) -> str:
    """Return the likely cause of a crash if the child wrote nothing to stderr."""
    if code is not None and code > 0:
        return "the error is on stderr of the service"
    return "it is damaged or does not fit into memory"


def _last_line(errors: Connection) -> str:
    """Return the last line that the child wrote to stderr before it exited, or an empty string."""
    os.set_blocking(errors.fileno(), False)  # a process that the child started may keep the pipe open
    try:
        lines = os.read(errors.fileno(), _STDERR_BYTES).decode(errors="replace").split("\n")
    except BlockingIOError:
        return ""
    return next((line.strip()[:_MAX_REASON] for line in reversed(lines) if line.strip()), "")


def _try(path: Path, sender: Connection, stderr: Connection, service_ends: Connection, limit_s: float) -> None:
    terminate_with_parent()
    # The fork server lives on while this process does, and may have started it after the service has ended.
    threading.Thread(target=_exit_at_end_of, args=(service_ends,), daemon=True).start()
    os.set_blocking(stderr.fileno(), False)  # if the pipe is full, further lines are dropped
    os.dup2(stderr.fileno(), 2)
    _set_limits(path, limit_s)
    try:
        _query(load_release(path))
        outcome = _VALID
    except SegueError as error:
        outcome = str(error).encode(errors="replace")
    except Exception as error:  # noqa: BLE001 (any error is caused by the release)
        reason = (str(error).splitlines() or [""])[0][:_MAX_REASON]
        outcome = f"{path} fails when it is queried: {type(error).__name__} {reason}".encode(errors="replace")
    sender.send_bytes(outcome[:_MAX_LINE])


def _exit_at_end_of(service_ends: Connection) -> None:
    """Exit when the service has closed its end of this pipe, or has been killed."""
    with contextlib.suppress(EOFError, OSError):
        service_ends.recv_bytes(_MAX_LINE)
    os._exit(1)


def _set_limits(path: Path, limit_s: float) -> None:
    """Limit the CPU time and memory of the child process, lower its priority, and discard its stdout."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # ends the child even if the parent process has exited
    os.environ["POLARS_MAX_THREADS"] = "1"  # each thread reserves address space, which RLIMIT_AS counts
    with contextlib.suppress(OSError):  # /proc exists only on Linux
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        size = sum(file.stat().st_size for file in path.iterdir())
        limit = mapped + _SPARE_BYTES + _SIZE_FACTOR * size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.nice(5)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)


def _query(live: LoadedRelease) -> None:
    """Run all kinds of queries that requests run: batches, the longest session, similar tracks and text search."""
    tracks = len(live.catalogue)
    for row in _rows(tracks, _TRACKS_READ):
        live.track(row)
    ids = [live.catalogue.track_id(row) for row in _rows(tracks, MAX_BATCH_SIZE)]
    live.answer([Question([Play(track_id)], _K) for track_id in ids])
    skipped = [Play(track_id, Outcome.SKIPPED) for track_id in ids]
    longest = (skipped + [Play(track_id) for track_id in ids]) * (_SESSION_PLAYS // max(1, 2 * len(ids)))
    for plays in (longest, skipped, longest[: live.release.manifest.window.length]):
        for track in live.recommend(plays, _K, ids).tracks:
            live.track(live.catalogue.row(track.track_id))
    for track_id in ids[::8]:
        live.similar(track_id, _K)
    live.search("a", _K)


def _rows(tracks: int, max_rows: int) -> list[int]:
    """Return at most `max_rows` rows, evenly spaced over the catalogue."""
    rows: list[int] = np.unique(np.linspace(FIRST_TRACK_ROW, tracks, min(tracks, max_rows), dtype=np.int64)).tolist()
    return rows
