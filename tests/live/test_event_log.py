"""The event log: its files say what the sessions were, whatever happened to the service meanwhile."""

import hashlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil
import pytest

from service.sessions.event_log import erase_from_files, write_file
from tests.event_log_reader import read_back
from tests.stopwatch import until

StartService = Callable[..., Any]


def report(client: httpx.Client, session_id: str, *events: tuple[str, str]) -> None:
    body = {"events": [{"type": kind, "track_id": track, "ms_played": len(track)} for kind, track in events]}
    assert client.post(f"/sessions/{session_id}/events", json=body).status_code == 200


def shown(client: httpx.Client, session_id: str) -> list[tuple[str, bool]]:
    plays = client.get(f"/sessions/{session_id}").json()["plays"]
    return [(one["track_id"], one["outcome"] == "skipped") for one in plays]


def of(session_id: str, log: dict[str, list[tuple[str, bool]]]) -> list[list[tuple[str, bool]]]:
    return [plays for name, plays in log.items() if name.partition("@")[0] == session_id]


def test_the_log_is_what_the_sessions_are(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(event_log_flush_s=0.2)
    with service.client() as client:
        report(client, "a", ("play", "g0-t00"), ("play", "g0-t01"))
        until(lambda: bool(of("a", read_back(tmp_path / "data" / "events"))))
        # The skip turns a play into one that is already in a file.
        report(client, "a", ("skip", "g0-t01"), ("skip", "g0-t01"), ("play", "not in the catalogue"))
        report(client, "b", ("skip", "g1-t00"))
        sessions = {name: shown(client, name) for name in ("a", "b")}
    assert service.stop() == 0
    log = read_back(tmp_path / "data" / "events")
    assert of("a", log) == [sessions["a"]]
    assert of("a", log) == [[("g0-t00", False), ("g0-t01", True), ("g0-t01", True), ("not in the catalogue", False)]]
    assert of("b", log) == [sessions["b"]]


def test_the_log_survives_a_kill(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(event_log_flush_s=3600)
    with service.client() as client:
        time.sleep(0.5)  # the first look at the streams is over
        report(client, "a", ("play", "g0-t00"), ("skip", "g0-t00"))
    service.kill()
    again = start_service(event_log_flush_s=3600)
    with again.client() as client:
        report(client, "a", ("play", "g0-t01"))
    assert again.stop() == 0
    assert of("a", read_back(tmp_path / "data" / "events")) == [[("g0-t00", True), ("g0-t01", False)]]


def test_erasing_a_session_erases_its_log(start_service: StartService, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "events"
    service = start_service(event_log_flush_s=0.2)
    with service.client() as client:
        report(client, "gone", ("play", "g0-t00"))
        report(client, "gone.not", ("play", "g0-t01"))
        until(lambda: len(read_back(folder)) == 2)
        report(client, "gone", ("play", "g0-t02"))
        client.delete("/sessions/gone")
        report(client, "gone", ("play", "g0-t03"))  # a new session of that name is another matter
        until(lambda: of("gone", read_back(folder)) == [[("g0-t03", False)]])
    assert service.stop() == 0
    log = read_back(folder)
    assert of("gone", log) == [[("g0-t03", False)]]
    assert of("gone.not", log) == [[("g0-t01", False)]]


def test_a_reused_id_is_another_session(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(idle_gap_s=0.3)
    with service.client() as client:
        report(client, "a", ("play", "g0-t00"))
        time.sleep(0.5)
        report(client, "a", ("play", "g0-t01"))
    assert service.stop() == 0
    assert of("a", read_back(tmp_path / "data" / "events")) == [[("g0-t00", False)], [("g0-t01", False)]]


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line_and_costs_no_event(start_service: StartService, tmp_path: Path) -> None:
    """No file of the service may grow beyond 100 bytes for a while."""
    service = start_service(event_log_flush_s=0.1)
    process = psutil.Process(service.process.pid)
    with service.client() as client:
        before = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for number in range(20):
            report(client, "a", ("play", f"g0-t{number % 12:02}"))
        until(lambda: any("event_log_write_failed" in line for line in service.output))
        assert client.get("/health/ready").status_code == 200
        assert "segue_event_log_failures_total 0.0" not in client.get("/metrics").text
        process.rlimit(psutil.RLIMIT_FSIZE, before)
        until(lambda: [len(plays) for plays in of("a", read_back(tmp_path / "data" / "events"))] == [20])
    service.stop()
    assert not any("Traceback" in line or "event_log_error" in line for line in service.output)


def test_one_worker_of_several_writes_and_another_takes_over(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(workers=2, event_log_flush_s=0.2)
    with service.client() as client:
        for number in range(40):
            report(client, f"s{number}", ("play", "g0-t00"), ("skip", "g0-t00"))
    assert service.stop() == 0
    rows = pl.concat([pl.read_parquet(file) for file in (tmp_path / "data" / "events").glob("*.parquet")])
    assert len(rows) == 80
    assert len(read_back(tmp_path / "data" / "events")) == 40


@pytest.mark.slow
def test_a_service_may_leave_the_writing_to_another(start_service: StartService, tmp_path: Path) -> None:
    service = start_service(event_log_writer=False)
    with service.client() as client:
        report(client, "a", ("play", "g0-t00"))
    assert service.stop() == 0
    assert not (tmp_path / "data" / "events").exists()
    assert start_and_stop(start_service) == 0
    assert of("a", read_back(tmp_path / "data" / "events")) == [[("g0-t00", False)]]


def start_and_stop(start_service: StartService) -> int:
    service = start_service()
    with service.client() as client:
        client.get("/health/ready")
    code: int = service.stop()
    return code


@pytest.fixture
def rows() -> list[tuple[Any, ...]]:
    return [(f"{name}@1", 0, "t", False, 5, None, 7) for name in ("a", "b", "a.b")]


def test_a_file_is_erased_of_one_session_alone(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    write_file(tmp_path, rows)
    untouched = write_file(tmp_path, rows[2:])
    before = untouched.stat().st_mtime_ns
    erase_from_files(tmp_path, ["a@1"])
    [path] = [path for path in tmp_path.iterdir() if path != untouched]
    assert pl.read_parquet(path)["session_id"].to_list() == ["b@1", "a.b@1"]
    assert untouched.stat().st_mtime_ns == before
    erase_from_files(tmp_path, ["a.b@1", "b@0", "b@2"])
    assert list(tmp_path.iterdir()) == []


def test_an_erasure_spares_what_its_id_names_afterwards(tmp_path: Path) -> None:
    write_file(tmp_path, [(f"a@{start}", 0, "t", False, 5, None, 7) for start in (3, 12, 20)])
    erase_from_files(tmp_path, ["a@12"])
    [path] = tmp_path.iterdir()
    assert pl.read_parquet(path)["session_id"].to_list() == ["a@20"]


@pytest.mark.parametrize("name", ["events-20260101T000000-{}.parquet", "events-20260101T000000-0123abcd.parquet"])
def test_a_damaged_file_stops_nobodys_erasure(tmp_path: Path, name: str) -> None:
    """Nor the events that wait behind it: all of the log would stand still until somebody took the file away."""
    rows: list[tuple[Any, ...]] = [(f"{session}@1", 0, "t", False, 10**12, None, 10**15) for session in "ab"]
    right = write_file(tmp_path, rows)
    damaged = tmp_path / name.format("0" * 32)
    damaged.write_bytes(right.read_bytes()[:-9])  # told by its name, or, as older ones, by Polars
    erase_from_files(tmp_path, ["a@1"])
    [left] = [path for path in tmp_path.iterdir() if path != damaged]
    assert pl.read_parquet(left)["session_id"].to_list() == ["b@1"]
    assert len(damaged.read_bytes()) > 0


def test_a_file_is_named_by_its_content(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [(f"{session}@1", 0, "t", False, 10**12, None, 10**15) for session in "ab"]
    for path in (write_file(tmp_path, rows), write_file(tmp_path, rows[1:])):
        assert path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    erase_from_files(tmp_path, ["a@1"])
    for path in tmp_path.iterdir():
        assert path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:32]
