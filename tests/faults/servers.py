"""A Redis that can be killed, and a way to it that can be cut, slowed and stopped."""

import contextlib
import socket
import subprocess
import threading
import time
from pathlib import Path

import redis

from service.embedded_redis import redis_server_binary


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class RedisServer:
    """A Redis on a port of its own that writes all it acknowledges to its append-only file first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Start it, and wait until it has read its file."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "everysec", "loglevel": "warning"}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([str(redis_server_binary()), *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        with self.client() as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    if client.ping():
                        return
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        """A client."""
        return redis.Redis(port=self.port, decode_responses=True)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(30)

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.wait(30)


class Proxy:
    """Passes bytes between clients and a server; cuts all connections, waits before each piece, or passes nothing."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.delay_s = 0.0
        self._passes = threading.Event()
        self._passes.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Close every connection, whatever is under way; how many there were."""
        with self._lock:
            cut, self._open = self._open, set()
        for one in cut:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        return len(cut) // 2

    def hold(self) -> None:
        """Keep connections open and pass nothing on."""
        self._passes.clear()

    def release(self) -> None:
        """Pass on again, what was held first."""
        self._passes.set()

    def close(self) -> None:
        """End."""
        self._listening.close()
        self._passes.set()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to_port))
            except OSError:
                if self._listening.fileno() < 0:
                    return
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._passes.wait()
                target.sendall(piece)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.discard(one)
            one.close()
