"""Every engine writes the same dataset and the same report, on invented logs of every format."""

import gzip
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest

from segue.errors import BadLog
from tests.export_samples import EXPORT_SAMPLES
from tests.log_samples import SAMPLES, Sample
from tests.prepare_runs import assert_same, needs_ray, ray_of_two
from training.prepare import disk_engine as disk
from training.prepare.disk_engine import DiskTasks, disk_engine, split_bytes_of
from training.prepare.ids import partitions_of
from training.prepare.pipeline import (
    Engine,
    PrepareJob,
    PrepareResult,
    SerialTasks,
    prepare,
    prepare_options,
    run_tasks,
)
from training.prepare.play_order import Repeats
from training.prepare.ray_engine import ray_engine
from training.prepare.report import StepCount
from training.prepare.session_filters import FilteredPartition
from training.prepare.sessionize import Counts, Neighbours
from training.prepare.sources import FileSlice, LogFile, input_splits, opened


class PickledTasks(SerialTasks):
    """Pickles every result, as on its way to another process."""

    def stored(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def loaded(self, value: bytes) -> Any:
        return pickle.loads(value)


def pickled(job: PrepareJob, split_bytes: int) -> PrepareResult:
    """The engine of PickledTasks, with as many partitions as splits."""
    splits = input_splits(job.files, split_bytes, job.kind)
    return run_tasks(PickledTasks(), job, splits, len(splits), job.scratch)


ENGINES: Final[dict[str, Engine]] = {
    "one split": partial(pickled, split_bytes=1 << 30),
    "some splits": partial(pickled, split_bytes=20_000),
    "many splits": partial(pickled, split_bytes=3_001),
    "disk": disk_engine(9_001),
    "ray": ray_engine(split_bytes=20_000),
}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray for all tests of this file."""
    with ray_of_two() as started:
        yield started


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine with a name of ENGINES."""
    if request.param == "ray":
        request.getfixturevalue("ray")
    monkeypatch.setattr(disk, "_IN_MEMORY_BYTES", 0)  # everything goes through files
    return ENGINES[request.param]


every_engine = pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=needs_ray if name == "ray" else ()) for name in ENGINES], indirect=True
)


@every_engine
@pytest.mark.parametrize("name", [*SAMPLES, *EXPORT_SAMPLES])
def test_every_engine_writes_the_dataset_and_the_report_of_the_one_in_memory(
    name: str, engine: Engine, tmp_path: Path
) -> None:
    report = assert_same((SAMPLES | EXPORT_SAMPLES)[name], tmp_path, engine)
    assert len(report.dataset.sessions) > 1


@pytest.mark.parametrize("name", ["listeners, skips of some", "sessions, times of some"])
def test_a_column_that_only_some_owners_have_counts_in_partitions_of_one_owner(name: str, tmp_path: Path) -> None:
    assert_same(SAMPLES[name], tmp_path, partial(pickled, split_bytes=300))


def test_the_samples_have_every_error_and_apply_every_rule(tmp_path: Path) -> None:
    """Otherwise the tests above would show less than they seem to."""
    rules: set[str] = set()
    reasons: set[str] = set()
    found: set[str] = set()
    for number, sample in enumerate(SAMPLES.values()):
        files = sample.write(tmp_path / f"log{number}")
        report = prepare(sample.kind, files, tmp_path / f"out{number}", prepare_options(**sample.options))
        rules.update(step.step + (step.option or "").partition(" ")[0] for step in report.steps)
        reasons.update(report.malformed_reasons)
        log = report.log
        found.update(warning.code for warning in log.warnings)
        found.update(name for name, number in log.skipped_by if number)
        found.update(name for name in ("conflicts", "same_second_skips", "unknown_outcomes") if getattr(log, name))
    assert reasons >= {
        "wrong number of fields",
        "userid is missing",
        "track_id is missing",
        "timestamp is no time",
        "position is no whole number",
        "skipped is no flag",
    }
    assert rules >= {
        "malformed lines--max-malformed",
        "repeated reports",
        "repeated reports--merge-within",
        "sessions",
        "sessions--idle-gap",
        "rare tracks--min-track-plays",
        "split sessions--max-session-plays",
        "short sessions--min-session-plays",
        "sampled sessions--balance-skips",
        "sampled sessions--max-sessions",
    }
    assert found >= {"flag", "played_duration", "time", "conflicts", "same_second_skips", "unknown_outcomes"}
    assert found >= {"other_outcomes", "started_again", "long_sessions"}


