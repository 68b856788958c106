"""What operators are told of a running service: over all its workers, and whatever is wrong."""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.ops.metrics_snapshot import MetricsSnapshot
from service.ops.status import redis_facts
from service.sessions.store import stream_of
from tests.live.redis_server import Server
from tests.live.stored_sessions import end_session, wait_until_remembered
from tests.stopwatch import Stopwatch, until

StartService = Callable[..., Any]


def report(address: Any, session_id: str, *events: tuple[str, str], **query: Any) -> dict[str, Any]:
    """Tell any worker what happened."""
    body = {"events": [{"type": kind, "track_id": track} for kind, track in events]}
    answer = httpx.post(f"{address}/sessions/{session_id}/events", json=body, params=query, trust_env=False)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def operations(address: Any) -> dict[str, Any]:
    answer = httpx.get(f"{address}/operations", trust_env=False, timeout=10)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def route(told: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    [line] = [one for one in told["routes"] if (one["method"], one["route"]) == (method, path)]
    assert isinstance(line, dict)
    return line


@pytest.mark.parametrize("workers", [1, 2])
def test_counts_are_those_of_all_workers_together(start_service: StartService, tmp_path: Path, workers: int) -> None:
    with Server(tmp_path / "redis") as server, server.client() as client:
        settings = {"redis_url": server.url, "durability": "memory", "attribution_sample_rate": 1}
        address = start_service(workers=workers, **settings).address()
        before = operations(address)
        for number in range(8):  # a connection each, so that every worker gets some
            answer = report(address, f"s{number}", ("play", "g1-t00"), ("play", "nobody"), recommend=5)
            wait_until_remembered(client, f"s{number}", answer["recommendations"])
        report(address, "s0", ("skip", "g1-t01"), ("play", "g1-t02"))
        assert httpx.get(f"{address}/recommendations", trust_env=False).status_code == 422
        expected = {("POST", "/sessions/{session_id}/events"): {"200": 9}, ("GET", "/recommendations"): {"422": 1}}

        def statuses() -> dict[tuple[str, str], dict[str, int]]:
            return {(one["method"], one["route"]): one["statuses"] for one in operations(address)["routes"]}

        until(lambda: expected.items() <= statuses().items(), failed=statuses)  # a worker counts after it has answered
        after = operations(address)
    assert after["instance"] == before["instance"]
    assert after["at"] > before["at"]
    told = route(after, "POST", "/sessions/{session_id}/events")
    assert sum(told["within"]) == 9
    assert len(told["within"]) == len(after["bounds_s"]) + 1
    assert 0 < told["seconds"] < 9
    assert after["events"] == {"plays": 17, "skips": 1, "duplicates": 0, "unknown_tracks": 8, "sessions": 8}
    [release] = after["releases"]
    assert (release["release"], release["in_use"]) == (after["release"]["name"], True)
    assert (release["lists"], release["popularity_lists"]) == (8, 0)
    assert (release["plays"], release["skips"]) == (2, 1)
    assert (after["shed"], after["experiment"]) == (0, None)
    assert (after["fallbacks"], after["swaps"]) == ({"store": 0, "model": 0}, {"loaded": 0, "rejected": 0})


def test_a_session_is_counted_once_and_again_after_its_end(start_service: StartService, tmp_path: Path) -> None:
    with Server(tmp_path / "redis") as server, server.client() as client:
        address = start_service(redis_url=server.url, durability="memory").address()
        for length in (1, 2, 3):
            assert report(address, "s", ("play", "g0-t00"), ("skip", "g0-t00"))["length"] == length
        assert operations(address)["events"]["sessions"] == 1
        end_session(client, "s")
        assert report(address, "s", ("play", "g0-t00"))["length"] == 1
        assert operations(address)["events"]["sessions"] == 2


def test_each_start_is_told_from_the_one_before(start_service: StartService) -> None:
    service = start_service()
    first = operations(service.address())["instance"]
    service.stop()
    assert operations(start_service().address())["instance"] != first


class TestRedis:
    def test_tells_its_memory_and_how_it_keeps_what_it_holds(self, running: httpx.Client) -> None:
        told = operations(running.base_url)["redis"]
        assert (told["reachable"], told["detail"], told["workers_away"]) == (True, None, 0)
        assert told["memory_bytes"] > 100_000
        assert (told["memory_limit_bytes"] > 0) == (told["nodes"] == 1)  # the embedded one has a limit
        assert told["evicted_keys"] == 0
        assert told["last_write_ok"] is True
        assert told["nodes"] in {1, 3}

    def test_that_hangs_or_is_gone_is_said_within_two_seconds(
        self, start_service: StartService, tmp_path: Path
    ) -> None:
        with Server(tmp_path / "redis") as server:
            settings = {"redis_url": server.url, "durability": "memory", "redis_timeout_s": 5}
            address = start_service(**settings).address()
            assert operations(address)["redis"]["append_only"] is False
            with server.frozen():
                with Stopwatch() as watch:
                    told = operations(address)
                assert watch.seconds < 2
                assert told["redis"]["reachable"] is False
                assert told["redis"]["detail"] == "it did not respond within 1 s"
                assert told["event_log"]["waiting"] is None
                assert told["release"]["folder"] == "tiny"
            until(lambda: bool(operations(address)["redis"]["reachable"]))
            server.kill()
            for _ in range(2):  # two failures open the circuit
                httpx.get(f"{address}/recommendations?session_id=s", trust_env=False)
            told = operations(address)
            assert (told["redis"]["reachable"], told["redis"]["workers_away"]) == (False, 1)
            assert told["fallbacks"] == {"store": 2, "model": 0}
            assert str(server.port) not in str(told["redis"])
            server.start()
            until(lambda: operations(address)["redis"]["workers_away"] == 0)

    def test_a_worker_that_ended_while_it_was_away_misses_it_no_more(
        self, start_service: StartService, tmp_path: Path
    ) -> None:
        """Its gauge would have the alert go on for as long as the service runs."""
        with Server(tmp_path / "redis") as server:
            service = start_service(workers=2, redis_url=server.url, durability="memory", redis_timeout_s=0.2)
            address = service.address()
            workers = [
                child
                for child in psutil.Process(service.process.pid).children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
            assert len(workers) == 2

            def away() -> int:
                httpx.get(f"{address}/recommendations?session_id=s", trust_env=False, timeout=10)
                told = httpx.get(f"{address}/metrics", trust_env=False).text
                return int(float(re.findall(r"^segue_redis_circuit_open (\S+)$", told, re.MULTILINE)[0]))

            with server.frozen():
                until(lambda: away() == 2)
                workers[0].kill()
            until(lambda: away() == 0)

    def test_whose_user_may_not_ask_is_reachable_all_the_same(
        self, start_service: StartService, tmp_path: Path
    ) -> None:
        with Server(tmp_path / "redis") as server:
            with server.client() as operator:
                rules = (
                    "on >secret ~segue:* resetchannels -@all +@read +@write +@scripting +@connection +time -@dangerous"
                )
                operator.execute_command("ACL", "SETUSER", "segue", *rules.split())
            url = server.url.replace("//", "//segue:secret@")
            address = start_service(redis_url=url, durability="memory").address()
            told = operations(address)
            assert told["redis"]["reachable"] is True
            assert told["redis"]["detail"] == "its user lacks a permission: grant +info"
            assert told["redis"]["memory_bytes"] is None
            assert told["event_log"]["waiting"] == 0
            with server.client() as operator:
                operator.execute_command("ACL", "SETUSER", "segue", "+info")
            assert operations(address)["redis"]["memory_bytes"] > 100_000


def test_servers_of_a_cluster_are_added_up_and_the_worst_of_them_counts() -> None:
    node = {
        "redis_version": "7.2.0",
        "connected_clients": 2,
        "used_memory": 1000,
        "maxmemory": 5000,
        "evicted_keys": 1,
        "aof_enabled": 1,
        "aof_last_write_status": "ok",
        "rdb_last_bgsave_status": "ok",
    }
    facts = redis_facts([node, {**node, "maxmemory": 6000}])
    assert (facts["nodes"], facts["clients"], facts["memory_bytes"], facts["evicted_keys"]) == (2, 4, 2000, 2)
    assert (facts["memory_limit_bytes"], facts["append_only"], facts["last_write_ok"]) == (11_000, True, True)
    assert redis_facts([node, {**node, "maxmemory": 0}])["memory_limit_bytes"] == 0
    assert redis_facts([node, {**node, "aof_last_write_status": "err"}])["last_write_ok"] is False
    without = {**node, "aof_enabled": 0, "rdb_last_bgsave_status": "err", "aof_last_write_status": "ok"}
    assert redis_facts([node, without])["append_only"] is False
    assert redis_facts([node, without])["last_write_ok"] is False


class TestEventLog:
    def test_tells_its_last_file_and_what_waits(self, start_service: StartService, tmp_path: Path) -> None:
        address = start_service(event_log_flush_s=1).address()
        assert operations(address)["event_log"]["last_file"] is None
        report(address, "s", ("play", "g0-t00"), ("play", "g0-t01"))
        waiting = operations(address)["event_log"]
        if waiting["waiting"]:  # unless the writer was at it in between
            assert waiting["waiting"] == 2
            assert 0 <= waiting["oldest_s"] < 2
        until(lambda: operations(address)["event_log"]["plays_written"] == 2)
        told = operations(address)["event_log"]
        [file] = (tmp_path / "data" / "events").glob("*.parquet")
        assert (told["last_file"]["name"], told["last_file"]["bytes"]) == (file.name, file.stat().st_size)
        assert (told["waiting"], told["oldest_s"], told["dropped"], told["failures"]) == (0, None, 0, 0)

    def test_tells_what_a_full_stream_has_dropped(self, start_service: StartService, tmp_path: Path) -> None:
        """By what is left in the stream: Redis drops entries a node of its own (100) at a time."""
        with Server(tmp_path / "redis") as server:
            settings = {"redis_url": server.url, "durability": "memory", "event_log_stream_max_length": 150}
            address = start_service(event_log_writer=False, **settings).address()
            for _ in range(7):
                report(address, "s", *[("play", f"g0-t0{number % 10}") for number in range(100)])
            with server.client() as client:
                left = sum(client.xlen(stream_of(bucket)) for bucket in range(64))
            assert 150 <= left < 700
            told = operations(address)["event_log"]
            assert (told["dropped"], told["waiting"], told["written_here"]) == (700 - left, left, False)
            assert told["last_file"] is None

    def test_that_is_not_kept_says_so(self, start_service: StartService) -> None:
        address = start_service(event_log="false").address()
        report(address, "s", ("play", "g0-t00"))
        told = operations(address)["event_log"]
        assert (told["kept"], told["written_here"], told["waiting"], told["dropped"]) == (False, False, 0, 0)


class TestReleases:
    def test_lists_what_each_folder_is_and_what_is_wrong_with_it(
        self, start_service: StartService, releases_dir: Path
    ) -> None:
        (releases_dir / "empty").mkdir()
        (releases_dir / "damaged").mkdir()
        (releases_dir / "damaged" / "manifest.json").write_text("{")
        (releases_dir / "link").symlink_to(releases_dir / "first")
        (releases_dir / ".unfinished").mkdir()
        (releases_dir / "first.run").mkdir()  # what training keeps beside releases
        (releases_dir / "third.training").mkdir()
        (releases_dir / "notes.txt").write_text("no release")
        with start_service(releases_dir=releases_dir, experiment="second:0.25").client() as client:
            told = client.get("/releases").json()
            items = {item["folder"]: item for item in told["items"]}
            assert set(items) == {"first", "second", "empty", "damaged", "link"}
            assert (told["can_swap"], told["current"], told["before"]) == (True, "tiny", None)
            assert items["first"]["model"] == "sasrec"
            assert items["first"]["name"] == client.get("/releases/current").json()["name"]
            assert items["first"]["tracks"] == 72
            assert items["first"]["problem"] is None
            assert "holds no manifest.json" in items["empty"]["problem"]
            assert "is damaged" in items["damaged"]["problem"]
            assert "it is a link" in items["link"]["problem"]
            experiment = operations(client.base_url)["experiment"]
            assert datetime.fromisoformat(experiment.pop("since")) < datetime.now(UTC)
            named = {"release": items["second"]["name"], "folder": "second", "share": 0.25}
            assert experiment == {**named, "state": "running", "reason": None}

    def test_without_a_folder_has_nothing_to_swap_to(self, running: httpx.Client) -> None:
        assert running.get("/releases").json() == {"items": [], "can_swap": False, "current": "tiny", "before": None}

    @pytest.mark.parametrize(
        ("workers", "swaps"),
        [
            # The first release lies elsewhere: nothing leads back to it. A swap to what is served changes nothing.
            (1, [("first", None), ("second", "first"), ("second", "first"), ("first", "second")]),
            pytest.param(2, [("second", None), ("first", "second")], marks=pytest.mark.slow),
        ],
    )
    def test_what_was_served_before_is_known_to_all_workers_and_after_a_restart(
        self, start_service: StartService, releases_dir: Path, workers: int, swaps: list[tuple[str, str | None]]
    ) -> None:
        settings = {"releases_dir": releases_dir, "releases_poll_interval_s": 0.1}
        service = start_service(workers=workers, **settings)
        address = service.address()

        def seen() -> set[tuple[str, str | None]]:
            told = [httpx.get(f"{address}/releases", trust_env=False).json() for _ in range(4 * workers)]
            return {(one["current"], one["before"]) for one in told}

        def swap(name: str) -> None:
            answer = httpx.put(f"{address}/releases/current", json={"name": name}, trust_env=False, timeout=30)
            assert answer.status_code == 200, answer.text

        for number, (name, before) in enumerate(swaps, 1):
            swap(name)
            loaded = number * workers  # all workers have followed
            until(lambda loaded=loaded: operations(address)["swaps"]["loaded"] == loaded)  # type: ignore[misc]
            assert seen() == {(name, before)}
        assert (releases_dir / "current").read_text() == "first\nsecond\n"
        service.stop()
        address = start_service(**settings).address()
        assert seen() == {("first", "second")}
        (releases_dir / "current").write_text("second\n")  # by hand, which does not say what was before
        until(lambda: seen() == {("second", None)})

    def test_a_worker_that_has_not_followed_yet_goes_back_to_what_the_others_serve(
        self, start_service: StartService, releases_dir: Path
    ) -> None:
        shutil.copytree(releases_dir / "first", releases_dir / "third")
        first = releases_dir / "first"
        with start_service(release=first, releases_dir=releases_dir, releases_poll_interval_s=60).client() as client:
            (releases_dir / "current").write_text("second\nfirst\n")  # another service has swapped a moment ago
            # It may follow at this moment, and refuses a swap meanwhile.
            until(lambda: client.put("/releases/current", json={"name": "third"}).status_code == 200)
            assert (releases_dir / "current").read_text() == "third\nsecond\n"

    def test_a_first_release_within_the_folder_can_be_gone_back_to(
        self, start_service: StartService, releases_dir: Path
    ) -> None:
        with start_service(release=releases_dir / "first", releases_dir=releases_dir).client() as client:
            assert client.put("/releases/current", json={"name": "second"}, timeout=30).status_code == 200
            assert client.get("/releases").json()["before"] == "first"


def test_an_operator_is_answered_when_the_service_is_full(start_service: StartService) -> None:
    prelude = "import service.http.admission_control as d; d.AdmissionControl.is_full = lambda self: True"
    with start_service(prelude=prelude).client() as client:
        assert client.get("/tracks").status_code == 503
        for path in ("/operations", "/releases", "/ops", "/web/ops.js", "/web/ops.css"):
            assert client.get(path).status_code == 200, path
        assert client.get("/operations").json()["shed"] == 1


def test_metrics_that_cannot_be_read_are_a_problem_and_not_an_error(start_service: StartService) -> None:
    prelude = "import time, service.telemetry as t; t.Telemetry.families = lambda self: time.sleep(60)"
    with start_service(prelude=prelude).client() as client:
        answer = client.get("/operations")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert "no response within 1 s: try again in a moment" in answer.json()["detail"]


def test_a_service_without_requests_has_no_numbers() -> None:
    numbers = MetricsSnapshot([])
    assert (numbers.routes(), numbers.releases(), numbers.count("segue_shed_requests_total")) == ([], [], 0)
