"""Releases are swapped while requests run: none fails, none mixes two releases, sessions go on.

`first` and `second` (tests/conftest.py) share no track id, so an answer's items tell which release named them.
"""

import fcntl
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.release import Release
from tests.conftest import recommended
from tests.hostile import Hostile, centroids, endless_encoder, write_plain_release
from tests.live.redis_server import Server
from tests.live.stored_sessions import wait_until_remembered
from tests.stopwatch import until

StartService = Callable[..., Any]


def swap(client: httpx.Client, name: str) -> httpx.Response:
    return client.put("/releases/current", json={"name": name})


def report(client: httpx.Client, session_id: str, *tracks: str, kind: str = "play", **query: Any) -> dict[str, Any]:
    body = {"events": [{"type": kind, "track_id": track} for track in tracks]}
    answer = client.post(f"/sessions/{session_id}/events", json=body, params=query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def serving(client: httpx.Client) -> str:
    """The folder that one worker, a new connection's, serves from."""
    with httpx.Client(base_url=client.base_url, trust_env=False) as fresh:
        folder: str = fresh.get("/releases/current").json()["folder"]
        return folder


class Listener(threading.Thread):
    """Asks without pause, until told to leave, and keeps what is wrong with the answers."""

    def __init__(self, address: httpx.URL, number: int, names: dict[str, str]) -> None:
        super().__init__(daemon=True)  # a test that fails leaves it behind
        self.leaving = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []
        self.releases: set[str] = set()
        self._address, self._number, self._prefixes = address, number, names

    def run(self) -> None:
        with httpx.Client(base_url=self._address, trust_env=False, timeout=20) as client:
            while not self.leaving.is_set():
                try:
                    self._ask(client)
                except (AssertionError, httpx.HTTPError, KeyError) as error:
                    self.wrong.append(repr(error))

    def _ask(self, client: httpx.Client) -> None:
        session_id = f"listener-{self._number}-{self.answers // 30}"
        told = report(client, session_id, "g1-t00", "x-g1-t00", recommend=20)
        self._look(told["recommendations"], told["unknown_tracks"])
        self._look(recommended(client, session_id))
        found = client.get("/tracks", params={"query": "song", "limit": 100})
        assert found.status_code == 200
        ids = [item["track_id"] for item in found.json()["items"]]
        titles = [item["title"] for item in found.json()["items"]]
        assert len({name.startswith("x-") for name in ids + titles}) == 1

    def _look(self, answer: dict[str, Any], unknown: list[str] | None = None) -> None:
        prefix = self._prefixes[answer["release"]]
        assert len(answer["items"]) == 20
        assert answer["source"] == "model"
        for item in answer["items"]:
            assert item["track_id"].startswith("x-") == bool(prefix), (answer["release"], item)
            assert item.get("title", prefix).startswith("x-") == bool(prefix), (answer["release"], item)
        if unknown is not None:
            assert unknown == (["g1-t00"] if prefix else ["x-g1-t00"])
        self.releases.add(answer["release"])
        self.answers += 1


@pytest.mark.parametrize(
    "swaps",
    [5, pytest.param(25, marks=pytest.mark.slow), pytest.param(100, marks=[pytest.mark.slow, pytest.mark.nightly])],
)
def test_swaps_under_load_fail_no_request_and_mix_no_answer(
    start_service: StartService, releases_dir: Path, tiny_release: Release, other_release: Release, swaps: int
) -> None:
    prefixes = {tiny_release.name: "", other_release.name: "x-"}
    with start_service(releases_dir=releases_dir).client() as client:
        listeners = [Listener(client.base_url, number, prefixes) for number in range(4)]
        for listener in listeners:
            listener.start()
        for number in range(swaps):
            answer = swap(client, ("second", "first")[number % 2])
            assert answer.status_code == 200, answer.text
            assert serving(client) == ("second", "first")[number % 2]
            time.sleep(0.1)
        for listener in listeners:
            listener.leaving.set()
        for listener in listeners:
            listener.join()
        assert [wrong for listener in listeners for wrong in listener.wrong] == []
        assert all(listener.releases == set(prefixes) for listener in listeners)
        assert min(listener.answers for listener in listeners) > swaps
        metrics = client.get("/metrics").text
        assert f'segue_release_swaps_total{{result="loaded"}} {swaps}.0' in metrics
        in_use = {name: f'segue_release_in_use{{release="{name}"}} 1.0' in metrics for name in prefixes}
        assert in_use == {tiny_release.name: swaps % 2 == 0, other_release.name: swaps % 2 == 1}


def test_a_session_survives_a_swap_to_another_catalogue(start_service: StartService, releases_dir: Path) -> None:
    with start_service(releases_dir=releases_dir).client() as client:
        assert report(client, "s", "g1-t00", "x-g2-t00")["unknown_tracks"] == ["x-g2-t00"]
        before = client.get("/sessions/s").json()
        assert swap(client, "second").json()["folder"] == "second"
        assert client.get("/sessions/s").json() == before
        answer = recommended(client, "s", k=5)
        assert (answer["source"], answer["window"]) == ("model", {"plays": 1, "skips": 0})
        assert {item["track_id"][:4] for item in answer["items"]} == {"x-g2"}
        assert report(client, "s", "x-g2-t01", kind="skip")["length"] == 3
        assert swap(client, "first").status_code == 200  # rolled back
        answer = recommended(client, "s", k=5)
        assert {item["track_id"][:2] for item in answer["items"]} == {"g1"}


def test_all_workers_follow_one_swap(start_service: StartService, releases_dir: Path) -> None:
    with start_service(workers=2, releases_dir=releases_dir, releases_poll_interval_s=0.1).client() as client:
        for number, name in enumerate(("second", "first"), 1):
            assert swap(client, name).status_code == 200
            loaded = f'segue_release_swaps_total{{result="loaded"}} {2 * number}.0'  # by both workers
            until(lambda loaded=loaded: loaded in client.get("/metrics").text)  # type: ignore[misc]
            assert {serving(client) for _ in range(20)} == {name}


def test_the_pointer_is_followed_and_outlives_a_restart(
    start_service: StartService, releases_dir: Path, tmp_path: Path
) -> None:
    service = start_service(releases_dir=releases_dir, releases_poll_interval_s=0.1)
    replica = start_service(releases_dir=releases_dir, releases_poll_interval_s=0.1, data_dir=tmp_path / "replica")
    with service.client() as client, replica.client() as other:
        assert swap(client, "second").status_code == 200
        assert (releases_dir / "current").read_text() == "second\n"
        until(lambda: serving(other) == "second")
        (releases_dir / "current").write_text("first\n")
        until(lambda: (serving(client), serving(other)) == ("first", "first"))
        assert swap(client, "second").status_code == 200
    assert service.stop() == 0
    again = start_service(releases_dir=releases_dir)
    with again.client() as client:
        assert serving(client) == "second"


def test_a_damaged_release_is_refused_once_until_it_changes(start_service: StartService, releases_dir: Path) -> None:
    encoder = releases_dir / "second" / "encoder.onnx"
    good = encoder.read_bytes()
    encoder.write_bytes(good[:-1] + b"!")
    service = start_service(releases_dir=releases_dir, releases_poll_interval_s=0.05)
    with service.client() as client:
        (releases_dir / "current").write_text("second")
        until(lambda: any("release_rejected" in line for line in service.output))
        time.sleep(0.5)  # ten looks
        [line] = [json.loads(line) for line in service.output if "release_rejected" in line]
        assert "sha256 differs" in line["reason"]
        assert 'segue_release_swaps_total{result="rejected"} 1.0' in client.get("/metrics").text
        assert serving(client) == "tiny"
        encoder.write_bytes(good)
        until(lambda: serving(client) == "second")


def test_a_service_whose_pointer_leads_nowhere_starts_with_its_release(
    start_service: StartService, releases_dir: Path
) -> None:
    (releases_dir / "current").write_text("third")
    service = start_service(releases_dir=releases_dir)
    with service.client() as client:
        assert serving(client) == "tiny"
        assert sum("release_rejected" in line for line in service.output) == 1


@pytest.mark.parametrize(
    ("name", "limit_s", "detail"),
    [("endless", 5, "does not respond within 5 s"), ("astray", 90, "other centroids than lists")],
)
def test_a_release_that_was_made_to_harm_ends_no_worker(
    start_service: StartService, releases_dir: Path, name: str, limit_s: float, detail: str
) -> None:
    """One never ends when it is asked, the other leads out of its own memory; listeners are answered all the while."""
    hostile = Hostile(write_plain_release(releases_dir / "plain"))
    if name == "endless":
        hostile.with_encoder(releases_dir / name, endless_encoder())
    else:
        hostile.with_index(releases_dir / name, "ivf-pq4", centroids(5000))
    service = start_service(
        releases_dir=releases_dir, releases_poll_interval_s=0.1, release_validation_timeout_s=limit_s
    )
    with service.client() as client:
        client.timeout = httpx.Timeout(120)
        listener = Listener(client.base_url, 0, {client.get("/releases/current").json()["name"]: ""})
        listener.start()
        answer = swap(client, name)
        assert answer.status_code == 422, answer.text
        assert detail in answer.json()["detail"]
        (releases_dir / "current").write_text(name)
        until(lambda: sum(detail in line for line in service.output) == 2, 100)
        listener.leaving.set()
        listener.join()
        assert listener.wrong == []
        assert listener.answers > 10
        until(lambda: swap(client, "plain").status_code == 200, 100)  # a short limit may be too short for it at first
        assert serving(client) == "plain"
    assert service.stop() == 0


@pytest.mark.parametrize("asked_by", ["pointer", "call"])
def test_a_release_under_trial_does_not_hold_up_the_end(
    start_service: StartService, releases_dir: Path, asked_by: str
) -> None:
    hostile = Hostile(write_plain_release(releases_dir / "plain"))
    hostile.with_encoder(releases_dir / "endless", endless_encoder())
    service = start_service(
        releases_dir=releases_dir, releases_poll_interval_s=0.1, release_validation_timeout_s=60, shutdown_grace_s=1
    )
    with service.client() as client, ThreadPoolExecutor(1) as other:
        if asked_by == "pointer":
            (releases_dir / "current").write_text("endless")
        else:
            answer = other.submit(swap, client, "endless")
        parent = psutil.Process(service.process.pid)
        until(lambda: any("forkserver" in " ".join(child.cmdline()) for child in parent.children()))
        time.sleep(1)
        trials = [child for child in parent.children(recursive=True) if "forkserver" in " ".join(child.cmdline())]
        service.process.send_signal(signal.SIGTERM)
        assert service.stop() == 0  # after 9 s the shutdown timer would end it with 1
        until(lambda: not any(psutil.pid_exists(trial.pid) for trial in trials))  # no trial outlives its service
        if asked_by == "call":
            assert answer.result().status_code == 500
            assert not (releases_dir / "current").exists()


@contextmanager
def another_swap(releases_dir: Path) -> Iterator[None]:
    with (releases_dir / ".current.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_what_cannot_be_served_is_a_problem_and_changes_nothing(
    start_service: StartService, releases_dir: Path
) -> None:
    (releases_dir / "link").symlink_to(releases_dir / "second")
    (releases_dir / "empty").mkdir()
    with start_service(releases_dir=releases_dir).client() as client:
        for body, status, detail in (
            ({"name": "third"}, 404, "'third' is not a folder in"),
            ({"name": "current"}, 404, "'current' is not a folder in"),
            ({"name": "link"}, 422, "is a link"),
            ({"name": "empty"}, 422, "holds no manifest.json"),
            ({"name": "../first"}, 422, "body.name is '../first'"),
            ({"name": "/etc"}, 422, "body.name is '/etc'"),
            ({"name": ".hidden"}, 422, "body.name is '.hidden'"),
            ({"name": "first\n"}, 422, "body.name is"),
            ({"name": 7}, 422, "body.name is 7"),
            ({"name": "second", "path": "/etc"}, 422, "body.path is"),
            ({}, 422, "body.name is missing"),
        ):
            answer = client.put("/releases/current", json=body)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), body
            assert detail in answer.json()["detail"]
        for content in (b"", b"{", b"\x8b", b"[" * 4_000, b'"second"', b"[]"):
            answer = client.put("/releases/current", content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body"), content
        with another_swap(releases_dir):
            answer = swap(client, "second")
            assert (answer.status_code, answer.json()["title"]) == (409, "Swap refused")
        assert serving(client) == "tiny"
        assert not (releases_dir / "current").exists()
        assert swap(client, "second").status_code == 200


def test_without_a_folder_of_releases_there_is_no_swap(running: httpx.Client) -> None:
    answer = swap(running, "first")
    assert answer.status_code == 409
    assert "SEGUE_RELEASES_DIR" in answer.json()["detail"]


def test_an_experiment_answers_its_share_of_sessions_and_no_other(
    start_service: StartService, releases_dir: Path, tiny_release: Release, other_release: Release
) -> None:
    sessions = [f"s{number}" for number in range(200)]

    def answered(client: httpx.Client) -> list[str]:
        return [recommended(client, session_id)["release"] for session_id in sessions]

    service = start_service(releases_dir=releases_dir, experiment="second:0.25")
    with service.client() as client:
        releases = answered(client)
        challenged = releases.count(other_release.name)
        assert 25 <= challenged <= 75
        assert releases.count(tiny_release.name) == 200 - challenged
        metrics = client.get("/metrics").text
        line = f'segue_recommendations_total{{release="{other_release.name}",source="popularity"}} {challenged}.0'
        assert line in metrics
    service.stop()
    with start_service(releases_dir=releases_dir, experiment="second:0.25").client() as client:
        assert answered(client) == releases


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiment": "third:0.5"}, "'third' is not a folder in"),
        ({"experiment": "second:0.5", "releases_dir": None}, "set SEGUE_RELEASES_DIR"),
    ],
)
def test_an_experiment_that_cannot_be_is_told_at_the_start(
    start_service: StartService, releases_dir: Path, settings: dict[str, Any], message: str
) -> None:
    given = {"releases_dir": releases_dir, **settings}
    service = start_service(**{name: value for name, value in given.items() if value is not None})
    assert service.process.wait(30) != 0
    service.stop()
    assert message in service.output[-1]


