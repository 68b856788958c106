"""`segue recommend --sessions`: the figures of the service for every session of a file, in bounded memory."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from segue.cli import main, recommend_sessions
from segue.cli.recommend_sessions import SCHEMA
from segue.release import Release
from segue.sessions import Outcome, Play
from service.releases.loaded import LoadedRelease, load_release
from tests.conftest import track_ids

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def live(tiny_release: Release) -> LoadedRelease:
    return load_release(tiny_release.path)


def drawn(sessions: int = 200) -> dict[str, list[Play]]:
    rng = np.random.default_rng(5)
    ids = [*track_ids(), "unknown"]
    return {
        f"s{number:03}": [
            Play(ids[track], Outcome.SKIPPED if track % 3 == 0 else Outcome.PLAYED)
            for track in rng.integers(0, len(ids), size=1 + number % 9)
        ]
        for number in range(sessions)
    }


def frame_of(sessions: dict[str, list[Play]]) -> pl.DataFrame:
    """The plays in a mixed order, with the columns of the event log and the earlier row of each skip."""
    start = datetime(2026, 11, 28, tzinfo=UTC)
    rows: list[tuple[Any, ...]] = []
    for session_id, plays in sessions.items():
        for position, play in enumerate(plays):
            at = start + timedelta(seconds=position)
            rows += [
                (session_id, position, play.track_id, skipped, at, at + timedelta(milliseconds=500 * skipped))
                for skipped in ([False, True] if play.skipped else [False])
            ]
    names = ["session_id", "position", "track_id", "skipped", "timestamp", "written_at"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.sample(fraction=1, shuffle=True, seed=3)


def run(release: Path, source: Path, out: Path, *more: object) -> int:
    return main(["recommend", str(release), "--sessions", str(source), "--out", str(out), *map(str, more)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    frame_of(drawn()).write_parquet(tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def lists_of(out: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    for (session_id,), frame in pl.read_parquet(out).group_by("session_id", maintain_order=True):
        yield str(session_id), frame


@pytest.mark.parametrize(("repeat", "k"), [("allow", 10), ("never", 70), ("after:2", 3)])
def test_each_session_gets_the_answer_of_the_service(
    live: LoadedRelease, source: Path, tmp_path: Path, repeat: str, k: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    assert run(live.release.path, source, out, "-k", k, "--repeat", repeat) == 0
    assert "for 200 sessions" in capsys.readouterr().err
    found = dict(lists_of(out))
    sessions = drawn()
    assert list(found) == sorted(sessions)
    assert pl.read_parquet_schema(out) == SCHEMA
    for session_id, plays in sessions.items():
        answer, frame = live.recommend(plays, k, repeat=repeat), found[session_id]
        assert frame["track_id"].to_list() == [track.track_id for track in answer.tracks]
        assert frame["rank"].to_list() == list(range(1, len(answer.rows) + 1))
        assert frame["source"].unique().to_list() == [answer.source]
        np.testing.assert_array_equal(frame["score"].to_numpy(), answer.scores)
    facts = pl.read_parquet_metadata(out)
    assert (facts["segue.release"], facts["segue.k"], facts["segue.repeat"]) == (live.name, str(k), repeat)
    assert datetime.fromisoformat(facts["segue.written_at"]) <= datetime.now(UTC)
    assert out.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_the_metadata_has_all_options_that_were_given(live: LoadedRelease, source: Path, tmp_path: Path) -> None:
    out, policy = tmp_path / "out.parquet", tmp_path / "radio.toml"
    policy.write_text("max_per_artist = 3\n")
    given = ("--filter", "genre:g1|g2", "--policy", policy, "--artist-gap", 1)
    assert run(live.release.path, source, out, "-k", 5, *given) == 0
    facts = pl.read_parquet_metadata(out)
    shown = {name: facts.get(f"segue.{name}") for name in ("filter", "policy", "artist_gap", "max_per_artist")}
    assert shown == {
        "filter": "genre:g1|g2",
        "policy": "max_per_artist = 3\n",
        "artist_gap": "1",
        "max_per_artist": None,
    }


def test_the_result_does_not_depend_on_the_memory_or_the_order_of_the_rows(
    live: LoadedRelease, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    assert run(live.release.path, source, out, "-k", 5) == 0
    whole = pl.read_parquet(out)
    pl.read_parquet(source).sample(fraction=1, shuffle=True, seed=9).write_parquet(source)
    monkeypatch.setattr(recommend_sessions, "ROWS_IN_MEMORY", 100)
    monkeypatch.setattr(recommend_sessions, "_ROWS_OF_A_PART", 70)
    assert run(live.release.path, source, out, "-k", 5, "--overwrite") == 0
    assert pl.read_parquet(out).equals(whole)


def test_times_order_the_plays_and_a_folder_is_read(live: LoadedRelease, source: Path, tmp_path: Path) -> None:
    sessions = drawn()
    played = {name: [play._replace(outcome=Outcome.PLAYED) for play in plays] for name, plays in sessions.items()}
    frame = frame_of(played)
    (tmp_path / "log").mkdir()
    for number in range(3):
        part = frame[number::3].drop("position", "written_at")
        part.write_parquet(tmp_path / "log" / f"events-{number}.parquet")
    out = tmp_path / "out.parquet"
    assert run(live.release.path, tmp_path / "log", out, "-k", 4) == 0
    for session_id, found in lists_of(out):
        assert found["track_id"].to_list() == [track.track_id for track in live.recommend(played[session_id], 4).tracks]


PLAYS = pl.DataFrame({"session_id": ["a", "a"], "position": [0, 1], "track_id": ["x", "y"], "skipped": [True, False]})


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (PLAYS.drop("skipped"), "has no column skipped: expected session_id, position (or timestamp), track_id and"),
        (PLAYS.drop("position"), "has no column position"),
        (PLAYS.clear(), "has no plays"),
        (PLAYS.with_columns(skipped=pl.lit(None, pl.Boolean)), "the column skipped is empty in 2 rows"),
        (PLAYS.with_columns(skipped=pl.lit("yes")), "the column skipped is String, expected true or false"),
        (PLAYS.with_columns(position=pl.lit(0.5)), "the column position is Float64, expected whole numbers or times"),
        (PLAYS.with_columns(position=pl.lit(3)), "session 'a' has position 3 twice"),
    ],
)
def test_a_wrong_file_is_one_line_and_leaves_nothing(
    live: LoadedRelease, tmp_path: Path, frame: pl.DataFrame, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frame.write_parquet(tmp_path / "in.parquet")
    assert run(live.release.path, tmp_path / "in.parquet", tmp_path / "out.parquet") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_other_wrong_inputs_are_one_line(
    live: LoadedRelease, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release, out = live.release.path, tmp_path / "out.parquet"
    (tmp_path / "text.parquet").write_text(json.dumps({"no": "parquet"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    PLAYS.write_parquet(tmp_path / "mixed" / "a.parquet")
    PLAYS.rename({"position": "timestamp"}).write_parquet(tmp_path / "mixed" / "b.parquet")
    taken = tmp_path / "taken.parquet"
    taken.write_text("mine")
    for arguments, said in (
        ((tmp_path / "nowhere", out), "nowhere does not exist"),
        ((tmp_path / "text.parquet", out), "cannot be read as Parquet"),
        ((tmp_path / "empty", out), "has no file named *.parquet"),
        ((tmp_path / "mixed", out), "have different columns"),
        ((source, taken), "already exists: choose another name for --out, or replace it with --overwrite"),
        ((source, tmp_path / "empty"), "is a folder"),
        ((source, out, "--play", "x"), "are for one session"),
        ((source, out, "--repeat", "perhaps"), "expected allow, never, or after:N"),
        ((source, out, "--caution", "1"), "has no play head"),
    ):
        assert run(release, *arguments) == 2, said
        [line] = capsys.readouterr().err.splitlines()
        assert said in line
        assert not out.exists()
    assert taken.read_text() == "mine"
    assert main(["recommend", str(release), "--out", str(out)]) == 2
    assert "--sessions and --out are used together" in capsys.readouterr().err
