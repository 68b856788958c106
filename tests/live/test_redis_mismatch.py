"""A SEGUE_REDIS_URL that does not match the settings: one line at the start, 503 with the cause afterwards."""

import asyncio
import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import uvloop
from redis.crc import key_slot

from segue.errors import BadOption, StoreUnavailable
from segue.release import Release
from segue.sessions import Event
from service.app import check_startup
from service.ops.status import RedisStatus
from service.sessions.embedded_redis import embedded_redis, redis_server_binary
from service.sessions.redis_server import connect
from service.sessions.store import SessionStore, keys_of
from service.settings import Settings
from tests.conftest import StartService
from tests.faults.servers import free_port
from tests.live.redis_server import Server
from tests.stopwatch import until

PLAY = {"events": [{"type": "play", "track_id": "g1-t01"}]}
CLUSTER = {"cluster-enabled": "yes"}


def web_server(port: int = 0) -> contextlib.AbstractContextManager[str]:
    """A server that answers every request with HTTP 400."""
    return answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", port)


@contextlib.contextmanager
def answering(response: bytes, port: int = 0) -> Iterator[str]:
    """A server that gives one response to everything, and closes the connection."""
    with socket.create_server(("127.0.0.1", port)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listening.accept()[0] as connection:
                        connection.recv(1000)
                        connection.sendall(response)

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
        ("/99", False, "no database with the number in SEGUE_REDIS_URL"),
        ("/one", False, "redis_url ends with '/one', which is not the number of a database"),
        ("/0?timeout_s=1", False, "redis_url has the unsupported option 'timeout_s': use client_name, "),
        ("/0?timeout_s=1", True, "redis_url has the unsupported option 'timeout_s': use client_name, "),
        ("/0?retry=3", False, "redis_url has the unsupported option 'retry'"),
        ("/0?ssl_cert_reqs=none", False, "redis_url has the option 'ssl_cert_reqs', which requires rediss://"),
        ("/0?protocol=9", False, "redis_url cannot be used: protocol must be"),
        ("?protocol=9", True, "redis_url cannot be used: protocol must be"),
        ("/0?db=one", False, "redis_url cannot be used: Invalid value for 'db'"),
        ("/3", True, "redis_url cannot be used: Argument 'db' must be 0 or None in cluster mode"),
        ("/0?db=1", True, "redis_url has the unsupported option 'db': use client_name, health_check_interval"),
        ("", True, "the session store is not a Redis Cluster: set SEGUE_REDIS_CLUSTER=false"),
    ],
)
def test_an_ordinary_server(tiny_release: Release, tmp_path: Path, suffix: str, cluster: bool, line: str) -> None:
    with Server(tmp_path / "server") as server:
        assert line in refusal(tiny_release, server.url + suffix, cluster=cluster)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:123/secret@host:6379",
        "redis://user:12/secret@host:6379/0",
        "redis://:1?secret=abc@host",
        "redis://:1#secret@h",
    ],
)
def test_a_password_that_is_not_quoted_is_not_shown(tiny_release: Release, url: str) -> None:
    line = refusal(tiny_release, url)
    assert "%2F, %3F, %23" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://host",
            "redis://host:6379/",
            "redis://host/0/",
            "redis:///0",
            "redis://host//0",
            "redis://host/a?db=1",
        ),
        *("redis://u:p%2F@host/0?client_name=segue&socket_keepalive=true", "unix:///run/a@b.sock?db=1"),
        *("redis://host/0?client_name=a@b&password=p@ss", "unix:///r.sock?username=a@b&password=c"),
        "rediss://host/0?ssl_cert_reqs=none&ssl_check_hostname=false",
    ],
)
def test_a_url_that_redis_py_reads(url: str) -> None:
    connect(Settings(release=Path("unused"), redis_url=url))


def test_a_server_that_rejects_the_connection(tiny_release: Release, tmp_path: Path) -> None:
    with Server(tmp_path / "cluster", **CLUSTER) as server:
        assert "no database with the number" in refusal(tiny_release, f"{server.url}/1")
    with sentinel(tmp_path) as url:
        assert "set SEGUE_REDIS_URL to a Redis server, not a Sentinel" in refusal(tiny_release, f"{url}/1")
    with embedded_redis(tmp_path / "embedded") as url:
        assert "no database with the number" in refusal(tiny_release, f"{url}?db=99")
    denied = b"-DENIED Redis is running in protected mode\r\n"
    with answering(denied) as url:
        line = refusal(tiny_release, url)
        assert "rejects Segue's connection" in line
        assert "protected mode" in line


@pytest.mark.parametrize("quote", ["'", "`"])
def test_a_server_that_repeats_the_password(tiny_release: Release, quote: str) -> None:
    """Redis 5, and Redis with a renamed HELLO, answer with the arguments of the command."""
    words = " ".join(f"{quote}{word}{quote}" for word in ("3", "AUTH", "default", "secret"))
    with answering(f"-ERR unknown command {quote}HELLO{quote}, with args beginning with: {words}\r\n".encode()) as url:
        line = refusal(tiny_release, url.replace("//", "//:secret@"))
    assert "use Redis 6.2 or later, or add ?protocol=2" in line
    assert "secret" not in line