BY_TIME, BY_POSITION = SAMPLES["events by time"].files, SAMPLES["events without times"].files
NO_LINES = "session_id,session_position,track_id_clean,skip_2" + "\n" * 9000
WRONG: Final[dict[str, Sample]] = {
    "no header": Sample("events", {"a.csv": "a,a\n" + "1,2\n" * 9000}, {}),
    "another kind": Sample("lfm1k", SAMPLES["mssd"].files, {}),
    "two formats": Sample("events", {"a.csv": BY_TIME["e0.csv"], "b.csv": BY_POSITION["e0.csv"]}, {}),
    "only headers": Sample("mssd", {"a.csv": NO_LINES}, {}),
    "no good line": Sample("events", {"a.csv": "user_id,timestamp,track_id\n,,\n"}, {}),
    "nothing left": SAMPLES["mssd"]._replace(options={"min_track_plays": 10**6}),
    "damaged": Sample("yambda", {"a.parquet": b"PAR1" + b"x" * 9000 + b"PAR1"}, {}),
    "truncated": Sample("lfm1k", {"a.tsv.gz": gzip.compress(b"x" * 9000)[:-9]}, {}),
}


@every_engine
@pytest.mark.parametrize("name", WRONG)
def test_every_engine_raises_the_error_of_the_one_in_memory_and_leaves_nothing(
    name: str, engine: Engine, tmp_path: Path
) -> None:
    sample = WRONG[name]
    files, options = sample.write(tmp_path / "log"), prepare_options(**sample.options)
    messages = []
    for made_by in (None, engine):
        with pytest.raises(BadLog) as caught:
            prepare(sample.kind, files, tmp_path / "out", options, engine=made_by)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


