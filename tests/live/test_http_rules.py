"""Rules of HTTP that hold for every call, on the fast path and the ordinary one, asked of a real service."""

import contextlib
import gzip
import json
import random
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from service.http.auth import CALLS

StartService = Callable[..., Any]
EVENTS = json.dumps({"events": [{"type": "play", "track_id": "g0-t00"}]}).encode()
# The same call three times: by the fast path, by FastAPI's route, and another call that takes a body.
PATHS = ("/sessions/{}/events", "/sessions/{}/events?recommend=01", "/recommendations/what-if")


def address_of(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port or 0


def raw(client: httpx.Client, sent: bytes, *, shut_down: bool = False, wait_s: float = 5.0) -> bytes:
    """What comes back until the service closes, or nothing has come for a while."""
    received = b""
    with socket.create_connection(address_of(client), timeout=wait_s) as connection:
        connection.sendall(sent)
        if shut_down:
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65_536):
                received += part
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def post(path: str, *headers: str, body: bytes = EVENTS, length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class TestHead:
    """HEAD is answered as GET is, without the body (RFC 9110, 9.3.2)."""

    @pytest.mark.parametrize("path", sorted(path for method, path in CALLS if method == "GET"))
    def test_has_the_status_and_headers_of_get(self, running: httpx.Client, path: str) -> None:
        running.post("/sessions/head/events", content=EVENTS, headers={"Content-Type": "application/json"})
        names = {
            "session_id": "head",
            "listener_id": "head",
            "track_id:path": "g0-t00",
            "position": "0",
            "path:path": "player.js",
        }
        for name, value in names.items():
            path = path.replace(f"{{{name}}}", value)
        query = "?session_id=head" if path == "/recommendations" else ""
        accept = {"Accept": "text/event-stream"}
        with running.stream("GET", path + query, headers=accept) as got:
            expected = {name: value for name, value in got.headers.items() if name not in ("date", "x-request-id")}
        head = running.head(path + query, headers=accept)
        assert head.status_code == got.status_code
        assert not head.content
        for name, value in head.headers.items():
            if name in expected and not (name == "content-length" and path in ("/metrics", "/operations")):
                assert value == expected[name], name

    def test_of_what_is_not_there_is_an_error_too(self, running: httpx.Client) -> None:
        assert running.head("/nowhere").status_code == 404
        assert running.head("/sessions/nobody").status_code == 404
        assert running.head("/recommendations").status_code == 422
        answer = running.head("/sessions/head/events")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        assert "HEAD" in running.put("/tracks").headers["allow"]

    def test_leaves_the_connection_to_the_next_request(self, running: httpx.Client) -> None:
        one = b"HEAD /sessions/head/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        received = raw(running, one * 3 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert statuses(received) == [200] * 4

    def test_needs_the_key_that_get_needs(self, start_service: StartService, tmp_path: Any) -> None:
        (tmp_path / "keys.toml").write_text("keys = []\n")
        with start_service(api_keys=tmp_path / "keys.toml").client() as client:
            assert client.head("/health/live").status_code == 200
            assert client.head("/").status_code == 200
            for path in ("/tracks", "/metrics", "/sessions/head"):
                assert client.head(path).status_code == client.get(path).status_code == 401


class TestBody:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            (("Content-Type: application/json",), 200),
            (("content-type: Application/JSON ; charset=UTF-8",), 200),
            (("Content-Type: application/json", "Content-Encoding: identity"), 200),
            ((), 415),
            (("Content-Type: text/plain",), 415),
            (("Content-Type: application/json; charset=latin-1",), 415),
            (("Content-Type: application", "Content-Type: /json"), 415),
            (("Content-Type: application/json", "Content-Type: application/json"), 415),
            (("Content-Type: application/json", "Content-Type:"), 415),
            (("Content-Type:", "Content-Type: application/json"), 415),
            (("Content-Type: application/json", "Content-Encoding: gzip"), 415),
            (("Content-Type: application/json", "content-encoding: BR"), 415),
            (("Content-Type: application/json", "Content-Encoding: gzip, identity"), 415),
            (("Content-Type: application/json", "Content-Encoding: identity", "Content-Encoding: gzip"), 415),
            (("Content-Type: application/json", "Content-Range: bytes 0-9/50"), 415),
        ],
    )
    def test_says_that_it_is_plain_json(
        self, running: httpx.Client, path: str, headers: tuple[str, ...], status: int
    ) -> None:
        session = f"body-{uuid4().hex}"
        assert statuses(raw(running, post(path.format(session), *headers))) == [status]
        stored = running.get(f"/sessions/{session}").status_code
        assert (stored == 200) == (status == 200 and "sessions" in path)

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("compressed", [gzip.compress(EVENTS), zlib.compress(EVENTS)], ids=["gzip", "zlib"])
    def test_that_is_compressed_is_refused_by_the_name_of_its_coding(
        self, running: httpx.Client, path: str, compressed: bytes
    ) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        answer = running.post(path.format("compressed"), content=compressed, headers=headers)
        assert answer.status_code == 415
        assert "'gzip'" in answer.json()["detail"]

    def test_that_is_wrong_is_the_same_problem_both_ways(self, running: httpx.Client) -> None:
        body = b'{"events": [{"type": "plai", "track_id": 7, "more": []}]}'
        answers = [
            running.post(
                path.format("wrong"),
                content=body,
                headers={"Content-Type": "application/json", "X-Request-ID": "the-same"},
            )
            for path in PATHS[:2]
        ]
        assert [answer.status_code for answer in answers] == [422, 422]
        assert answers[0].json() == answers[1].json()

    @pytest.mark.parametrize("path", PATHS[:2])
    @pytest.mark.parametrize("ending", ["close", "reset", "shut down", "wait"])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_that_never_came_whole_is_not_stored(
        self, running: httpx.Client, impatient: httpx.Client, path: str, ending: str, chunked: bool
    ) -> None:
        client = impatient if ending == "wait" else running
        session = f"partial-{uuid4().hex}"
        sent = post(path.format(session), "Content-Type: application/json", length=len(EVENTS) + 100)
        if chunked:
            head = sent.partition(b"\r\n\r\n")[0].rpartition(b"\r\n")[0]
            sent = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(EVENTS), EVENTS)
        with socket.create_connection(address_of(client), timeout=20) as connection:
            connection.sendall(sent)
            time.sleep(0.1)
            if ending == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif ending == "shut down":
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(4000) == b""
            elif ending == "wait":
                assert statuses(connection.recv(4000)) in ([408], [])  # none if nothing was read in time
        time.sleep(0.1)
        assert client.get(f"/sessions/{session}").status_code == 404


