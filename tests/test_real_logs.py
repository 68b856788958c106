"""`segue prepare` on extracts of the published logs, against a reading of the same files in plain Python.

Needs the folder named by SEGUE_DATA; nothing of it is kept here but numbers.
"""

import csv
import gzip
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path

import polars as pl
import pytest

from training.data.dataset import Dataset
from training.prepare.pipeline import prepare, prepare_options

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("SEGUE_DATA" not in os.environ, reason="SEGUE_DATA names no folder of real logs"),
]

Session = list[tuple[str, bool]]  # tracks and whether they were skipped


def data(name: str) -> Path:
    return Path(os.environ["SEGUE_DATA"]) / name


def sessions_of(dataset: Dataset) -> list[Session]:
    ids, sessions = dataset.catalogue.track_ids, dataset.sessions
    tracks = [ids[row - 1] for row in sessions.rows.tolist()]
    plays = list(zip(tracks, sessions.skipped.tolist(), strict=True))
    return [plays[start:end] for start, end in pairwise(sessions.offsets.tolist())]


def lfm1k_sessions(file: Path) -> Iterator[tuple[datetime, Session]]:
    """The rules of the paper, one play after another."""
    lines = [line.split("\t") for line in file.read_bytes().decode().rstrip("\n").split("\n")]
    lines.reverse()
    lines.sort(key=lambda fields: fields[:2])
    plays = [
        (user, datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z"), mbid or f"{artist} — {title}")
        for user, time, _, artist, mbid, title in lines
    ]
    session: list[tuple[datetime, str, bool]] = []
    for number, (user, at, track) in enumerate(plays):
        following = plays[number + 1] if number + 1 < len(plays) else None
        pause = (following[1] - at).total_seconds() if following and following[0] == user else float("inf")
        session.append((at, track, pause <= 30))
        if pause > 1200:
            for start in range(0, len(session), 20):
                piece = session[start : start + 20]
                if len(piece) >= 5:
                    yield piece[0][0], [(track, skipped) for _, track, skipped in piece]
            session = []


def test_lfm1k_gives_the_sessions_of_the_plain_reading(tmp_path: Path) -> None:
    options = prepare_options(sample_half_skips=False)
    report = prepare("lfm1k", [data("lfm1k-sample.tsv")], tmp_path / "d", options)
    expected = list(lfm1k_sessions(data("lfm1k-sample.tsv")))
    assert sessions_of(report.dataset) == [session for _, session in expected]
    started = pl.read_parquet(tmp_path / "d" / "sessions.parquet")["started_at"].to_list()
    assert started == [at for at, _ in expected]
    assert (report.lines, report.malformed) == (5_000, 0)


def test_lfm1k_has_the_session_that_was_counted_by_hand(tmp_path: Path) -> None:
    # Lines 2 to 14 of the file: 13 plays from 12:51:26 to 13:54:10, none within 30 s of the one before.
    dataset = prepare("lfm1k", [data("lfm1k-sample.tsv")], tmp_path / "d", prepare_options(sample_half_skips=False))
    started = pl.read_parquet(tmp_path / "d" / "sessions.parquet")["started_at"]
    number = started.to_list().index(datetime(2009, 5, 4, 12, 51, 26, tzinfo=UTC))
    session = sessions_of(dataset.dataset)[number]
    assert len(session) == 13
    assert not any(skipped for _, skipped in session)


def test_half_of_the_lfm1k_sessions_hold_a_skip(tmp_path: Path) -> None:
    everything = prepare(
        "lfm1k", [data("lfm1k-sample.tsv")], tmp_path / "all", prepare_options(sample_half_skips=False)
    )
    with_skip = [s for s in sessions_of(everything.dataset) if any(skipped for _, skipped in s)]
    sampled = sessions_of(prepare("lfm1k", [data("lfm1k-sample.tsv")], tmp_path / "half").dataset)
    assert [s for s in sampled if any(skipped for _, skipped in s)] == with_skip
    assert len(sampled) == 2 * len(with_skip)


@pytest.mark.parametrize("flag", ["skip_1", "skip_2", "skip_3"])
def test_mssd_gives_the_sessions_of_the_plain_reading(tmp_path: Path, flag: str) -> None:
    with data("mssd-raw-columns.csv").open(newline="") as file:
        lines = sorted(csv.DictReader(file), key=lambda line: (line["session_id"], int(line["session_position"])))
    expected = {
        session_id: [(line["track_id_clean"], line[flag].lower() == "true") for line in plays]
        for session_id, plays in groupby(lines, key=lambda line: line["session_id"])
    }
    report = prepare("mssd", [data("mssd-raw-columns.csv")], tmp_path / "d", prepare_options(skip_flag=flag))
    found = dict(zip(report.dataset.session_ids, sessions_of(report.dataset), strict=True))
    assert found == expected
    assert (len(found), report.lines, report.malformed) == (11, 201, 0)


def test_the_mssd_extract_has_the_published_figures(tmp_path: Path) -> None:
    dataset = prepare("events", [data("mssd-sample.csv.gz")], tmp_path / "d").dataset
    counts = dataset.facts.counts
    assert (counts.plays, counts.sessions, counts.tracks) == (136_815, 7_064, 4_678)
    assert dataset.facts.skip_rate == pytest.approx(0.536, abs=0.0005)
    with gzip.open(data("mssd-sample.csv.gz"), "rt", newline="") as file:
        lines = sorted(csv.DictReader(file), key=lambda line: (line["session_id"], int(line["position"])))
    expected = [
        [(line["track_id"], line["skipped"] in ("1", "True", "true")) for line in plays]
        for _, plays in groupby(lines, key=lambda line: line["session_id"])
    ]
    assert sessions_of(dataset) == expected
