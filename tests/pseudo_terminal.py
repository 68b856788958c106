"""Run `segue` on a terminal of a given width, or piped, and return what a person or a program reads.

The terminal is a real pseudo-terminal, whose width is set as a terminal emulator sets it (TIOCSWINSZ).
"""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import tempfile
import termios
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.preloaded import COMMANDS, SEGUE, preloaded

_LINES: Final = 50


class Output(NamedTuple):
    """What a command printed. On a terminal, stderr is part of stdout."""

    code: int
    stdout: str
    stderr: str = ""


class Commands:
    """Runs commands in one folder, by fork (tests.preloaded)."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the current folder of each command."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SEGUE_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"))
        }
        self._options: dict[str, Any] = {
            "env": kept | {"TERM": "xterm-256color"},
            "cwd": folder,
            "new_session": True,  # a signal of the terminal of the tests does not reach it
        }

    def on_terminal(self, columns: int, *arguments: object, until: str | None = None) -> Output:
        """Run a command on a terminal of this width. `until`: interrupt it once a line has these words."""
        here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
        process = preloaded(COMMANDS).start(SEGUE, *arguments, files=(there, there, there), **self._options)
        text, seen, deadline = "", False, time.monotonic() + 240
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a read may end within a character
        while (done := process.poll()) is None or select.select([here], [], [], 0)[0]:
            assert time.monotonic() < deadline, text[-3000:]
            if select.select([here], [], [], 0.02)[0]:
                text += decoder.decode(os.read(here, 65_536))
            if until is not None and not seen and re.search(until, text):
                seen = True
                process.send_signal(signal.SIGINT)
        os.close(there)
        os.close(here)
        return Output(done, screen(text))

    def piped(self, *arguments: object, until: str | None = None) -> Output:
        """Run a command whose stdout and stderr are files. `until`: as above, of either."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            with Path(os.devnull).open() as nothing, out.open("w") as stdout, err.open("w") as stderr:
                files = (nothing.fileno(), stdout.fileno(), stderr.fileno())
                process = preloaded(COMMANDS).start(SEGUE, *arguments, files=files, **self._options)
            deadline = time.monotonic() + 240
            while (done := process.poll()) is None:
                text = out.read_text() + err.read_text()
                assert time.monotonic() < deadline, text[-3000:]
                if until is not None and re.search(until, text):
                    process.send_signal(signal.SIGINT)
                    until = None
                time.sleep(0.02)
            return Output(done, out.read_text(), err.read_text())


_CONTROL: Final = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\")


def screen(text: str) -> str:
    """Return the lines that are left on a terminal, without styles and without wrapping lines that are too long."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(text):
        if control := _CONTROL.match(text, at):
            at = control.end()
            number, kind = control[1], control[2]
            if kind == "A":
                row = max(row - int(number or 1), 0)
            elif kind == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            elif kind == "H":
                row = column = 0
            elif kind == "J" or (kind == "h" and number == "?1049"):
                lines, row, column = [""], 0, 0
            elif kind not in "mhl":
                raise AssertionError(f"unknown control sequence {control[0]!r}")
            continue
        character, at = text[at], at + 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"
