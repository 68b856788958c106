"""Bytes on a connection: what uvicorn's parser, bounded by service.http.protocol, makes of damaged requests."""

import asyncio
import json
import random
import re
from typing import Any, Final

import httptools

from tests.fuzzing.mutations import damaged
from tests.fuzzing.requests import App
from tests.memory_connection import MemoryConnection

UNSPOKEN: Final = (501, 505)  # transfer codings and versions of HTTP that the service does not speak
_BODY: Final = json.dumps({"events": [{"type": "play", "track_id": "t0000000", "event_id": "e"}]}).encode()
_HEAD: Final = b"Host: localhost\r\nContent-Type: application/json\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
REQUESTS: Final = (
    b"GET /recommendations?session_id=wire&k=20 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /sessions/wire/events?recommend=5 HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (_HEAD, len(_BODY), _BODY),
    b"POST /sessions/wire/events HTTP/1.1\r\n%b%b" % (_HEAD, _CHUNKED),
    b"POST /sessions/wire/events HTTP/1.1\r\n%bExpect: 100-continue\r\nContent-Length: 9\r\n\r\n{" % _HEAD,
    b"GET /health/live HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    b"GET http://localhost/tracks?query=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /web/player.js HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    b"POST /sessions/wire/events HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n%b"
    % (_HEAD, len(_BODY), _BODY),
    b"CONNECT /health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /sessions/wire/events HTTP/1.1\r\n%b%bX: y\r\nHost: b\r\n\r\n" % (_HEAD, _CHUNKED[:-2]),
    b"HEAD /sessions/wire/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
)


def sent(rng: random.Random) -> bytes:
    """What a connection carries: one to three requests, of which some are damaged."""
    requests = [rng.choice(REQUESTS) for _ in range(rng.choice((1, 1, 2, 3)))]
    return b"".join(damaged(one, rng, REQUESTS) if rng.random() < 0.8 else one for one in requests)


def statuses(received: bytes) -> list[int]:
    """The statuses of the answers on a connection, which may end within one. Raises where they are no HTTP."""
    found: list[int] = []

    class Answers:
        def on_status(self, status: bytes) -> None: ...

        def on_headers_complete(self) -> None:
            found.append(parser.get_status_code())

    parser = httptools.HttpResponseParser(Answers())
    try:
        parser.feed_data(received)
    except httptools.HttpParserError:
        # Answers to HEAD have no body, and the parser cannot know of which request an answer is.
        found = [int(status) for status in re.findall(rb"(?:^|\n|\})HTTP/1\.1 (\d{3}) ", received)]
        assert found, received
    return found


class Wire(App):
    """A connection for each case, in this process."""

    def case(self, rng: random.Random) -> str:
        """See Target."""
        content = sent(rng)
        cuts = sorted(rng.randint(0, len(content)) for _ in range(rng.choice((0, 0, 1, 5))))
        pieces = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
        received = self._runner.run(self._exchange(pieces))
        found = statuses(received) if received else []
        assert all(status < 500 or status in UNSPOKEN for status in found), (content, received)
        return str(found[0]) if found else "nothing"

    async def _exchange(self, pieces: list[bytes]) -> bytes:
        connection = MemoryConnection(self._app)
        await connection.send(*pieces)
        # What has come whole is answered; what has not waits for more.
        for _ in range(200):
            cycle = connection.protocol.cycle
            if not connection.state.tasks or (cycle is not None and cycle.more_body):
                break
            await asyncio.sleep(0.001)
        await connection.end()
        return connection.transport.written


TARGETS: Final[dict[str, Any]] = {"wire": Wire}
