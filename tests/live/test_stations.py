"""Stations, likes, dislikes and bans over HTTP: at once, across sessions, in every kind of answer, and erased."""

import contextlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import polars as pl
import pytest

from segue.cli import main
from segue.release import Release
from segue.sessions import Outcome, Play, Station
from service.http.keys import new_key, write_keys
from service.releases.loaded import Question, load_release
from service.sessions.store import keys_of
from tests.conftest import StartService, recommended, track_ids
from tests.event_log_reader import read_back
from tests.live.redis_server import Server
from tests.live.stored_sessions import end_session
from tests.stopwatch import until


def new(kind: str = "station") -> str:
    return f"{kind}-{uuid4().hex}"


def report(client: httpx.Client, session_id: str, *events: tuple[str, str], **more: Any) -> dict[str, Any]:
    query = more.pop("query", {})
    body = {"events": [{"type": kind, "track_id": track} for kind, track in events], **more}
    answer = client.post(f"/sessions/{session_id}/events", params=query, json=body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def tracks_in(answer: dict[str, Any]) -> list[str]:
    return [item["track_id"] for item in answer["items"]]


def session_in(client: httpx.Client, session_id: str) -> dict[str, Any]:
    answer = client.get(f"/sessions/{session_id}")
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def lists(client: httpx.Client, session_id: str) -> dict[str, list[str]]:
    """What each call recommends for a stored session, with room for every track."""
    batch = client.post("/recommendations/batch", json={"sessions": [{"session_id": session_id}], "k": 100}).json()
    ranked = client.post("/rank", json={"session_id": session_id, "candidates": track_ids()}).json()
    plays = report(client, session_id, ("unlike", "nobody"), query={"recommend": 100})
    return {
        "GET /recommendations": tracks_in(recommended(client, session_id, k=100)),
        "POST /recommendations/batch": tracks_in(batch["results"][0]["recommendations"]),
        "POST /rank": tracks_in(ranked),
        "POST /sessions/{session_id}/events": tracks_in(plays["recommendations"]),
        "a filter": tracks_in(recommended(client, session_id, k=100, filter="genre:g0|g1|g2|g3|g4|g5")),
        "spacing": tracks_in(recommended(client, session_id, k=100, max_per_artist=3)),
        "a station": tracks_in(stationed(client, session_id)),
    }


def stationed(client: httpx.Client, session_id: str) -> dict[str, Any]:
    body = {"sessions": [{"session_id": session_id}], "k": 100, "station": {"artists": ["Artist 1"]}}
    answer: dict[str, Any] = client.post("/recommendations/batch", json=body).json()["results"][0]["recommendations"]
    return answer


class TestStations:
    def test_a_radio_from_one_artist_is_answered_at_once_and_shown(self, running: httpx.Client) -> None:
        session_id = new()
        answer = running.put(
            f"/sessions/{session_id}/station", json={"artists": ["Artist 4", "No One"], "weight": 0.75}
        )
        assert answer.status_code == 200
        station = {"tracks": [], "artists": ["Artist 4", "No One"], "weight": 0.75}
        assert answer.json() == {"session_id": session_id, "station": station, "unknown": ["No One"]}
        assert session_in(running, session_id) == {"session_id": session_id, "plays": [], "station": station}
        found = recommended(running, session_id, k=10)
        assert found["source"] == "model"
        assert found["window"] == {"plays": 0, "skips": 0}
        assert {track[:2] for track in tracks_in(found)} == {"g4"}
        report(running, session_id, ("play", "g1-t00"))
        mixed = tracks_in(recommended(running, session_id, k=20))
        assert {"g4", "g1"} <= {track[:2] for track in mixed}
        assert running.delete(f"/sessions/{session_id}/station").status_code == 204
        assert "station" not in session_in(running, session_id)
        alone = new()
        report(running, alone, ("play", "g1-t00"))
        assert recommended(running, session_id)["items"] == recommended(running, alone)["items"]
        assert running.delete(f"/sessions/{new()}/station").status_code == 204

    def test_every_call_answers_as_the_release_does(self, running: httpx.Client, tiny_release: Release) -> None:
        session_id, live = new(), load_release(tiny_release.path)
        station = {"tracks": ["g2-t03", "g3-t01"], "artists": ["Artist 5"], "weight": 0.3}
        happened = [("play", "g1-t00"), ("play", "g2-t00"), ("skip", "g2-t00")]
        report(running, session_id, *happened)
        running.put(f"/sessions/{session_id}/station", json=station).raise_for_status()
        pull, _ = live.seeds.pull(Station(("g2-t03", "g3-t01"), ("Artist 5",), 0.3))
        plays = [Play("g1-t00"), Play("g2-t00", Outcome.SKIPPED)]
        [expected] = live.answer([Question(plays, 100, station=pull)])
        names = [live.catalogue.track_id(row) for row in expected.rows]
        assert tracks_in(recommended(running, session_id, k=100)) == names
        ranked = running.post("/rank", json={"session_id": session_id, "candidates": track_ids()}).json()
        assert tracks_in(ranked) == names
        events = [{"type": kind, "track_id": track} for kind, track in happened]
        what_if = running.post("/recommendations/what-if", json={"events": events, "k": 100, "station": station}).json()
        assert tracks_in(what_if) == names
        assert [item["score"] for item in what_if["items"]] == pytest.approx(expected.scores.tolist(), rel=1e-5)
        body = {"sessions": [{"events": events}, {"session_id": session_id}], "k": 100, "station": station}
        for result in running.post("/recommendations/batch", json=body).json()["results"]:
            assert tracks_in(result["recommendations"]) == names

    def test_unknown_seeds_are_told_and_refused_if_none_is_known(self, running: httpx.Client) -> None:
        session_id = new()
        body = {"events": [], "station": {"tracks": ["g0-t00", "nobody"]}}
        answer = running.post("/recommendations/what-if", json=body).json()
        assert answer["unknown_seeds"] == ["nobody"]
        gone = {"tracks": ["nobody"], "artists": ["No One"]}
        for refused in (
            running.put(f"/sessions/{session_id}/station", json=gone),
            running.post("/recommendations/what-if", json={"events": [], "station": gone}),
        ):
            assert refused.status_code == 404
            assert refused.json()["title"] == "Unknown seeds"
            assert "knows none of the seeds 'nobody', 'No One': expected" in refused.json()["detail"]
        batch = {"sessions": [{"events": []}], "station": gone}
        [result] = running.post("/recommendations/batch", json=batch).json()["results"]
        assert result["problem"]["status"] == 404
        assert running.get(f"/sessions/{session_id}").status_code == 404

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"weight": 0.5},
            {"tracks": ["a"], "weight": 1.1},
            {"tracks": ["a"], "weight": "1"},
            {"tracks": ["a"] * 101},
            {"artists": ["a\nb"]},
            {"artists": ["a"] * 11},
            {"tracks": ["a"], "more": 1},
        ],
    )
    def test_what_is_no_station_is_refused(self, running: httpx.Client, body: dict[str, Any]) -> None:
        assert running.put(f"/sessions/{new()}/station", json=body).status_code == 422

    def test_an_explanation_adds_up(self, running: httpx.Client) -> None:
        session_id = new()
        running.put(f"/sessions/{session_id}/station", json={"artists": ["Artist 4"]}).raise_for_status()
        report(running, session_id, ("play", "g1-t00"), ("skip", "g4-t01"))
        answer = recommended(running, session_id, explain=True)
        for item, told in zip(answer["items"], answer["explanation"]["items"], strict=True):
            assert told["baseline"] + sum(told["contributions"]) == pytest.approx(item["score"], rel=1e-3, abs=1e-6)
            assert sum(told["parts"].values()) == pytest.approx(item["score"], rel=1e-3, abs=1e-6)

    def test_a_station_ends_with_its_session(self, start_service: StartService, tmp_path: Path) -> None:
        session_id = new()
        with (
            Server(tmp_path / "redis") as server,
            server.client() as redis,
            start_service(redis_url=server.url, durability="memory", idle_gap_s=600).client() as client,
        ):
            client.put(f"/sessions/{session_id}/station", json={"artists": ["Artist 4"]}).raise_for_status()
            assert recommended(client, session_id)["source"] == "model"
            assert 0 < redis.pttl(keys_of(session_id)[0]) <= 600_000
            end_session(redis, session_id)
            assert client.get(f"/sessions/{session_id}").status_code == 404
            assert recommended(client, session_id)["source"] == "popularity"


