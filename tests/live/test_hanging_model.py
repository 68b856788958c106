"""A model that hangs on one track: its own requests fail, all others are answered from the model, the service ends."""

import concurrent.futures
import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from segue.release import Release
from service.batching import MAX_BATCH_SIZE
from service.releases.trial import _rows
from tests.conftest import recommended, track_ids
from tests.hostile import write_hanging_release
from tests.stopwatch import Stopwatch, until

StartService = Callable[..., Any]
TIMEOUT_S = 0.5
POISON = "g1-t01"
ROW = track_ids().index(POISON) + 1


@pytest.fixture
def hanging(tiny_release: Release, tmp_path: Path) -> Path:
    write_hanging_release(tiny_release, tmp_path / "hanging", ROW)
    return tmp_path / "hanging"


def what_if(client: httpx.Client, *tracks: str, **more: Any) -> httpx.Response:
    events = [{"type": "play", "track_id": track} for track in tracks]
    return client.post("/recommendations/what-if", json={"events": events, "k": 3, **more})


def metric(client: httpx.Client, name: str) -> float:
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


@contextlib.contextmanager
def poisoned(address: str, every_s: float = 0.1) -> Iterator[list[int]]:
    """Ask for the track on which the model hangs again and again, without waiting for answers."""
    statuses: list[int] = []
    leaving = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=address, timeout=20, trust_env=False) as client:
            statuses.append(what_if(client, f"g0-t{number % 12:02}", POISON).status_code)

    def ask_all() -> None:
        number = 0
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            while not leaving.wait(every_s):
                pool.submit(ask, number)
                number += 1

    thread = threading.Thread(target=ask_all, daemon=True)
    thread.start()
    try:
        yield statuses
    finally:
        leaving.set()
        thread.join()


def test_a_track_on_which_the_model_hangs_costs_its_own_requests_only(
    start_service: StartService, hanging: Path
) -> None:
    service = start_service(release=hanging, ranking_timeout_s=TIMEOUT_S)
    with service.client() as client:
        with Stopwatch() as watch:
            answer = what_if(client, POISON)
        assert watch.wall_seconds > TIMEOUT_S * 0.9
        assert watch.seconds < 10 * TIMEOUT_S
        assert answer.status_code == 503
        problem = answer.json()
        assert problem["title"] == "Model unavailable"
        assert "did not respond within 0.5 s" in problem["detail"]
        assert "\n" not in problem["detail"]
        answer = client.post("/sessions/a/events?recommend=3", json={"events": [{"type": "play", "track_id": POISON}]})
        assert answer.status_code == 200
        assert answer.json()["recommendations"]["source"] == "popularity"
        assert POISON not in {item["track_id"] for item in answer.json()["recommendations"]["items"]}
        assert recommended(client, "a", k=3)["source"] == "popularity"
        waited = metric(client, "segue_ranking_timeouts_total")
        assert waited >= 1
        for genre in range(6):
            assert what_if(client, f"g{genre}-t03").json()["source"] == "model"
        assert what_if(client, POISON).status_code == 503
        assert client.get("/health/ready").status_code == 200
        assert client.get("/tracks").status_code == 200
        assert metric(client, "segue_ranking_timeouts_total") == waited  # the track is known: no request waits for it
        assert metric(client, "segue_ranking_threads_stuck") == 0
        assert 'segue_fallbacks_total{component="model"} 2.0' in client.get("/metrics").text
    assert service.stop() == 0
    assert any("ranking_timed_out" in line for line in service.output)
    assert not any("Traceback" in line for line in service.output)


