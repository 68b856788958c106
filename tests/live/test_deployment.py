"""The compose file's Redis, with its configuration and the rights of its user, is what a service needs."""

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from service.sessions.embedded_redis import redis_server_binary
from tests.stopwatch import until

DOCKER = Path(__file__).parents[2] / "docker"
if not DOCKER.is_dir():
    pytest.skip("the deployment is not part of the wheel", allow_module_level=True)

StartService = Callable[..., Any]


@contextlib.contextmanager
def redis_of_the_compose_file(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The server as `docker compose up` starts it, but for its folder and port."""
    subprocess.run([DOCKER / "make-secrets", folder / "secrets"], check=True)
    acl = folder / "secrets" / "redis.acl"
    server = subprocess.Popen(
        [redis_server_binary(), DOCKER / "redis.conf", "--aclfile", acl, "--port", str(port)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until_it_answers(port)
        yield server
    finally:
        server.kill()
        server.wait(30)


def wait_until_it_answers(port: int) -> None:
    with redis.Redis(port=port, username="health", password="any") as anybody:  # as its health check asks

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(anybody.ping())
            return False

        until(answers)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number: int = listening.getsockname()[1]
        return number


def test_a_service_can_do_all_it_does_and_a_killed_redis_has_lost_nothing(
    start_service: StartService, tmp_path: Path, port: int
) -> None:
    redis_of_compose = {
        "redis_url": f"redis://segue@127.0.0.1:{port}",
        "redis_password_file": tmp_path / "secrets" / "redis.password",
    }
    events = {"events": [{"type": "play", "track_id": "g0-t00"}, {"type": "skip", "track_id": "g0-t00"}]}

    def has_written() -> bool:
        """Whether all is in its file. While the disk is slow, it answers first and writes up to two seconds later."""
        password = (tmp_path / "secrets" / "redis.password").read_text().strip()
        with redis.Redis(port=port, username="segue", password=password) as own:
            return bool(own.info("persistence")["aof_buffer_length"] == 0)

    with contextlib.ExitStack() as stack:
        with redis_of_the_compose_file(tmp_path, port):
            client = stack.enter_context(start_service(**redis_of_compose, event_log_writer=False).client())
            start_service(**redis_of_compose, event_log_flush_s=0.2).address()
            assert client.get("/health/ready").status_code == 200
            for name in ("kept", "erased"):
                assert client.post(f"/sessions/{name}/events?recommend=3", json=events).status_code == 200
            assert client.get("/recommendations?session_id=kept").json()["window"] == {"plays": 0, "skips": 1}
            assert client.delete("/sessions/erased").status_code == 204
            until(lambda: list((tmp_path / "data" / "events").glob("*.parquet")))
            until(has_written)
        with redis_of_the_compose_file(tmp_path, port):
            while (answer := client.get("/sessions/kept")).status_code == 503:  # broken connections to the old server
                assert answer.headers["Retry-After"]
            assert [play["outcome"] for play in answer.json()["plays"]] == ["skipped"]
            assert client.get("/sessions/erased").status_code == 404


def test_nobody_else_gets_in_and_its_user_cannot_do_harm(tmp_path: Path, port: int) -> None:
    with redis_of_the_compose_file(tmp_path, port):
        with redis.Redis(port=port) as anybody, pytest.raises(redis.exceptions.AuthenticationError):
            anybody.get("segue:{b0}:s:plays")
        with (
            redis.Redis(port=port, username="health", password="any") as health,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            health.get("segue:{b0}:s:plays")
        password = (tmp_path / "secrets" / "redis.password").read_text().strip()
        with redis.Redis(port=port, username="segue", password=password) as segue:
            assert segue.info("memory")["maxmemory_policy"] == "noeviction"
            for forbidden in ("FLUSHALL", "CONFIG GET dir", "SHUTDOWN", "KEYS *", "GET other"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    segue.execute_command(*forbidden.split())