class TestPreferences:
    def test_a_like_pulls_until_it_is_taken_back(self, running: httpx.Client) -> None:
        session_id, other = new(), new()
        report(running, session_id, ("play", "g1-t00"), ("like", "g4-t00"))
        report(running, other, ("play", "g1-t00"))
        pulled, plain = recommended(running, session_id, k=40), recommended(running, other, k=40)
        assert [t[:2] for t in tracks_in(pulled)].count("g4") > [t[:2] for t in tracks_in(plain)].count("g4")
        assert session_in(running, session_id)["likes"] == ["g4-t00"]
        report(running, session_id, ("unlike", "g4-t00"))
        assert recommended(running, session_id, k=40)["items"] == plain["items"]
        assert "likes" not in session_in(running, session_id)

    def test_a_disliked_track_is_skipped_and_in_no_answer_of_the_session(self, running: httpx.Client) -> None:
        session_id = new()
        report(running, session_id, ("play", "g1-t00"), ("like", "g1-t00"), ("play", "g2-t00"), ("dislike", "g1-t00"))
        shown = session_in(running, session_id)
        assert [play["outcome"] for play in shown["plays"]] == ["skipped", "played"]
        assert (shown["dislikes"], shown.get("likes")) == (["g1-t00"], None)
        for call, found in lists(running, session_id).items():
            assert sorted(found) == sorted(set(track_ids()) - {"g1-t00"}), call
        report(running, session_id, ("undislike", "g1-t00"))
        assert "g1-t00" in tracks_in(recommended(running, session_id, k=100))

    def test_banned_tracks_and_artists_are_in_no_answer(self, running: httpx.Client) -> None:
        session_id = new()
        report(running, session_id, ("ban", "g0-t01"), ("ban_artist", "g1-t03"))
        left = {track for track in track_ids() if not track.startswith("g1-")} - {"g0-t01"}
        for plays in ([], [("play", "g1-t00"), ("play", "g0-t01")]):  # by popularity, then by the model
            if plays:
                report(running, session_id, *plays)
            for call, found in lists(running, session_id).items():
                assert sorted(found) == sorted(left), call
        ranked = running.post("/rank", json={"session_id": session_id, "candidates": ["g0-t01", "g2-t00"]}).json()
        assert (tracks_in(ranked), ranked["filtered"]) == (["g2-t00"], ["g0-t01"])
        why = recommended(running, session_id, explain=True)["explanation"]
        assert {one["reason"] for one in why["filtered"]} == {"excluded"}
        report(running, session_id, ("unban", "g0-t01"), ("unban_artist", "g1-t03"))
        assert sorted(lists(running, session_id)["GET /recommendations"]) == sorted(track_ids())

    def test_a_hypothetical_session_has_them_too(self, running: httpx.Client) -> None:
        events = [{"type": "play", "track_id": "g1-t00"}, {"type": "ban_artist", "track_id": "g1-t00"}]
        answer = running.post("/recommendations/what-if", json={"events": events, "k": 100}).json()
        assert len(tracks_in(answer)) == 60
        assert not any(track.startswith("g1-") for track in tracks_in(answer))

    def test_an_event_id_has_an_effect_once(self, running: httpx.Client) -> None:
        session_id = new()
        like = {"type": "like", "track_id": "g1-t00", "event_id": "1"}
        running.post(f"/sessions/{session_id}/events", json={"events": [like]}).raise_for_status()
        report(running, session_id, ("unlike", "g1-t00"))
        answer = running.post(f"/sessions/{session_id}/events", json={"events": [like, like]}).json()
        assert (answer["accepted"], answer["duplicates"], answer["length"]) == (0, 2, 0)
        assert running.get(f"/sessions/{session_id}").status_code == 404

    def test_the_stream_shows_them(self, running: httpx.Client) -> None:
        session_id = new()
        with running.stream(
            "GET", f"/sessions/{session_id}/stream", headers={"accept": "text/event-stream"}, timeout=10
        ) as stream:
            lines = stream.iter_lines()
            assert next(line for line in lines if line.startswith("data:"))
            report(running, session_id, ("like", "g1-t00"))
            assert '"likes":["g1-t00"]' in next(line for line in lines if line.startswith("data:"))


