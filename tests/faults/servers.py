"""A way to a server that can be cut, slowed, stopped and reset."""

import contextlib
import random
import socket
import struct
import threading
import time


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Proxy:
    """Passes bytes between clients and a server; cuts all connections, waits before each piece, or passes nothing.

    Each connection is reset after a random number of bytes, at most `resets_after`.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.delay_s = 0.0
        self.resets_after: int | None = None
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
        left = None if self.resets_after is None else random.randint(0, self.resets_after)
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if left is not None and (left := left - len(piece)) < 0:
                    for one in (source, target):
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        one.shutdown(socket.SHUT_RD)  # ends the other thread's recv
                        one.close()
                    break
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
