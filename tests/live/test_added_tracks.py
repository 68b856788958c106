"""Tracks that are added and changed over HTTP, against the real service."""

import itertools
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from tests.conftest import StartService, recommended
from tests.stopwatch import until

EVENTS: Final = [{"type": "play", "track_id": "g1-t00"}, {"type": "skip", "track_id": "g2-t00"}]
NEW: Final = "new/1 é?#.."
TRACK: Final = {
    "title": "Fresh Paint",
    "artist": "Artist 1",
    "attributes": {"genre": "g1", "explicit": False, "markets": ["FR", "DE"], "year": 2026},
    "neighbours": ["g1-t00", "g1-t01"],
}


def put(client: httpx.Client, track_id: str, body: Any) -> Any:
    return client.put(f"/added-tracks/{quote(track_id, safe='/')}", json=body).raise_for_status().json()


def ids(answer: Any) -> list[str]:
    return [item["track_id"] for item in answer["items"]]


def named_by_all(address: str, name: str) -> bool:
    """Return whether each of many connections, which reach all workers, gets the track."""
    with httpx.Client(base_url=address, timeout=20, trust_env=False, headers={"Connection": "close"}) as client:
        return all(name in ids(recommended(client, f"nobody-{number}", k=100)) for number in range(8))


def test_an_added_track_is_in_every_answer(releases_dir: Path, start_service: StartService) -> None:
    with start_service(releases_dir=releases_dir).client() as client:
        client.post("/sessions/s/events", json={"events": EVENTS}).raise_for_status()
        before = recommended(client, "s", k=20)["items"]
        added = put(client, NEW, TRACK)
        assert added["neighbours"] == TRACK["neighbours"]
        assert (added["in_catalogue"], added["removed"]) == (False, False)
        [item] = [one for one in recommended(client, "s", k=20, fields="genre,year")["items"] if one["track_id"] == NEW]
        assert (item["title"], item["artist"]) == ("Fresh Paint", "Artist 1")
        assert item["attributes"] == {"genre": "g1", "year": 2026}
        scores = {one["track_id"]: one["score"] for one in before}
        assert item["score"] == pytest.approx((scores["g1-t00"] + scores["g1-t01"]) / 2, rel=1e-5)
        assert ids(recommended(client, "s", filter="markets:FR,explicit:false,year:2020..")) == [NEW]
        assert NEW not in ids(recommended(client, "s", k=100, exclude=NEW))
        assert ids(client.get("/tracks", params={"query": "paint fresh"}).json()) == [NEW]
        assert NEW in ids(client.get("/tracks/g1-t00/similar", params={"k": 3}).json())
        assert "g1-t00" in ids(client.get(f"/tracks/{quote(NEW)}/similar", params={"k": 3}).json())
        body = {"events": EVENTS, "k": 20}
        for answer in (
            client.post("/recommendations/what-if", json=body).json(),
            client.post("/recommendations/batch", json={"sessions": [{"session_id": "s"}]}).json()["results"][0][
                "recommendations"
            ],
            client.post("/sessions/t/events", params={"recommend": 20}, json={"events": EVENTS}).json()[
                "recommendations"
            ],
        ):
            assert NEW in ids(answer)
        ranked = client.post("/rank", json={"session_id": "s", "candidates": ["g4-t00", NEW, "unknown"]}).json()
        assert ids(ranked) == [NEW, "g4-t00", "unknown"]
        assert ranked["unknown"] == ["unknown"]
        assert ranked["items"][0]["score"] == pytest.approx(item["score"], rel=1e-5)

        reported = client.post("/sessions/s/events", json={"events": [{"type": "play", "track_id": NEW}]}).json()
        assert "unknown_tracks" not in reported or not reported["unknown_tracks"]
        why = recommended(client, "s", k=100, explain=True, repeat="never")
        assert why["explanation"]["plays"][-1]["track_id"] == NEW
        assert NEW not in ids(why)
        assert NEW in [one["track_id"] for one in why["explanation"]["filtered"]]
        artists = [one["artist"] for one in recommended(client, "s", artist_gap=1)["items"]]
        assert artists[0] != "Artist 1"
        assert all(one != other for one, other in itertools.pairwise(artists))

        assert client.put(f"/removed-tracks/{quote(NEW)}").json()["in_catalogue"] is True
        assert NEW not in str(client.get("/tracks", params={"query": "paint"}).json())
        assert NEW not in ids(recommended(client, "s", k=100))
        assert client.post("/rank", json={"events": EVENTS, "candidates": [NEW]}).json()["removed"] == [NEW]
        assert put(client, NEW, TRACK)["removed"] is True
        client.delete(f"/removed-tracks/{quote(NEW)}").raise_for_status()
        assert NEW in ids(recommended(client, "s", k=100))

        put(client, "g1-t02", {"title": "Renamed", "attributes": {"genre": "ska", "year": None}})
        assert ids(recommended(client, "s", filter="genre:ska")) == ["g1-t02"]
        assert ids(client.get("/tracks", params={"query": "renamed"}).json()) == ["g1-t02"]
        listed = client.get("/added-tracks").json()["items"]
        assert [one["track_id"] for one in listed] == ["g1-t02", NEW]
        assert listed[0]["in_catalogue"] is True
        assert client.delete("/added-tracks/g1-t02").json() == {
            "track_id": "g1-t02",
            "deleted": True,
            "in_catalogue": True,
        }
        assert client.delete(f"/added-tracks/{quote(NEW)}").json()["deleted"] is True
        assert client.delete(f"/added-tracks/{quote(NEW)}").json()["deleted"] is False
        after = client.post("/recommendations/what-if", json=body).json()["items"]
        assert after == before


