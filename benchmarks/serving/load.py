"""A light load generator: listeners with a session each, closed loop or at an offered rate, over plain HTTP/1.1.

    python benchmarks/serving/load.py PLAN.json        prints one JSON object

It is a process of its own, so that it can have a core of its own, and reads answers no further than it must. Its own
processor time is told beside the latencies, and how late it was: a generator that is busy or late measures itself.

At an offered rate, requests come as a Poisson process and wait for a free connection where there is none; their latency
counts from when they came, so a stalled service is not asked less. `phases`, a list of seconds and rate, has the rate
change, and what is answered is then told for each phase: answers of 2xx apart from refusals.
"""

import asyncio
import json
import random
import sys
import time
from array import array
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


def recommend(sessions: list[list[Play]], listener: int, query: str = "repeat=never") -> Iterator[bytes]:
    """The next tracks of sessions that are there already, in random order."""
    rng = random.Random(listener)
    while True:
        yield get(f"/recommendations?session_id=s-{rng.randrange(len(sessions))}&k=20&{query}")


def report(sessions: list[list[Play]], listener: int, suffix: str = "") -> Iterator[bytes]:
    """A listener who plays and skips through one session after another, an event a request."""
    rng = random.Random(listener)
    for turn in range(sys.maxsize):
        for play in sessions[rng.randrange(len(sessions))]:
            for event in events_of(play):
                yield post(f"/sessions/l-{listener}-{turn}/events{suffix}", {"events": [event]})


def report_and_recommend(sessions: list[list[Play]], listener: int) -> Iterator[bytes]:
    """The same, with the next tracks in each answer."""
    return report(sessions, listener, "?recommend=20&repeat=never")


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
    """One keep-alive connection; `answered` is called with the status and the body of each answer.

    `closes` says that the service has announced the end of the connection, or has ended it.
    """

    def __init__(self) -> None:
        self.answered: Callable[[int, bytes], None] = lambda _, __: None
        self.closes = False
        self.transport: asyncio.Transport
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the connection."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Collect bytes until the response is complete, then report it."""
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._received.find(b"ontent-length: ", 0, head) + 15
        length = int(self._received[at : self._received.find(b"\r", at)]) if at >= 15 else 0
        if len(self._received) < head + 4 + length:
            return
        status, body = int(self._received[9:12]), self._received[head + 4 : head + 4 + length]
        self.closes = self._received.find(b"onnection: close", 0, head) >= 0
        self._received = b""
        self.answered(status, body)

    def connection_lost(self, _: Exception | None) -> None:
        """Count a request without a response as status 0."""
        self.closes = True
        self.answered(0, b"")


