"""What answers hold, by scope: a key that may not read a session finds nothing of it in any answer it may have."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.auth import CALLS
from service.http.keys import SCOPES, new_key, write_keys
from tests.conftest import track_ids

StartService = Callable[..., Any]
VICTIM = "victim-7f3a"
# Known tracks that popularity alone never answers, one of them skipped, and one that no release holds.
PLAYED, SKIPPED, UNKNOWN = "g3-t07", "g4-t08", "marker-of-nobody"
EVENTS: list[dict[str, Any]] = [
    {
        "type": "play",
        "track_id": PLAYED,
        "event_id": "victim-event-1",
        "at": "2026-11-28T20:00:01Z",
        "ms_played": 12_345,
    },
    {"type": "skip", "track_id": SKIPPED, "event_id": "victim-event-2"},
    {"type": "play", "track_id": UNKNOWN, "event_id": "victim-event-3"},
]
MARKERS = (UNKNOWN, "victim-event", "20:00:01", "12345", '"plays":[{', '"path"', '"heard"', '"explanation"')
TRUE_SPELLINGS = ("true", "1", "on", "yes", "y", "t", "True", "TRUE", "On", "YES")
EXPLAINED = (*(f"explain={spelling}" for spelling in TRUE_SPELLINGS), "%65xplain=true", "explain=%74rue")
PLAIN = ("", "explain=false", "explain=0", "explain=no")
REJECTED = (
    "explain=false&explain=true",
    "explain=&explain=1",
    "explain=true&a=b",
    "explain=true&explain=false",
    "Explain=true",
    "explain%20=true",
)


@pytest.fixture
def service(start_service: StartService, tmp_path: Path) -> Iterator[tuple[httpx.Client, dict[str, dict[str, str]]]]:
    """A client of a service that holds the victim's session, and the headers of a key of each scope."""
    made = {scope: new_key(scope, [scope]) for scope in SCOPES}
    made["both"] = new_key("both", ["client", "read"])  # type: ignore[index]
    write_keys(tmp_path / "keys.toml", [kept for _, kept in made.values()])
    keys = {str(scope): {"Authorization": f"Bearer {text}"} for scope, (text, _) in made.items()}
    with start_service(api_keys=tmp_path / "keys.toml").client() as client:
        stored = client.post(f"/sessions/{VICTIM}/events", json={"events": EVENTS}, headers=keys["client"])
        assert stored.status_code == 200
        yield client, keys


def variants() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every call that the table knows, with its options, of the victim's session where it takes one."""
    for query in (*EXPLAINED, *PLAIN, *REJECTED):
        for more in ("", "&repeat=never", f"&exclude={PLAYED}", "&k=100", "&release=tiny"):
            yield "GET", f"/recommendations?session_id={VICTIM}&{query}{more}", {}
    for query in ("", "?recommend=20", "?recommend=100", "?explain=true", "?recommend=5&explain=true"):
        # The victim's own event again: it has no effect, and may be answered by nothing but numbers.
        yield "POST", f"/sessions/{VICTIM}/events{query}", {"json": {"events": [{**EVENTS[0], "track_id": "g0-t00"}]}}
        yield "POST", f"/sessions/{VICTIM}/events{query}", {"json": {"events": [{"type": "?"}]}}
    bodies: list[dict[str, Any]] = [
        {"events": []},
        {"events": [], "explain": True},
        {"events": [], "session_id": VICTIM},
    ]
    for body in bodies:
        yield "POST", "/recommendations/what-if", {"json": body}
    candidates = ["g0-t00", "g1-t01", "x"]
    options: list[dict[str, Any]] = [{}, {"repeat": "never"}, {"explain": True}, {"release": "tiny"}]
    for more_options in options:
        yield "POST", "/rank", {"json": {"session_id": VICTIM, "candidates": candidates, **more_options}}
        sessions = [{"session_id": VICTIM}, {"session_id": VICTIM, "events": []}]
        yield "POST", "/recommendations/batch", {"json": {"sessions": sessions, "k": 100, **more_options}}
    for path in (
        *(f"/sessions/{VICTIM}", f"/sessions/{VICTIM}?explain=true", f"/sessions/{VICTIM}/stream"),
        *("/tracks", f"/tracks?query={VICTIM}", f"/tracks?query={UNKNOWN[:6]}", "/tracks/g0-t00/similar"),
        *(f"/tracks/{VICTIM}/similar", "/map", "/map/tracks/0", "/map/tracks/999", "/map?release=nobody"),
        *(
            "/removed-tracks",
            "/added-tracks",
            "/policies",
            "/releases/current",
            "/releases",
            "/operations",
            "/metrics",
            "/health/live",
            "/health/ready",
        ),
        *("/", "/docs", "/docs/files/player.js", "/ops", "/openapi.json", "/web/player.js", "/nowhere", f"/{VICTIM}"),
    ):
        yield "GET", path, {}
    yield "PUT", "/releases/current", {"json": {"name": VICTIM}}
    yield "PUT", "/removed-tracks/g0-t00", {}
    yield "POST", "/removed-tracks", {"json": {"track_ids": ["g0-t00", VICTIM]}}
    yield "PUT", "/added-tracks/g0-t00", {"json": {"title": VICTIM}}
    yield "PUT", "/added-tracks/g0-t00", {"json": {"neighbours": [VICTIM]}}
    yield "PUT", f"/sessions/{VICTIM}/station", {"json": {"artists": ["Artist 1", "no one"]}}
    yield "PUT", f"/sessions/{VICTIM}/station", {"json": {"tracks": ["no track"]}}
    yield "GET", f"/listeners/{VICTIM}", {}


