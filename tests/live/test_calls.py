"""What the calls mean: a real service, a real Redis, a release whose right answers are known (tests/conftest.py)."""

import itertools
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.conftest import recommended

_numbers = itertools.count()


@pytest.fixture
def session_id() -> str:
    return f"call-{next(_numbers)}"


def report(client: httpx.Client, session_id: str, *events: tuple[str, str], **query: Any) -> dict[str, Any]:
    body = {"events": [{"type": kind, "track_id": track} for kind, track in events]}
    answer = client.post(f"/sessions/{session_id}/events", json=body, params=query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["track_id"] for item in answer["items"]]


def test_a_played_track_brings_more_of_its_genre(running: httpx.Client, session_id: str) -> None:
    report(running, session_id, ("play", "g2-t05"))
    answer = recommended(running, session_id, k=11, repeat="never")
    assert ids(answer) == [f"g2-t{number:02}" for number in range(12) if number != 5]
    assert answer["source"] == "model"
    assert answer["window"] == {"plays": 1, "skips": 0}
    assert answer["release"] == running.get("/releases/current").json()["name"]
    assert [item["rank"] for item in answer["items"]] == list(range(1, 12))
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)


def test_a_skip_changes_what_comes_next(running: httpx.Client, session_id: str) -> None:
    report(running, session_id, ("play", "g1-t00"), ("play", "g2-t00"))
    both = {track[:2] for track in ids(recommended(running, session_id, k=20))}
    answer = report(running, session_id, ("skip", "g2-t00"), recommend=10)
    assert both == {"g1", "g2"}
    assert {track[:2] for track in ids(answer["recommendations"])} == {"g1"}
    assert answer["recommendations"]["window"] == {"plays": 1, "skips": 1}
    assert answer["length"] == 2


def test_one_round_trip_answers_what_two_answer(running: httpx.Client, session_id: str) -> None:
    together = report(running, session_id, ("play", "g3-t03"), recommend=7)
    assert together["recommendations"] == recommended(running, session_id, k=7)


def test_a_session_without_plays_gets_the_most_popular(running: httpx.Client, session_id: str) -> None:
    answer = recommended(running, session_id)
    assert answer["source"] == "popularity"
    assert ids(answer) == [*(f"g0-t{number:02}" for number in range(12)), *(f"g1-t{n:02}" for n in range(8))]


def test_unknown_tracks_are_stored_named_and_passed_over(running: httpx.Client, session_id: str) -> None:
    answer = report(running, session_id, ("play", "nobody"), ("skip", "knows"), ("play", "nobody"))
    assert answer["unknown_tracks"] == ["nobody", "knows"]
    assert answer["accepted"] == answer["length"] == 3
    assert [one["track_id"] for one in running.get(f"/sessions/{session_id}").json()["plays"]] == [
        "nobody",
        "knows",
        "nobody",
    ]
    assert recommended(running, session_id)["source"] == "popularity"
    report(running, session_id, ("play", "g4-t00"))
    assert recommended(running, session_id, k=3)["window"] == {"plays": 1, "skips": 0}


@pytest.mark.parametrize("heard", [0, 3, 60])
@pytest.mark.parametrize("named", [0, 5])
def test_exclusions_never_shorten_the_list(running: httpx.Client, session_id: str, heard: int, named: int) -> None:
    tracks = [item["track_id"] for item in running.get("/tracks", params={"limit": 100}).json()["items"]]
    assert len(tracks) == 72
    if heard:
        report(running, session_id, *(("play", track) for track in tracks[:heard]))
    excluded = ids(recommended(running, session_id, k=100, repeat="never"))[:named]
    answer = ids(recommended(running, session_id, k=10, exclude=[*excluded, "no such track"], repeat="never"))
    assert len(set(answer)) == min(10, 72 - heard - named)
    assert not set(answer) & {*tracks[:heard], *excluded}


def test_tracks_of_the_session_are_recommended_unless_the_policy_excludes_them(
    running: httpx.Client, session_id: str
) -> None:
    """A skip of a track is a play of it. The last track is unknown, and counts as a play too."""
    events = (("play", "g2-t00"), ("play", "g2-t01"), ("play", "g2-t02"), ("skip", "g2-t02"), ("play", "nobody"))
    heard = {"g2-t00", "g2-t01", "g2-t02"}
    answer = report(running, session_id, *events, recommend=100)
    assert heard < {*ids(answer["recommendations"])} == {*ids(recommended(running, session_id, k=100))}
    for repeat, excluded in (
        ("allow", set()),
        ("never", heard),
        ("after:1", set()),
        ("after:2", {"g2-t02"}),
        ("after:3", {"g2-t01", "g2-t02"}),
        ("after:4", heard),
        ("after:1000", heard),
    ):
        answer = recommended(running, session_id, k=100, repeat=repeat)
        assert heard - {*ids(answer)} == excluded
        assert len(answer["items"]) == 72 - len(excluded)
        running.delete(f"/sessions/{session_id}")
        assert report(running, session_id, *events, recommend=100, repeat=repeat)["recommendations"] == answer


