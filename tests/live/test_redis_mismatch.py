"""A SEGUE_REDIS_URL that leads to something else than the settings describe: one line at the start, 503 afterwards."""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from segue.errors import BadOption
from segue.release import Release
from service.app import check_startup
from service.sessions.embedded_redis import redis_server_binary
from service.settings import Settings
from tests.conftest import StartService
from tests.faults.servers import free_port
from tests.live.redis_server import Server
from tests.stopwatch import until

PLAY = {"events": [{"type": "play", "track_id": "g1-t01"}]}
CLUSTER = {"cluster-enabled": "yes"}


@contextlib.contextmanager
def web_server(port: int = 0) -> Iterator[str]:
    """A server that answers everything as a web server answers nonsense."""
    with socket.create_server(("127.0.0.1", port)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listening.accept()[0] as connection:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def sentinel(folder: Path) -> Iterator[str]:
    port = free_port()
    (folder / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\n")
    words = [str(redis_server_binary()), str(folder / "sentinel.conf"), "--sentinel"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port))
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def refusal(release: Release, url: str, *, cluster: bool = False) -> str:
    """The line with which the service refuses to start."""
    with pytest.raises(BadOption) as caught:
        check_startup(Settings(release=release.path, redis_url=url, redis_cluster=cluster, durability="memory"))
    line = str(caught.value)
    assert "\n" not in line
    assert "127.0.0.1" not in line
    return line


@pytest.mark.parametrize(
    ("suffix", "cluster", "line"),
    [
        ("/99", False, "no database with the number at the end of SEGUE_REDIS_URL"),
        ("/one", False, "redis_url ends with '/one', which is not the number of a database"),
        ("/0?timeout_s=1", False, "redis_url cannot be used: the client has no option 'timeout_s'"),
        ("/0?timeout_s=1", True, "redis_url cannot be used: the client has no option 'timeout_s'"),
        ("/0?db=one", False, "redis_url cannot be used: Invalid value for 'db'"),
        ("/3", True, "redis_url cannot be used: Argument 'db' must be 0 or None in cluster mode"),
        ("", True, "the session store is not a Redis Cluster: set SEGUE_REDIS_CLUSTER=false"),
    ],
)
def test_an_ordinary_server(tiny_release: Release, tmp_path: Path, suffix: str, cluster: bool, line: str) -> None:
    with Server(tmp_path / "server") as server:
        assert line in refusal(tiny_release, server.url + suffix, cluster=cluster)


def test_other_servers(tiny_release: Release, tmp_path: Path, redis_cluster: str) -> None:
    assert "one of 3 nodes of a cluster: set SEGUE_REDIS_CLUSTER=true" in refusal(tiny_release, redis_cluster)
    with web_server() as url:
        assert "does not speak the Redis protocol" in refusal(tiny_release, url)
    with sentinel(tmp_path) as url:
        assert "Redis is a Sentinel" in refusal(tiny_release, url)
    socket_url = f"unix://{tmp_path}/redis.sock"
    assert "Unix domain socket is not supported in cluster mode" in refusal(tiny_release, socket_url, cluster=True)


def test_a_node_that_does_not_tell_that_it_has_others(start_service: StartService, redis_cluster: str) -> None:
    """Its user may not ask. Sessions that other nodes store get a 503 that says what to do."""
    with redis.Redis.from_url(redis_cluster) as client:
        client.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~segue:*", "+@all", "-cluster", "-info")
    service = start_service(redis_url=redis_cluster.replace("//", "//plain:secret@"), durability="memory")
    with service.client() as client:
        answers = [client.post(f"/sessions/{number}/events", json=PLAY) for number in range(12)]
        assert {answer.status_code for answer in answers} == {200, 503}
        details = {answer.json()["detail"] for answer in answers if answer.status_code == 503}
        assert details == {"the session store is a node of a Redis Cluster: set SEGUE_REDIS_CLUSTER=true"}
        assert client.get("/operations").status_code == 200
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)


def test_another_server_takes_the_place_of_redis(start_service: StartService, tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    service = start_service(redis_url=server.url, durability="memory", event_log_flush_s=0.1)
    with service.client() as client:
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200
        server.kill()
        with web_server(server.port):
            detail = "the session store does not speak the Redis protocol: set SEGUE_REDIS_URL to a Redis server"
            until(lambda: client.get("/sessions/a").json().get("detail") == detail)
            for path in ("/health/ready", "/sessions/a"):
                assert client.get(path).status_code == 503
            assert client.get("/recommendations?session_id=a").json()["source"] == "popularity"
            assert client.get("/operations").json()["redis"]["detail"] == detail
        server.start()
        until(lambda: client.get("/health/ready").status_code == 200)
        server.kill()
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)


def test_a_cluster_that_is_not_there_at_the_start(start_service: StartService, tmp_path: Path) -> None:
    server = Server(tmp_path / "server", **CLUSTER)
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
    server.kill()
    service = start_service(redis_url=server.url, redis_cluster=True, durability="memory")
    with service.client() as client:
        answer = client.post("/sessions/a/events", json=PLAY)
        assert answer.status_code == 503
        assert "cannot be reached" in answer.json()["detail"]
        assert client.get("/health/ready").status_code == 503
        assert client.get("/operations").json()["redis"]["reachable"] is False
        server.start()
        until(lambda: client.get("/health/ready").status_code == 200, 30)
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200
        server.kill()
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)


def test_a_single_node_that_stores_all_keys_of_its_cluster_is_an_ordinary_server(
    tiny_release: Release, tmp_path: Path
) -> None:
    with Server(tmp_path / "server", **CLUSTER) as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        check_startup(Settings(release=tiny_release.path, redis_url=server.url, durability="memory"))
