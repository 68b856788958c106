"""Candidates of another system are ranked, and many sessions are answered in one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import polars as pl
import pytest

from segue.cli import main
from segue.release import Release
from service.api.batch import MAX_BATCH_EVENTS, MAX_SESSIONS
from service.api.rank import MAX_CANDIDATES
from tests.conftest import StartService, recommended, track_ids

EVENTS = [
    {"type": "play", "track_id": "g1-t00"},
    {"type": "play", "track_id": "g2-t00"},
    {"type": "skip", "track_id": "g2-t00"},
    {"type": "play", "track_id": "gone"},
]


def stored(client: httpx.Client, events: list[dict[str, str]] = EVENTS) -> str:
    session_id = f"rank-{uuid4().hex}"
    client.post(f"/sessions/{session_id}/events", json={"events": events}).raise_for_status()
    return session_id


def rank(client: httpx.Client, candidates: list[str], **body: Any) -> dict[str, Any]:
    answer = client.post("/rank", json={"candidates": candidates, **body})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def batch(client: httpx.Client, sessions: list[Any], **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/recommendations/batch", json={"sessions": sessions, **body})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def refused(client: httpx.Client, path: str, status: int, **body: Any) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    return detail


class TestRank:
    @pytest.mark.parametrize("events", [EVENTS, []])
    def test_a_recommended_list_keeps_its_order_and_scores(
        self, running: httpx.Client, events: list[dict[str, str]]
    ) -> None:
        session_id = stored(running, events) if events else f"rank-{uuid4().hex}"
        listed = recommended(running, session_id, k=50)
        for chosen in ({"session_id": session_id}, {"events": events}):
            answer = rank(running, [item["track_id"] for item in listed["items"]], **chosen)
            assert (answer["release"], answer["source"]) == (listed["release"], listed["source"])
            assert answer["source"] == ("model" if events else "popularity")
            assert (answer["unknown"], answer["filtered"]) == ([], [])
            for item, expected in zip(answer["items"], listed["items"], strict=True):
                assert item == {**expected, "score": pytest.approx(expected["score"], rel=1e-6)}

    def test_unknown_candidates_come_last_and_none_is_lost(self, running: httpx.Client) -> None:
        candidates = ["z", "g2-t00", "é\U0001f600", "g0-t00", "g1-t03", "a"]
        answer = rank(running, candidates, session_id=stored(running))
        assert [item["track_id"] for item in answer["items"]] == ["g1-t03", "g0-t00", "g2-t00", "z", "é\U0001f600", "a"]
        assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6]
        assert [("score" in item) for item in answer["items"]] == [True] * 3 + [False] * 3
        assert answer["unknown"] == ["z", "é\U0001f600", "a"]
        assert set(answer["items"][3]) == {"rank", "track_id"}
        alone = rank(running, ["z"], session_id=stored(running))
        assert (alone["items"], alone["unknown"]) == ([{"rank": 1, "track_id": "z"}], ["z"])

    def test_heard_candidates_stay_unless_repeat_excludes_them(self, running: httpx.Client) -> None:
        session_id, candidates = stored(running), ["gone", "g2-t00", "g1-t00", "g3-t00"]
        answer = rank(running, candidates, session_id=session_id)
        assert (len(answer["items"]), answer["filtered"], answer["unknown"]) == (4, [], ["gone"])
        answer = rank(running, candidates, session_id=session_id, repeat="never")
        assert [item["track_id"] for item in answer["items"]] == ["g3-t00"]
        assert (answer["filtered"], answer["unknown"]) == (["gone", "g2-t00", "g1-t00"], [])
        answer = rank(running, candidates, events=EVENTS, repeat="after:2")
        assert answer["filtered"] == ["gone", "g2-t00"]
        answer = rank(running, ["g1-t00"], session_id=session_id, repeat="never")
        assert (answer["items"], answer["filtered"]) == ([], ["g1-t00"])

    def test_the_longest_list_is_ranked(self, running: httpx.Client) -> None:
        candidates = [*track_ids(), *(f"x{number}" for number in range(MAX_CANDIDATES - len(track_ids())))]
        answer = rank(running, candidates[::-1], events=EVENTS)
        assert [item["rank"] for item in answer["items"]] == list(range(1, MAX_CANDIDATES + 1))
        assert {item["track_id"] for item in answer["items"]} == set(candidates)
        scores = [item["score"] for item in answer["items"][: len(track_ids())]]
        assert scores == sorted(scores, reverse=True)
        assert "body.candidates" in refused(running, "/rank", 422, events=[], candidates=[*candidates, "more"])

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"events": [], "candidates": ["a", "b", "a"]}, "Send each track once: 'a' is repeated"),
            ({"candidates": ["a"]}, "Send either session_id or events"),
            ({"events": [], "session_id": "s", "candidates": ["a"]}, "Send either session_id or events"),
            ({"events": [], "candidates": []}, "at least 1 item"),
            ({"events": [], "candidates": [""]}, "body.candidates.0"),
            ({"events": []}, "body.candidates is missing"),
            ({"session_id": "a b", "candidates": ["a"]}, "body.session_id"),
            ({"events": [], "candidates": ["a"], "repeat": "perhaps"}, "body.repeat"),
            ({"events": [], "candidates": ["a"], "caution": 11}, "body.caution"),
            ({"events": [], "candidates": ["a"], "k": 3}, "body.k"),
        ],
    )
    def test_an_invalid_request_is_one_clear_problem(
        self, running: httpx.Client, body: dict[str, Any], said: str
    ) -> None:
        assert said in refused(running, "/rank", 422, **body)

    def test_other_problems_are_those_of_recommendations(self, running: httpx.Client) -> None:
        refused(running, "/rank", 404, events=[], candidates=["a"], release="nobody")
        refused(running, "/rank", 409, events=EVENTS, candidates=["g0-t00"], caution=1)

    def test_null_is_absent(self, running: httpx.Client) -> None:
        rank(running, ["g0-t00"], events=[], session_id=None, release=None, caution=None)
        assert "either" in refused(running, "/rank", 422, events=None, session_id=None, candidates=["a"])


class TestBatch:
    def test_each_result_is_the_one_of_its_own_call(self, running: httpx.Client) -> None:
        session_id, nobody = stored(running), f"rank-{uuid4().hex}"
        for more in ({}, {"k": 7, "repeat": "never"}):
            results = batch(running, [{"session_id": session_id}, {"events": EVENTS}, {"session_id": nobody}], **more)
            what_if = running.post("/recommendations/what-if", json={"events": EVENTS, **more}).json()
            assert results == [
                {"recommendations": recommended(running, session_id, **more)},
                {"recommendations": what_if},
                {"recommendations": recommended(running, nobody, **more)},
            ]

    def test_a_bad_session_costs_the_others_nothing(self, running: httpx.Client) -> None:
        session_id = stored(running)
        good = {"session_id": session_id}
        bad: dict[str, Any] = {
            "Send either session_id or events": {},
            "body.sessions.2.session_id is 'a b'": {"session_id": "a b"},
            "body.sessions.3": 3,
            "body.sessions.4.events.0.type is '?'": {"events": [{"type": "?", "track_id": "a"}]},
            "body.sessions.5.more": {"session_id": "s", "more": 1},
            "wrong in 400 places": {"events": [{}] * 200},
        }
        results = batch(running, [good, *bad.values(), good])
        expected = {"recommendations": recommended(running, session_id)}
        assert (results[0], results[-1]) == (expected, expected)
        for said, result in zip(bad, results[1:-1], strict=True):
            problem = result["problem"]
            assert (list(result), problem["status"], problem["title"]) == (["problem"], 422, "Invalid input")
            assert said in problem["detail"]
            assert len(problem["errors"]) <= 10

    def test_a_problem_of_all_sessions_is_one_of_the_call(self, running: httpx.Client) -> None:
        path, good = "/recommendations/batch", {"session_id": "s"}
        assert "body.sessions" in refused(running, path, 422, sessions=[])
        assert "body.sessions" in refused(running, path, 422, sessions=[good] * (MAX_SESSIONS + 1))
        assert "body.k" in refused(running, path, 422, sessions=[good], k=101)
        refused(running, path, 404, sessions=[good], release="nobody")
        many = [{"events": EVENTS[:1] * 500}] * (MAX_BATCH_EVENTS // 500)
        assert len(batch(running, many, k=1)) == len(many)
        assert f"found {MAX_BATCH_EVENTS + 1}" in refused(running, path, 422, sessions=[*many, {"events": EVENTS[:1]}])

    def test_a_release_without_a_play_head_is_a_problem_of_each_session(self, running: httpx.Client) -> None:
        [result] = batch(running, [{"session_id": "s"}], caution=1)
        assert result["problem"]["status"] == 409


def test_the_command_line_writes_what_the_service_answers(
    running: httpx.Client, tiny_release: Release, tmp_path: Path
) -> None:
    happened = {f"file-{number}-{uuid4().hex}": EVENTS[number:] for number in (0, 1, 3)}
    rows = []
    for session_id, events in happened.items():
        running.post(f"/sessions/{session_id}/events", json={"events": events}).raise_for_status()
        for position, play in enumerate(running.get(f"/sessions/{session_id}").json()["plays"]):
            rows.append((session_id, position, play["track_id"], play["outcome"] == "skipped"))
    columns = ["session_id", "position", "track_id", "skipped"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "in.parquet")
    arguments = [
        "recommend",
        tiny_release.path,
        "--sessions",
        tmp_path / "in.parquet",
        "--out",
        tmp_path / "out.parquet",
    ]
    assert main([*map(str, arguments), "-k", "30", "--repeat", "never"]) == 0
    written = pl.read_parquet(tmp_path / "out.parquet")
    for session_id in happened:
        answer = recommended(running, session_id, k=30, repeat="never")
        lines = written.filter(session_id=session_id).select("rank", "score", "track_id").to_dicts()
        shown = [{name: item[name] for name in ("rank", "score", "track_id")} for item in answer["items"]]
        assert lines == [{**item, "score": pytest.approx(item["score"], rel=1e-6)} for item in shown]
        assert written.filter(session_id=session_id)["source"].unique().to_list() == [answer["source"]]


@pytest.mark.parametrize("fallback", ["popularity", "none"])
def test_without_redis_stored_sessions_get_the_fallback(start_service: StartService, fallback: str) -> None:
    client = start_service(redis_url="redis://127.0.0.1:1", durability="memory", fallback=fallback).client()
    with client:
        ranks: Callable[..., httpx.Response] = lambda **body: client.post(
            "/rank", json={"candidates": ["g1-t00", "g0-t00"], **body}
        )
        assert ranks(events=EVENTS[:1]).json()["items"][0]["track_id"] == "g1-t00"
        found = ranks(session_id="s")
        results = batch(client, [{"session_id": "s"}, {"events": EVENTS}])
        assert results[1]["recommendations"]["source"] == "model"
        if fallback == "none":
            assert found.status_code == 503
            assert found.headers["retry-after"]
            assert results[0]["problem"]["status"] == 503
        else:
            assert (found.json()["source"], found.json()["items"][0]["track_id"]) == ("popularity", "g0-t00")
            assert results[0]["recommendations"]["source"] == "popularity"
