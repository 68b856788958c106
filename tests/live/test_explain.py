"""Why and what if, over HTTP: the release of the tests adds plays up, so that each contribution is known."""

from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from segue.release import Release
from tests.conftest import WINDOW, StartService, recommended

SESSION = [("play", "g1-t00"), ("play", "g2-t00"), ("skip", "g2-t00"), ("play", "gone"), ("skip", "g3-t01")]


def events(happened: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"type": kind, "track_id": track} for kind, track in happened]


def stored(client: httpx.Client, happened: list[tuple[str, str]]) -> str:
    session_id = f"explain-{uuid4().hex}"
    client.post(f"/sessions/{session_id}/events", json={"events": events(happened)}).raise_for_status()
    return session_id


def what_if(client: httpx.Client, happened: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    answer = client.post("/recommendations/what-if", json={"events": events(happened), **more})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_contributions_are_those_of_the_plays_and_add_up_to_the_score(
    running: httpx.Client, tiny_release: Release
) -> None:
    answer = recommended(running, stored(running, SESSION), k=30, explain=True)
    why = answer["explanation"]
    shown = [(play["track_id"], play["outcome"]) for play in why["plays"]]
    assert shown == [("g1-t00", "played"), ("g2-t00", "skipped"), ("g3-t01", "skipped")]
    embeddings, catalogue = np.asarray(tiny_release.item_embeddings), tiny_release.catalogue
    for item, told in zip(answer["items"], why["items"], strict=True):
        assert told["track_id"] == item["track_id"]
        assert sum(told["contributions"]) == pytest.approx(item["score"], abs=1e-5)
        target = embeddings[catalogue.row(item["track_id"])]
        own = [embeddings[catalogue.row(track)] @ target * (1 if how == "played" else -2) for track, how in shown]
        assert told["contributions"] == pytest.approx(own, abs=1e-5)


def test_it_says_where_a_track_would_be_without_the_skips(running: httpx.Client) -> None:
    answer = recommended(running, stored(running, SESSION), k=40, explain=True, repeat="never")
    heard = {track for _, track in SESSION}
    unskipped = what_if(running, [("play", "g1-t00")], k=100, exclude=sorted(heard - {"g1-t00"}), repeat="never")
    ranks = {item["track_id"]: item["rank"] for item in unskipped["items"]}
    told = [line["rank_without_skips"] for line in answer["explanation"]["items"]]
    assert told == [ranks[item["track_id"]] for item in answer["items"]]
    assert told != [item["rank"] for item in answer["items"]]


def test_it_names_what_was_left_out(running: httpx.Client) -> None:
    session_id = stored(running, [("play", "g2-t01"), ("play", "g2-t03")])
    answer = recommended(running, session_id, k=3, exclude=["g2-t02", "g5-t00"], explain=True, repeat="never")
    assert [item["track_id"] for item in answer["items"]] == ["g2-t00", "g2-t04", "g2-t05"]
    left_out = [(one["track_id"], one["rank"], one["reason"]) for one in answer["explanation"]["filtered"]]
    assert left_out == [("g2-t01", 2, "heard"), ("g2-t02", 3, "excluded"), ("g2-t03", 4, "heard")]
    answer = recommended(running, session_id, k=3, exclude=["g2-t02", "g5-t00"], explain=True, repeat="after:1")
    assert [item["track_id"] for item in answer["items"]] == ["g2-t00", "g2-t01", "g2-t04"]
    left_out = [(one["track_id"], one["rank"], one["reason"]) for one in answer["explanation"]["filtered"]]
    assert left_out == [("g2-t02", 3, "excluded"), ("g2-t03", 4, "heard")]
    everything = recommended(running, session_id, k=3, explain=True)
    assert everything["explanation"]["filtered"] == []


def test_popularity_needs_no_reasons(running: httpx.Client) -> None:
    answer = recommended(running, f"explain-{uuid4().hex}", k=5, explain=True)
    assert answer["source"] == "popularity"
    assert answer["explanation"]["plays"] == []
    assert [line["contributions"] for line in answer["explanation"]["items"]] == [[]] * 5
    assert [line["rank_without_skips"] for line in answer["explanation"]["items"]] == [1, 2, 3, 4, 5]


def test_an_answer_is_the_same_with_and_without_its_reasons(running: httpx.Client) -> None:
    session_id = stored(running, SESSION)
    answer = recommended(running, session_id, k=9, explain=True)
    answer.pop("explanation")
    assert answer == recommended(running, session_id, k=9)
    assert "explanation" not in recommended(running, session_id, k=9, explain=False)


@pytest.mark.parametrize(
    "more", [{}, {"k": 7, "repeat": "never"}, {"k": 7, "repeat": "after:3"}, {"exclude": ["g1-t01", "g1-t02"], "k": 50}]
)
def test_what_if_answers_what_the_stored_session_gets(running: httpx.Client, more: dict[str, Any]) -> None:
    for happened in (SESSION, SESSION * 3, [("play", f"g{i % 6}-t0{i % 10}") for i in range(4 * WINDOW)], []):
        session_id = stored(running, happened) if happened else f"explain-{uuid4().hex}"
        supposed = what_if(running, happened, explain=True, **more)
        assert {"session_id": session_id, **supposed} == recommended(running, session_id, explain=True, **more)


def test_an_event_that_is_supposed_twice_counts_once_as_one_that_is_reported_twice(running: httpx.Client) -> None:
    happened = [("play", "g1-t00", "1"), ("play", "g2-t00", "2"), ("skip", "g2-t00", "2"), ("play", "g1-t00", "1")]
    twice = [{"type": kind, "track_id": track, "event_id": name} for kind, track, name in happened]
    session_id = f"explain-{uuid4().hex}"
    stored = running.post(f"/sessions/{session_id}/events", json={"events": twice}).json()
    assert stored["duplicates"] == 2
    supposed = running.post("/recommendations/what-if", json={"events": twice}).json()
    assert {"session_id": session_id, **supposed} == recommended(running, session_id)
    assert supposed["window"] == {"plays": 2, "skips": 0}


def test_as_many_plays_are_supposed_as_are_kept(start_service: StartService) -> None:
    with start_service(max_session_plays=2).client() as client:
        session_id = stored(client, SESSION)
        assert {"session_id": session_id, **what_if(client, SESSION)} == recommended(client, session_id)


def test_what_if_stores_nothing(running: httpx.Client) -> None:
    def told(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(("segue_events_total", "segue_recommendations"))]

    before = told(running.get("/metrics").text)
    what_if(running, SESSION, explain=True)
    assert told(running.get("/metrics").text) == before


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"events": [{"type": "play", "track_id": ""}]}, "track_id"),
        ({"events": [], "k": 0}, "k"),
        ({"events": [], "k": "5"}, "k"),
        ({"events": [], "session_id": "s"}, "session_id"),
        ({}, "events"),
        ({"events": [{"type": "play", "track_id": "g1-t00"}] * 501}, "events"),
    ],
)
def test_a_wrong_supposition_is_told(running: httpx.Client, body: dict[str, Any], named: str) -> None:
    answer = running.post("/recommendations/what-if", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.text
