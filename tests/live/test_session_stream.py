"""A session as it changes, by server-sent events: from any replica, through a lost Redis, and not in anybody's way."""

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from segue.errors import Overloaded
from service.api.stream import SessionStreams
from tests.live.redis_server import Server
from tests.stopwatch import Stopwatch, until

StartService = Callable[..., Any]
ACCEPT = {"Accept": "text/event-stream"}


class Stream:
    """An open stream, read event by event."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        self._lines = answer.iter_lines()

    def next(self) -> tuple[str, list[str]]:
        """The kind of the next event, and its plays as +track or -track."""
        kind = data = ""
        for line in self._lines:
            name, _, value = line.partition(": ")
            kind, data = (value, data) if name == "event" else (kind, value) if name == "data" else (kind, data)
            if not line and kind:
                break
        plays = json.loads(data or "{}").get("plays", [])
        return kind, [("-" if play["outcome"] == "skipped" else "+") + play["track_id"] for play in plays]


@contextlib.contextmanager
def watching(client: httpx.Client, session_id: str) -> Iterator[Stream]:
    with client.stream("GET", f"/sessions/{session_id}/stream", headers=ACCEPT, timeout=20) as answer:
        yield Stream(answer)


def report(client: httpx.Client, session_id: str, kind: str, track_id: str) -> None:
    events = {"events": [{"type": kind, "track_id": track_id}]}
    assert client.post(f"/sessions/{session_id}/events", json=events).status_code == 200


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis", appendonly="yes", appendfsync="always") as server:
        yield server


def test_what_one_replica_stores_another_shows(start_service: StartService, redis: Server) -> None:
    one, other = (start_service(redis_url=redis.url).client() for _ in range(2))
    with one, other, watching(one, "a") as stream:
        assert stream.next() == ("session", [])
        report(other, "a", "play", "g0-t00")
        report(other, "b", "play", "g5-t00")
        assert stream.next() == ("session", ["+g0-t00"])
        report(other, "a", "skip", "g0-t00")
        assert stream.next() == ("session", ["-g0-t00"])
        other.delete("/sessions/a")
        assert stream.next() == ("session", [])


def test_a_lost_redis_is_told_and_so_is_what_it_holds_when_it_is_back(
    start_service: StartService, redis: Server
) -> None:
    with start_service(redis_url=redis.url).client() as client:
        report(client, "a", "play", "g0-t00")
        with watching(client, "a") as stream:
            assert stream.next() == ("session", ["+g0-t00"])
            redis.kill()
            assert stream.next() == ("away", [])
            redis.start()
            while (found := stream.next())[0] == "away":
                pass
            assert found == ("session", ["+g0-t00"])


def test_streams_do_not_hold_up_the_end(start_service: StartService) -> None:
    service = start_service()
    with service.client() as client, watching(client, "a") as stream:
        stream.next()
        with Stopwatch() as watch:
            assert service.stop() == 0
        assert watch.seconds < 5  # open requests would get 10 s


def test_streams_take_no_place_of_a_request(start_service: StartService) -> None:
    """The limit is 64 requests in flight at first, and streams do not count."""
    with contextlib.ExitStack() as opened:
        client = opened.enter_context(start_service().client())
        client.timeout = httpx.Timeout(20)
        many = opened.enter_context(httpx.Client(base_url=client.base_url, limits=httpx.Limits(), trust_env=False))
        for number in range(80):
            assert opened.enter_context(watching(many, f"s{number}")).next() == ("session", [])
        assert client.get("/recommendations?session_id=s1").status_code == 200
        assert "segue_shed_requests_total 0.0" in client.get("/metrics").text


def asked(address: tuple[str, int], session_id: str, *more: str) -> socket.socket:
    """A connection on which a stream has been asked for."""
    client = socket.create_connection(address, timeout=20)
    client.sendall(asking(session_id, *more))
    return client


def asking(session_id: str, *more: str) -> bytes:
    lines = [f"GET /sessions/{session_id}/stream HTTP/1.1", "Host: localhost", "Accept: text/event-stream", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_stream_whose_request_ends_late_takes_no_place_either(start_service: StartService) -> None:
    with contextlib.ExitStack() as opened:
        client = opened.enter_context(start_service().client())
        address = (client.base_url.host, client.base_url.port or 0)
        late = [opened.enter_context(asked(address, f"s{number}", "Content-Length: 1")) for number in range(70)]
        for one in late:
            assert one.recv(65_536).startswith(b"HTTP/1.1 200")
        for one in late:
            one.sendall(b"x")
        time.sleep(0.3)
        assert client.get("/recommendations?session_id=s1").status_code == 200
        assert "segue_shed_requests_total 0.0" in client.get("/metrics").text


def test_in_a_burst_no_more_streams_are_opened_than_so_many(start_service: StartService) -> None:
    few = (
        "import service.api.stream as s; s.SessionStreams.__init__.__defaults__ = (3,)\n"
        "release = s.SessionStreams.release_slot\n"
        "def release_and_print(self):\n    release(self); print('a stream has ended', flush=True)\n"
        "s.SessionStreams.release_slot = release_and_print"
    )
    service = start_service(prelude=few)

    def count(words: str) -> int:
        return sum(words in line for line in service.output)

    with service.client() as client:
        address = (client.base_url.host, client.base_url.port or 0)
        for ended in (3, 6):
            with contextlib.ExitStack() as opened:
                burst = [opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(12)]
                assert client.get("/health/live").status_code == 200  # all connections are known by now
                service.process.send_signal(signal.SIGSTOP)  # all requests are there before one is looked at
                opened.callback(service.process.send_signal, signal.SIGCONT)
                for number, one in enumerate(burst):
                    one.sendall(asking(f"s{number}"))
                service.process.send_signal(signal.SIGCONT)
                answers = [one.recv(65_536)[9:12] for one in burst]
            assert sorted(answers) == [b"200"] * 3 + [b"503"] * 9
            # A stream notices that its client has gone when it looks at the session.
            until(lambda expected=ended: count("a stream has ended") == expected)  # type: ignore[misc]


def test_a_client_that_expects_an_end_is_refused(running: httpx.Client) -> None:
    answer = running.get("/sessions/a/stream")
    assert answer.status_code == 406
    assert "Accept: text/event-stream" in answer.json()["detail"]


def test_no_more_streams_than_so_many() -> None:
    class Store:
        async def plays(self, _: str) -> list[Any]:
            return []

    async def run() -> None:
        streams = SessionStreams(Store(), max_streams=1)  # type: ignore[arg-type]
        streams.acquire_slot()
        with pytest.raises(Overloaded, match="1 session streams are open, the maximum"):
            streams.acquire_slot()
        streams.release_slot()
        streams.acquire_slot()

    asyncio.run(run())