def test_rankings_and_batches_have_the_same_deadline_and_fallback(start_service: StartService, hanging: Path) -> None:
    service = start_service(release=hanging, ranking_timeout_s=TIMEOUT_S)
    candidates = ["nobody", "g2-t05", "g0-t00"]
    poison = {"events": [{"type": "play", "track_id": POISON}]}
    good = {"events": [{"type": "play", "track_id": "g2-t03"}]}
    with service.client() as client:
        assert client.post("/sessions/a/events", json=poison).is_success
        with Stopwatch() as watch:
            assert client.post("/rank", json={**poison, "candidates": candidates}).status_code == 503
            ranked = client.post("/rank", json={"session_id": "a", "candidates": candidates}).json()
            assert (ranked["source"], ranked["unknown"]) == ("popularity", ["nobody"])
            assert [item["track_id"] for item in ranked["items"]] == ["g0-t00", "g2-t05", "nobody"]
            ranked = client.post("/rank", json={**good, "candidates": candidates}).json()
            assert (ranked["source"], ranked["items"][0]["track_id"]) == ("model", "g2-t05")
            sessions = [good, poison, {"session_id": "a"}, good]
            results = client.post("/recommendations/batch", json={"sessions": sessions, "k": 3}).json()["results"]
        assert watch.seconds < 20 * TIMEOUT_S
        assert [one.get("recommendations", {}).get("source") for one in results] == [
            "model",
            None,
            "popularity",
            "model",
        ]
        assert results[1]["problem"]["title"] == "Model unavailable"
    assert service.stop() == 0
    assert not any("Traceback" in line for line in service.output)


def test_without_a_fallback_the_answer_is_a_problem_document(start_service: StartService, hanging: Path) -> None:
    service = start_service(release=hanging, ranking_timeout_s=TIMEOUT_S, fallback="none")
    with service.client() as client:
        assert client.post("/sessions/a/events", json={"events": [{"type": "play", "track_id": POISON}]}).is_success
        for _ in range(2):
            answer = client.get("/recommendations?session_id=a")
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["title"] == "Model unavailable"
    assert not any("Traceback" in line for line in service.output)


def test_sessions_ranked_together_with_the_track_are_answered_by_the_model(
    start_service: StartService, hanging: Path
) -> None:
    """All of these wait while both threads are busy, so that they are in one batch."""
    with start_service(release=hanging, ranking_timeout_s=TIMEOUT_S, latency_budget_ms=0).client() as client:

        def ask(number: int) -> tuple[bool, httpx.Response]:
            poisoned = number % 20 == 7
            with httpx.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
                tracks = [f"g{number % 6}-t{number // 6:02}", *([POISON] if poisoned else [])]
                return poisoned, what_if(own, *tracks)

        with concurrent.futures.ThreadPoolExecutor(60) as pool:
            found = list(pool.map(ask, range(60)))
        assert [answer.status_code for is_poisoned, answer in found if is_poisoned] == [503] * 3
        assert [answer.status_code for is_poisoned, answer in found if not is_poisoned] == [200] * 57
        sources = {answer.json()["source"] for is_poisoned, answer in found if not is_poisoned}
        assert sources == {"model"}


def test_other_sessions_are_answered_while_the_track_is_asked_for_ten_times_a_second(
    start_service: StartService, hanging: Path
) -> None:
    timeout_s = 6 * TIMEOUT_S
    with start_service(release=hanging, ranking_timeout_s=timeout_s).client() as client:
        with poisoned(str(client.base_url)) as statuses:
            slow = 0
            for number in range(200):
                with Stopwatch() as watch:
                    answer = what_if(client, f"g{number % 5}-t{2 + number % 10:02}")
                assert answer.status_code == 200
                assert answer.json()["source"] == "model"
                slow += watch.seconds > timeout_s / 2
                assert client.get("/health/ready").status_code == 200
                time.sleep(0.02)
        assert set(statuses) == {503}
        assert slow <= 6  # until the track was known


def test_a_track_that_hung_alone_does_not_condemn_those_beside_it(start_service: StartService, hanging: Path) -> None:
    with start_service(release=hanging, ranking_timeout_s=TIMEOUT_S).client() as client:
        assert what_if(client, "g0-t00", "g2-t02", POISON, "g3-t03").status_code == 503
        until(lambda: metric(client, "segue_ranking_timeouts_total") >= 2)  # in its batch, and then alone
        for track in ("g0-t00", "g2-t02", "g3-t03"):
            assert what_if(client, track).json()["source"] == "model"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_in_time_while_the_model_hangs(
    start_service: StartService, hanging: Path, workers: int, number: signal.Signals
) -> None:
    service = start_service(release=hanging, ranking_timeout_s=60, shutdown_grace_s=1, workers=workers)
    address = service.address()

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=address, timeout=60, trust_env=False) as own:
            what_if(own, POISON)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    with Stopwatch() as watch:
        service.process.send_signal(number)
        until(lambda: service.process.poll() is not None)
    assert watch.seconds < 1 + 10
    for thread in threads:
        thread.join(10)


