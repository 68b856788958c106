"""Filters, fields and takedowns over HTTP, against the real service."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.client import Client, ServiceError
from segue.sessions import Outcome, Play
from service.releases.loaded import load_release
from service.releases.tracks_file import POLL_S
from tests.conftest import ServiceProcess, StartService, recommended, track_ids, write_tiny_release
from tests.live.redis_server import Server
from tests.stopwatch import until

EVENTS = [{"type": "play", "track_id": "g1-t00"}, {"type": "skip", "track_id": "g2-t00"}]
SESSION = [Play("g1-t00"), Play("g2-t00", Outcome.SKIPPED)]
FILTERS: list[tuple[str, Any]] = [
    ("explicit:false", {"explicit": False}),
    ("!explicit:true,markets:DE", {"not": {"explicit": True}, "markets": "DE"}),
    ("genre:g0|g3,year:2002..2005", {"genre": ["g0", "g3"], "year": {"min": 2002, "max": 2005}}),
    ('artist:"Artist 2"', {"artist": "Artist 2"}),
    ("genre:none", {"genre": "none"}),
]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("filters") / "release").path


@pytest.fixture(scope="module")
def client(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    service = ServiceProcess(release=release, data_dir=tmp_path_factory.mktemp("filters") / "data")
    try:
        with service.client() as opened:
            opened.post("/sessions/s/events", json={"events": EVENTS}).raise_for_status()
            yield opened
    finally:
        service.stop()


def ids(answer: Any) -> list[str]:
    return [item["track_id"] for item in answer["items"]]


@pytest.mark.parametrize(("compact", "json_form"), FILTERS)
def test_every_call_obeys_a_filter(client: httpx.Client, release: Path, compact: str, json_form: Any) -> None:
    live = load_release(release)
    expected = live.recommend(SESSION, 30, filter=json_form)
    allowed = {track.track_id for track in live.search("", 100, live_filter(json_form))}
    answer = recommended(client, "s", k=30, filter=compact)
    assert ids(answer) == [track.track_id for track in expected.tracks]
    assert len(ids(answer)) == min(30, len(allowed))
    assert set(ids(answer)) <= allowed
    asked = {"events": EVENTS, "k": 30, "filter": json_form}
    assert client.post("/recommendations/what-if", json=asked).json()["items"] == answer["items"]
    reported = client.post(
        "/sessions/other/events", params={"recommend": 30, "filter": compact}, json={"events": EVENTS}
    ).json()
    assert ids(reported["recommendations"]) == ids(answer)
    client.delete("/sessions/other")
    assert set(ids(recommended(client, "nobody", k=100, filter=compact))) == allowed  # by popularity
    assert set(ids(client.get("/tracks", params={"filter": compact, "limit": 100}).json())) == allowed
    near = ids(client.get("/tracks/g1-t00/similar", params={"filter": compact, "k": 100}).json())
    assert set(near) == allowed - {"g1-t00"}
    why = recommended(client, "s", k=30, filter=compact, explain=True, repeat="never")
    assert {one["track_id"] for one in why["explanation"]["filtered"]} <= allowed


def live_filter(given: Any) -> Any:
    from segue.filters import read_filter

    return read_filter(given)


def test_answers_show_the_attributes_that_are_asked_for(client: httpx.Client) -> None:
    asked: dict[str, Any] = {"k": 5, "fields": "genre,markets,explicit,year"}
    answer = recommended(client, "s", **asked)
    place = track_ids().index(answer["items"][0]["track_id"])
    assert answer["items"][0]["attributes"]["genre"] == f"g{place // 12}"
    assert answer["items"][0]["attributes"]["year"] == 2000 + place % 10
    assert "attributes" not in recommended(client, "s", k=5)["items"][0]
    body = {"events": EVENTS, "k": 5, "fields": asked["fields"].split(",")}
    assert client.post("/recommendations/what-if", json=body).json()["items"] == answer["items"]
    found = client.get("/tracks", params={"query": "g0-t04", "fields": "explicit,markets"}).json()
    assert found["items"][0]["attributes"] == {"markets": ["US"]}  # no value: absent
    near = client.get("/tracks/g0-t04/similar", params={"k": 1, "fields": "genre"}).json()
    assert near["items"][0]["attributes"] == {"genre": "g0"}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"filter": "genr:rock"}, "'genr' is not an attribute of this release. It has artist, explicit, genre"),
        ({"filter": "year:soon"}, "year is a number, and the filter compares it with 'soon': give a number"),
        ({"filter": "genre"}, "has no condition name:value"),
        ({"filter": ""}, "filter"),
        ({"fields": "genr"}, "'genr' is not an attribute"),
        ({"fields": "a b"}, "fields"),
    ],
)
@pytest.mark.parametrize("path", ["/recommendations?session_id=s", "/tracks?", "/tracks/g1-t00/similar?"])
def test_a_wrong_filter_is_a_problem_document(client: httpx.Client, path: str, query: Any, told: str) -> None:
    answer = client.get(path, params=dict(httpx.QueryParams(path.partition("?")[2])) | query)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.text


def test_artists_are_spaced_in_every_call(client: httpx.Client) -> None:
    options = {"max_per_artist": 2, "artist_gap": 1}
    answer = recommended(client, "s", k=10, **options)
    artists = [item["artist"] for item in answer["items"]]
    assert len(artists) == 10
    assert max(map(artists.count, artists)) == 2
    assert all(one != other for one, other in itertools.pairwise(artists))
    body = {"events": EVENTS, "k": 10, **options}
    assert client.post("/recommendations/what-if", json=body).json()["items"] == answer["items"]
    batch = {"sessions": [{"session_id": "s"}, {"events": EVENTS}], "k": 10, **options, "filter": "year:2000.."}
    for result in client.post("/recommendations/batch", json=batch).json()["results"]:
        assert result["recommendations"]["items"] == answer["items"]
    reported = client.post("/sessions/spaced/events", params={"recommend": 10, **options}, json={"events": EVENTS})
    assert reported.json()["recommendations"]["items"] == answer["items"]
    assert client.get("/recommendations", params={"session_id": "s", "max_per_artist": 0}).status_code == 422


def noting(connections: set[Any]) -> dict[str, list[Callable[[httpx.Response], None]]]:
    """Hooks of a client that note the connection of each answer, by its address on this side."""

    def note(answer: httpx.Response) -> None:
        connections.add(answer.extensions["network_stream"].get_extra_info("client_addr"))

    return {"response": [note]}


def test_a_takedown_reaches_every_replica_soon_and_for_good(
    release: Path, tmp_path: Path, start_service: StartService
) -> None:
    """A connection stays with one worker: once all its answers are without the track, none may name it again."""
    assert POLL_S <= 0.5  # the promise is a second
    folder = tmp_path / "releases"
    for name in ("first", "second"):
        write_tiny_release(folder / name)
    first = start_service(release=release, releases_dir=folder, workers=2)
    second = start_service(release=release, releases_dir=folder, data_dir=tmp_path / "second")
    gone = "g1-t01"
    wrong: list[str] = []
    rounds = [0, 0, 0]
    leaving = threading.Event()
    following: list[set[Any]] = [set() for _ in range(3)]  # the connection of each listener, once it is without

    def listen(address: str, number: int) -> None:
        connections: set[Any] = set()
        with httpx.Client(base_url=address, trust_env=False, timeout=20, event_hooks=noting(connections)) as asking:
            for turn in itertools.count():
                if leaving.is_set():
                    return
                connections.clear()
                session_id = f"takedown-{number}-{turn % 7}"
                lists = [
                    asking.post(f"/sessions/{session_id}/events", params={"recommend": 20}, json={"events": EVENTS}),
                    asking.get("/recommendations", params={"session_id": session_id, "k": 20, "filter": "genre:g1"}),
                    asking.get("/recommendations", params={"session_id": "nobody", "k": 40}),
                    asking.get("/tracks", params={"query": "song", "limit": 100}),
                    asking.get("/tracks/g1-t00/similar", params={"k": 20}),
                ]
                named = [str(answer.url) for answer in lists if gone in answer.text]
                wrong.extend(answer.text for answer in lists if answer.status_code != 200)
                if named and connections == following[number]:
                    wrong.append(f"{named} name the track again")
                following[number] = set() if named or len(connections) > 1 else set(connections)
                rounds[number] += 1

    here, there = first.address(), second.address()
    threads = [threading.Thread(target=listen, args=one, daemon=True) for one in ((here, 0), (here, 1), (there, 2))]
    with httpx.Client(base_url=here, trust_env=False, timeout=20) as admin:
        for thread in threads:
            thread.start()
        try:
            until(lambda: min(rounds) >= 4, 60)
            assert not any(following)
            answer = admin.put(f"/removed-tracks/{gone}")
            assert answer.json() == {"track_id": gone, "removed": True, "changed": True, "in_catalogue": True}
            assert gone not in str(recommended(admin, "fresh", k=100)["items"])
            until(lambda: all(following), 60)
            admin.put("/releases/current", json={"name": "second"}).raise_for_status()
            before = list(rounds)
            until(lambda: all(following) and all(now > then + 6 for now, then in zip(rounds, before, strict=True)), 60)
        finally:
            leaving.set()
            for thread in threads:
                thread.join()
        assert not wrong, wrong[:3]
        assert admin.put(f"/removed-tracks/{gone}").json()["changed"] is False
        assert [one["track_id"] for one in admin.get("/removed-tracks").json()["items"]] == [gone]
        third = start_service(release=release, releases_dir=folder, data_dir=tmp_path / "third")  # after a restart
        with httpx.Client(base_url=third.address(), trust_env=False) as other:
            assert gone not in str(recommended(other, "fresh", k=100)["items"])
            assert admin.delete(f"/removed-tracks/{gone}").json()["changed"] is True
            until(lambda: gone in str(recommended(other, "fresh", k=100)["items"]))


def test_a_takedown_holds_while_redis_restarts_and_a_release_is_swapped(
    tmp_path: Path, start_service: StartService
) -> None:
    folder = tmp_path / "releases"
    for name in ("first", "second"):
        write_tiny_release(folder / name)
    redis = Server(tmp_path / "redis", appendonly="yes", appendfsync="always")
    options: dict[str, Any] = {"releases_dir": folder, "release": folder / "first", "redis_url": redis.url}
    options |= {"durability": "always", "fallback": "popularity"}
    replicas = [start_service(data_dir=tmp_path / f"data-{number}", **options).address() for number in range(2)]
    gone, calls = "g1-t01", [0, 0]
    wrong: list[str] = []
    leaving, hidden = threading.Event(), threading.Event()

    def listen(address: str, number: int) -> None:
        with Client(address, deadline_s=30) as client:
            for turn in itertools.count():
                if leaving.is_set():
                    return
                is_hidden = hidden.is_set()
                session_id = f"redis-{number}-{turn % 5}"
                try:
                    client.play(session_id, "g1-t00")
                    found = client.recommend(session_id, 40)
                except ServiceError as error:
                    wrong.append(str(error))
                    continue
                calls[number] += 1
                if is_hidden and gone in {item.track_id for item in found.items}:
                    wrong.append(f"turn {turn} has the track")

    threads = [threading.Thread(target=listen, args=one, daemon=True) for one in zip(replicas, range(2), strict=True)]
    try:
        with Client(replicas[0]) as admin, httpx.Client(base_url=replicas[1], trust_env=False, timeout=20) as other:
            for thread in threads:
                thread.start()
            until(lambda: min(calls) > 10)
            admin.remove_track(gone)
            until(lambda: gone not in ids(recommended(other, "nobody", k=100)))
            hidden.set()
            redis.kill()
            time.sleep(0.5)
            redis.start()
            before = list(calls)
            until(lambda: all(now > then + 10 for now, then in zip(calls, before, strict=True)))
            httpx.put(f"{replicas[1]}/releases/current", json={"name": "second"}, trust_env=False, timeout=20)
            before = list(calls)
            until(lambda: all(now > then + 20 for now, then in zip(calls, before, strict=True)))
    finally:
        leaving.set()
        for thread in threads:
            thread.join()
        redis.kill()
    assert not wrong, wrong[:3]


def test_many_tracks_are_taken_down_in_one_step_or_none(
    start_service: StartService, releases_dir: Path, tmp_path: Path
) -> None:
    gone = [f"g{group}-t{number:02}" for group in (0, 1) for number in range(12)]
    running = start_service(releases_dir=releases_dir, data_dir=tmp_path / "data")
    with httpx.Client(base_url=running.address(), trust_env=False) as admin:
        answer = admin.post("/removed-tracks", json={"track_ids": [*gone, "no/such", gone[0]]})
        assert answer.json() == {"removed": True, "changed": 25, "not_in_catalogue": ["no/such"]}
        assert admin.get("/removed-tracks").json()["total"] == 25
        left = {item["track_id"] for item in recommended(admin, "fresh", k=100)["items"]}
        assert len(left) >= 20
        assert not left.intersection(gone)
        again = admin.post("/removed-tracks", json={"track_ids": [*gone, "g2-t00"]}).json()
        assert (again["changed"], again["not_in_catalogue"]) == (1, [])
        for wrong in ([], [f"t{number}" for number in range(1001)], ["g3-t00", ""], ["g3-t00", "line\nbreak"]):
            refused = admin.post("/removed-tracks", json={"track_ids": wrong})
            assert refused.status_code == 422, wrong
        assert admin.get("/removed-tracks").json()["total"] == 26
        back = admin.post("/removed-tracks", json={"track_ids": [*gone, "no/such", "g2-t00"], "removed": False}).json()
        assert back == {"removed": False, "changed": 26, "not_in_catalogue": ["no/such"]}
        assert set(gone) & {item["track_id"] for item in recommended(admin, "fresh", k=100)["items"]}


def test_a_takedown_needs_a_folder_of_releases(client: httpx.Client) -> None:
    answer = client.put("/removed-tracks/g1-t01")
    assert answer.status_code == 409
    assert "set SEGUE_RELEASES_DIR" in answer.json()["detail"]
    assert "g1-t01" in str(recommended(client, "nobody", k=100)["items"])


@pytest.mark.parametrize(
    ("path", "field", "expected"),
    [
        ("/recommendations?session_id=a&filters=genre:g1", "query.filters", "expected one of artist_gap, caution"),
        ("/recommendations?session_id=a&filter=genre:g1&filter=explicit:false", "query.filter", "expected one value"),
        ("/tracks?query=song&policy=radio", "query.policy", "expected one of"),
        ("/tracks?query=song&filter=genre:g1&filter=genre:g2", "query.filter", "expected one value"),
        ("/tracks/g0-t00/similar?filters=genre:g1", "query.filters", "expected one of fields, filter, k"),
        ("/sessions/a?explain=true", "query.explain", "expected no parameter"),
    ],
)
def test_an_unknown_or_repeated_parameter_is_never_ignored(
    running: httpx.Client, path: str, field: str, expected: str
) -> None:
    answer = running.get(path)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert expected in error["expected"]
    assert expected in answer.json()["detail"]


def test_no_call_ignores_an_unknown_parameter(running: httpx.Client) -> None:
    ids = {"session_id": "s", "listener_id": "l", "track_id": "g0-t00", "position": "0"}
    paths = running.get("/openapi.json").json()["paths"]
    asked = [path for path, calls in paths.items() if "422" in calls.get("get", {}).get("responses", {})]
    assert len(asked) > 7
    for path in asked:
        answer = running.get(path.format(**ids), params={"nothing": "1"}, headers={"Accept": "text/event-stream"})
        fields = [error["field"] for error in answer.json().get("errors", [])]
        assert (answer.status_code, fields[:1]) == (422, ["query.nothing"]), path
