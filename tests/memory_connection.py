"""service.http.protocol over a transport in memory: what a client sends, cut anywhere, and what it gets for it."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.http.admission_control import AdmissionControl
from service.http.protocol import Connection


class MemoryTransport(asyncio.Transport):
    """Keeps what is written, for a client that reads everything at once."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 1)})
        self.written = b""
        self.closed = False
        self.is_read = True

    def write(self, data: Any) -> None:
        if self.closed:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


class Recorder:
    """An app that answers what it was asked, and remembers it: method, target, headers and body of each request."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.asked: list[tuple[str, str, list[tuple[bytes, bytes]], bytes]] = []
        self.left = 0
        self._wait_s = wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if self._wait_s:
            await asyncio.sleep(self._wait_s)
        self.asked.append((scope["method"], scope["path"], list(scope["headers"]), body))
        content = b"%b %b %d" % (scope["method"].encode(), scope["path"].encode(), len(body))
        length = (b"content-length", b"%d" % len(content))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": content})


class MemoryConnection:
    """A connection, its admission control and its transport. Within a running event loop."""

    def __init__(
        self, app: ASGIApp, admission_control: AdmissionControl | None = None, state: ServerState | None = None
    ) -> None:
        self.admission_control = admission_control or AdmissionControl()
        self.state = state or ServerState()
        self.state.default_headers = []
        config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
        config.load()
        self.transport = MemoryTransport()
        loop = asyncio.get_running_loop()
        self.protocol = Connection(config, self.state, {"admission_control": self.admission_control}, _loop=loop)
        self.protocol.connection_made(self.transport)

    async def send(self, *pieces: bytes) -> None:
        """Send each piece in a segment of its own; what has come whole is answered in between."""
        for piece in pieces:
            if self.transport.closed:
                return
            self.protocol.data_received(piece)
            await self.settle()

    async def settle(self) -> None:
        """Let tasks run that wait for nothing, and for as long as requests wait for their turn."""
        for turn in range(5000):
            await asyncio.sleep(0)
            if turn > 8 and not self.protocol.pipeline:
                return

    async def answered(self, limit_s: float = 5.0) -> None:
        """Wait until no request is being answered."""
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks), timeout=limit_s)

    async def end(self) -> None:
        """The client goes; all tasks end."""
        self.lose()
        if self.state.tasks:
            done, waiting = await asyncio.wait(list(self.state.tasks), timeout=10)
            assert not waiting
            for task in done:
                task.result()

    def lose(self) -> None:
        """The client goes."""
        self.protocol.connection_lost(None)

    @property
    def statuses(self) -> list[int]:
        """The status of each answer."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.transport.written)]


def exchange(
    pieces: Sequence[bytes], admission_control: AdmissionControl | None = None
) -> tuple[Recorder, MemoryConnection]:
    """Send the pieces to a Recorder; the app and the connection as they are when all is answered."""

    async def run() -> tuple[Recorder, MemoryConnection]:
        app = Recorder()
        connection = MemoryConnection(app, admission_control)
        await connection.send(*pieces)
        await connection.end()
        return app, connection

    return asyncio.run(run())
