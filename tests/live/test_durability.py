"""SEGUE_DURABILITY and SEGUE_REDIS_WAIT_REPLICAS with real servers: verified, and rejected where Redis gives less."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from segue.errors import BadOption
from service.sessions.redis_server import check_version
from service.settings import read_settings
from tests.live.redis_server import Server
from tests.stopwatch import until

StartService = Callable[..., Any]
PLAY = {"events": [{"type": "play", "track_id": "g0-t00", "event_id": "e"}]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server", appendonly="yes", appendfsync="everysec") as server:
        yield server


def configured(server: Server, **settings: str) -> None:
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name, value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_redis_that_keeps_less_is_refused_at_the_start(
    start_service: StartService, server: Server, workers: int
) -> None:
    service = start_service(redis_url=server.url, durability="always", workers=workers)
    assert service.process.wait(30) != 0
    service.stop()
    assert "durability is always, but Redis has appendonly yes and appendfsync everysec" in service.output[-1]


def test_readiness_notices_a_redis_that_has_become_weaker(start_service: StartService, server: Server) -> None:
    with start_service(redis_url=server.url).client() as client:
        assert client.get("/health/ready").status_code == 200
        configured(server, appendonly="no")
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "durability is every-second, but Redis has appendonly no" in answer.json()["detail"]
        configured(server, appendonly="yes")
        assert client.get("/health/ready").status_code == 200


def test_memory_asks_nothing_of_redis(start_service: StartService, server: Server) -> None:
    configured(server, appendonly="no")
    with start_service(redis_url=server.url, durability="memory").client() as client:
        assert client.get("/health/ready").status_code == 200
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200


def test_a_redis_that_does_not_tell_its_configuration_is_believed_and_the_log_says_so(
    start_service: StartService, server: Server
) -> None:
    with server.client() as client:
        rules = ["on", ">secret", "~segue:*", "resetchannels", "+@all", "-config"]
        client.execute_command("ACL", "SETUSER", "segue", *rules)
    service = start_service(redis_url=f"redis://segue:secret@127.0.0.1:{server.port}", durability="always")
    with service.client() as client:
        for _ in range(3):
            assert client.get("/health/ready").status_code == 200
        service.stop()
    told = [line for line in service.output if "durability_not_verified" in line]
    assert 1 <= len(told) <= 2  # at the start, and by the first readiness
    assert "config" in told[0]


@pytest.mark.parametrize(("fallback", "served"), [("popularity", "the most played tracks"), ("none", "a 503")])
def test_a_redis_that_is_not_there_is_told_at_the_start_with_what_clients_get(
    start_service: StartService, fallback: str, served: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    service = start_service(redis_url=f"redis://127.0.0.1:{port}", fallback=fallback)
    with service.client() as client:
        assert client.get("/health/ready").status_code == 503
    service.stop()
    [told] = [line for line in service.output if "redis_unreachable" in line]
    assert f"127.0.0.1:{port}" in told
    assert f"recommendations are {served}" in told


EVICTING = ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-ttl"]


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("durability", ["memory", "every-second"])
def test_a_redis_that_evicts_is_refused_at_the_start(
    start_service: StartService, server: Server, durability: str, policy: str
) -> None:
    configured(server, **{"maxmemory": "64mb", "maxmemory-policy": policy})
    service = start_service(redis_url=server.url, durability=durability)
    assert service.process.wait(30) != 0
    service.stop()
    [line] = [line for line in service.output if "maxmemory" in line]
    assert f"Redis has maxmemory 67,108,864 and maxmemory-policy {policy}" in line
    assert "set maxmemory-policy noeviction" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_readiness_notices_a_redis_that_has_come_to_evict(
    start_service: StartService, server: Server, workers: int
) -> None:
    with start_service(redis_url=server.url, durability="memory", workers=workers).client() as client:
        assert client.get("/health/ready").status_code == 200
        configured(server, **{"maxmemory-policy": "allkeys-lru"})
        assert client.get("/health/ready").status_code == 200  # without a limit nothing is evicted
        configured(server, maxmemory="64mb")
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "maxmemory-policy allkeys-lru" in answer.json()["detail"]
        configured(server, **{"maxmemory-policy": "noeviction"})
        assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("rules", [["-config"], ["-info"]])
def test_eviction_is_noticed_by_a_user_who_may_ask_one_of_info_and_config(
    start_service: StartService, server: Server, rules: list[str]
) -> None:
    configured(server, **{"maxmemory": "64mb", "maxmemory-policy": "volatile-lru"})
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "segue", "on", ">secret", "~segue:*", "resetchannels", "+@all", *rules)
    service = start_service(redis_url=f"redis://segue:secret@127.0.0.1:{server.port}")
    assert service.process.wait(30) != 0
    service.stop()
    assert any("maxmemory-policy volatile-lru" in line for line in service.output)


def test_a_missing_append_only_file_is_noticed_without_the_right_to_read_the_configuration(
    start_service: StartService, server: Server
) -> None:
    configured(server, appendonly="no")
    with server.client() as client:
        rules = ["on", ">secret", "~segue:*", "resetchannels", "+@all", "-config"]
        client.execute_command("ACL", "SETUSER", "segue", *rules)
    service = start_service(redis_url=f"redis://segue:secret@127.0.0.1:{server.port}")
    assert service.process.wait(30) != 0
    service.stop()
    assert any("durability is every-second, but Redis has no append-only file" in line for line in service.output)


def test_a_server_that_is_too_old_is_refused() -> None:
    check_version([{"redis_version": "6.2.0"}, {"redis_version": "7.0.15"}, {}])
    with pytest.raises(BadOption, match=r"version 6\.0\.16: Segue needs 6\.2"):
        check_version([{"redis_version": "7.0.15"}, {"redis_version": "6.0.16"}])


@contextlib.contextmanager
def full(server: Server) -> Iterator[str]:
    configured(server, maxmemory="1")
    yield "the session store is full"
    configured(server, maxmemory="0")


@contextlib.contextmanager
def read_only(server: Server) -> Iterator[str]:
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
        yield "read-only replica"
        client.replicaof("NO", "ONE")


@contextlib.contextmanager
def without_replicas(server: Server) -> Iterator[str]:
    configured(server, **{"min-replicas-to-write": "1"})
    yield "too few replicas to accept writes"
    configured(server, **{"min-replicas-to-write": "0"})


@contextlib.contextmanager
def failing_to_save(server: Server) -> Iterator[str]:
    """A snapshot that cannot be written makes Redis refuse writes."""
    with server.client() as client:
        configured(server, save="3600 1")
        (server.folder / "dump.rdb").mkdir()
        client.set("segue:x", "1")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] != "ok")
        yield "cannot write to its disk"
        configured(server, save="")


@contextlib.contextmanager
def forbidding_writes(server: Server) -> Iterator[str]:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-@write")
        yield "denies Segue's user write access"
        client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize("fault", [full, read_only, without_replicas, failing_to_save, forbidding_writes])
def test_readiness_fails_with_the_reason_while_writes_are_refused(
    start_service: StartService, server: Server, fault: Callable[[Server], contextlib.AbstractContextManager[str]]
) -> None:
    with start_service(redis_url=server.url).client() as client:
        assert client.get("/health/ready").status_code == 200
        with fault(server) as reason:
            answer = client.post("/sessions/a/events", json=PLAY)
            assert answer.status_code == 503
            assert reason in answer.json()["detail"]
            answer = client.get("/health/ready")
            assert answer.status_code == 503
            assert reason in answer.json()["detail"]
            assert str(server.port) not in answer.text
            assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200
        assert client.post("/sessions/a/events", json=PLAY).status_code == 200


@pytest.mark.slow
def test_readiness_notices_one_node_of_a_cluster_that_refuses_writes(
    start_service: StartService, redis_cluster: str
) -> None:
    service = start_service(redis_url=redis_cluster, redis_cluster=True, durability="memory")
    with service.client() as client, redis.RedisCluster.from_url(redis_cluster) as cluster:
        assert client.get("/health/ready").status_code == 200
        for node in cluster.get_primaries():
            cluster.config_set("maxmemory", "1", target_nodes=node)
            answer = client.get("/health/ready")
            cluster.config_set("maxmemory", "0", target_nodes=node)
            assert answer.status_code == 503
            assert "full" in answer.json()["detail"]
        assert client.get("/health/ready").status_code == 200


def socket_of(folder: Path) -> str:
    """The socket of the embedded Redis of a data folder: it is elsewhere where the folder's path is long."""
    found = set()
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.name() == "redis-server" and process.cwd() == str(folder.resolve()):
                found |= {
                    one.laddr for one in process.net_connections("unix") if one.status == psutil.CONN_NONE and one.laddr
                }
    [path] = found
    return str(path)