def test_the_trial_refuses_a_release_that_hangs_on_a_track_it_meets_and_another_one_costs_its_own_requests_only(
    start_service: StartService, tiny_release: Release, releases_dir: Path
) -> None:
    met = set(_rows(len(tiny_release.catalogue), MAX_BATCH_SIZE))
    unmet = next(row for row in range(1, len(tiny_release.catalogue)) if row not in met)
    write_hanging_release(tiny_release, releases_dir / "met", min(met))
    write_hanging_release(tiny_release, releases_dir / "unmet", unmet)
    service = start_service(releases_dir=releases_dir, ranking_timeout_s=TIMEOUT_S, release_validation_timeout_s=10)
    with service.client() as client:
        client.timeout = httpx.Timeout(60)
        answer = client.put("/releases/current", json={"name": "met"})
        assert answer.status_code == 422
        assert "does not respond within 10 s" in answer.json()["detail"]
        assert client.put("/releases/current", json={"name": "unmet"}).status_code == 200
        poison = track_ids()[unmet - 1]
        assert what_if(client, poison).status_code == 503
        for track in track_ids():
            assert track == poison or what_if(client, track).json()["source"] == "model"
        assert client.get("/health/ready").status_code == 200
        assert client.put("/releases/current", json={"name": "first"}).status_code == 200
        assert what_if(client, poison).json()["source"] == "model"  # nothing is remembered of the release before


def test_the_process_ends_in_time_while_the_disk_of_the_event_log_hangs(
    start_service: StartService, tmp_path: Path
) -> None:
    prelude = "import time, service.sessions.event_log as e; e.write_file = lambda *_: time.sleep(100)"
    service = start_service(prelude=prelude, shutdown_grace_s=0, event_log_flush_s=0.1)
    with service.client() as client:
        assert client.post("/sessions/a/events", json={"events": [{"type": "play", "track_id": "g0-t00"}]}).is_success
        time.sleep(0.5)
        assert client.get("/health/ready").status_code == 200  # events wait in Redis
        with Stopwatch() as watch:
            service.process.send_signal(signal.SIGTERM)
            until(lambda: service.process.poll() is not None)
        assert service.process.returncode == 1
        assert watch.seconds < 10
    service.stop()
    assert any("shutdown_cut_short" in line for line in service.output)
    with start_service().client() as client:  # its Redis has ended, and has the event
        assert len(client.get("/sessions/a").json()["plays"]) == 1


def test_readiness_does_not_wait_behind_explanations(start_service: StartService) -> None:
    """They may take five deadlines, and a proxy that asks for readiness gives up after three seconds."""
    prelude = (
        "import time, index.exact as e, service.releases.explanation as l; explain = l.explain_answer;"
        "l.explain_answer = lambda *a: time.sleep(3) or explain(*a)"
    )
    service = start_service(prelude=prelude, ranking_timeout_s=1)
    with service.client() as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(what_if, client, "g0-t00", explain=True) for _ in range(8)]
        time.sleep(0.3)
        with Stopwatch() as watch:
            assert client.get("/health/ready").status_code == 200
        assert watch.seconds < 1
        assert {answer.result(60).status_code for answer in asked} <= {200, 503}


