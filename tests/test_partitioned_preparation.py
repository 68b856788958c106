"""A log prepared in tasks gives what it gives in one process, to the byte; here the tasks run one after another."""

import gzip
import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from segue.errors import BadLog
from tests.log_samples import SAMPLES, Sample
from tests.prepared_twice import assert_same
from training.prepare.formats import PROBLEMS
from training.prepare.partition_tasks import partitions_of
from training.prepare.partitioned import portion_bytes_of, prepare_in_tasks
from training.prepare.pipeline import Engine, prepare, prepare_options
from training.prepare.sources import FileSlice, opened, portions_of


class TasksHere:
    """Runs each task when it is started. What goes in and comes out is packed, as on its way to another process."""

    def __init__(self) -> None:
        self.started = 0

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        self.started += 1
        found = function(*(pickle.loads(argument) for argument in map(self._packed, arguments)))
        return [pickle.dumps(one) for one in ([found] if returns == 1 else found)]

    def share(self, value: Any) -> Any:
        return pickle.dumps(value)

    def result(self, reference: Any) -> Any:
        return pickle.loads(reference)

    @staticmethod
    def _packed(argument: Any) -> bytes:
        return argument if isinstance(argument, bytes) else pickle.dumps(argument)


def engine(portion_bytes: int) -> Engine:
    return partial(prepare_in_tasks, TasksHere(), portion_bytes=portion_bytes)


@pytest.mark.parametrize("portion_bytes", [1 << 30, 20_000, 3_001])
@pytest.mark.parametrize("name", SAMPLES)
def test_tasks_give_the_files_and_the_report_of_one_process(name: str, portion_bytes: int, tmp_path: Path) -> None:
    report = assert_same(SAMPLES[name], tmp_path, engine(portion_bytes))
    assert len(report.dataset.sessions) > 1


@pytest.mark.parametrize("name", ["listeners, skips of some", "sessions, times of some"])
def test_what_the_whole_log_gives_counts_in_partitions_of_one_owner(name: str, tmp_path: Path) -> None:
    assert_same(SAMPLES[name], tmp_path, engine(300))


def test_the_samples_hold_what_could_go_wrong() -> None:
    """Were one of these not so, the tests above would show less than they seem to."""
    rules: set[str] = set()
    reasons: set[str] = set()
    for sample in SAMPLES.values():
        with tempfile.TemporaryDirectory() as folder:
            files = sample.write(Path(folder) / "log")
            report = prepare(sample.kind, files, Path(folder) / "out", prepare_options(**sample.options))
        rules.update(step.rule.partition(" of ")[0] for step in report.steps)
        reasons.update(report.malformed_reasons)
    assert reasons == set(PROBLEMS[1:])
    assert rules >= {
        "malformed lines left out",
        "repeated reports",
        "plays",
        "sessions cut into pieces",
        "sessions",
        "all sessions with a skip kept, and as many without one drawn",
        "at most 50 sessions drawn",
    }


def test_an_error_is_that_of_one_process(tmp_path: Path) -> None:
    by_time, by_place = SAMPLES["events by time"].files, SAMPLES["events without times"].files
    wrong = {
        "no header": Sample("events", {"a.csv": "a,a\n" + "1,2\n" * 2000}, {}),
        "another kind": Sample("lfm1k", SAMPLES["mssd"].files, {}),
        "two forms": Sample("events", {"a.csv": by_time["e0.csv"], "b.csv": by_place["e0.csv"]}, {}),
        "headers alone": Sample(
            "mssd", {"a.csv": "session_id,session_position,track_id_clean,skip_2" + "\n" * 9000}, {}
        ),
        "nothing left": SAMPLES["mssd"]._replace(options={"min_track_plays": 10**6}),
        "damaged": Sample("yambda", {"a.parquet": b"PAR1" + b"x" * 9000 + b"PAR1"}, {}),
        "cut short": Sample("lfm1k", {"a.tsv.gz": gzip.compress(b"x" * 9000)[:-9]}, {}),
    }
    for number, (what, sample) in enumerate(wrong.items()):
        files, options = sample.write(tmp_path / str(number)), prepare_options(**sample.options)
        messages = []
        for made_by in (None, engine(3000)):
            with pytest.raises(BadLog) as caught:
                prepare(sample.kind, files, tmp_path / "out", options, engine=made_by)
            messages.append(str(caught.value))
        assert messages[0] == messages[1], what
    assert not (tmp_path / "out").exists()


def test_progress_goes_through_the_files_to_the_end(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    sample = SAMPLES["lfm1k"]
    prepare(
        sample.kind,
        sample.write(tmp_path / "log"),
        tmp_path / "out",
        progress=lambda *told: heard.append(told),
        engine=engine(20_000),
    )
    finished = [step for _, step, _ in heard]
    assert finished == sorted(finished)
    assert {steps for _, _, steps in heard} == {5}
    assert (heard[0], heard[-1]) == (("reading log0.tsv", 0, 5), ("done", 5, 5))
    assert any(what.startswith("making sessions, 1 of") for what, _, _ in heard)


class TestPortions:
    def test_parts_of_a_text_hold_each_line_once_and_the_header_always(self, tmp_path: Path) -> None:
        file = tmp_path / "log.csv"
        for lines in (
            ["head", *map(str, range(1000, 1030)), ""],
            ["head", "", "x" * 50, "last"],
            ["head", ""],
            ["head"],
        ):
            file.write_text("\n".join(lines))
            for parts in range(2, 12):
                texts = []
                for number in range(parts):
                    with opened(FileSlice(file, number, parts), "mssd", tmp_path) as plain:
                        texts.append(plain.read_text())
                assert all(text.startswith(lines[0]) for text in texts)
                head = len(lines[0]) + (len(lines) > 1)
                assert "".join(text[head:] for text in texts) == file.read_text()[head:]

    def test_small_files_come_together_and_large_ones_in_parts(self, tmp_path: Path) -> None:
        sizes = {"a": 40, "b": 40, "c": 40, "d": 250, "e.gz": 250, "f": 40}
        files = [tmp_path / name for name in sizes]
        for file in files:
            file.write_bytes(b"x" * sizes[file.name])
        told = [[(part.file.name, part.number, part.of) for part in portion] for portion in portions_of(files, 100)]
        assert told == [
            [("a", 0, 1), ("b", 0, 1)],
            [("c", 0, 1)],
            *([("d", number, 3)] for number in range(3)),
            [("e.gz", 0, 1)],
            [("f", 0, 1)],
        ]

    def test_there_are_not_too_many_portions_of_a_large_log(self, tmp_path: Path) -> None:
        files = []
        for number in range(3):
            files.append(tmp_path / str(number))
            with files[-1].open("wb") as file:
                file.truncate(100 << 30)  # holes: no disk is taken
        assert len(portions_of(files, portion_bytes_of(files))) <= 1003

    def test_a_partition_is_the_same_on_every_machine(self) -> None:
        # The CRC-32 of a is 3904355907.
        assert partitions_of(pl.Series(["a", ""]), 1000).tolist() == [907, 0]