def test_all_workers_and_replicas_follow_also_after_a_restart_and_a_swap(
    releases_dir: Path, tmp_path: Path, start_service: StartService
) -> None:
    first = start_service(releases_dir=releases_dir, workers=2)
    second = start_service(releases_dir=releases_dir, data_dir=tmp_path / "second")
    here, there = first.address(), second.address()
    with httpx.Client(base_url=here, trust_env=False, timeout=20) as admin:
        put(admin, NEW, TRACK)
        put(admin, "lonely", {"title": "Lonely", "neighbours": ["g1-t00"]})
        vector = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5]
        put(admin, "vector", {"artist": "Artist 3", "embedding": vector})
        for name, address in itertools.product((NEW, "lonely", "vector"), (here, there)):
            until(lambda name=name, address=address: named_by_all(address, name))  # type: ignore[misc]
        third = start_service(releases_dir=releases_dir, data_dir=tmp_path / "third")
        with third.client() as restarted:
            assert {NEW, "lonely", "vector"} <= set(ids(recommended(restarted, "nobody", k=100)))
        # The second release knows the artists, and none of the neighbours.
        admin.put("/releases/current", json={"name": "second"}).raise_for_status()
        until(lambda: named_by_all(here, "x-g0-t00") and named_by_all(there, "x-g0-t00"))
        found = ids(recommended(admin, "nobody", k=100))
        assert {NEW, "vector"} <= set(found)
        assert "lonely" not in found
        assert ids(admin.get("/tracks", params={"query": "lonely"}).json()) == []
        of = {one["track_id"]: one["neighbours"] for one in admin.get("/added-tracks").json()["items"]}
        assert of[NEW] == [f"x-g1-t{number:02}" for number in range(5)]
        assert of["vector"][0] == "x-g3-t00"
        assert of["lonely"] == []
        until(lambda: any("added_tracks_incomplete" in line for line in first.output))
        told = [line for line in first.output if "added_tracks_incomplete" in line]
        assert "lonely has no neighbour in it" in told[-1]
        admin.put("/releases/current", json={"name": "first"}).raise_for_status()
        assert "lonely" in ids(recommended(admin, "nobody", k=100))
        client_answers = [recommended(admin, f"n{i}", k=100)["items"] for i in range(4)]
        assert all(one == client_answers[0] for one in client_answers)


BAD: Final[list[tuple[Any, int, str]]] = [
    (
        {"attributes": {"mood": "calm"}},
        422,
        "'mood' is not an attribute of this release. It has artist, explicit, genre",
    ),
    ({"attributes": {"year": "2001"}}, 422, "year is a number in this release"),
    ({"neighbours": ["nobody"]}, 422, "the neighbour 'nobody' is not in the catalogue"),
    ({"embedding": [1.0, 2.0]}, 422, "the embedding has 2 numbers, the current release has 7 dimensions"),
    ({"embedding": [1e9] * 7}, 422, "embedding"),
    ({"embedding": [1.0] * 7, "neighbours": ["g0-t00"]}, 422, "Send either neighbours or embedding"),
    ({"title": "Nothing known"}, 422, "nothing says what 'new' is like: give neighbours, an embedding, or artist"),
    ({"artist": "Nobody"}, 422, "nothing says what 'new' is like"),
    ({"titel": "x"}, 422, "titel"),
    ({"attributes": {"a b": 1}}, 422, "attributes"),
    ([], 422, "body"),
]


def test_bad_bodies_are_problem_documents_and_add_nothing(releases_dir: Path, start_service: StartService) -> None:
    with start_service(releases_dir=releases_dir).client() as client:
        for body, status, told in BAD:
            answer = client.put("/added-tracks/new", json=body)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert told in answer.json()["detail"] + str(answer.json().get("errors")), answer.text
        assert client.put("/added-tracks/new", content="{}").status_code == 415
        assert client.put("/added-tracks/new", json={"title": "x" * 300_000}).status_code == 413
        assert client.put(f"/added-tracks/{'x' * 300}", json=TRACK).status_code == 422
        assert client.get("/added-tracks").json() == {"items": []}
        (releases_dir / "added-tracks.json").write_text('{"added": {"a": 1}}')
        until(lambda: client.put("/added-tracks/new", json=TRACK).status_code == 503)
        assert "is damaged" in client.put("/added-tracks/new", json=TRACK).json()["detail"]


def test_an_added_track_needs_a_folder_of_releases(start_service: StartService) -> None:
    with start_service().client() as client:
        answer = client.put("/added-tracks/new", json=TRACK)
        assert answer.status_code == 409
        assert "set SEGUE_RELEASES_DIR" in answer.json()["detail"]
