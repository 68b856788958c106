"""Policies over HTTP and on the command line, against the real service."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.cli import main
from segue.filters import read_filter
from segue.policy import read_policy
from segue.sessions import Outcome, Play, repeat_policy
from service.releases.loaded import LoadedRelease, Question, load_release
from service.releases.policies import POLL_S
from tests.conftest import ServiceProcess, StartService, recommended, track_ids, write_tiny_release
from tests.stopwatch import until

EVENTS = [{"type": "play", "track_id": "g1-t00"}, {"type": "skip", "track_id": "g2-t00"}]
SESSION = [Play("g1-t00"), Play("g2-t00", Outcome.SKIPPED)]
FILES = {
    "radio": """
        filter = "explicit:false"
        repeat = "never"
        max_per_artist = 2
        artist_gap = 1
        diversity = 0.3
        [exploration]
        rate = 0.3
        [[boosts]]
        filter = {genre = "g3", year = {min = 2003}}
        weight = 0.5
        [[pins]]
        tracks = ["g1-t00", "g4-t01"]
        place = 3
        until = 2999-12-31
        """,
    "plain": 'filter = "markets:DE"\nrepeat = "after:2"',
    "albums": "max_per_album = 1",
    "other-release": 'filter = "mood:happy"',
    "boost-of-another": '[[boosts]]\nfilter = "year:soon"\nweight = 1',
}


def ids(answer: Any) -> list[str]:
    return [item["track_id"] for item in answer["items"]]


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("policies") / "release").path


@pytest.fixture(scope="module")
def live(release: Path) -> LoadedRelease:
    return load_release(release)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("policies") / "files", FILES)


@pytest.fixture(scope="module")
def client(release: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data_dir = tmp_path_factory.mktemp("policies") / "data"
    service = ServiceProcess(release=release, data_dir=data_dir, policies_dir=folder)
    try:
        with service.client() as opened:
            opened.post("/sessions/s/events", json={"events": EVENTS}).raise_for_status()
            yield opened
    finally:
        service.stop()


def radio(folder: Path, **more: Any) -> Question:
    """The question of a request with the policy `radio` and the seed 5."""
    policy = read_policy(folder / "radio.toml")
    given = {"repeat": repeat_policy("never"), "filter": policy.filter, "spacing": policy.spacing(), **more}
    return Question(SESSION, 10, policy=policy, seed=5, **given)


def test_every_call_obeys_a_policy(client: httpx.Client, live: LoadedRelease, folder: Path) -> None:
    options: dict[str, Any] = {"policy": "radio", "seed": 5}
    [expected] = live.answer([radio(folder)])
    answer = recommended(client, "s", k=10, **options)
    assert ids(answer) == [track.track_id for track in expected.tracks]
    assert ids(answer) != ids(recommended(client, "s", k=10))
    assert len(ids(answer)) == 10
    assert ids(answer)[2] == "g4-t01"  # g1-t00 was played and is explicit
    body = {"events": EVENTS, "k": 10, **options}
    assert client.post("/recommendations/what-if", json=body).json()["items"] == answer["items"]
    batch = {"sessions": [{"session_id": "s"}, {"events": EVENTS}], "k": 10, **options}
    for result in client.post("/recommendations/batch", json=batch).json()["results"]:
        assert result["recommendations"]["items"] == answer["items"]
    reported = client.post("/sessions/other/events", params={"recommend": 10, **options}, json={"events": EVENTS})
    assert reported.json()["recommendations"]["items"] == answer["items"]
    popular = recommended(client, "nobody", k=10, **options)
    assert popular["source"] == "popularity"
    assert ids(popular)[2] == "g4-t01"
    lists = {tuple(ids(recommended(client, "s", k=10, policy="radio"))) for _ in range(10)}
    assert len(lists) > 1  # without a seed, exploration differs


def test_parameters_of_the_request_take_precedence(client: httpx.Client, live: LoadedRelease, folder: Path) -> None:
    policy = read_policy(folder / "radio.toml")
    options: dict[str, Any] = {"policy": "radio", "seed": 5, "k": 10}
    both = read_filter({"all": [{"explicit": False}, {"genre": ["g1", "g3"]}]})
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"repeat": "allow"}, {"repeat": repeat_policy("allow")}),
        ({"max_per_artist": 5}, {"spacing": policy.spacing(5)}),
        ({"artist_gap": 0, "max_per_artist": 3}, {"spacing": policy.spacing(3, 0)}),
        ({"filter": "genre:g1|g3"}, {"filter": both}),
    ]
    for query, fields in cases:
        [expected] = live.answer([radio(folder, **fields)])
        found = [recommended(client, "s", **options, **query)]
        found.append(client.post("/recommendations/what-if", json={"events": EVENTS, **options, **query}).json())
        for answer in found:
            assert ids(answer) == [track.track_id for track in expected.tracks], query
    refused = client.get("/recommendations", params={"session_id": "s", **options, "caution": 1})
    assert refused.status_code == 409  # the release has no play head
    explicit = client.post("/recommendations/what-if", json={"events": EVENTS, "policy": "plain", "repeat": "allow"})
    assert "g1-t00" not in ids(explicit.json())  # not allowed in DE
    assert "g1-t01" in ids(explicit.json())


def test_an_explanation_names_the_steps_that_moved_a_track(client: httpx.Client) -> None:
    answer = recommended(client, "s", k=10, policy="radio", seed=5, explain=True)
    plain = ids(recommended(client, "s", k=100, filter="explicit:false", repeat="never"))
    moved = {item["track_id"]: item["moved_by"] for item in answer["explanation"]["items"]}
    seen = set()
    for item in answer["items"]:
        rank: int | None = plain.index(item["track_id"]) + 1
        for move in moved[item["track_id"]]:
            assert move.get("from_rank") == rank
            rank = move["to_rank"]
            seen.add(move["step"])
        assert rank == item["rank"]
    assert seen == {"boost", "diversity", "spacing", "pin", "exploration"}
    assert moved["g4-t01"][-1]["step"] == "pin"
    spread = recommended(client, "s", k=10, artist_gap=2, explain=True)["explanation"]["items"]
    rules = [move for item in spread for move in item["moved_by"]]
    assert {(move["step"], *move["rules"]) for move in rules} == {("spacing", "artist_gap")}
    assert "moved_by" not in str(recommended(client, "s", k=10, explain=True))


def test_an_unknown_policy_is_a_problem_document(client: httpx.Client) -> None:
    body: dict[str, Any] = {"events": EVENTS, "policy": "nobody"}
    for answer in (
        client.get("/recommendations", params={"session_id": "s", "policy": "nobody"}),
        client.post(
            "/sessions/unreported/events", params={"recommend": 3, "policy": "nobody"}, json={"events": EVENTS}
        ),
        client.post("/sessions/unreported/events", params={"policy": "nobody"}, json={"events": EVENTS}),
        client.post("/recommendations/what-if", json=body),
        client.post("/rank", json={**body, "candidates": ["g0-t00"]}),
        client.post("/recommendations/batch", json={"sessions": [{"session_id": "s"}], "policy": "nobody"}),
    ):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        names = "albums, boost-of-another, other-release, plain, radio"
        assert answer.json()["detail"] == f"'nobody' is not a policy of this service. It has {names}"
    assert client.get("/sessions/unreported").status_code == 404  # nothing was stored
    assert client.get("/recommendations", params={"session_id": "s", "policy": "a b"}).status_code == 422


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("other-release", "'mood' is not an attribute of this release. It has artist, explicit, genre"),
        ("boost-of-another", "year is a number, and the filter compares it with 'soon': give a number"),
        ("albums", "the release knows no albums, which max_per_album and album_gap need"),
    ],
)
def test_a_policy_that_does_not_fit_the_release_is_refused(client: httpx.Client, policy: str, told: str) -> None:
    answer = client.get("/recommendations", params={"session_id": "s", "policy": policy})
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_a_ranking_obeys_the_filter_of_a_policy_and_keeps_its_order(client: httpx.Client) -> None:
    candidates = ["g2-t01", "g1-t00", "g1-t02", "g1-t01", "unknown", "g1-t04"]
    body = {"session_id": "s", "candidates": candidates}
    plain = client.post("/rank", json=body).json()
    answer = client.post("/rank", json={**body, "policy": "radio"}).json()
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 1
    rows = {track: number for number, track in enumerate(track_ids())}
    explicit = {track for track in candidates if track != "unknown" and (rows[track] % 3 == 0 or rows[track] == 4)}
    assert set(answer["filtered"]) == {"g1-t00", "unknown"} | explicit  # heard, without attributes, explicit
    assert ids(answer) == [one for one in ids(plain) if one not in answer["filtered"]]


def test_policies_are_listed_with_their_contents(client: httpx.Client) -> None:
    listed = client.get("/policies").json()["items"]
    assert [one["name"] for one in listed] == sorted(FILES)
    assert listed[-1]["contents"]["pins"] == [{"tracks": ["g1-t00", "g4-t01"], "place": 3, "until": "2999-12-31"}]
    assert listed[3]["contents"] == {"filter": "markets:DE", "repeat": "after:2"}


def test_a_changed_file_holds_on_every_worker_soon(release: Path, tmp_path: Path, start_service: StartService) -> None:
    assert POLL_S <= 0.5  # the promise is a second
    folder = written(tmp_path / "policies", {"radio": 'filter = "genre:g1"'})
    service = start_service(release=release, policies_dir=folder, workers=2)
    address = service.address()

    def genres() -> set[str]:
        """The genres of many answers, each over a connection of its own, so that both workers are asked."""
        found = set()
        for _ in range(30):
            answer = httpx.get(f"{address}/recommendations?session_id=x&k=3&policy=radio", trust_env=False, timeout=20)
            found |= {one[:2] for one in ids(answer.json())} if answer.status_code == 200 else {str(answer.status_code)}
        return found

    def logged(text: str) -> int:
        return "".join(service.output).count(text)  # workers that log at the same moment may share a line

    def change(text: str, name: str = "radio") -> None:
        unfinished = folder / ".unfinished"
        unfinished.write_text(text)
        unfinished.replace(folder / f"{name}.toml")

    assert genres() == {"g1"}
    change('filter = "genre:g2"')
    until(lambda: genres() == {"g2"}, 60)
    change('filter = "genre:g3"\ncautoin = 1')
    until(lambda: logged("unknown key cautoin") >= 2, 60)
    assert genres() == {"g2"}  # the last good version
    time.sleep(1)
    assert logged("unknown key cautoin") == 2
    change('filter = "genre:g3"')
    until(lambda: genres() == {"g3"}, 60)
    (folder / "radio.toml").unlink()
    written(folder, {"later": ""})
    until(lambda: genres() == {"404"}, 60)
    listed = httpx.get(f"{address}/policies", trust_env=False, timeout=20).json()["items"]
    assert [one["name"] for one in listed] == ["later"]


def test_a_service_does_not_start_with_a_damaged_policy(release: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "policies", {"good": "", "radio": "repeat = 1"})
    done = subprocess.run(
        [sys.executable, "-m", "segue", "serve", str(release), "--port", "0"],
        env={**os.environ, "SEGUE_POLICIES_DIR": str(folder), "SEGUE_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"{folder / 'radio.toml'}: repeat is 1, expected allow, never, or after:N" in line


def test_a_removed_track_is_not_pinned(release: Path, tmp_path: Path, start_service: StartService) -> None:
    folder = written(tmp_path / "policies", {"radio": '[[pins]]\ntracks = ["g4-t01", "g4-t02"]\nplace = 2'})
    releases = tmp_path / "releases"
    write_tiny_release(releases / "first")
    with start_service(release=release, releases_dir=releases, policies_dir=folder).client() as asking:
        assert ids(recommended(asking, "x", k=4, policy="radio"))[1] == "g4-t01"
        asking.put("/removed-tracks/g4-t01").raise_for_status()
        answer = ids(recommended(asking, "x", k=4, policy="radio"))
        assert answer[1] == "g4-t02"
        assert len(answer) == 4


def test_the_command_line_applies_the_same_policy(
    live: LoadedRelease, release: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import polars as pl

    from segue.cli.recommend_sessions import SCHEMA

    command = ["recommend", str(release), "-k", "10", "--policy", str(folder / "radio.toml")]
    [expected] = live.answer([Question(**{**vars_of(radio(folder)), "seed": 0})])
    assert main([*command, "--play", "g1-t00", "--skip", "g2-t00", "--json", "--explain"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert ids(printed) == [track.track_id for track in expected.tracks]
    assert len(printed["explanation"]["moved_by"]) == 10
    plays = {"session_id": ["a", "a", "b"], "position": [0, 1, 0], "track_id": ["g1-t00", "g2-t00", "g3-t01"]}
    pl.DataFrame({**plays, "skipped": [False, True, False]}).write_parquet(tmp_path / "in.parquet")
    outs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for out in outs:
        assert main([*command, "--sessions", str(tmp_path / "in.parquet"), "--out", str(out)]) == 0
    found = pl.read_parquet(outs[0])
    assert found.equals(pl.read_parquet(outs[1]))  # exploration depends on the session alone
    assert found.schema == SCHEMA
    assert found.group_by("session_id").len().sort("session_id").rows() == [("a", 10), ("b", 10)]
    assert found.filter(rank=3)["track_id"].to_list() == ["g4-t01", "g4-t01"]
    (tmp_path / "wrong.toml").write_text("diversity = 2")
    capsys.readouterr()
    assert main(["recommend", str(release), "--policy", str(tmp_path / "wrong.toml"), "--play", "g1-t00"]) == 2
    error = capsys.readouterr().err
    assert "wrong.toml: diversity is 2, expected a number of at most 1" in error
    assert "Traceback" not in error


def vars_of(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in Question.__dataclass_fields__}