def test_every_call_is_among_the_variants() -> None:
    asked = {(method, path.partition("?")[0]) for method, path, _ in variants()}
    for method, template in CALLS:
        path = template.replace("{session_id}", VICTIM).replace("{track_id:path}", "g0-t00")
        path = path.replace("{listener_id}", VICTIM)
        path = path.replace("{position}", "0").replace("{path:path}", "player.js")
        assert (method, path) in asked or method in {"HEAD", "DELETE"}, (method, template)


def test_no_answer_without_the_scope_read_holds_a_sessions_plays(
    service: tuple[httpx.Client, dict[str, dict[str, str]]],
) -> None:
    client, keys = service
    for holder in ("client", "metrics", ""):
        for method, path, more in variants():
            answer = client.request(method, path, headers=keys.get(holder, {}), **more)
            sent = json.dumps(more) + path
            content = answer.text.replace(" ", "")
            if path.startswith(("/docs", "/web", "/openapi", "/ops")) or path == "/":
                continue  # the same for everybody: the files of the package
            if path.startswith("/recommendations/what-if"):
                assert VICTIM not in content or VICTIM in sent
                continue  # its events are the client's own
            for marker in MARKERS:
                assert marker not in content or marker in sent, (holder, method, path, marker, answer.text[:300])


def test_the_markers_are_found_with_the_scope(service: tuple[httpx.Client, dict[str, dict[str, str]]]) -> None:
    """So that the test above can fail."""
    client, keys = service
    found = client.get(f"/sessions/{VICTIM}", headers=keys["read"]).text
    for query in EXPLAINED:
        for holder in ("both", "admin"):
            answer = client.get(f"/recommendations?session_id={VICTIM}&{query}", headers=keys[holder])
            assert answer.status_code == 200, answer.text
            assert answer.json()["explanation"]["plays"], query
            found += answer.text
    assert {marker for marker in MARKERS if marker not in found} <= {"victim-event", '"heard"'}


def test_an_explanation_without_the_scope_read_is_refused(
    service: tuple[httpx.Client, dict[str, dict[str, str]]],
) -> None:
    client, keys = service
    for query in EXPLAINED:
        answer = client.get(f"/recommendations?session_id={VICTIM}&{query}", headers=keys["client"])
        assert answer.status_code == 403, query
        assert answer.headers["content-type"] == "application/problem+json"
        assert 'error="insufficient_scope", scope="read"' in answer.headers["www-authenticate"]
        assert "needs read as well" in answer.json()["detail"]
    for query in PLAIN:
        answer = client.get(f"/recommendations?session_id={VICTIM}&{query}", headers=keys["client"])
        assert (answer.status_code, "explanation" in answer.text) == (200, False), query
    for query in REJECTED:
        answer = client.get(f"/recommendations?session_id={VICTIM}&{query}", headers=keys["client"])
        assert (answer.status_code, "explanation" in answer.text) == (422, False), query
    assert client.get(f"/recommendations?session_id={VICTIM}&explain=true", headers=keys["read"]).status_code == 403