class TestProgress:
    @staticmethod
    def of(engine: Engine | None, folder: Path) -> list[tuple[str, int, int]]:
        calls: list[tuple[str, int, int]] = []
        files = SAMPLES["lfm1k"].write(folder / "log")
        prepare("lfm1k", files, folder / "out", progress=lambda *given: calls.append(given), engine=engine)
        return calls

    @every_engine
    def test_it_rises_from_the_first_file_to_the_end(self, engine: Engine, tmp_path: Path) -> None:
        calls = self.of(engine, tmp_path)
        finished = [step for _, step, _ in calls]
        assert finished == sorted(finished)
        assert {steps for _, _, steps in calls} == {5}
        assert (calls[0], calls[-1]) == (("reading log0.tsv", 0, 5), ("done", 5, 5))
        assert any(what.startswith("making sessions, 0 of") for what, _, _ in calls)

    @pytest.mark.parametrize("make", [lambda: None, lambda: disk_engine(1)], ids=["in memory", "disk"])
    def test_a_file_is_named_before_it_is_read(
        self, make: Callable[[], Engine | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = SAMPLES["lfm1k, packed"].write(tmp_path / "log")  # compressed files are never sliced
        monkeypatch.setattr("training.prepare.pipeline._MEMORY_SPLIT_BYTES", 1)
        left = list(files)

        def deleting(what: str, *_: int) -> None:
            if what.startswith("reading"):
                assert what == f"reading {left.pop(0).name}"
                if left:
                    left[0].rename(left[0].with_name("later"))  # would be missing if it were read already
                    left[0].with_name("later").rename(left[0])

        prepare("lfm1k", files, tmp_path / "out", progress=deleting, engine=make())
        assert left == []


class TestTaskRunners:
    def test_a_task_runs_once_when_a_result_is_needed(self) -> None:
        calls: list[str] = []

        def task() -> tuple[int, int]:
            calls.append("ran")
            return 1, 2

        tasks = SerialTasks()
        first, second = tasks.start(task, returns=2)
        [total] = tasks.start(lambda *values: sum(values), first, second, 3)
        assert calls == []
        assert [tasks.result(reference) for reference in (total, first, second)] == [6, 1, 2]
        assert calls == ["ran"]

    def test_a_file_is_deleted_when_nothing_refers_to_it(self, tmp_path: Path) -> None:
        tasks = DiskTasks(tmp_path)
        [numbers, unused] = tasks.start(lambda: (np.arange(10_000), np.arange(10_000)), returns=2)
        [doubled] = tasks.start(lambda values: values * 2, numbers)
        del unused
        tasks.result(numbers)
        assert len(list(tmp_path.iterdir())) == 1
        del numbers
        assert len(list(tmp_path.iterdir())) == 1  # the second task needs it
        assert tasks.result(doubled).tolist() == list(range(0, 20_000, 2))
        assert len(list(tmp_path.iterdir())) == 1

    def test_tables_and_arrays_in_tuples_are_restored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "_IN_MEMORY_BYTES", 0)
        numbers = np.arange(3, dtype=np.uint32)
        value = FilteredPartition(
            owners=pl.Series("owner", ["a", "é", None]),
            owner=numbers,
            piece=numbers,
            starts=None,
            lengths=numbers,
            track=numbers,
            outcome=numbers.astype(np.uint8),
            steps=[StepCount("sessions", 3, 1)],
            counts=Counts(3, Repeats(merged=1), Neighbours(), 0, numbers.astype(np.int64), numbers.astype(np.int64)),
        )
        tasks = DiskTasks(tmp_path)
        reference = tasks.share(value)
        found = tasks.result(reference)
        assert isinstance(found, FilteredPartition)
        assert len(list(tmp_path.iterdir())) == 8
        assert found.owners.to_list() == ["a", "é", None]
        assert found.starts is None
        assert found.steps == value.steps
        assert found.counts.repeats == value.counts.repeats
        assert found.counts.file_plays.tolist() == [0, 1, 2]
        assert found.track.dtype == np.uint32
        assert found.outcome.tolist() == [0, 1, 2]


class TestSplits:
    def test_slices_of_a_text_have_each_line_once_and_always_the_header(self, tmp_path: Path) -> None:
        file = tmp_path / "log.csv"
        for lines in (
            ["head", *map(str, range(1000, 1030)), ""],
            ["head", "", "x" * 50, "last"],
            ["head", ""],
            ["head"],
        ):
            file.write_text("\n".join(lines))
            for slices in range(2, 12):
                texts = []
                for number in range(slices):
                    with opened(FileSlice(LogFile(file), number, slices), "mssd", tmp_path) as plain:
                        texts.append(plain.path.read_text())
                assert all(text.startswith(lines[0]) for text in texts)
                head = len(lines[0]) + (len(lines) > 1)
                assert "".join(text[head:] for text in texts) == file.read_text()[head:]

    def test_small_files_are_grouped_and_large_ones_sliced(self, tmp_path: Path) -> None:
        sizes = {"a": 40, "b": 40, "c": 40, "d": 250, "e.gz": 250, "f": 40}
        files = [LogFile(tmp_path / name) for name in sizes]
        for file in files:
            file.path.write_bytes((b"\x1f\x8b\x08" if file.name == "e.gz" else b"").ljust(sizes[file.name], b"x"))

        def found(*, slice_files: bool) -> list[list[tuple[str, int, int]]]:
            splits = input_splits(files, 100, "mssd", slice_files=slice_files)
            return [[(one.file.name, one.number, one.of) for one in split] for split in splits]

        grouped = [[("a", 0, 1), ("b", 0, 1)], [("c", 0, 1)]]
        end = [[("e.gz", 0, 1)], [("f", 0, 1)]]
        assert found(slice_files=True) == [*grouped, *([("d", number, 3)] for number in range(3)), *end]
        assert found(slice_files=False) == [*grouped, [("d", 0, 1)], *end]

    def test_a_large_log_has_not_too_many_splits(self, tmp_path: Path) -> None:
        files = []
        for number in range(3):
            files.append(LogFile(tmp_path / str(number)))
            with files[-1].path.open("wb") as file:
                file.write(b"a,b\n" * (1 << 15))
                file.truncate(100 << 30)  # a sparse file
        assert len(input_splits(files, split_bytes_of(files), "mssd")) <= 1003

    def test_a_partition_is_the_same_on_every_machine(self) -> None:
        # The CRC-32 of a is 3904355907.
        assert partitions_of(pl.Series(["a", ""]), 1000).tolist() == [907, 0]
