"""Redis hangs, ends, restarts, loses connections; the model fails: what is answered meanwhile, and how soon."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import recommended
from tests.live.redis_server import Server
from tests.stopwatch import Stopwatch, until

StartService = Callable[..., Any]
TIMEOUT_S = 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    # `everysec` keeps writes back while it flushes the ones before: a killed server would lose them.
    with Server(tmp_path / "server", appendonly="yes", appendfsync="always") as server:
        yield server


class Proxy:
    """Passes bytes on to a server. When told to, it cuts a connection after a command and before its answer."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.cuts = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._unheard: set[socket.socket] = set()  # connections to the server whose next answer is not passed on
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                self._run(self._pass, client, server, True)
                self._run(self._pass, server, client, False)

    def _pass(self, source: socket.socket, to: socket.socket, commands: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if commands and self.cuts and b"segue:" in data:
                    self.cuts -= 1
                    self._unheard.add(to)
                elif source in self._unheard:
                    break  # Redis has done as it was told, and the caller hears nothing of it
                to.sendall(data)
        for one in (source, to):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for one in (self._listening, *self._open):
            one.close()


def play(track: str = "g2-t05", event_id: str | None = None) -> dict[str, Any]:
    event = {"type": "play", "track_id": track}
    return {"events": [event if event_id is None else event | {"event_id": event_id}]}


def timed(ask: Callable[[], httpx.Response]) -> tuple[httpx.Response, Stopwatch]:
    with Stopwatch() as watch:
        answer = ask()
    return answer, watch


def metric(client: httpx.Client, name: str) -> float:
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}"


def test_while_redis_hangs_one_request_waits_and_the_others_do_not(
    start_service: StartService, server: Server, url: str
) -> None:
    with start_service(redis_url=url, redis_timeout_s=TIMEOUT_S, fallback="none").client() as client:
        assert client.post("/sessions/a/events", json=play()).status_code == 200
        with server.frozen():
            answer, watch = timed(lambda: client.get("/sessions/a"))
            assert answer.status_code == 503
            assert watch.wall_seconds > TIMEOUT_S * 0.9
            assert watch.seconds < TIMEOUT_S + 2
            for ask in (
                lambda: client.get("/sessions/a"),
                lambda: client.post("/sessions/a/events", json=play(event_id="e")),
                lambda: client.get("/recommendations?session_id=a"),
                lambda: client.get("/health/ready"),
            ):
                answer, watch = timed(ask)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                assert watch.seconds < TIMEOUT_S * 0.8
            assert metric(client, "segue_redis_circuit_open") == 1
            assert client.get("/tracks").status_code == 200
        until(lambda: client.get("/health/ready").status_code == 200)
        assert metric(client, "segue_redis_circuit_open") == 0
        assert client.get("/sessions/a").status_code == 200


def test_reads_fall_back_to_popularity_and_writes_are_not_acknowledged(
    start_service: StartService, server: Server, url: str
) -> None:
    service = start_service(redis_url=url, redis_timeout_s=TIMEOUT_S)
    with service.client() as client:
        assert client.post("/sessions/a/events", json=play()).status_code == 200
        assert recommended(client, "a", k=3)["source"] == "model"
        popular = recommended(client, "nobody", k=100)
        server.kill()
        answer = recommended(client, "a", k=100)
        assert answer == popular | {"session_id": "a"}
        assert answer["source"] == "popularity"
        assert answer["window"] == {"plays": 0, "skips": 0}
        without = recommended(client, "a", k=3, exclude=["g0-t00", "g0-t02"])
        assert [item["track_id"] for item in without["items"]] == ["g0-t01", "g0-t03", "g0-t04"]
        for query in ("", "?recommend=3"):
            answer = client.post(f"/sessions/a/events{query}", json=play(event_id="lost"))
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
        assert client.get("/health/ready").status_code == 503
        assert 'segue_fallbacks_total{component="store"} 2.0' in client.get("/metrics").text
        server.start()
        until(lambda: recommended(client, "a", k=3)["source"] == "model")
        assert [one["track_id"] for one in client.get("/sessions/a").json()["plays"]] == ["g2-t05"]
    assert any("redis_circuit_opened" in line for line in service.output)