def test_a_hypothetical_session_is_explained_to_whoever_sends_it(
    service: tuple[httpx.Client, dict[str, dict[str, str]]],
) -> None:
    client, keys = service
    body = {"events": [{"type": "play", "track_id": "g0-t00"}], "explain": True}
    answer = client.post("/recommendations/what-if", json=body, headers=keys["client"])
    assert [play["track_id"] for play in answer.json()["explanation"]["plays"]] == ["g0-t00"]


def test_an_answer_to_a_report_holds_the_documented_facts_alone(
    service: tuple[httpx.Client, dict[str, dict[str, str]]],
) -> None:
    client, keys = service
    body = {"events": [{**EVENTS[0], "track_id": "g0-t00"}]}
    answer = client.post(f"/sessions/{VICTIM}/events?recommend=5", json=body, headers=keys["client"]).json()
    assert set(answer) == {"session_id", "length", "accepted", "duplicates", "unknown_tracks", "recommendations"}
    assert (answer["length"], answer["accepted"], answer["duplicates"]) == (3, 0, 1)
    lists = answer["recommendations"]
    assert set(lists) == {"session_id", "release", "source", "items", "window"}
    assert set(lists["window"]) == {"plays", "skips"}
    assert {track["track_id"] for track in lists["items"]} <= set(track_ids())


def test_the_releases_that_are_live_are_named_to_readers_alone(
    start_service: StartService, releases_dir: Path, tmp_path: Path
) -> None:
    text, kept = new_key("app", ["client"])
    write_keys(tmp_path / "keys.toml", [kept])
    settings = {"releases_dir": releases_dir, "experiment": "second:0.5", "api_keys": tmp_path / "keys.toml"}
    with start_service(release=releases_dir / "first", **settings).client() as client:
        headers = {"Authorization": f"Bearer {text}"}
        for answer in (
            client.get("/recommendations?session_id=a&release=nobody", headers=headers),
            client.post("/recommendations/what-if", json={"events": [], "release": "nobody"}, headers=headers),
        ):
            assert answer.status_code == 404
            assert "sasrec" not in answer.text


class TestRates:
    def test_an_explanation_counts_as_several_requests(self, start_service: StartService, tmp_path: Path) -> None:
        text, kept = new_key("player", ["client", "read"])
        write_keys(tmp_path / "keys.toml", [kept])
        headers = {"Authorization": f"Bearer {text}"}
        calls: dict[str, Callable[[httpx.Client], httpx.Response]] = {
            "plain": lambda client: client.get("/recommendations?session_id=a"),
            "explained": lambda client: client.get("/recommendations?session_id=a&explain=1"),
            "what-if": lambda client: client.post("/recommendations/what-if", json={"events": []}),
            "explained what-if": lambda client: client.post(
                "/recommendations/what-if", json={"events": [], "explain": True}
            ),
            "map": lambda client: client.get("/map"),
            "rank": lambda client: client.post("/rank", json={"events": [], "candidates": ["g0-t00"]}),
            "batch of 10": lambda client: client.post(
                "/recommendations/batch", json={"sessions": [{"session_id": "a"}] * 10}
            ),
        }
        passed = {}
        for name, call in calls.items():
            limits = {"key_rate_limit": 0.03, "rate_limit_burst_s": 1000}  # 30 at once
            service = start_service(api_keys=tmp_path / "keys.toml", **limits)
            with service.client() as client:
                client.headers.update(headers)
                statuses = [call(client).status_code for _ in range(35)]
            service.stop()
            passed[name] = statuses.count(200)
            assert set(statuses) == {200, 429}
        listed = {"plain": 30, "explained": 3, "what-if": 30, "explained what-if": 3}
        assert passed == {**listed, "map": 6, "rank": 15, "batch of 10": 3}

    def test_an_explanation_counts_for_its_session_as_well(self, start_service: StartService) -> None:
        with start_service(session_rate_limit=0.02, rate_limit_burst_s=1000).client() as client:
            statuses = [client.get("/recommendations?session_id=a&explain=1").status_code for _ in range(4)]
            assert statuses == [200, 200, 429, 429]
            assert client.get("/recommendations?session_id=b").status_code == 200