def test_a_pause_of_the_process_is_held_against_no_track(start_service: StartService) -> None:
    """As of a virtual machine that is moved to another host."""
    prelude = (
        "import time, index.exact as e; search = e.ExactIndex.search;"
        "e.ExactIndex.search = lambda self, q, *more: time.sleep(0.2) or search(self, q, *more)"
    )
    service = start_service(prelude=prelude, ranking_timeout_s=2 * TIMEOUT_S, redis_timeout_s=10)
    with service.client() as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(what_if, client, "g0-t00", "g0-t01")
        time.sleep(0.1)
        service.process.send_signal(signal.SIGSTOP)
        time.sleep(4 * TIMEOUT_S)
        service.process.send_signal(signal.SIGCONT)
        assert asked.result(30).json()["source"] == "model"
        for tracks in (("g0-t00",), ("g0-t01",), ("g0-t00", "g0-t01")):
            assert what_if(client, *tracks).json()["source"] == "model"
        assert metric(client, "segue_ranking_timeouts_total") == 0


def test_the_supervisor_ends_in_time_although_a_worker_does_not_hear_it(start_service: StartService) -> None:
    service = start_service(workers=2, shutdown_grace_s=0)
    service.address()
    worker = next(
        child
        for child in psutil.Process(service.process.pid).children()
        if "multiprocessing.spawn" in str(child.cmdline())
    )
    worker.suspend()
    with Stopwatch() as watch:
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.process.poll() is not None)
    assert watch.seconds < 11
    worker.wait(5)
    service.stop()


def test_readiness_fails_with_the_reason_while_the_model_hangs_on_everything(
    start_service: StartService, tiny_release: Release, tmp_path: Path
) -> None:
    """A sleep in place of the search cannot be interrupted: threads are abandoned, then calls are refused at once.

    A takedown holds nevertheless.
    """
    hangs = tmp_path / "hangs"
    prelude = (
        "import pathlib, time, index.exact as e; search = e.ExactIndex.search\n"
        "def search_or_hang(self, q, *more):\n"
        f"    while pathlib.Path({str(hangs)!r}).exists(): time.sleep(0.1)\n"
        "    return search(self, q, *more)\n"
        "e.ExactIndex.search = search_or_hang"
    )
    shutil.copytree(tiny_release.path, tmp_path / "releases" / "tiny")
    service = start_service(prelude=prelude, ranking_timeout_s=TIMEOUT_S, releases_dir=tmp_path / "releases")
    with service.client() as client:
        assert what_if(client, "g0-t00").json()["source"] == "model"
        assert client.get("/health/ready").status_code == 200
        hangs.touch()
        until(lambda: client.get("/health/ready").status_code != 200, 30)
        assert client.get("/health/ready").json()["title"] == "Model unavailable"
        assert client.get("/health/live").status_code == 200
        assert client.post("/sessions/a/events", json={"events": [{"type": "play", "track_id": "g0-t00"}]}).is_success
        until(lambda: "hang: restart" in client.get("/health/ready").json()["detail"], 30)
        with Stopwatch() as watch:
            assert recommended(client, "a", k=3)["source"] == "popularity"
            assert what_if(client, "g0-t00").status_code == 503
        assert watch.seconds < 10 * TIMEOUT_S
        first, *others = [item["track_id"] for item in recommended(client, "a", k=3)["items"]]
        assert client.put(f"/removed-tracks/{first}").is_success
        assert [item["track_id"] for item in recommended(client, "a", k=3)["items"]][:2] == others
        # What needs no model does not wait for one: filters, artists of bans and seeds.
        of_genre = recommended(client, "a", k=3, filter="genre:g1")
        assert (of_genre["source"], {one["track_id"][:2] for one in of_genre["items"]}) == ("popularity", {"g1"})
        events = [{"type": "play", "track_id": "g2-t00"}, {"type": "ban_artist", "track_id": "g3-t00"}]
        answer = client.post("/sessions/b/events?recommend=72&filter=!genre:g4", json={"events": events})
        assert answer.status_code == 200, answer.text
        genres = {one["track_id"][:2] for one in answer.json()["recommendations"]["items"]}
        assert genres >= {"g0", "g1", "g2", "g5"}
        assert not genres & {"g3", "g4"}
        assert client.put("/sessions/c/station", json={"artists": ["Artist 2"]}).status_code == 200
        assert metric(client, "segue_ranking_threads_stuck") >= 4
    with Stopwatch() as watch:
        assert service.stop() == 0
    assert watch.seconds < 10
