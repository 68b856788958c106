"""A log prepared a partition at a time, what waits for its turn on disk: the files and the report of one process."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from segue.errors import BadLog
from tests.log_samples import SAMPLES
from training.prepare import partitioned as module
from training.prepare.partition_tasks import FilteredPartition
from training.prepare.partitioned import DiskTasks, disk_engine
from training.prepare.pipeline import PrepareReport, prepare, prepare_options


def told(report: PrepareReport) -> tuple[object, ...]:
    counted = (report.files, report.lines, report.malformed, report.malformed_reasons, report.malformed_examples)
    return (*counted, report.steps, report.dataset.facts)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_log_in_partitions_gives_the_files_and_the_report_of_the_plain_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)  # everything goes through files
    sample = SAMPLES[name]
    files, options = sample.write(tmp_path / "log"), prepare_options(**sample.options)
    plain = prepare(sample.kind, files, tmp_path / "plain", options)
    parted = prepare(sample.kind, files, tmp_path / "parted", options, engine=disk_engine(9_001))
    assert told(parted) == told(plain)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "parted" / file.name).read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "parted", "plain"]


def test_what_nobody_refers_to_is_deleted(tmp_path: Path) -> None:
    tasks = DiskTasks(tmp_path)
    [kept] = tasks.start(lambda: np.arange(10_000))
    assert len(list(tmp_path.iterdir())) == 1
    [doubled] = tasks.start(lambda values: values * 2, kept)
    del kept
    assert len(list(tmp_path.iterdir())) == 1
    assert tasks.result(doubled).tolist() == list(range(0, 20_000, 2))


def test_tables_and_arrays_in_tuples_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    numbers = np.arange(3, dtype=np.uint32)
    value = FilteredPartition(
        owners=pl.Series("owner", ["a", "é", None]),
        owner=numbers,
        piece=numbers,
        starts=None,
        lengths=numbers,
        track=numbers,
        skipped=numbers > 1,
        left=[(3, 1)],
    )
    tasks = DiskTasks(tmp_path)
    reference = tasks.share(value)
    found = tasks.result(reference)
    assert isinstance(found, FilteredPartition)
    assert len(list(tmp_path.iterdir())) == 6
    assert found.owners.to_list() == ["a", "é", None]
    assert found.starts is None
    assert found.left == [(3, 1)]
    assert found.track.dtype == np.uint32
    assert found.skipped.tolist() == [False, False, True]


def test_a_log_without_a_good_line_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,timestamp,track_id\n,,\n")
    with pytest.raises(BadLog, match="none of 1 lines"):
        prepare("events", [tmp_path / "log.csv"], tmp_path / "d", engine=disk_engine())
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
