"""Run `segue` on a terminal of a given width, or piped, and return what a person or a program reads.

One process imports the heavy packages and forks a child for each command, so that a command takes a fraction of a
second. The terminal is a real pseudo-terminal, whose width is set as a terminal emulator sets it (TIOCSWINSZ).
"""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Final, NamedTuple

_LINES: Final = 50
# A request is a line of JSON: arguments, folder, and the names of a terminal or of two files. Answers: pid, exit code.
_SERVER: Final = """
import json, os, signal, sys
for name in sys.argv[1:]:
    __import__(name)
from segue.cli import main

def command(arguments, folder, out, err):
    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in ((0, out if out == err else os.devnull), (1, out), (2, err)):
        os.dup2(os.open(file, os.O_RDWR), number)
    sys.stdin = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if out == err else -1, closefd=False, errors="replace")
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="replace")
    code = 70
    try:
        code = main(arguments)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)

answers = sys.stdout
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        command(*json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
_PRELOADED: Final = (
    "polars numpy rich.progress torch torch._dynamo onnx onnxruntime service.app training.run "
    "training.evaluation.evaluate training.evaluation.compare.report training.data.describe.statistics"
)


class Output(NamedTuple):
    """What a command printed. On a terminal, stderr is part of stdout."""

    code: int
    stdout: str
    stderr: str = ""


class Commands:
    """Runs commands in children of one process."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the current folder of each command."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SEGUE_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"))
        }
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *_PRELOADED.split()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select sees what has not been read
            env=kept | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"},
        )

    def close(self) -> None:
        """End the process."""
        self._server.communicate(timeout=30)

    def on_terminal(self, columns: int, *arguments: object, until: str | None = None) -> Output:
        """Run a command on a terminal of this width. `until`: interrupt it once a line has these words."""
        here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
        name = os.ttyname(there)
        process = self._start(arguments, name, name)
        text, seen, deadline = "", False, time.monotonic() + 240
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a read may end within a character
        done: int | None = None
        while (done := self._answered() if done is None else done) is None or select.select([here], [], [], 0)[0]:
            assert time.monotonic() < deadline, text[-3000:]
            if select.select([here], [], [], 0.02)[0]:
                text += decoder.decode(os.read(here, 65_536))
            if until is not None and not seen and re.search(until, text):
                seen = True
                os.kill(process, signal.SIGINT)
        os.close(there)
        os.close(here)
        return Output(done, screen(text))

    def piped(self, *arguments: object, until: str | None = None) -> Output:
        """Run a command whose stdout and stderr are files. `until`: as above, of either."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()
            err.touch()
            process = self._start(arguments, str(out), str(err))
            deadline = time.monotonic() + 240
            while (done := self._answered()) is None:
                text = out.read_text() + err.read_text()
                assert time.monotonic() < deadline, text[-3000:]
                if until is not None and re.search(until, text):
                    os.kill(process, signal.SIGINT)
                    until = None
                time.sleep(0.02)
            return Output(done, out.read_text(), err.read_text())

    def _start(self, arguments: tuple[object, ...], out: str, err: str) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = [[str(argument) for argument in arguments], str(self._folder), out, err]
        self._server.stdin.write(f"{json.dumps(request)}\n".encode())
        return int(self._server.stdout.readline())

    def _answered(self) -> int | None:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline()) if select.select([self._server.stdout], [], [], 0)[0] else None


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
