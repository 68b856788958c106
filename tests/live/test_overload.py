"""A full service refuses at once what it cannot answer in time, and slow clients take nobody's place."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stopwatch import Stopwatch, until

StartService = Callable[..., Any]
GENERATOR = Path(__file__).parents[2] / "benchmarks" / "serving" / "load.py"
# A release that takes its time: each encoding sleeps.
SLOW = (
    "import time, service.releases.rankers as o; encode = o.OnnxEncoder.encode;"
    "o.OnnxEncoder.encode = lambda self, windows: (time.sleep(0.002 * len(windows)), encode(self, windows))[1]"
)
REPORT = b"POST /sessions/a/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PLAY = {"events": [{"type": "play", "track_id": "g0-t00"}]}


def address_of(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port or 0


def load(folder: Path, client: httpx.Client, **plan: Any) -> dict[str, Any]:
    """What benchmarks/serving/load.py finds."""
    host, port = address_of(client)
    sessions = folder / "sessions.json"
    sessions.write_text(json.dumps([[["g0-t00", False]], [["g1-t00", False], ["g2-t00", True]]]))
    common = {"host": host, "port": port, "sessions": str(sessions), "scenario": "recommend", "warm_up_s": 0.0}
    file = folder / "plan.json"
    file.write_text(json.dumps(common | plan))
    done = subprocess.run([sys.executable, GENERATOR, file], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not GENERATOR.exists(), reason="the benchmarks are not part of the wheel")
def test_beyond_capacity_served_requests_are_in_time_and_the_others_refused_at_once(
    start_service: StartService, tmp_path: Path
) -> None:
    """Two milliseconds of encoding a session: 500 requests a second in one thread, and five times that is asked."""
    with start_service(prelude=SLOW, ranking_threads=1).client() as client:
        load(tmp_path, client, scenario="fill", connections=2, seconds=10)
        phases = [[6, 2500], [6, 200]]
        found = load(tmp_path, client, connections=500, seconds=12, phases=phases)
        under, after = found["phases"]
        assert under["served_per_s"] > 100
        assert under["refused_per_s"] > 500
        assert under["served_p99_ms"] < 300  # 100 on a machine that does nothing else
        assert under["refused_p50_ms"] < 50
        assert under["refused_p99_ms"] < 200
        assert after["last_refused_or_late_s"] < 5
        assert set(found["failures"]) == {"503"}
        metrics = client.get("/metrics").text
        shed = re.search(r"^segue_shed_requests_total (\S+)$", metrics, re.MULTILINE)
        assert shed is not None
        assert float(shed[1]) == sum(found["failures"].values())


# A service that is always full, except for the paths that are never rejected.
FULL = "import service.http.admission_control as d; d.AdmissionControl.is_full = lambda self: True"


@pytest.fixture
def full(start_service: StartService) -> Iterator[httpx.Client]:
    with start_service(prelude=FULL).client() as client:
        yield client


def refused(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and answer.json()["title"] == "Overloaded"


def test_a_full_service_refuses_all_but_health_metrics_and_releases(full: httpx.Client) -> None:
    for method, path in (
        ("GET", "/recommendations?session_id=a"),
        ("GET", "/tracks"),
        ("GET", "/tracks/g0-t00/similar"),
        ("GET", "/sessions/a"),
        ("DELETE", "/sessions/a"),
        ("GET", "/nowhere"),
    ):
        assert refused(full.request(method, path)), path
    answer = full.post("/sessions/a/events", json=PLAY)
    assert refused(answer)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    for header in ("x-content-type-options", "content-security-policy", "date"):
        assert answer.headers[header] == full.get("/health/live").headers[header]
    assert full.get("/health/ready").status_code == 200
    assert full.get("/releases/current").status_code == 200
    assert "segue_shed_requests_total 7.0" in full.get("/metrics").text
    assert full.head("/tracks").status_code == 503


def test_a_refusal_leaves_the_connection_as_it_was(full: httpx.Client) -> None:
    """Refused bodies are passed over, whole or in pieces, so that the next request is read from its beginning."""
    body = json.dumps(PLAY).encode()
    head = REPORT + b"Content-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(address_of(full), timeout=5) as client:
        client.sendall(head + body[:5])
        assert client.recv(4000).startswith(b"HTTP/1.1 503")
        client.sendall(body[5:] + b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP/1.1 200" in client.recv(4000)
        client.sendall(
            b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /tracks HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        assert statuses(client, 2) == [b"200", b"503"]
        client.sendall(b"GET /tracks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 503" in everything(client)


def statuses(client: socket.socket, number: int) -> list[bytes]:
    """The statuses of the next answers."""
    received = b""
    while len(found := re.findall(rb"HTTP/1\.1 (\d+)", received)) < number:
        part = client.recv(4000)
        assert part, received
        received += part
    return found


def everything(client: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(4000):
            parts.append(part)
    return b"".join(parts)


def printing(what: str) -> str:
    """Python code that makes a service print an expression after each response."""
    return (
        "import service.http.admission_control as d; leave = d.AdmissionControl.leave\n"
        f"def leave_and_print(self, scope, learn):\n    leave(self, scope, learn=learn); print({what}, flush=True)\n"
        "d.AdmissionControl.leave = leave_and_print"
    )


def test_a_slow_kind_of_request_does_not_adapt_the_limit(start_service: StartService) -> None:
    """A list with explanations costs as much as many lists: its response time says nothing about the load."""
    service = start_service(prelude=printing("'learns', learn"))
    with service.client() as client:
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200
        for query in ("", "&k=3", "&explain=true", "&explain=true&k=3"):
            assert client.get(f"/recommendations?session_id=a{query}").status_code == 200
        assert client.get("/tracks").status_code == 200
    service.stop()
    learnt = [line for line in service.output if line.startswith("learns")][-6:]
    assert learnt == ["learns True"] * 3 + ["learns False"] * 3


def test_requests_in_flight_are_counted_until_they_are_answered(start_service: StartService) -> None:
    """Pipelined requests too, and those whose client has disconnected: the count returns to 0."""
    service = start_service(prelude=printing("'in_flight', self.in_flight"))
    with service.client() as client:
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200
        with socket.create_connection(address_of(client), timeout=5) as other:
            other.sendall(b"GET /recommendations?session_id=a HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5)
            assert statuses(other, 5) == [b"200"] * 5
            other.sendall(b"GET /recommendations?session_id=a HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5)
        assert client.get("/health/ready").status_code == 200
        assert client.get("/" + "x" * 40_000).status_code == 422
        for _ in range(100):
            if service.output[-1].endswith("in_flight 0"):
                break
            time.sleep(0.05)
    assert service.output[-1].endswith("in_flight 0")
    assert len([line for line in service.output if "in_flight" in line]) >= 7


def test_slow_clients_are_told_and_let_go_and_take_nobodys_place(start_service: StartService) -> None:
    service = start_service(read_timeout_s=3)
    with service.client() as client, contextlib.ExitStack() as stack:
        slow = {
            "says nothing": b"",
            "no end of the head": b"GET /recommendations?session_id=a HTTP/1.1\r\nHost: localhost\r\n",
            "no end of the body": REPORT + b"Content-Length: 99\r\n\r\n{",
        }
        sockets = {}
        for what, said in slow.items():
            sockets[what] = stack.enter_context(socket.create_connection(address_of(client), timeout=20))
            sockets[what].sendall(said)
        waiting = [stack.enter_context(socket.create_connection(address_of(client))) for _ in range(100)]
        for one in waiting:
            one.sendall(slow["no end of the body"])
        assert client.get("/recommendations?session_id=a").status_code == 200
        assert everything(sockets["says nothing"]) == b""
        for what in ("no end of the head", "no end of the body"):
            answer = everything(sockets[what])
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout"), what
            assert b"application/problem+json" in answer
            assert answer.endswith(b'was not complete within 3 s: send it faster"}')
        assert client.get("/recommendations?session_id=a").status_code == 200


def test_a_client_that_sends_bit_by_bit_has_no_more_time_and_one_in_time_is_answered(
    start_service: StartService,
) -> None:
    keep_alive = (
        "import service.http.protocol as p;"
        "p.Connection.timeout_keep_alive = property(lambda self: 60, lambda self, given: None)"
    )
    with (
        start_service(prelude=keep_alive, read_timeout_s=5).client() as client,
        socket.create_connection(address_of(client), timeout=20) as patient,
    ):
        for part in (b"GET /health/live HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n"):
            time.sleep(0.1)
            patient.sendall(part)
        assert statuses(patient, 1) == [b"200"]
        with (
            Stopwatch() as watch,
            socket.create_connection(address_of(client), timeout=20) as drip,
            contextlib.suppress(OSError),
        ):
            for byte in b"GET /health/live HTTP/1.1\r\nHost: " + b"x" * 200:
                drip.sendall(bytes([byte]))
                time.sleep(0.05)
        assert watch.wall_seconds > 4.9
        assert watch.seconds < 11
        patient.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")  # idle meanwhile, which is not slow
        assert statuses(patient, 1) == [b"200"]


def test_connections_above_the_limit_are_rejected(start_service: StartService) -> None:
    with start_service(max_connections=3).client() as client, contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection(address_of(client), timeout=20)) for _ in range(3)]
        for other in others:
            other.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(20).startswith(b"HTTP/1.1 200")
        with socket.create_connection(address_of(client), timeout=20) as more:
            assert everything(more).startswith(b"HTTP/1.1 503")
        others[0].close()
        until(lambda: _is_answered(client))


def _is_answered(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/health/live").status_code == 200
    return False


def test_more_connections_than_files_may_be_open_are_refused_in_one_line(start_service: StartService) -> None:
    service = start_service(
        prelude="import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (600, 600))", max_connections=500
    )
    assert service.process.wait(30) != 0
    service.stop()
    assert "max_connections is 500, but this process may open only 600 files" in service.output[-1]


def test_a_stopping_service_finishes_what_is_under_way(start_service: StartService, tmp_path: Path) -> None:
    """Redis is frozen while a request is under way and the service is told to stop; then Redis goes on."""
    prelude = (
        "import service.http.admission_control as d; enter = d.AdmissionControl.enter\n"
        "def enter_and_print(self, scope):\n    enter(self, scope); print('begun', scope['path'], flush=True)\n"
        "d.AdmissionControl.enter = enter_and_print"
    )
    service = start_service(prelude=prelude, redis_timeout_s=20)
    with service.client() as client:
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200
        [server] = redis_servers(tmp_path / "data")
        os.kill(server, signal.SIGSTOP)
        answers: list[httpx.Response] = []
        try:
            asking = threading.Thread(target=lambda: answers.append(client.get("/sessions/a")), daemon=True)
            asking.start()
            until(lambda: any(line.endswith("begun /sessions/a") for line in service.output))
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert not answers
        finally:
            os.kill(server, signal.SIGCONT)
        asking.join(20)
        assert [answer.status_code for answer in answers] == [200]
    assert service.stop() == 0


def redis_servers(data_dir: Path) -> list[int]:
    """The embedded server of a data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            is_redis = entry.name.isdigit() and b"redis-server" in (entry / "cmdline").read_bytes()
            if is_redis and (entry / "cwd").readlink() == data_dir / "redis":
                found.append(int(entry.name))
    return found
