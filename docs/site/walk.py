"""Carries out what a document says: the commands of its `console` blocks, in order, in a folder of their own.

`python -m docs.site.walk docs/tutorial.md` puts what they print below them; a test does the same and compares. Pages
that continue another one, such as those in AFTER, are walked after it in the same folder.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LOGS: Final = ("plays.csv", "tracks.csv", "my_spotify_data.zip", "radio.toml")
AFTER: Final = {"stations": "filter-tracks", "likes-and-bans": "filter-tracks", "add-tracks": "filter-tracks"}
PORT: Final = "8000"  # in the document; a free one takes its place
_SERVE: Final = re.compile(r"((?:\w+=\S+ )*)(segue serve.*)")
_BLOCK: Final = re.compile(r"```console\n(.*?)```\n", re.DOTALL)


@dataclass
class Shell:
    """A folder with the document's files, and the services that were started in it."""

    folder: Path
    port: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, command: str) -> str:
        """What a command prints. Raises CalledProcessError where it fails."""
        command = command.replace(PORT, self.port)
        if served := _SERVE.fullmatch(command):
            return self._serve(*served.groups())
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self.folder, env=self._environment(), stdout=subprocess.PIPE, check=True
        )
        text = done.stdout.decode()
        shown = "\n".join(line.rstrip() for line in text.splitlines())
        return f"{shown}\n".replace(self.port, PORT) if shown else ""

    def _serve(self, settings: str, command: str) -> str:
        self.end()
        process = subprocess.Popen(
            ["bash", "-c", f"{settings}exec {command} --port {self.port}"],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().replace(self.port, PORT)

    def end(self) -> None:
        """End the services, as Ctrl-C does."""
        while self.started:
            process = self.started.pop()
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()

    def _environment(self) -> dict[str, str]:
        programs = self.folder / "bin"
        # A terminal, as whoever follows the document has one, but without colours and moving bars.
        terminal = {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "110", "LINES": "50"}
        # Trained weights depend on the number of threads.
        terminal["OMP_NUM_THREADS"] = "1"
        return os.environ | terminal | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@contextmanager
def shell(segue: str = f'#!/bin/sh\nexec "{sys.executable}" -m segue "$@"\n') -> Iterator[Shell]:
    """A shell in an empty folder with the logs of the tutorial and the program `segue`; what it started is ended."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        shell = Shell(folder, str(free.getsockname()[1]))
        free.close()
        (folder / "docs").mkdir()
        for log in LOGS:
            (folder / "docs" / log).write_bytes((ROOT / "docs" / log).read_bytes())
        (folder / "bin").mkdir()
        program = folder / "bin" / "segue"
        program.write_text(segue)
        program.chmod(0o755)
        try:
            yield shell
        finally:
            shell.end()


def blocks(document: str) -> list[list[tuple[str, str]]]:
    """The commands of each block, each with what the document shows below it."""
    found = []
    for block in _BLOCK.findall(document):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
        found.append(list(zip(parts[::2], parts[1::2], strict=True)))
    return found


def filled(document: str, walked: Shell) -> str:
    """The document with what its commands print now."""

    def block(old: re.Match[str]) -> str:
        (commands,) = blocks(old.group(0))
        return "```console\n" + "".join(f"$ {c}\n{walked.run(c)}" for c, _ in commands) + "```\n"

    return _BLOCK.sub(block, document)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        with shell() as walked:
            if path.stem in AFTER:
                filled(path.with_stem(AFTER[path.stem]).read_text(encoding="utf-8"), walked)
            path.write_text(filled(path.read_text(encoding="utf-8"), walked), encoding="utf-8")