@pytest.mark.parametrize(
    ("durability", "fsync"), [("memory", "no"), ("every-second", "everysec"), ("always", "always")]
)
def test_the_embedded_redis_is_started_as_promised(
    start_service: StartService, tmp_path: Path, durability: str, fsync: str
) -> None:
    with start_service(durability=durability).client() as client:
        assert client.get("/health/ready").status_code == 200
        with redis.Redis(unix_socket_path=socket_of(tmp_path / "data" / "redis"), decode_responses=True) as own:
            assert own.config_get("append*") | {"appendonly": "yes", "appendfsync": fsync} == own.config_get("append*")


def test_a_write_is_acknowledged_when_the_replica_has_it(
    start_service: StartService, server: Server, tmp_path: Path
) -> None:
    settings = {"redis_wait_replicas": 1, "redis_wait_timeout_ms": 1500, "redis_timeout_s": 10}
    with (
        Server(tmp_path / "replica", replicaof=f"127.0.0.1 {server.port}") as replica,
        start_service(redis_url=server.url, **settings).client() as client,
    ):
        until(lambda: client.get("/health/ready").status_code == 200, failed=lambda: "the replica does not follow")
        until(lambda: client.post("/sessions/a/events", json=PLAY).status_code == 200)
        os.kill(replica.process.pid, signal.SIGSTOP)
        try:
            body = {"events": [{"type": "play", "track_id": "g0-t01", "event_id": "f"}]}
            answer = client.post("/sessions/a/events", json=body)
            assert answer.status_code == 503
            assert "fewer than 1 replicas" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "1"
            assert client.get("/health/ready").status_code == 503
            assert len(client.get("/sessions/a").json()["plays"]) == 2  # it is stored, and not acknowledged
        finally:
            os.kill(replica.process.pid, signal.SIGCONT)
        answers = [answer]

        def is_acknowledged() -> bool:
            answers.append(client.post("/sessions/a/events", json=body))
            return bool(answers[-1].status_code == 200)

        until(is_acknowledged)
        assert (answers[-1].json()["duplicates"], answers[-1].json()["length"]) == (1, 2)
        server.kill()
        with replica.client() as kept:
            [key] = kept.scan_iter("segue:*:a:plays")
            assert kept.llen(key) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"durability": "forever"}, "durability is 'forever'"),
        ({"redis_wait_replicas": 1, "redis_cluster": True}, "redis_wait_replicas does not support Redis Cluster"),
        (
            {"redis_wait_replicas": 1, "redis_wait_timeout_ms": 2000},
            "redis_wait_timeout_ms must be below redis_timeout_s",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption) as caught:
        read_settings(release="r", redis_url="redis://r", **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
