"""A Redis server for tests that stop, freeze and start it."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import redis

from service.sessions.embedded_redis import redis_server_binary
from tests.stopwatch import until


def free_pair() -> int:
    """Return a free port whose cluster bus port, 10,000 higher, is free too."""
    while True:
        with socket.socket() as one, socket.socket() as bus, contextlib.suppress(OSError, OverflowError):
            one.bind(("127.0.0.1", 0))
            bus.bind(("127.0.0.1", one.getsockname()[1] + 10_000))
            port: int = one.getsockname()[1]
            return port


class Server:
    """A Redis on a port of its own, whose data outlive it."""

    def __init__(self, folder: Path, **options: str) -> None:
        """`options` are Redis' own."""
        folder.mkdir()
        self.folder = folder
        self.port = free_pair()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(folder), "save": "", **options}
        self.start()

    def start(self) -> None:
        """Start it, anew as the case may be, and wait until it answers."""
        words = [word for name, value in self._options.items() for word in (f"--{name}", *value.split(" "))]
        self.process = subprocess.Popen([redis_server_binary(), *words], stdout=subprocess.DEVNULL)
        until(self._answers, 30, lambda: "Redis does not start")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> "redis.Redis":
        """A client of it."""
        return redis.Redis(port=self.port, decode_responses=True)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(10)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It neither answers nor ends."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
