"""A log prepared in tasks gives what it gives in one process, to the byte; here the tasks run one after another."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from segue.errors import BadLog
from tests.log_samples import SAMPLES, Sample
from training.listening_logs import Engine, PrepareReport, Work, prepare, prepare_options
from training.log_partitions import partitions_of
from training.log_portions import Part, opened, portions_of
from training.partitioned_preparation import portion_bytes_of, prepare_in_tasks


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


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def told(report: PrepareReport) -> tuple[Any, ...]:
    return (
        (report.kind, report.files, report.lines, report.malformed),
        (report.malformed_reasons, report.malformed_examples, report.steps, report.dataset.facts),
    )


def both(sample: Sample, folder: Path, engine: Engine) -> tuple[PrepareReport, PrepareReport]:
    files, options = sample.write(folder / "log"), prepare_options(**sample.options)
    plain = prepare(sample.kind, files, folder / "plain", options)
    return plain, prepare(sample.kind, files, folder / "tasks", options, engine=engine)


@pytest.mark.parametrize("portion_bytes", [1 << 30, 20_000, 3_001])
@pytest.mark.parametrize("name", SAMPLES)
def test_tasks_give_the_files_and_the_report_of_one_process(name: str, portion_bytes: int, tmp_path: Path) -> None:
    plain, tasks = both(SAMPLES[name], tmp_path, engine(portion_bytes))
    assert contents(tmp_path / "tasks") == contents(tmp_path / "plain")
    assert told(tasks) == told(plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "plain", "tasks"]