@pytest.mark.parametrize("repeat", ["", "yes", "after", "after:0", "after:1001", "after:x", "ALLOW"])
def test_an_unknown_policy_is_refused_with_the_accepted_ones(running: httpx.Client, repeat: str) -> None:
    expected = "expected allow, never, or after:N with N from 1 to 1000"
    body = {"events": [{"type": "play", "track_id": "g0-t00"}]}
    for answer, field in (
        (running.get("/recommendations", params={"session_id": "a", "repeat": repeat}), "query.repeat"),
        (running.post("/sessions/a/events", params={"recommend": 1, "repeat": repeat}, json=body), "query.repeat"),
        (running.post("/recommendations/what-if", json={**body, "repeat": repeat}), "body.repeat"),
    ):
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["errors"] == [{"field": field, "found": repr(repeat), "expected": expected}]
        assert answer.json()["detail"] == f"{field} is {repeat!r}: {expected}"


def test_the_same_event_id_has_no_effect_twice(running: httpx.Client, session_id: str) -> None:
    body = {"events": [{"type": "play", "track_id": "g0-t00", "event_id": "once", "ms_played": 5}]}
    first, second = (running.post(f"/sessions/{session_id}/events", json=body).json() for _ in range(2))
    assert (first["accepted"], first["duplicates"]) == (1, 0)
    assert (second["accepted"], second["duplicates"], second["length"]) == (0, 1, 1)


def test_a_session_is_shown_as_it_was_reported(running: httpx.Client, session_id: str) -> None:
    events = [
        {"type": "play", "track_id": "g0-t00", "at": "2026-01-02T03:04:05.678+02:00"},
        {"type": "skip", "track_id": "g0-t00", "at": "2026-01-02T03:05:00Z", "ms_played": 1234},
        {"type": "play", "track_id": "g0-t01", "at": "2026-01-02T03:06:00Z"},
    ]
    running.post(f"/sessions/{session_id}/events", json={"events": events})
    assert running.get(f"/sessions/{session_id}").json() == {
        "session_id": session_id,
        "plays": [
            {"track_id": "g0-t00", "outcome": "skipped", "at": "2026-01-02T01:04:05.678000Z", "ms_played": 1234},
            {"track_id": "g0-t01", "outcome": "played", "at": "2026-01-02T03:06:00Z"},
        ],
    }


def test_an_erased_session_is_gone(running: httpx.Client, session_id: str) -> None:
    report(running, session_id, ("play", "g2-t00"))
    for _ in range(2):
        answer = running.delete(f"/sessions/{session_id}")
        assert (answer.status_code, answer.content) == (204, b"")
    assert running.get(f"/sessions/{session_id}").status_code == 404
    assert recommended(running, session_id)["source"] == "popularity"


def test_tracks_are_found_by_title_artist_and_id(running: httpx.Client) -> None:
    def found(query: str) -> list[dict[str, str]]:
        items: list[dict[str, str]] = running.get("/tracks", params={"query": query, "limit": 5}).json()["items"]
        return items

    assert found("song 14") == [{"track_id": "g1-t02", "title": "Song 14", "artist": "Artist 1"}]
    assert [one["track_id"] for one in found("G4- SONG")] == [f"g4-t{n:02}" for n in range(5)]
    assert found("g0-t03") == [{"track_id": "g0-t03", "artist": "Artist 0"}]
    assert found("no such words") == []


@pytest.mark.parametrize("track", ["g5-t00", "disc/1 é?&#similar"])
def test_similar_tracks_are_of_the_genre_and_not_the_track(running: httpx.Client, track: str) -> None:
    items = running.get(f"/tracks/{quote(track)}/similar", params={"k": 11}).json()["items"]
    of_genre = {*(f"g5-t{n:02}" for n in range(11)), "disc/1 é?&#similar"}
    assert {item["track_id"] for item in items} == of_genre - {track}


def test_the_release_is_described(running: httpx.Client) -> None:
    facts = running.get("/releases/current").json()
    assert (facts["model"], facts["tracks"], facts["dimension"], facts["window"]) == ("sasrec", 72, 7, 5)
    assert facts["index"] == {"kind": "exact"}
    assert facts["dataset"]["split"] == "last-play"


def test_the_metrics_count_what_happened(running: httpx.Client, session_id: str) -> None:
    report(running, session_id, ("play", "g2-t00"), ("skip", "nobody"), recommend=1)
    text = running.get("/metrics").text
    for line in (
        'segue_http_requests_total{method="POST",route="/sessions/{session_id}/events",status="200"}',
        'segue_events_total{type="skip"}',
        'source="model"}',
        'segue_redis_seconds_count{operation="commands"}',
        'segue_ranking_seconds_count{step="encode"}',
        'segue_ranking_seconds_count{step="search"}',
        "segue_unknown_tracks_total",
        "segue_duplicate_events_total",
        "segue_event_log_lag_seconds",
    ):
        assert line in text


def test_the_player_page_comes_with_all_it_needs(running: httpx.Client) -> None:
    page = running.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for asset, kind in (("player.js", "javascript"), ("player.css", "css"), ("icon.svg", "svg")):
        assert f"web/{asset}" in page.text
        answer = running.get(f"/web/{asset}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")  # nothing from afar
    assert "<script>" not in page.text