class TestCredits:
    """What became of a release's recommendations, by whichever worker it is told.

    One worker stores a list before it does what the next request wants. Of several, another one may be faster.
    """

    @pytest.mark.parametrize("workers", [1, 2])
    def test_plays_and_skips_are_credited_to_the_release_that_recommended(
        self, start_service: StartService, tmp_path: Path, tiny_release: Release, workers: int
    ) -> None:
        with Server(tmp_path / "redis") as server, server.client() as redis:
            settings = {"redis_url": server.url, "durability": "memory", "attribution_sample_rate": 1}
            address = start_service(workers=workers, **settings).address()

            def told(*tracks: str, kind: str = "play", **query: Any) -> dict[str, Any]:
                with httpx.Client(base_url=address, trust_env=False) as fresh:  # any worker
                    answer = report(fresh, "s", *tracks, kind=kind, **query)
                if "recommend" in query:
                    wait_until_remembered(redis, "s", answer["recommendations"])
                return answer

            items = told("g1-t00", recommend=5, repeat="never")["recommendations"]["items"]
            assert [item["track_id"] for item in items] == [f"g1-t0{number}" for number in range(1, 6)]
            told("g1-t01", recommend=5, repeat="never")  # recommended
            told("g1-t01", kind="skip")  # and skipped, after the next list
            told("g1-t02", kind="skip")  # skipped in one event
            told("g1-t03", "g5-t00")  # one that was recommended, one that was not
            told("g5-t00", kind="skip")
            told("g5-t01", kind="skip")
            with httpx.Client(base_url=address, trust_env=False) as client:
                metrics = client.get("/metrics").text
        assert f'segue_attributed_plays_total{{release="{tiny_release.name}"}} 3.0' in metrics
        assert f'segue_attributed_skips_total{{release="{tiny_release.name}"}} 2.0' in metrics

    def test_an_event_that_is_sent_again_is_credited_once(self, start_service: StartService) -> None:
        with start_service(attribution_sample_rate=1).client() as client:
            report(client, "s", "g1-t00", recommend=5)
            body = {"events": [{"type": "play", "track_id": "g1-t01", "event_id": "once"}]}
            for _ in range(3):
                client.post("/sessions/s/events", json=body)
            assert "segue_attributed_plays_total" in client.get("/metrics").text
            [line] = [one for one in client.get("/metrics").text.splitlines() if "attributed_plays_total{" in one]
            assert line.endswith(" 1.0")

    def test_erasing_a_session_leaves_nothing_remembered(self, start_service: StartService) -> None:
        with start_service(attribution_sample_rate=1).client() as client:
            report(client, "s", "g1-t00", recommend=5)
            client.delete("/sessions/s")
            recommended(client, "s")  # of a session that is no more: not remembered
            report(client, "s", "g1-t01", "g0-t00")
            assert "attributed_plays_total{" not in client.get("/metrics").text

    def test_it_can_be_turned_off(self, start_service: StartService) -> None:
        with start_service(attribution_sample_rate=0).client() as client:
            report(client, "s", "g1-t00", recommend=5)
            report(client, "s", "g1-t01")
            assert "attributed_plays_total{" not in client.get("/metrics").text
