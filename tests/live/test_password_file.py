"""The password of Redis in a file: out of environments and command lines, and told in one line where it is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.live.redis_server import Server

StartService = Callable[..., Any]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "must contain exactly one line"),
        (b"\n", "must contain exactly one line"),
        (b"one\ntwo\n", "must contain exactly one line"),
        (b"\xff\n", "it is not UTF-8"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_password_file_without_a_password_is_told_in_one_line(
    start_service: StartService, tmp_path: Path, content: bytes, told: str, workers: int
) -> None:
    file = tmp_path / "redis.password"
    file.write_bytes(content)
    service = start_service(workers=workers, redis_url="redis://127.0.0.1:1", redis_password_file=file)
    assert service.process.wait(60) != 0
    service.stop()
    errors = [line for line in service.output if "BadOption" in line or "redis_password_file" in line]
    assert any(f"redis_password_file {file}" in line and told in line for line in errors), service.output


def test_the_password_of_a_file_is_in_no_environment(start_service: StartService, tmp_path: Path) -> None:
    """Not in that of workers either, which get their settings there."""
    with Server(tmp_path / "redis", appendonly="yes") as server:
        with server.client() as administrator:
            administrator.config_set("requirepass", "hidden-word")
        file = tmp_path / "redis.password"
        file.write_text("hidden-word\n")
        service = start_service(workers=2, redis_url=server.url, redis_password_file=file)
        with service.client() as client:
            assert client.get("/health/ready").status_code == 200
        family = psutil.Process(service.process.pid)
        for process in (family, *family.children(recursive=True)):
            assert "hidden-word" not in str(process.environ()) + " ".join(process.cmdline())
