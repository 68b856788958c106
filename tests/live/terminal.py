"""A command on a terminal of its own, as a person has it."""

import os
import pty
import select
import signal
import subprocess

from tests.preloaded import SEGUE, SERVICE, preloaded
from tests.stopwatch import Stopwatch


class Terminal:
    """`segue` on a terminal of its own."""

    def __init__(self, *arguments: object, lines: int = 50) -> None:
        self._here, there = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SEGUE_")}
        self.process = preloaded(SERVICE).start(
            SEGUE,
            *arguments,
            files=(there, there, there),
            env=environment | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": str(lines)},
            new_session=True,
        )
        os.close(there)
        self.text = ""

    def until(self, words: str, seconds: float = 20) -> None:
        """Read until these words have been shown."""
        with Stopwatch() as watch:
            while words not in self.text:
                assert watch.seconds < seconds, self.text[-3000:]
                if select.select([self._here], [], [], 0.1)[0]:
                    self.text += os.read(self._here, 65_536).decode(errors="replace")

    def rest(self, seconds: float = 60) -> int:
        """Read what it shows until it ends by itself; its exit code."""
        with Stopwatch() as watch:
            while True:
                assert watch.seconds < seconds, self.text[-3000:]
                try:
                    part = os.read(self._here, 65_536) if select.select([self._here], [], [], 1)[0] else None
                except OSError:  # Linux reports that the other side has closed
                    break
                if part == b"":
                    break
                self.text += (part or b"").decode(errors="replace")
        os.close(self._here)
        return self.process.wait(10)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        os.close(self._here)
        return code
