"""A release is opened and asked in a process of its own before this one opens it.

Encoder and index are read by ONNX Runtime and FAISS, which are C++: what was damaged on purpose may end the process
that opens it, or keep it busy for ever. Here that happens to a child, which has a bound on its time and its memory.

The child is forked from a server that has the libraries loaded already (Python's `forkserver`), which starts with the
first trial: a trial then takes as long as opening the release does.
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

_SPARE_BYTES: Final = 2 * 2**30  # beyond what the process has mapped before it opens anything
_TIMES_ITS_SIZE: Final = 4  # what opening may take: mapped, read, and laid out anew by ONNX Runtime
_LONGEST_LINE: Final = 4096
_LONGEST_REASON: Final = 200
_STDERR_BYTES: Final = 65_536  # what a pipe holds
_LOOK_EVERY_S: Final = 0.1  # whether the service is about to end
_K: Final = 100  # the most that a request asks for
_HEARD: Final = 1000  # plays that a session keeps unless told otherwise
_NAMED: Final = 10_000  # tracks whose texts are read
_FINE: Final = b"fine"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def validate_in_child(path: Path, limit_s: float, leaving: threading.Event | None = None) -> None:
    """Return if a child opens the release and gets answers from it within `limit_s` seconds; takes as long as it does.

    The index is tried on the CPU, whatever it will be searched on. Raises BadRelease with one line, and SwapRefused as
    soon as `leaving` is set.
    """
    receiver, sender = _context.Pipe(duplex=False)
    errors, stderr = _context.Pipe(duplex=False)
    child = _context.Process(target=_try, args=(path, sender, stderr, limit_s), name="release-trial", daemon=True)
    with receiver, errors:
        with sender, stderr:
            child.start()
        try:
            said = receiver.recv_bytes(_LONGEST_LINE) if _comes(receiver, limit_s, leaving) else None
        except (EOFError, OSError):  # nothing, or what no honest child says
            said = b""
        finally:
            child.kill()
            child.join()
        last_line = _last_line(errors)
    if said is None:
        raise BadRelease(
            f"{path} does not answer within {limit_s:g} s: it is damaged, or too large for "
            "SEGUE_RELEASE_VALIDATION_TIMEOUT_S"
        )
    if not said:
        raise BadRelease(
            f"{path} ends the process that opens it ({_how(child.exitcode)}): "
            f"{last_line or _likely_cause(child.exitcode)}; copy it again, or serve a smaller one"
        )
    if said != _FINE:
        raise BadRelease(said.decode(errors="replace").partition("\n")[0])


def _comes(receiver: Connection, limit_s: float, leaving: threading.Event | None) -> bool:
    """Whether something comes in time."""
    until = time.monotonic() + limit_s
    while (left_s := until - time.monotonic()) > 0:
        if leaving is not None and leaving.is_set():
            raise SwapRefused("the service is about to end: swap to the release when it is back")
        if receiver.poll(min(left_s, _LOOK_EVERY_S)):
            return True
    return False


def _how(code: int | None) -> str:
    if code is not None and code < 0 and -code != signal.SIGKILL:  # by which it is ended here, too
        return signal.Signals(-code).name
    return "killed" if code is not None and code < 0 else f"exit code {code}"


def _likely_cause(code: int | None) -> str:
    """What to say about a child that wrote nothing."""
    if code is not None and code > 0:
        return "the error is on stderr of the service"
    return "it is damaged, or larger than the memory"


def _last_line(errors: Connection) -> str:
    """The last line that the child, which has ended, wrote to stderr; empty if it wrote none."""
    os.set_blocking(errors.fileno(), False)  # a process that the child has started may still hold the other end
    try:
        lines = os.read(errors.fileno(), _STDERR_BYTES).decode(errors="replace").split("\n")
    except BlockingIOError:
        return ""
    return next((line.strip()[:_LONGEST_REASON] for line in reversed(lines) if line.strip()), "")


def _try(path: Path, sender: Connection, stderr: Connection, limit_s: float) -> None:
    terminate_with_parent()
    os.set_blocking(stderr.fileno(), False)  # once the pipe is full, lines are dropped
    os.dup2(stderr.fileno(), 2)
    _bound(path, limit_s)
    try:
        _ask(load_release(path))
        said = _FINE
    except SegueError as error:
        said = str(error).encode(errors="replace")
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the release that brought it about)
        reason = (str(error).splitlines() or [""])[0][:_LONGEST_REASON]
        said = f"{path} fails when it is asked: {type(error).__name__} {reason}".encode(errors="replace")
    sender.send_bytes(said[:_LONGEST_LINE])


def _bound(path: Path, limit_s: float) -> None:
    """Limits of the child: time, memory, a share of the cores below that of requests, and no output on stdout."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # should the process that waits for it be gone
    os.environ["POLARS_MAX_THREADS"] = "1"  # each thread of it reserves addresses, which are counted below
    with contextlib.suppress(OSError):  # not on Linux
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        size = sum(file.stat().st_size for file in path.iterdir())
        most = mapped + _SPARE_BYTES + _TIMES_ITS_SIZE * size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.nice(5)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)


def _ask(live: LoadedRelease) -> None:
    """Ask what requests ask: batches of sessions, the longest session, tracks near others, words."""
    tracks = len(live.catalogue)
    for row in _rows(tracks, _NAMED):
        live.track(row)
    ids = [live.catalogue.track_id(row) for row in _rows(tracks, MAX_BATCH_SIZE)]
    live.answer([Question([Play(track_id)], _K) for track_id in ids])
    skipped = [Play(track_id, Outcome.SKIPPED) for track_id in ids]
    longest = (skipped + [Play(track_id) for track_id in ids]) * (_HEARD // max(1, 2 * len(ids)))
    for plays in (longest, skipped, longest[: live.release.manifest.window.length]):
        for track in live.recommend(plays, _K, ids).tracks:
            live.track(live.catalogue.row(track.track_id))
    for track_id in ids[::8]:
        live.similar(track_id, _K)
    live.search("a", _K)


def _rows(tracks: int, most: int) -> list[int]:
    """At most so many rows, spread over the catalogue."""
    rows: list[int] = np.unique(np.linspace(FIRST_TRACK_ROW, tracks, min(tracks, most), dtype=np.int64)).tolist()
    return rows