@pytest.fixture(scope="module")
def impatient(tiny_release: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service whose clients have half a second for a request."""
    from tests.conftest import ServiceProcess

    service = ServiceProcess(tiny_release.path, tmp_path_factory.mktemp("data"), read_timeout_s=0.5)
    with service.client() as client:
        yield client
    service.stop()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /recommendations?session_id=half&k=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /tracks?query=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
        post("/sessions/half/events", "Content-Type: application/json"),
        post("/sessions/half/events?recommend=01", "Content-Type: application/json"),
    ],
)
def test_a_client_that_sends_no_more_gets_its_answer(running: httpx.Client, request_bytes: bytes) -> None:
    assert statuses(raw(running, request_bytes, shut_down=True)) == [200]


def test_a_path_that_ends_with_a_newline_is_another_path(running: httpx.Client) -> None:
    for method, template in CALLS:
        path = re.sub(r"{[^}]*}", "g0-t00", template)
        for ending in ("%0A", "%0a", "%0A%0A"):
            assert running.request(method, path + ending).status_code in (404, 405, 422), path
        assert running.request(method, path + "%0A").status_code == 404


def test_probes_of_health_in_http_1_0_need_no_host(running: httpx.Client) -> None:
    assert statuses(raw(running, b"GET /health/live HTTP/1.0\r\n\r\n")) == [200]
    assert statuses(raw(running, b"GET /health/ready HTTP/1.0\r\n\r\n")) == [200]
    received = raw(running, b"GET /tracks HTTP/1.0\r\n\r\n")
    assert statuses(received) == [421]
    assert b"the Host header is missing" in received


def test_methods_that_no_route_has_are_one_label_of_metrics(running: httpx.Client) -> None:
    for method in ("PROPFIND", "LOCK", "REPORT", "TRACE", "SUBSCRIBE"):
        for path in ("/tracks", "/map", "/sessions/a/events", "/web/player.js", "/nowhere"):
            assert running.request(method, path).status_code in (404, 405)
    labels = set(re.findall(r'method="([A-Z]+)"', running.get("/metrics").text))
    assert labels <= {"GET", "POST", "PUT", "DELETE", "HEAD"}


def test_clients_that_leave_are_counted_and_logged_as_no_failure(start_service: StartService) -> None:
    rng = random.Random(7)
    service = start_service()
    with service.client() as client:
        requests = [
            b"GET /recommendations?session_id=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /tracks?query=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /recommendations?session_id=a&explain=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /sessions/a/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
            post("/sessions/a/events", "Content-Type: application/json").replace(b"Connection: close\r\n", b""),
        ]
        for _ in range(300):
            sent = b"".join(rng.choice(requests) for _ in range(rng.randint(1, 5)))
            with socket.create_connection(address_of(client), timeout=5) as connection:
                connection.sendall(sent[: rng.randint(1, len(sent))])
                if rng.random() < 0.5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                time.sleep(rng.choice((0, 0, 0.001, 0.003)))
        time.sleep(0.5)
        assert client.get("/health/ready").status_code == 200
        metrics = client.get("/metrics").text
        assert 'status="499"' in metrics
        assert 'status="500"' not in metrics
    assert service.stop() == 0
    log = "\n".join(service.output)
    for sign in ("request_error", "Exception in ASGI", "Traceback", "returned without"):
        assert sign not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["headers", "header", "trailers", "trailer", "extensions", "slow bodies", "slow heads"]
)
def test_memory_stays_whatever_is_sent_without_an_end(start_service: StartService, kind: str) -> None:
    """50 MB of it, over as many connections as it takes; within a fifth of what the service has at rest."""
    service = start_service(max_connections=4000)
    with service.client() as client:
        address = address_of(client)
        for _ in range(50):
            client.post("/sessions/a/events?recommend=20", content=EVENTS, headers={"Content-Type": "application/json"})
        process = psutil.Process(service.process.pid)
        before = process.memory_info().rss
        head = b"POST /sessions/a/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunks = head + b"Transfer-Encoding: chunked\r\n\r\n"
        begin, endless, most = {
            "headers": (head, b"X: y\r\n" * 2000, 10**6),
            "header": (head + b"X: ", b"y" * 10_000, 10**6),
            "trailers": (chunks + b"0\r\n", b"X: y\r\n" * 2000, 10**6),
            "trailer": (chunks + b"0\r\nX: ", b"y" * 10_000, 10**6),
            "extensions": (chunks + b"1;", b"a=b;" * 2500, 10**6),
            "slow bodies": (head + b"Content-Length: 50000\r\n\r\n", b" " * 9_999, 49_995),
            "slow heads": (head + b"X: ", b"y" * 9_000, 60_000),
        }[kind]
        sent, peak = 0, before
        with contextlib.ExitStack() as held:
            while sent < 50e6:
                connection = held.enter_context(socket.create_connection(address, timeout=5))
                with contextlib.suppress(OSError):
                    connection.sendall(begin)
                    for _ in range(most // len(endless)):
                        connection.sendall(endless)
                        sent += len(endless)
                peak = max(peak, process.memory_info().rss)
        assert peak < 1.2 * before, f"{before / 2**20:.0f} MiB before, {peak / 2**20:.0f} MiB at most"
        assert client.get("/health/ready").status_code == 200