class TestListeners:
    def test_a_ban_holds_in_all_sessions_until_the_listener_is_erased(self, running: httpx.Client) -> None:
        one, other, later, listener = new(), new(), new(), new("listener")
        report(running, other, ("play", "g0-t05"), listener_id=listener)
        report(running, one, ("ban", "g0-t01"), ("ban_artist", "g3-t03"), listener_id=listener)
        left = sorted({track for track in track_ids() if not track.startswith("g3-")} - {"g0-t01"})
        stored = {"listener_id": listener, "bans": ["g0-t01"], "artist_bans": ["g3-t03"]}
        assert running.get(f"/listeners/{listener}").json() == stored
        assert session_in(running, other)["listener_id"] == listener
        for session_id in (one, other):
            for call, found in lists(running, session_id).items():
                assert sorted(found) == left, (session_id, call)
        assert running.delete(f"/sessions/{one}").status_code == 204
        assert sorted(tracks_in(recommended(running, later, k=100, listener_id=listener))) == left
        assert sorted(tracks_in(recommended(running, later, k=100))) == sorted(track_ids())
        assert sorted(lists(running, other)["GET /recommendations"]) == left
        assert running.delete(f"/listeners/{listener}").status_code == 204
        assert running.get(f"/listeners/{listener}").json() == {**stored, "bans": [], "artist_bans": []}
        assert sorted(lists(running, other)["GET /recommendations"]) == sorted(track_ids())

    def test_another_session_lifts_a_ban(self, running: httpx.Client) -> None:
        one, other, listener = new(), new(), new("listener")
        report(running, one, ("ban", "g0-t01"), listener_id=listener)
        report(running, other, ("unban", "g0-t01"), listener_id=listener)
        assert "g0-t01" in tracks_in(recommended(running, one, k=100))

    @pytest.mark.parametrize("listener", ["a b", "x" * 129, ""])
    def test_an_invalid_id_is_refused(self, running: httpx.Client, listener: str) -> None:
        body = {"events": [{"type": "play", "track_id": "a"}], "listener_id": listener}
        assert running.post(f"/sessions/{new()}/events", json=body).status_code == 422
        params = {"session_id": new(), "listener_id": listener}
        assert running.get("/recommendations", params=params).status_code == 422


