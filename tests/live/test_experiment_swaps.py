"""A swap ends a running A/B test only if the request says so, and every worker and every restart knows it."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.cli.top import experiment_line
from tests.conftest import recommended, write_tiny_release
from tests.stopwatch import until

StartService = Callable[..., Any]
SESSIONS = [f"s{number}" for number in range(60)]


@pytest.fixture
def folder(releases_dir: Path) -> Path:
    """Three different releases, `first`, `second` and `third`, and `twin`, a copy of `first`."""
    shutil.copytree(releases_dir / "first", releases_dir / "twin")
    write_tiny_release(releases_dir / "third", "y-")
    return releases_dir


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    given = {"release": folder / "first", "releases_dir": folder, "experiment": "second:0.5"}
    return {**given, "releases_poll_interval_s": 0.1, **more}


def swap(address: str, name: str, **more: Any) -> httpx.Response:
    return httpx.put(f"{address}/releases/current", json={"name": name, **more}, trust_env=False, timeout=30)


def followed_swap(address: str, name: str, workers: int, **more: Any) -> None:
    """Swap, and wait until all workers have followed. One that is at it refuses further swaps."""

    def loaded() -> int:
        told: dict[str, int] = httpx.get(f"{address}/operations", trust_env=False, timeout=20).json()["swaps"]
        return told["loaded"]

    before = loaded()
    answer = swap(address, name, **more)
    assert answer.status_code == 200, answer.text
    until(lambda: loaded() == before + workers)


def seen(address: str) -> dict[str, Any]:
    """What all workers say of the test, and the shares of the live releases. Raises if workers differ."""
    answers = []
    for _ in range(8):  # each on a new connection, so by any worker
        test = httpx.get(f"{address}/operations", trust_env=False).json()["experiment"]
        live = httpx.get(f"{address}/releases/current", trust_env=False).json()["live"]
        answers.append((test, {one["folder"]: one["share"] for one in live}))
    tests = {json.dumps(one) for one, _ in answers if one["state"] in ("ended", "void")}
    states = {(one["state"], json.dumps(live)) for one, live in answers}
    assert len(states) == 1, states
    assert len(tests) <= 1, tests
    test, live = answers[0]
    return {**test, "live": live}


def agreed(address: str, **wanted: Any) -> dict[str, Any]:
    """What all workers say, once it has these values."""
    found: dict[str, Any] = {}

    def done() -> bool:
        try:
            found.update(seen(address))
        except AssertionError:
            return False
        return {name: found[name] for name in wanted} == wanted

    until(done)
    return found


def served(address: str) -> set[str]:
    """The releases that answer sessions."""
    with httpx.Client(base_url=address, trust_env=False) as client:
        return {recommended(client, session_id)["release"] for session_id in SESSIONS}


def name_of(folder: Path, release: str) -> str:
    name: str = json.loads((folder / release / "manifest.json").read_text())["name"]
    return name


@pytest.mark.parametrize("workers", [1, 2])
def test_a_swap_ends_a_running_test_only_if_the_request_says_so(
    start_service: StartService, folder: Path, workers: int
) -> None:
    names = {name: name_of(folder, name) for name in ("first", "second", "third")}
    service = start_service(workers=workers, **settings(folder))
    address = service.address()
    both = {"first": 0.5, "second": 0.5}
    assert (seen(address)["state"], seen(address)["live"]) == ("running", both)
    assert served(address) == {names["first"], names["second"]}
    for target, why in (("second", "both arms would be the same release"), ("third", "the other arm would change")):
        answer = swap(address, target)
        assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
        assert answer.json()["title"] == "A/B test running"
        told = f"50 % of the sessions get second. A swap to {target} would end it, because {why}"
        assert told in answer.json()["detail"]
        assert '"end_experiment": true' in answer.json()["detail"]
    assert swap(address, "third", end_experiment=False).status_code == 409
    assert not (folder / "current").exists()
    assert (seen(address)["state"], seen(address)["live"]) == ("running", both)

    followed_swap(address, "third", workers, end_experiment=True)
    ended = seen(address)
    assert (ended["state"], ended["live"]) == ("ended", {"third": 1.0, "second": 0.0})
    assert ended["reason"] == "a swap to third ended it"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(ended["since"])).total_seconds()) < 30
    assert served(address) == {names["third"]}
    words = f"{names['second']} in second, 50% of sessions, ENDED since {ended['since']}: a swap to third ended it"
    assert experiment_line(ended) == words  # in `segue top`

    followed_swap(address, "first", workers)  # rolled back, and the test stays ended
    again = seen(address)
    assert (again["live"], again["since"]) == ({"first": 1.0, "second": 0.0}, ended["since"])
    assert served(address) == {names["first"]}
    followed_swap(address, "second", workers)  # nothing to void any more
    assert (seen(address)["live"], seen(address)["state"]) == ({"second": 1.0}, "ended")
    service.stop()

    address = start_service(workers=workers, **settings(folder)).address()  # SEGUE_RELEASE is `first`
    again = seen(address)
    assert {name: again[name] for name in ("state", "since", "reason", "live")} == {
        "state": "ended", "since": ended["since"], "reason": ended["reason"], "live": {"second": 1.0},
    }  # fmt: skip


def test_a_new_share_starts_a_new_test(start_service: StartService, folder: Path) -> None:
    service = start_service(**settings(folder))
    assert swap(service.address(), "twin", end_experiment=True).status_code == 200
    service.stop()
    address = start_service(**settings(folder, experiment="second:0.25")).address()
    found = seen(address)
    assert (found["state"], found["live"], found["reason"]) == ("running", {"twin": 0.75, "second": 0.25}, None)
    assert swap(address, "second").status_code == 409
    assert swap(address, "second", end_experiment=True).status_code == 200
    assert seen(address)["reason"] == "a swap to second ended it"


def test_a_test_can_end_without_a_change_of_the_release(start_service: StartService, folder: Path) -> None:
    address = start_service(**settings(folder)).address()
    assert swap(address, "first", end_experiment=True).status_code == 200
    found = seen(address)
    assert (found["state"], found["live"]) == ("ended", {"first": 1.0, "second": 0.0})
    since = found["since"]
    assert swap(address, "third", end_experiment=True).status_code == 200  # as a client that tries again
    assert seen(address)["since"] == since
    assert seen(address)["reason"] == "a swap to first ended it"


def test_a_copy_of_the_live_release_changes_no_arm(start_service: StartService, folder: Path) -> None:
    address = start_service(**settings(folder)).address()
    before = seen(address)["since"]
    assert swap(address, "twin").status_code == 200
    found = seen(address)
    assert (found["state"], found["live"]) == ("running", {"twin": 0.5, "second": 0.5})
    assert found["since"] >= before


def test_a_pointer_by_hand_that_makes_the_arms_equal_is_said_to_void_the_test(
    start_service: StartService, folder: Path
) -> None:
    service = start_service(workers=2, **settings(folder))
    address = service.address()

    def point(text: str, at: float) -> str:
        (folder / "next").write_text(text)
        os.utime(folder / "next", (at, at))
        (folder / "next").rename(folder / "current")
        return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")

    at = float(int(datetime.now(UTC).timestamp()) - 7200)
    since = point("second\n", at)
    void = agreed(address, state="void", live={"second": 1.0})
    assert (void["since"], void["reason"]) == (since, f"both arms are {name_of(folder, 'second')}")
    assert any("experiment_void" in line for line in service.output)
    service.stop()
    service = start_service(workers=2, **settings(folder))
    address = service.address()
    again = seen(address)
    assert (again["state"], again["since"], again["live"]) == ("void", since, {"second": 1.0})
    assert swap(address, "third").status_code == 200  # which voids nothing
    agreed(address, state="running", live={"third": 0.5, "second": 0.5})
    point("second\nfirst\nended second:0.5 2026-01-02T03:04:05Z first\n", at + 60)
    assert agreed(address, state="ended", live={"second": 1.0})["since"] == "2026-01-02T03:04:05Z"
    point("first\nended second:0.5 yesterday first\n", at + 120)  # no time: no end
    agreed(address, state="running", live={"first": 0.5, "second": 0.5})


def test_a_share_of_0_is_no_test_that_a_swap_could_end(start_service: StartService, folder: Path) -> None:
    address = start_service(**settings(folder, experiment="second:0")).address()
    assert seen(address)["state"] == "idle"
    assert swap(address, "second").status_code == 200
    assert (seen(address)["state"], seen(address)["live"]) == ("idle", {"second": 1.0})
    assert swap(address, "third", end_experiment=True).status_code == 200
    assert seen(address)["state"] == "idle"
    assert "ended" not in (folder / "current").read_text()


def test_other_swaps_are_refused_as_before(start_service: StartService, folder: Path) -> None:
    address = start_service(**settings(folder)).address()
    assert swap(address, "nowhere", end_experiment=True).status_code == 404
    assert swap(address, "nowhere").status_code == 404
    answer = swap(address, "third", end_experiment="yes")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body.end_experiment")
    (folder / "third" / "encoder.onnx").write_bytes(b"damaged")
    assert swap(address, "third", end_experiment=True).status_code == 422
    assert seen(address)["state"] == "running"
    assert not (folder / "current").exists()
