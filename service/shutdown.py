"""Shut down within a time limit, even if a call hangs.

Closing waits for requests, for the event log's last file and for Redis. A disk or a library that never returns would
keep the process running, so the first signal starts a timer that ends it.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Final

import structlog

from service.sessions.embedded_redis import stop_embedded_servers

CLOSING_S: Final = 8  # beyond SEGUE_SHUTDOWN_GRACE_S, to write the event log's last file and to close what was opened

_log = structlog.get_logger()


def end_in_time(seconds: float) -> None:
    """Let the first SIGTERM or SIGINT also start a timer that ends this process after `seconds`.

    Later signals are ignored. uvicorn would take a second SIGINT, or one that is handled after a SIGTERM, as an order
    to skip the closing of the application, which loses the event log's last file. A terminal sends Ctrl-C to workers
    and to their supervisor alike, which then sends SIGTERM, so two signals are the ordinary case.

    Does nothing outside the main thread, where signals cannot be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    began = False

    def first_only(before: Any) -> Any:
        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal began
            if began:
                return
            began = True
            threading.Thread(target=_end_after, args=(seconds,), name="shutdown-timer", daemon=True).start()
            if callable(before):
                before(number, frame)

        return handle

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, first_only(signal.getsignal(number)))


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    names = sorted(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
    _log.error("shutdown_cut_short", seconds=seconds, threads=names)
    for child in multiprocessing.active_children():  # workers, and a release under trial
        child.kill()
    stop_embedded_servers()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)
