"""Caution over HTTP: the play head of this release says that tracks with an even row are skipped."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from segue.play_head import FEATURES, OutcomeCounts, PlayHead, linear_weights
from segue.release import open_release
from segue.sessions import Outcome, Play
from service.releases.loaded import load_release
from tests.conftest import StartService, recommended, write_tiny_release

SESSION = [Play("g1-t00"), Play("g2-t00", Outcome.SKIPPED)]
EVENTS = [{"type": "play", "track_id": "g1-t00"}, {"type": "skip", "track_id": "g2-t00"}]


@pytest.fixture(scope="module")
def cautious(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tracks = np.zeros((73, 3, 2), dtype=np.int32)
    tracks[1:, 0] = [[50, 50 * (row % 2 == 0)] for row in range(1, 73)]
    none = np.empty(0, dtype=np.int64), np.empty((0, 2, 2), dtype=np.int32)
    weights = np.zeros(len(FEATURES))
    weights[FEATURES.index("track")] = 1.0
    head = PlayHead(OutcomeCounts(tracks, *none), linear_weights(weights))
    return write_tiny_release(tmp_path_factory.mktemp("caution") / "release", more=head.arrays()).path


def session(client: httpx.Client) -> str:
    session_id = f"caution-{uuid4().hex}"
    client.post(f"/sessions/{session_id}/events", json={"events": EVENTS}).raise_for_status()
    return session_id


def test_caution_is_the_same_in_every_call_and_offline(cautious: Path, start_service: StartService) -> None:
    offline = load_release(cautious)
    rows = {offline.catalogue.track_id(row): row for row in range(1, 73)}
    with httpx.Client(base_url=start_service(release=cautious).address()) as client:
        session_id = session(client)
        without = recommended(client, session_id, k=10)
        assert recommended(client, session_id, k=10, caution=0) == without
        answer = recommended(client, session_id, k=10, caution=2.5)
        assert [rows[item["track_id"]] % 2 for item in answer["items"]] == [1] * 10
        assert {rows[item["track_id"]] % 2 for item in without["items"]} == {0, 1}
        expected = offline.recommend(SESSION, 10, caution=2.5)
        assert [rows[item["track_id"]] for item in answer["items"]] == expected.rows
        np.testing.assert_allclose([item["score"] for item in answer["items"]], expected.scores, rtol=1e-6)

        what_if = client.post("/recommendations/what-if", json={"events": EVENTS, "k": 10, "caution": 2.5}).json()
        assert what_if["items"] == answer["items"]
        reported = client.post(
            f"/sessions/{session_id}/events", params={"recommend": 10, "caution": 2.5}, json={"events": EVENTS}
        ).json()
        assert reported["recommendations"] == recommended(client, session_id, k=10, caution=2.5)

        why = recommended(client, session_id, k=10, caution=2.5, explain=True)
        for item, told in zip(why["items"], why["explanation"]["items"], strict=True):
            assert sum(told["contributions"]) + told["baseline"] == pytest.approx(item["score"], rel=1e-4)
            assert sum(told["parts"].values()) == pytest.approx(item["score"], rel=1e-4)
            assert sorted(told["parts"]) == ["next", "played"]
    assert open_release(cautious).play_head is not None


@pytest.mark.parametrize("value", ["-1", "11", "nan", "inf", "much"])
def test_a_caution_out_of_range_is_refused(running: httpx.Client, value: str) -> None:
    answer = running.get("/recommendations", params={"session_id": "nobody", "caution": value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "query.caution"


@pytest.mark.parametrize("value", [-1, 11, "1", True, [1]])
def test_a_caution_in_a_body_is_a_number_in_range(running: httpx.Client, value: Any) -> None:
    answer = running.post("/recommendations/what-if", json={"events": EVENTS, "caution": value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("body.caution")


def test_a_release_without_a_play_head_refuses_caution_and_stores_nothing(running: httpx.Client) -> None:
    session_id = f"caution-{uuid4().hex}"
    calls: list[Any] = [
        running.get("/recommendations", params={"session_id": session_id, "caution": 1}),
        running.post("/recommendations/what-if", json={"events": EVENTS, "caution": 1}),
        running.post(f"/sessions/{session_id}/events", params={"recommend": 5, "caution": 1}, json={"events": EVENTS}),
    ]
    for answer in calls:
        assert answer.status_code == 409
        assert "the release has no play head" in answer.json()["detail"]
    assert running.get(f"/sessions/{session_id}").status_code == 404