class Run:
    """One measurement."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.sessions: list[list[Play]] = json.loads(Path(plan["sessions"]).read_text()) if plan["sessions"] else []
        self.latencies: list[float] = []
        self.failures: dict[int, int] = {}
        self.came, self.took, self.served = array("d"), array("d"), array("b")  # of every answer, if there are phases
        self.late = array("d")  # how long after its time each offered request was made: the generator's own fault
        self.kept: list[tuple[str, list[str]]] = []
        self.began = 0.0

    def note(self, latency: float, status: int, request: bytes, body: bytes) -> None:
        """Count one answer."""
        came = time.perf_counter() - latency - self.began
        if came + latency < self.plan["warm_up_s"]:
            return
        if "phases" in self.plan:
            self.came.append(came)
            self.took.append(latency)
            self.served.append(200 <= status < 300)
        self.latencies.append(latency)
        if not 200 <= status < 300:
            self.failures[status] = self.failures.get(status, 0) + 1
        elif self.plan.get("keep") and len(self.kept) < KEPT:
            self.kept.append(
                (request.split(b" ", 2)[1].decode(), [item["track_id"] for item in json.loads(body)["items"]])
            )

    def rate(self, at: float) -> float:
        """Requests a second that are to come `at` seconds after the beginning."""
        steady: float = self.plan.get("rate", 1)
        for seconds, rate in self.plan.get("phases", ()):
            if at < seconds:
                return float(rate)
            at -= seconds
        return steady

    def phases(self) -> list[dict[str, Any]]:
        """What was answered to the requests that came in each phase. A late answer is one after 100 ms."""
        came, took, served = np.array(self.came), np.array(self.took) * 1000, np.array(self.served, dtype=bool)
        found, began = [], 0.0
        for seconds, rate in self.plan["phases"]:
            within = (came >= began) & (came < began + seconds)
            bad = came[within & (~served | (took > 100))]
            found.append(
                {
                    "rate": rate,
                    "served_per_s": round(float((within & served).sum()) / seconds, 1),
                    "refused_per_s": round(float((within & ~served).sum()) / seconds, 1),
                    **_quantiles("served", took[within & served]),
                    **_quantiles("refused", took[within & ~served]),
                    "last_refused_or_late_s": round(float(bad.max()) - began, 3) if len(bad) else 0.0,
                }
            )
            began += seconds
        return found

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
            if not status:
                done.set_exception(ConnectionError("the service has closed a connection"))
                return
            self.note(time.perf_counter() - sent, status, request, body)
            send()

        connection.answered = answered
        send()
        await done

    async def offered(self, connections: list[Connection], requests: list[Iterator[bytes]], until: float) -> None:
        """Requests at a rate, whoever is free to send them."""
        rng, loop = random.Random(0), asyncio.get_running_loop()
        offer = _Offer(self, connections, requests)
        come = time.perf_counter()
        while come < until:
            come += rng.expovariate(self.rate(come - self.began))
            late = come - time.perf_counter()
            if late > 0:
                await asyncio.sleep(late)
            self.late.append(time.perf_counter() - come)
            offer.waiting.append(come)
            offer.start()
        patience = loop.time() + 10
        while (offer.under_way or offer.waiting) and loop.time() < patience:
            await asyncio.sleep(0.01)

    async def go(self) -> dict[str, Any]:
        """Carry the plan out."""
        loop, plan = asyncio.get_running_loop(), self.plan
        number = plan["connections"]
        connections = [(await loop.create_connection(Connection, plan["host"], plan["port"]))[1] for _ in range(number)]
        if plan["scenario"] == "fill":
            requests = [fill(self.sessions, i, number) for i in range(number)]
        elif "query" in plan:
            requests = [recommend(self.sessions, i, plan["query"]) for i in range(number)]
        else:
            requests = [SCENARIOS[plan["scenario"]](self.sessions, i) for i in range(number)]
        self.began = time.perf_counter()
        worked = time.process_time()
        until = self.began + plan["seconds"]
        if plan.get("rate") or "phases" in plan:
            await self.offered(connections, requests, until)
        else:
            await asyncio.gather(*(self.closed(c, r, until) for c, r in zip(connections, requests, strict=True)))
        took = time.perf_counter() - self.began
        for connection in connections:
            connection.answered = lambda _, __: None
            connection.transport.close()
        ms = np.array(self.latencies) * 1000
        quantiles = np.percentile(ms, [50, 90, 99, 100]).round(3).tolist() if len(ms) else [None] * 4
        return {
            "requests": len(ms),
            "per_s": round(len(ms) / (took - plan["warm_up_s"]), 1),
            **dict(zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), quantiles, strict=True)),
            "failures": self.failures,
            "generator_cpu": round((time.process_time() - worked) / took, 3),
            **({"generator_late_p99_ms": round(float(np.percentile(self.late, 99)) * 1000, 2)} if self.late else {}),
            **({"kept": self.kept} if plan.get("keep") else {}),
            **({"phases": self.phases()} if "phases" in plan else {}),
        }


class _Offer:
    """Requests that have come and the connections that are free to send them. Those that end are opened again."""

    def __init__(self, run: Run, connections: list[Connection], requests: list[Iterator[bytes]]) -> None:
        self.waiting: deque[float] = deque()  # when each came
        self.under_way = 0
        self._run = run
        self._connections = connections
        self._requests = requests
        self._free = deque(range(len(connections)))
        self._opening: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Send what can be sent."""
        while self._free and self.waiting:
            number = self._free.popleft()
            if self._is_open(number):
                self._send(number, self.waiting.popleft())

    def _send(self, number: int, came: float) -> None:
        request = next(self._requests[number])

        def answered(status: int, body: bytes) -> None:
            self._run.note(time.perf_counter() - came, status, request, body)
            self.under_way -= 1
            if self._is_open(number):
                self._free.append(number)
                self.start()

        self.under_way += 1
        self._connections[number].answered = answered
        self._connections[number].transport.write(request)

    def _is_open(self, number: int) -> bool:
        connection = self._connections[number]
        connection.answered = lambda _, __: None
        if connection.closes:
            self._opening.add(task := asyncio.create_task(self._open(number)))
            task.add_done_callback(self._opening.discard)
        return not connection.closes

    async def _open(self, number: int) -> None:
        plan = self._run.plan
        self._connections[number].transport.close()
        loop = asyncio.get_running_loop()
        _, self._connections[number] = await loop.create_connection(Connection, plan["host"], plan["port"])
        self._free.append(number)
        self.start()


def _quantiles(what: str, ms: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, float | None]:
    values = np.percentile(ms, [50, 99, 100]).round(2).tolist() if len(ms) else [None] * 3
    return dict(zip((f"{what}_p50_ms", f"{what}_p99_ms", f"{what}_max_ms"), values, strict=True))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Run(json.loads(Path(sys.argv[1]).read_text())).go())))