def test_scopes(start_service: StartService, tmp_path: Path) -> None:
    made = {scope: new_key(scope, [scope]) for scope in ("client", "read", "admin")}
    write_keys(tmp_path / "keys.toml", [kept for _, kept in made.values()])
    allowed = {
        ("PUT", "/sessions/s/station"): {"client", "admin"},
        ("DELETE", "/sessions/s/station"): {"client", "admin"},
        ("GET", "/listeners/l"): {"read", "admin"},
        ("DELETE", "/listeners/l"): {"admin"},
    }
    with start_service(api_keys=tmp_path / "keys.toml").client() as client:
        for (method, path), scopes in allowed.items():
            assert client.request(method, path).status_code == 401
            for scope, (text, _) in made.items():
                body = {"artists": ["Artist 1"]} if method == "PUT" else None
                answer = client.request(method, path, headers={"Authorization": f"Bearer {text}"}, json=body)
                assert (answer.status_code < 300) is (scope in scopes), (method, path, scope, answer.text)


def test_listener_ids_are_not_in_logs(start_service: StartService) -> None:
    prelude = "import service.sessions.preferences as p; p.ListenerStore.bans = lambda self, listener_id: {}[0]"
    service = start_service(prelude=prelude, log_level="debug")
    with service.client() as client:
        assert client.get("/listeners/secret-listener").status_code == 500
        query = {"session_id": "secret-session", "listener_id": "secret-listener"}
        assert client.get("/recommendations", params=query).status_code == 500
    service.stop()
    logged = "\n".join(service.output)
    assert "request_error" in logged
    assert "secret" not in logged


def test_the_log_has_them_in_files_of_their_own(
    start_service: StartService, tiny_release: Release, tmp_path: Path
) -> None:
    service, folder = start_service(event_log_flush_s=0.2), tmp_path / "data" / "events"
    with service.client() as client:
        events = [("like", "g1-t00"), ("play", "g1-t00"), ("play", "g2-t00"), ("dislike", "g1-t00"), ("ban", "g3-t00")]
        report(client, "kept", *events, listener_id="secret-listener")
        report(client, "erased", ("play", "g1-t00"), ("like", "g1-t00"))
        until(lambda: len(said(folder)) == 4)
        client.delete("/sessions/erased")
        until(lambda: len(said(folder)) == 3)
    assert service.stop() == 0
    rows = said(folder).sort("written_at").rows(named=True)
    assert [(row["type"], row["track_id"], row["position"]) for row in rows] == [
        ("like", "g1-t00", -1),
        ("dislike", "g1-t00", 1),
        ("ban", "g3-t00", 1),
    ]
    [(session_id, plays)] = read_back(folder).items()
    assert session_id == rows[0]["session_id"]
    assert plays == [("g1-t00", True), ("g2-t00", False)]
    assert all(b"secret-listener" not in file.read_bytes() for file in folder.iterdir())
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
    # Readers of plays take the plays alone.
    assert main(["prepare", "events", str(folder), "--out", str(tmp_path / "dataset"), "--min-session-plays", "1"]) == 0
    prepared = pl.read_parquet(tmp_path / "dataset" / "sessions.parquet")
    assert prepared.select(pl.len()).item() == 1
    lists_file = tmp_path / "lists.parquet"
    assert main(["recommend", str(tiny_release.path), "--sessions", str(folder), "--out", str(lists_file)]) == 0
    assert pl.read_parquet(lists_file)["session_id"].unique().to_list() == [session_id]


def said(folder: Path) -> pl.DataFrame:
    frames = []
    for file in folder.glob("preferences-*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # an erasure writes another in its place
            frames.append(pl.read_parquet(file.read_bytes()))
    return pl.concat(frames) if frames else pl.DataFrame()
