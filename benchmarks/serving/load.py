"""A light load generator: listeners with a session each, closed loop or at an offered rate, over plain HTTP/1.1.

    python benchmarks/serving/load.py PLAN.json        prints one JSON object

It is a process of its own, so that it can have a core of its own, and reads answers no further than it must. Its own
processor time is told beside the latencies: a generator that is busy all the time measures itself.

At an offered rate, requests come as a Poisson process and wait for a free connection where there is none; their latency
counts from when they came, so a stalled service is not asked less.
"""

import asyncio
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

Play = tuple[str, bool]  # track, skipped
KEPT = 2000  # answers that are kept whole, for recall


def get(path: str) -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: dict[str, Any]) -> bytes:
    """A POST request with a JSON body."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content


def events_of(play: Play) -> list[dict[str, str]]:
    """How a client reports a play: as played, and as skipped if the listener then skips it."""
    track, skipped = play
    events = [{"type": "play", "track_id": track}]
    return [*events, {"type": "skip", "track_id": track}] if skipped else events


def constant(_: list[list[Play]], __: int) -> Iterator[bytes]:
    """The same request again and again."""
    while True:
        yield get("/")


def recommend(sessions: list[list[Play]], listener: int) -> Iterator[bytes]:
    """The next tracks of sessions that are there already, in random order."""
    rng = random.Random(listener)
    while True:
        yield get(f"/recommendations?session_id=s-{rng.randrange(len(sessions))}&k=20")


def report(sessions: list[list[Play]], listener: int, suffix: str = "") -> Iterator[bytes]:
    """A listener who plays and skips through one session after another, an event a request."""
    rng = random.Random(listener)
    for turn in range(sys.maxsize):
        for play in sessions[rng.randrange(len(sessions))]:
            for event in events_of(play):
                yield post(f"/sessions/l-{listener}-{turn}/events{suffix}", {"events": [event]})


def report_and_recommend(sessions: list[list[Play]], listener: int) -> Iterator[bytes]:
    """The same, with the next tracks in each answer."""
    return report(sessions, listener, "?recommend=20")


def fill(sessions: list[list[Play]], listener: int, listeners: int) -> Iterator[bytes]:
    """Put the sessions there."""
    for number in range(listener, len(sessions), listeners):
        events = [event for play in sessions[number] for event in events_of(play)]
        yield post(f"/sessions/s-{number}/events", {"events": events})


SCENARIOS: dict[str, Callable[[list[list[Play]], int], Iterator[bytes]]] = {
    "constant": constant,
    "recommend": recommend,
    "report": report,
    "report_and_recommend": report_and_recommend,
}


class Connection(asyncio.Protocol):
    """One keep-alive connection; `answered` is called with the status and the body of each answer."""

    def __init__(self) -> None:
        self.answered: Callable[[int, bytes], None] = lambda _, __: None
        self.transport: asyncio.Transport
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._received.find(b"ontent-length: ", 0, head) + 15
        length = int(self._received[at : self._received.find(b"\r", at)]) if at >= 15 else 0
        if len(self._received) < head + 4 + length:
            return
        status, body = int(self._received[9:12]), self._received[head + 4 : head + 4 + length]
        self._received = b""
        self.answered(status, body)


class Run:
    """One measurement."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.sessions: list[list[Play]] = json.loads(Path(plan["sessions"]).read_text()) if plan["sessions"] else []
        self.latencies: list[float] = []
        self.failures: dict[int, int] = {}
        self.kept: list[tuple[str, list[str]]] = []
        self.began = 0.0

    def note(self, latency: float, status: int, request: bytes, body: bytes) -> None:
        """Count one answer."""
        if time.perf_counter() - self.began < self.plan["warm_up_s"]:
            return
        self.latencies.append(latency)
        if not 200 <= status < 300:
            self.failures[status] = self.failures.get(status, 0) + 1
        elif self.plan.get("keep") and len(self.kept) < KEPT:
            self.kept.append(
                (request.split(b" ", 2)[1].decode(), [item["track_id"] for item in json.loads(body)["items"]])
            )

    async def closed(self, connection: Connection, requests: Iterator[bytes], until: float) -> None:
        """One listener: the next request as soon as the last one is answered."""
        done = asyncio.get_running_loop().create_future()
        sent, request = 0.0, b""

        def send() -> None:
            nonlocal sent, request
            request = next(requests, b"")
            sent = time.perf_counter()
            if sent >= until or not request:
                done.set_result(None)
            else:
                connection.transport.write(request)

        def answered(status: int, body: bytes) -> None:
            self.note(time.perf_counter() - sent, status, request, body)
            send()

        connection.answered = answered
        send()
        await done

    async def offered(self, connections: list[Connection], requests: list[Iterator[bytes]], until: float) -> None:
        """Requests at a rate, whoever is free to send them."""
        rng, loop = random.Random(0), asyncio.get_running_loop()
        free = deque(range(len(connections)))
        waiting: deque[float] = deque()
        under_way = 0

        def start() -> None:
            nonlocal under_way
            while free and waiting:
                number, came = free.popleft(), waiting.popleft()
                request = next(requests[number])
                under_way += 1

                def answered(
                    status: int, body: bytes, number: int = number, came: float = came, r: bytes = request
                ) -> None:
                    nonlocal under_way
                    self.note(time.perf_counter() - came, status, r, body)
                    under_way -= 1
                    free.append(number)
                    start()

                connections[number].answered = answered
                connections[number].transport.write(request)

        come = time.perf_counter()
        while come < until:
            come += rng.expovariate(self.plan["rate"])
            late = come - time.perf_counter()
            if late > 0:
                await asyncio.sleep(late)
            waiting.append(come)
            start()
        patience = loop.time() + 10
        while (under_way or waiting) and loop.time() < patience:
            await asyncio.sleep(0.01)

    async def go(self) -> dict[str, Any]:
        """Carry the plan out."""
        loop, plan = asyncio.get_running_loop(), self.plan
        number = plan["connections"]
        connections = [(await loop.create_connection(Connection, plan["host"], plan["port"]))[1] for _ in range(number)]
        if plan["scenario"] == "fill":
            requests = [fill(self.sessions, i, number) for i in range(number)]
        else:
            requests = [SCENARIOS[plan["scenario"]](self.sessions, i) for i in range(number)]
        self.began = time.perf_counter()
        worked = time.process_time()
        until = self.began + plan["seconds"]
        if plan.get("rate"):
            await self.offered(connections, requests, until)
        else:
            await asyncio.gather(*(self.closed(c, r, until) for c, r in zip(connections, requests, strict=True)))
        took = time.perf_counter() - self.began
        for connection in connections:
            connection.transport.close()
        ms = np.array(self.latencies) * 1000
        quantiles = np.percentile(ms, [50, 90, 99, 100]).round(3).tolist() if len(ms) else [None] * 4
        return {
            "requests": len(ms),
            "per_s": round(len(ms) / (took - plan["warm_up_s"]), 1),
            **dict(zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), quantiles, strict=True)),
            "failures": self.failures,
            "generator_cpu": round((time.process_time() - worked) / took, 3),
            **({"kept": self.kept} if plan.get("keep") else {}),
        }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Run(json.loads(Path(sys.argv[1]).read_text())).go())))