def test_answers_do_not_say_where_redis_is_and_the_log_does(
    start_service: StartService, server: Server, url: str
) -> None:
    service = start_service(redis_url=url, redis_timeout_s=TIMEOUT_S, fallback="none")
    with service.client() as client:
        server.kill()
        for path in ("/sessions/a", "/recommendations?session_id=a", "/health/ready"):
            for _ in range(3):
                answer = client.get(path)
                assert answer.status_code == 503
                assert "127.0.0.1" not in answer.text
                assert str(server.port) not in answer.text
        service.stop()
    assert any("redis_unavailable" in line and str(server.port) in line for line in service.output)


@pytest.mark.parametrize("again", range(3))
def test_a_restart_of_redis_between_requests_costs_nobody_an_answer(
    start_service: StartService, server: Server, url: str, again: int
) -> None:
    with start_service(redis_url=url, fallback="none", event_log=False).client() as client:
        asks: tuple[Callable[[], httpx.Response], ...] = (
            lambda: client.get("/sessions/a"),
            lambda: client.post("/sessions/a/events", json=play(event_id=f"e{again}")),
            lambda: client.get("/recommendations?session_id=a"),
            lambda: client.get("/health/ready"),
            lambda: client.delete("/sessions/b"),
        )
        for number, ask in enumerate(asks):
            for name in ("a", "b"):
                assert client.post(f"/sessions/{name}/events", json=play(event_id=f"{number}")).status_code == 200
            server.kill()
            server.start()
            assert ask().status_code < 300, number


def test_a_connection_that_ends_before_the_answer_is_made_good_where_that_is_safe(
    start_service: StartService, server: Server
) -> None:
    proxy = Proxy(server.port)
    with contextlib.closing(proxy), server.client() as direct:
        service = start_service(redis_url=f"redis://127.0.0.1:{proxy.port}", fallback="none", event_log=False)
        with service.client() as client:
            assert client.post("/sessions/a/events", json=play(event_id="0")).status_code == 200
            proxy.cuts = 1
            answer = client.post("/sessions/a/events", json=play(event_id="1")).json()
            assert (answer["length"], answer["accepted"], answer["duplicates"]) == (2, 0, 1)  # the first had come
            proxy.cuts = 1
            assert len(client.get("/sessions/a").json()["plays"]) == 2
            assert metric(client, "segue_redis_retries_total") == 2
            proxy.cuts = 1
            assert client.post("/sessions/a/events", json=play()).status_code == 503
            until(lambda: len(client.get("/sessions/a").json()["plays"]) == 3)  # carried out once, and not again
            time.sleep(0.3)
            assert len(client.get("/sessions/a").json()["plays"]) == 3
            proxy.cuts = 2
            assert client.post("/sessions/a/events", json=play(event_id="2")).status_code == 503  # twice is enough
            assert direct.ping()


def test_a_model_that_fails_is_replaced_by_popularity(start_service: StartService) -> None:
    broken = (
        "import service.releases.rankers as o; encode = o.OnnxEncoder.encode;"
        "o.OnnxEncoder.encode = lambda self, windows: 1 / 0 if (windows.tracks == 14).any() else encode(self, windows)"
    )
    service = start_service(prelude=broken)
    with service.client() as client:
        assert client.post("/sessions/a/events", json=play("g0-t01")).status_code == 200
        assert recommended(client, "a", k=2)["source"] == "model"
        asked = "/sessions/a/events?recommend=2&repeat=never"
        answer = client.post(asked, json=play("g1-t01"))  # row 14
        assert answer.status_code == 200
        assert answer.json()["recommendations"]["source"] == "popularity"
        for repeat, heard in (("never", False), ("after:2", False), ("after:1", True)):
            answer = recommended(client, "a", k=2, exclude=["g0-t00"], repeat=repeat)
            assert answer["source"] == "popularity"
            assert ("g0-t01" in {item["track_id"] for item in answer["items"]}) == heard
            assert len(answer["items"]) == 2
        assert 'segue_fallbacks_total{component="model"} 4.0' in client.get("/metrics").text
    assert any("model_error" in line for line in service.output)


def test_a_model_that_fails_is_an_error_where_no_fallback_is_wanted(start_service: StartService) -> None:
    broken = (
        "import service.releases.rankers as o; encode = o.OnnxEncoder.encode;"
        "o.OnnxEncoder.encode = lambda self, windows: 1 / 0 if (windows.tracks == 14).any() else encode(self, windows)"
    )
    with start_service(prelude=broken, fallback="none").client() as client:
        assert client.post("/sessions/a/events", json=play("g1-t01")).status_code == 200
        assert client.get("/recommendations?session_id=a").status_code == 500
