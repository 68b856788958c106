"""Ctrl-C and SIGTERM while training: the step under way is finished, a checkpoint written, and one line said."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was told to stop and has written a checkpoint; its text is meant for the user."""


class Stop:
    """Whether training was told to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, signum: int = 0, frame: FrameType | None = None) -> None:  # noqa: ARG002 (what signal.signal calls)
        """Stop after this step; asked twice, at once, with the checkpoint of before."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM ask to stop. Only the main thread may say what a signal does: elsewhere none does."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
