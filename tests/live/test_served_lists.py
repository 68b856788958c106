"""Served lists: a sample of the lists is in files beside the event log, with the propensities of their tracks."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import polars as pl
import pytest

from segue.cli import main
from segue.errors import StoreUnavailable
from segue.release import Release
from segue.sessions import Play
from service.releases.loaded import load_release
from service.releases.served_lists import MAX_QUEUED, ServedLists
from service.sessions.event_log import LIST_SCHEMA, list_fields, served_list
from service.telemetry import Telemetry
from tests.event_log_reader import read_back
from tests.stopwatch import until

StartService = Callable[..., Any]


def logged(folder: Path) -> list[dict[str, Any]]:
    frames = [pl.DataFrame(schema=LIST_SCHEMA)]
    for file in folder.glob("lists-*"):
        with contextlib.suppress(FileNotFoundError):  # the writer replaces files
            frames.append(pl.read_parquet(file.read_bytes()))
    assert all(frame.schema == LIST_SCHEMA for frame in frames)
    return pl.concat(frames).sort("timestamp").to_dicts()


def play(client: httpx.Client, session_id: str, track_id: str, **query: Any) -> dict[str, Any]:
    body = {"events": [{"type": "play", "track_id": track_id}]}
    answer = client.post(f"/sessions/{session_id}/events", json=body, params=query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def shown(client: httpx.Client, **query: Any) -> list[str]:
    answer = client.get("/recommendations", params=query)
    assert answer.status_code == 200, answer.text
    return [one["track_id"] for one in answer.json()["items"]]


@pytest.mark.parametrize("drawn", [None, [False, True, False]])
def test_any_track_id_comes_back_from_the_stream(drawn: list[bool] | None) -> None:
    track_ids, chances = ["a\nb", '["c", "d"]', "é 🎵"], [0.8, 1 / 3, 1e-17] if drawn else None
    fields = list_fields(track_ids, chances, drawn, release="r", arm="", policy="", source="model")
    row = served_list(fields | {"session_id": "s@1", "position": "3", "at": "5"}, 7)
    found = dict(zip(LIST_SCHEMA, row, strict=True))
    assert (found["session_id"], found["position"], found["timestamp"], found["written_at"]) == ("s@1", 3, 5, 7)
    assert (found["track_ids"], found["arm"], found["policy"]) == (track_ids, None, None)
    assert (found["propensities"], found["explored"]) == (chances or [1.0] * 3, drawn or [False] * 3)


def test_a_list_is_logged_with_its_session_and_what_made_it(start_service: StartService, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "radio.toml").write_text("[exploration]\nrate = 0.5\ndepth = 8\n")
    folder = tmp_path / "data" / "events"
    service = start_service(list_log_rate=1, event_log_flush_s=0.2, policies_dir=policies)
    with service.client() as client:
        assert shown(client, session_id="a", k=3)  # not logged: the session has no plays
        answered = play(client, "a", "g0-t00", recommend=3)["recommendations"]
        explored = shown(client, session_id="a", k=4, policy="radio")
        shown(client, session_id="a", k=4, policy="radio", seed=1)  # not logged: not random
        shown(client, session_id="a", k=4, release=answered["release"])  # not logged: the client's choice
        until(lambda: len(logged(folder)) == 2)
        counts = {"rate": 1, "written": 2, "dropped": 0}
        until(lambda: client.get("/operations").json()["served_lists"] == counts)
        plain, drawn = logged(folder)
    assert service.stop() == 0
    [session_id] = read_back(folder)
    assert plain["session_id"] == drawn["session_id"] == session_id
    assert (plain["position"], plain["release"], plain["source"]) == (1, answered["release"], "model")
    assert (plain["arm"], plain["policy"], drawn["policy"]) == (None, None, "radio")
    assert plain["track_ids"] == [one["track_id"] for one in answered["items"]]
    assert (plain["propensities"], plain["explored"]) == ([1.0] * 3, [False] * 3)
    assert drawn["track_ids"] == explored
    left = 4  # of the ranks 5 to 8
    for chance, was_drawn in zip(drawn["propensities"], drawn["explored"], strict=True):
        assert chance == (0.5 / left if was_drawn else 0.5 if left else 1.0)
        left -= was_drawn


def test_lists_are_erased_with_their_session(start_service: StartService, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "events"
    service = start_service(list_log_rate=1, event_log_flush_s=0.2)
    with service.client() as client:
        for name in ("gone", "gone.not"):
            play(client, name, "g0-t00", recommend=3)
        until(lambda: len(logged(folder)) == 2)
        play(client, "gone", "g0-t01", recommend=3)
        client.delete("/sessions/gone")
        until(lambda: [one["session_id"].partition("@")[0] for one in logged(folder)] == ["gone.not"])
    assert service.stop() == 0
    assert len(logged(folder)) == 1
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.glob("*.parquet"))


def test_nothing_is_logged_by_default_and_a_stop_loses_nothing(start_service: StartService, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "events"
    service = start_service(event_log_flush_s=3600)
    with service.client() as client:
        play(client, "a", "g0-t00", recommend=3)
    assert service.stop() == 0
    assert logged(folder) == []
    service = start_service(list_log_rate=1, event_log_flush_s=3600)
    with service.client() as client:
        for number in range(20):
            play(client, f"s{number}", "g0-t00", recommend=3)
    assert service.stop() == 0
    assert len(logged(folder)) == 20


def test_readers_of_plays_take_the_plays_alone(
    start_service: StartService, tmp_path: Path, tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beyond the plays that a session keeps, the list has the position of the next play."""
    folder = tmp_path / "data" / "events"
    service = start_service(list_log_rate=1, max_session_plays=2)
    with service.client() as client:
        for number in range(3):
            play(client, "a", f"g0-t0{number}")
        [best] = shown(client, session_id="a", k=1)
        play(client, "a", best)
    assert service.stop() == 0
    [one] = logged(folder)
    assert one["position"] == 3
    assert main(["prepare", "events", str(folder), "--out", str(tmp_path / "dataset"), "--min-session-plays", "1"]) == 0
    assert len(pl.read_parquet(tmp_path / "dataset" / "sessions.parquet")) == 1
    out = tmp_path / "lists.parquet"
    assert main(["recommend", str(tiny_release.path), "--sessions", str(folder), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["off-policy", str(folder)]) == 0
    shown_rates = capsys.readouterr()
    assert "observed\t1\nplay rate as served\t1.0000\n" in shown_rates.out
    assert "every propensity is 1" in shown_rates.err
    assert main(["off-policy", str(folder), "--policy-release", str(tiny_release.path)]) == 2


class _Store:
    """A session store that rejects the lists of some sessions."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, Mapping[str, str]]] = []

    async def log_list(self, session_id: str, plays: int, latest: Play, at_ms: int, fields: Mapping[str, str]) -> int:
        if session_id == "rejected":
            raise StoreUnavailable("it is away")
        self.entries.append((session_id, plays, fields))
        return 0


def test_a_full_queue_and_an_unavailable_redis_drop_lists_and_count_them(tiny_release: Release) -> None:
    async def run() -> tuple[list[tuple[str, int, Mapping[str, str]]], float]:
        store, telemetry, stopping = _Store(), Telemetry(), asyncio.Event()
        first, second = SimpleNamespace(), SimpleNamespace()
        releases = SimpleNamespace(live=lambda: [(first, 0.5), (second, 0.5)])
        answer = load_release(tiny_release.path).recommend([], 2)
        lists: Any = ServedLists(store, releases, 1, telemetry)  # type: ignore[arg-type]
        assert "any session" in lists
        assert "any session" not in ServedLists(store, releases, 0, telemetry)  # type: ignore[arg-type]
        lists.add("no plays", [], first, None, answer)
        lists.add("rejected", [Play("x")], first, None, answer)
        lists.add("a", [Play("x")], first, None, answer)
        for _ in range(MAX_QUEUED):
            lists.add("b", [Play("x"), Play("y")], second, "radio", answer)
        releases.live = lambda: [(second, 1.0)]  # a swap ends the test before the lists are sent
        task = asyncio.create_task(lists.run(stopping))
        stopping.set()
        await task
        return store.entries, telemetry.registry.get_sample_value("segue_list_log_dropped_lists_total") or 0

    entries, dropped = asyncio.run(run())
    assert dropped == 1 + 2
    assert len(entries) == MAX_QUEUED - 1
    assert [(name, plays, fields["arm"], fields["policy"]) for name, plays, fields in entries[:2]] == [
        ("a", 1, "current", ""),
        ("b", 2, "second", "radio"),
    ]
