"""The service as processes: killed, stopped, doubled, refused."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.event_log_reader import read_back
from tests.stopwatch import until

StartService = Callable[..., Any]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends of processes are told by Linux alone")


def report(client: httpx.Client, session_id: str, track: str) -> httpx.Response:
    return client.post(f"/sessions/{session_id}/events", json={"events": [{"type": "play", "track_id": track}]})


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def redis_servers(data_dir: Path) -> list[int]:
    own = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in own if "redis-server" in command(pid) and _works_in(pid, data_dir)]


def _works_in(pid: int, data_dir: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data_dir / "redis"
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 10) -> None:
    until(lambda: not any(command(pid) for pid in pids), seconds, lambda: [command(pid) for pid in pids])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_acknowledged_event_is_lost_by_a_kill(start_service: StartService, tmp_path: Path, workers: int) -> None:
    """Four clients write until the service is gone; whatever was answered by 200 is there after the restart."""
    service = start_service(workers=workers, max_session_plays=100_000)
    address = service.address()
    acknowledged: dict[str, list[str]] = {f"s{number}": [] for number in range(4)}

    def write(session_id: str) -> None:
        with httpx.Client(base_url=address, trust_env=False, timeout=20) as client:
            for number in range(100_000):
                try:
                    if report(client, session_id, f"t{number}").status_code != 200:
                        return
                except httpx.HTTPError:
                    return
                acknowledged[session_id].append(f"t{number}")

    writers = [threading.Thread(target=write, args=(name,), daemon=True) for name in acknowledged]
    for writer in writers:
        writer.start()
    until(lambda: all(len(tracks) >= 50 for tracks in acknowledged.values()))
    everyone = [pid for child in children(service.process.pid) for pid in (child, *children(child))]
    service.kill()
    for writer in writers:
        writer.join()

    again = start_service(workers=workers, max_session_plays=100_000)
    with again.client() as client:
        for session_id, tracks in acknowledged.items():
            stored = [one["track_id"] for one in client.get(f"/sessions/{session_id}").json()["plays"]]
            assert stored[: len(tracks)] == tracks
            assert len(stored) <= len(tracks) + 1  # the one that was under way
        assert len(redis_servers(tmp_path / "data")) == 1
    wait_until_gone(everyone)
    assert again.stop() == 0
    assert redis_servers(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        (1, signal.SIGINT),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_service_leaves_nothing_running(
    start_service: StartService, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    service = start_service(workers=workers)
    with service.client() as client:
        report(client, "a", "g0-t00")
    everyone = children(service.process.pid)
    assert everyone
    service.process.send_signal(number)
    assert service.stop() == 0
    assert not any(map(command, everyone))
    assert sum(line.startswith("http://") for line in service.output) == 1
    assert "Traceback" not in "\n".join(service.output)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_cut_the_closing_short(
    start_service: StartService, tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    service = start_service(event_log_flush_s=3600)
    with service.client() as client:
        report(client, "a", "g0-t00")
    service.process.send_signal(first)
    time.sleep(0.03)  # uvicorn closes for at least 0.1 s
    service.process.send_signal(second)
    assert service.stop() == 0
    assert "Traceback" not in "\n".join(service.output)
    assert list(read_back(tmp_path / "data" / "events").values()) == [[("g0-t00", False)]]  # the last file is written


def test_workers_share_sessions_and_add_up_their_metrics(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(workers=2)
    address = service.address()
    for _ in range(30):  # a connection each, so that both workers get some
        assert httpx.get(f"{address}/recommendations?session_id=a", trust_env=False).status_code == 200
    counted = httpx.get(f"{address}/metrics", trust_env=False).text
    assert 'source="popularity"} 30.0' in counted
    assert len(redis_servers(tmp_path / "data")) == 1


def test_without_redis_the_service_says_so_and_recovers(start_service: StartService, tmp_path: Path) -> None:
    """Redis is frozen, not ended: the worst case, as connections stay open and nothing answers."""
    service = start_service(redis_timeout_s=2)
    with service.client() as client:
        assert report(client, "a", "g0-t00").status_code == 200
        [server] = redis_servers(tmp_path / "data")
        os.kill(server, signal.SIGSTOP)
        try:
            for answer in (report(client, "a", "g0-t01"), client.get("/health/ready")):
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
                assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/health/live").status_code == 200
            assert client.get("/tracks").status_code == 200
        finally:
            os.kill(server, signal.SIGCONT)
        until(lambda: client.get("/health/ready").status_code == 200)  # it is asked four times a second
        assert client.get("/sessions/a").status_code == 200


def test_a_second_service_on_the_folder_is_refused_in_one_line(start_service: StartService) -> None:
    first = start_service()
    first.address()
    second = start_service()
    assert second.process.wait(30) != 0
    second.stop()
    assert "another service uses the data folder" in second.output[-1]


def test_a_port_in_use_is_told(start_service: StartService, tmp_path: Path) -> None:
    port = int(start_service().address().rpartition(":")[2])
    second = start_service(port=port, data_dir=tmp_path / "other")
    assert second.process.wait(30) != 0
    second.stop()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.output[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_release_is_told_in_one_line(start_service: StartService, tmp_path: Path, workers: int) -> None:
    service = start_service(workers=workers, release=tmp_path / "nothing")
    assert service.process.wait(30) != 0
    service.stop()
    assert service.output[-1].startswith("segue.errors.BadRelease: ")
    assert len(service.output) == 1 or service.output[0].startswith(
        "Traceback"
    )  # `segue serve` says the last line alone
    assert not any(line.startswith("http://") for line in service.output)
    assert redis_servers(tmp_path / "data") == []


def test_the_service_runs_where_torch_and_training_cannot_be_imported(start_service: StartService) -> None:
    prelude = "import sys; sys.modules['torch'] = sys.modules['training'] = None"
    with start_service(prelude=prelude).client() as client:
        body = {"events": [{"type": "play", "track_id": "g1-t00"}]}
        answer = client.post("/sessions/a/events?recommend=1", json=body).json()
        assert answer["recommendations"]["source"] == "model"
