"""Every figure of docs/sizing.md is in the results, and its formulas give what was measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "sizing.md"
if not PAGE.exists():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")
FLOOR_MIB, MIB_PER_MILLION, WORKER_MIB = 150, 675, 150
TRAINING_MIB, TRAINING_MIB_PER_MILLION = 400, 1480
SIZES = (100_000, 600_000, 1_000_000, 10_000_000)


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(heading: str) -> list[list[float]]:
    """The numbers in the rows of the table whose header begins so."""
    found = TEXT.partition(f"\n| {heading}")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in found.splitlines()[2:]]
    return [[float(re.sub(r"[^\d.]", "", cell)) for cell in row] for row in rows]


def service_mib(tracks: float, workers: float) -> float:
    return FLOOR_MIB + MIB_PER_MILLION * tracks / 1e6 + WORKER_MIB * (workers - 1)


def test_memory_and_capacity_of_the_service_are_those_measured() -> None:
    results = [result(f"serving_{tracks}") for tracks in SIZES]
    assert table("tracks | one worker") == [
        [r["tracks"], r["memory_of_one_worker"]["pss_mib"], r["memory_of_two_workers"]["pss_mib"], r["index_mib"]]
        for r in results
    ]
    assert table("tracks | capacity") == [
        [r["tracks"], r["capacity_per_s"], round(r["recommend"]["per_s"]), round(r["report"]["per_s"])] for r in results
    ]


def test_the_formulas_give_what_was_measured() -> None:
    assert f"{FLOOR_MIB} MiB + {MIB_PER_MILLION} MiB per million tracks" in TEXT
    for tracks, one, two, _ in table("tracks | one worker"):
        assert service_mib(tracks, 1) == pytest.approx(one, rel=0.02)
        assert service_mib(tracks, 2) == pytest.approx(two, rel=0.02)
    assert f"{TRAINING_MIB} MiB + {TRAINING_MIB_PER_MILLION:,} MiB per million tracks" in TEXT
    for tracks, *measured in table("tracks | without the skip loss"):
        for mib in measured:
            assert TRAINING_MIB + TRAINING_MIB_PER_MILLION * tracks / 1e6 == pytest.approx(mib, rel=0.04)
    assert min(row[3] for row in table("tracks | capacity")) >= 9_600


def test_the_examples_follow_from_the_formulas() -> None:
    bytes_of_20 = {row[0]: row[2] for row in table("plays in the session")}[20]
    capacity = {row[0]: row[1] for row in table("tracks | capacity")}
    found = TEXT.partition("\n| tracks | live sessions")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(found) == 4
    for line in found:
        *numbers, redis = line.strip("| ").split(" | ")
        tracks, sessions, per_s, workers, mib = (float(re.sub(r"\D", "", cell)) for cell in numbers)
        assert workers - 1 < per_s / capacity[tracks] <= workers
        assert service_mib(tracks, workers) == pytest.approx(mib, abs=1)
        unit = {"MB": 1e6, "GB": 1e9}[redis.split()[1]]
        assert sessions * bytes_of_20 / unit == pytest.approx(float(redis.split()[0]), rel=0.02)


def test_redis_and_event_log_are_those_measured() -> None:
    stored = result("storage")
    measured = {(r["plays_of_each"], r["event_ids"]): r for r in stored["memory"] if r["track_id_bytes"] == 22}
    for plays, without, with_ids in table("plays in the session"):
        assert without == measured[plays, False]["bytes_a_session"]
        assert with_ids == measured[plays, True]["bytes_a_session"]
    [short] = [r for r in stored["memory"] if r["track_id_bytes"] == 8]
    assert f"{short['bytes_a_session']:,} bytes without event ids" in TEXT
    assert f"another {measured[20, True]['bytes_a_remembered_list']} bytes" in TEXT
    assert table("plays per file") == [[r["plays_of_each_file"], r["mb_a_million_plays"]] for r in stored["event_log"]]
    waiting = [r["stream_bytes_a_play"] for r in stored["event_log"]]
    assert f"{min(waiting)} to {max(waiting)} bytes per play, and at most about 640,000 plays" in TEXT
    assert f"up to {round(640_000 * max(waiting) / 1e6)} MB" in TEXT


def test_training_and_preparation_are_those_measured() -> None:
    ours = result("training")["ours"]
    for tracks, without, with_loss in table("tracks | without the skip loss"):
        found = ours[f"{tracks:.0f}"]
        assert without == round(found["without NCE"]["peak_rss_bytes"] / 2**20)
        assert with_loss == round(found["with NCE"]["peak_rss_bytes"] / 2**20)
    large = result("large_dataset")
    train, prepare = large["100000000"]["train"], large["100000000"]["prepare"]
    assert f"{train['peak_rss_gb']} GB resident" in TEXT
    assert f"{train['peak_anonymous_gb']:.2f} GB anonymous" in TEXT
    assert f"{prepare['peak_rss_gb']} GB resident for 100 million" in TEXT
    assert f"{large['20000000']['prepare']['peak_rss_gb']:.2f} GB for 20 million" in TEXT
    assert "389 MiB" in TEXT
    assert "| 389 |" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