def test_a_wrong_password(tiny_release: Release, tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        with server.client() as client:
            client.config_set("requirepass", "secret")
        for url in (server.url, server.url.replace("//", "//:another@"), f"{server.url}?protocol=2"):
            line = refusal(tiny_release, url)
            assert "rejects Segue's user name or password" in line
            assert "another" not in line


def test_the_documented_permissions_of_a_cluster(tiny_release: Release, redis_cluster: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operate" / "redis.md").read_text()
    [rules] = re.findall(r"ACL SETUSER segue on >PASSWORD (.*)", page)
    addition = "+cluster|slots"
    assert f"`{addition}`" in page

    def allow(*words: str) -> None:
        with redis.RedisCluster.from_url(redis_cluster) as cluster:
            for node in cluster.get_primaries():
                cluster.execute_command("ACL", "SETUSER", "documented", "on", ">secret", *words, target_nodes=node)

    async def use() -> None:
        url = redis_cluster.replace("//", "//documented:secret@")
        settings = Settings(release=Path("unused"), redis_url=url, redis_cluster=True, durability="memory")
        client = connect(settings)
        try:
            await SessionStore(client, settings).check()
        finally:
            await client.aclose()

    allow(*rules.split())
    with pytest.raises(StoreUnavailable, match="grant the permissions in docs/operate/redis"):
        asyncio.run(use())
    allow(addition)
    asyncio.run(use())


def test_keys_that_move_to_another_node(tmp_path: Path) -> None:
    """Commands get StoreUnavailable, also if they are redirected to a new node that stores no complete slot yet."""

    async def use(first: Server, second: Server) -> None:
        settings = Settings(release=Path("unused"), redis_url=first.url, redis_cluster=True, durability="memory")
        client = connect(settings)
        store, keys = SessionStore(client, settings), keys_of("moving")
        event = Event.model_validate({"type": "play", "track_id": "a", "event_id": "e"})
        try:
            await store.append("moving", [event])
            slot = key_slot(keys[0].encode())
            with first.client() as source, second.client() as target:
                ids = [str(node.execute_command("CLUSTER", "MYID")) for node in (source, target)]
                target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
                source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
                # Some of the session's keys do not exist.
                with pytest.raises(StoreUnavailable, match="rejects commands at the moment") as caught:
                    await store.append("moving", [event])
                assert caught.value.reason.startswith("TRYAGAIN")
                source.execute_command("MIGRATE", "127.0.0.1", second.port, "", 0, 5000, "KEYS", *keys)
                with pytest.raises(StoreUnavailable, match="rejects commands at the moment"):
                    await store.session("moving")
                assert (await RedisStatus(client).look()).reachable
                for node in (target, source):
                    node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            assert [play.track_id for play in await store.plays("moving")] == ["a"]
            assert (await store.append("moving", [event])).duplicates == 1
        finally:
            await client.aclose()

    with Server(tmp_path / "first", **CLUSTER) as first, Server(tmp_path / "second", **CLUSTER) as second:
        with first.client() as source:
            source.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
            until(lambda: source.execute_command("CLUSTER", "MEET", "127.0.0.1", second.port) and met(source), 60)
        uvloop.run(use(first, second))


def met(node: "redis.Redis") -> bool:
    time.sleep(0.5)  # a lost message of a handshake is not sent again
    facts = str(node.execute_command("CLUSTER", "INFO"))  # type: ignore[no-untyped-call]
    return "cluster_known_nodes:2" in facts and "cluster_state:ok" in facts


def test_other_servers(tiny_release: Release, tmp_path: Path, redis_cluster: str) -> None:
    assert "one of several nodes of a cluster: set SEGUE_REDIS_CLUSTER=true" in refusal(tiny_release, redis_cluster)
    with web_server() as url:
        assert "does not speak the Redis protocol" in refusal(tiny_release, url)
    with sentinel(tmp_path) as url:
        assert "Redis is a Sentinel" in refusal(tiny_release, url)
    socket_url = f"unix://{tmp_path}/redis.sock"
    assert "Unix domain socket is not supported in cluster mode" in refusal(tiny_release, socket_url, cluster=True)


def test_a_cluster_node_that_hides_its_cluster(start_service: StartService, redis_cluster: str) -> None:
    """The user has no permission to ask. Sessions of other nodes get a 503 that says what to do."""
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
        until(
            lambda: client.get("/sessions/a").json().get("detail", "").startswith("the session store does not respond")
        )
        with web_server(server.port):
            detail = "the session store does not speak the Redis protocol: set SEGUE_REDIS_URL to a Redis server"
            until(lambda: client.get("/sessions/a").json().get("detail") == detail)
            for path in ("/health/ready", "/sessions/a"):
                assert client.get(path).status_code == 503
            assert client.get("/recommendations?session_id=a").json()["source"] == "popularity"
            until(lambda: client.get("/operations").json()["redis"]["detail"] == detail)
        server.start()
        until(lambda: client.get("/health/ready").status_code == 200)
        with server.client() as administrator:
            administrator.config_set("requirepass", "secret")
            administrator.client_kill_filter(_type="normal", skipme=True)
        detail = "the session store rejects Segue's user name or password"
        until(lambda: client.get("/sessions/a").json().get("detail", "").startswith(detail))
        assert client.get("/health/ready").status_code == 503
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
