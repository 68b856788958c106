"""The end of a process that was told to end, whatever hangs in it.

Closing waits for requests, for the event log's last file and for Redis. A disk or a library that never returns would
keep the process for ever, so a timer that begins with the signal ends it.
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
    """Have SIGTERM and SIGINT end this process within `seconds`, beside what they do already.

    Does nothing outside the main thread, where signals cannot be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    began = False

    def watched(before: Any) -> Any:
        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal began
            if not began:
                began = True
                threading.Thread(target=_end_after, args=(seconds,), name="ending", daemon=True).start()
            if callable(before):
                before(number, frame)

        return handle

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, watched(signal.getsignal(number)))


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
