"""The map over HTTP, where a session stands on it, and answers of the release that is asked for by name."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from segue.release import Release
from tests.conftest import GENRES, WINDOW, recommended, track_ids

StartService = Callable[..., Any]
FROZEN = Path(__file__).parents[1] / "releases" / "v1"


def points(answer: httpx.Response) -> "np.ndarray[Any, np.dtype[np.float32]]":
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    return np.frombuffer(answer.content, dtype="<f4").reshape(-1, 2)


def play(client: httpx.Client, session_id: str, *tracks: str) -> None:
    events = [{"type": "play", "track_id": track} for track in tracks]
    client.post(f"/sessions/{session_id}/events", json={"events": events}).raise_for_status()


class TestPoints:
    def test_they_are_the_releases_places_the_most_played_track_first(
        self, running: httpx.Client, tiny_release: Release
    ) -> None:
        answer = running.get("/map")
        assert tiny_release.track_map is not None
        assert (points(answer) == tiny_release.track_map[1:]).all()  # plays fall with the row
        assert answer.headers["segue-release"] == tiny_release.name
        assert (points(running.get("/map?limit=5")) == tiny_release.track_map[1:6]).all()

    def test_each_has_a_name(self, running: httpx.Client) -> None:
        for position in (0, 3, 71):
            track = running.get(f"/map/tracks/{position}").json()
            assert track["track_id"] == track_ids()[position]
            assert track.get("title") == (None if position == 3 else f"Song {position:02}")
        missing = running.get("/map/tracks/72")
        assert missing.status_code == 404
        assert missing.json()["detail"] == "point 72 is not on the map of 72 tracks, which counts from 0"

    def test_who_has_them_is_not_sent_them_again(self, running: httpx.Client) -> None:
        first = running.get("/map?limit=10")
        tag = first.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = running.get("/map?limit=10", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        assert running.get("/map?limit=11", headers={"If-None-Match": tag}).status_code == 200

    @pytest.mark.parametrize("query", ["limit=0", "limit=100001", "limit=x", "release=a%20b", "release="])
    def test_what_makes_no_sense_is_refused(self, running: httpx.Client, query: str) -> None:
        assert running.get(f"/map?{query}").status_code == 422

    @pytest.mark.parametrize("position", ["-1", "x", "99999999999"])
    def test_nor_is_a_point_that_cannot_be(self, running: httpx.Client, position: str) -> None:
        assert running.get(f"/map/tracks/{position}").status_code == 422

    def test_an_older_release_says_that_it_has_none(self, start_service: StartService) -> None:
        with start_service(release=FROZEN).client() as client:
            for path in ("/map", "/map/tracks/0"):
                answer = client.get(path)
                assert answer.status_code == 404
                assert answer.json()["title"] == "No map"
                assert "train it again" in answer.json()["detail"]
            assert client.get("/releases/current").json()["live"][0]["has_map"] is False
            track = client.get("/tracks?limit=1").json()["items"][0]["track_id"]
            play(client, "a", track)
            assert "places" not in recommended(client, "a", explain=True)["explanation"]


class TestPlaces:
    def place(self, genre: int, number: float) -> list[float]:
        angle = 2 * math.pi * genre / GENRES
        return [0.8 * math.cos(angle) + number / 100, 0.8 * math.sin(angle)]

    def test_an_explanation_says_where_everything_is(self, running: httpx.Client) -> None:
        session_id = uuid4().hex
        play(running, session_id, "g1-t00", "unknown", "g2-t03")
        answer = recommended(running, session_id, k=3, explain=True)
        places = answer["explanation"]["places"]
        assert places["plays"] == [pytest.approx(self.place(1, 0), abs=1e-5), pytest.approx(self.place(2, 3), abs=1e-5)]
        numbers = [(int(item["track_id"][1]), int(item["track_id"][4:])) for item in answer["items"]]
        assert places["items"] == [pytest.approx(self.place(*one), abs=1e-5) for one in numbers]

    def test_the_query_stands_among_the_tracks_nearest_to_it(self, running: httpx.Client) -> None:
        """Of one genre alone: its first six score alike but for their numbers, of which the sixth counts nothing."""
        session_id = uuid4().hex
        play(running, session_id, "g4-t05")
        query = recommended(running, session_id, explain=True)["explanation"]["places"]["query"]
        weights = [5, 4, 3, 2, 1]
        mean = sum(weight * number for number, weight in enumerate(weights)) / sum(weights)
        assert query == pytest.approx(self.place(4, mean), abs=1e-3)

    def test_the_path_is_that_of_the_whole_session(self, running: httpx.Client) -> None:
        """Beyond the encoder's window, in the session's own order, with gaps where the release has no such track."""
        session_id = uuid4().hex
        play(running, session_id, *(f"g{number % 6}-t{number:02}" for number in range(WINDOW + 4)), "unknown")
        places = recommended(running, session_id, explain=True)["explanation"]["places"]
        assert places["path"][:-1] == [pytest.approx(self.place(n % 6, n), abs=1e-5) for n in range(WINDOW + 4)]
        assert places["path"][-1] is None
        assert places["plays"] == places["path"][4:-1]
        assert len(running.get(f"/sessions/{session_id}").json()["plays"]) == len(places["path"])

    def test_without_plays_there_is_no_query(self, running: httpx.Client) -> None:
        places = recommended(running, uuid4().hex, explain=True)["explanation"]["places"]
        assert places["plays"] == places["path"] == []
        assert "query" not in places
        assert len(places["items"]) == 20


class TestReleaseByName:
    @pytest.fixture
    def both(self, start_service: StartService, releases_dir: Path) -> Iterator[httpx.Client]:
        settings = {"releases_dir": releases_dir, "experiment": "second:0", "attribution_sample_rate": 1}
        with start_service(**settings).client() as client:
            yield client

    def test_the_current_release_tells_what_is_live_beside_it(
        self, both: httpx.Client, tiny_release: Release, other_release: Release
    ) -> None:
        current = both.get("/releases/current").json()
        assert current["name"] == tiny_release.name
        found = [(one["name"], one["folder"], one["share"], one["has_map"]) for one in current["live"]]
        folder = tiny_release.path.name
        assert found == [(tiny_release.name, folder, 1.0, True), (other_release.name, "second", 0.0, True)]

    def test_each_answers_when_it_is_asked_for(
        self, both: httpx.Client, tiny_release: Release, other_release: Release
    ) -> None:
        play(both, "a", "g1-t00", "x-g2-t00")
        for release, prefix in ((tiny_release, "g"), (other_release, "x-")):
            answer = recommended(both, "a", release=release.name)
            assert answer["release"] == release.name
            assert all(item["track_id"].startswith((prefix, "disc")) for item in answer["items"])
            body = {"events": [{"type": "play", "track_id": "x-g2-t00"}], "release": release.name}
            assert both.post("/recommendations/what-if", json=body).json()["release"] == release.name
            assert both.get(f"/map?release={release.name}").headers["segue-release"] == release.name
            found = both.get(f"/map/tracks/0?release={release.name}").json()["track_id"]
            assert found == ("g0-t00" if prefix == "g" else "x-g0-t00")
        assert recommended(both, "a")["release"] == tiny_release.name
        own = recommended(both, "a")["items"]
        assert recommended(both, "a", release=tiny_release.name)["items"] == own

    def test_another_is_refused_and_those_at_hand_are_named(
        self, both: httpx.Client, tiny_release: Release, other_release: Release
    ) -> None:
        body = {"events": [], "release": "sasrec-0"}
        for answer in (
            both.get("/recommendations?session_id=a&release=sasrec-0"),
            both.post("/recommendations/what-if", json=body),
            both.get("/map?release=sasrec-0"),
        ):
            assert answer.status_code == 404
            assert answer.json()["title"] == "Unknown release"
            told = "'sasrec-0' is not live here: GET /releases/current names the releases that are"
            assert answer.json()["detail"] == told

    def test_a_list_that_is_asked_for_to_compare_is_no_recommendation_that_was_followed(
        self, both: httpx.Client, other_release: Release
    ) -> None:
        """Each session's lists are remembered here: what is then played counts for the release that named it."""
        play(both, "a", "g1-t00")
        first = recommended(both, "a", release=other_release.name)["items"][0]["track_id"]
        play(both, "a", first)
        told = both.get("/metrics").text
        assert f'segue_attributed_plays_total{{release="{other_release.name}"}}' not in told

    def test_a_swap_to_the_challenger_leaves_one(self, both: httpx.Client, other_release: Release) -> None:
        answer = both.put("/releases/current", json={"name": "second"}).json()
        assert [(one["name"], one["share"]) for one in answer["live"]] == [(other_release.name, 1.0)]
