"""Runs of `prepare` in tests: comparing an engine with the one in memory, and a Ray for the engine `ray`."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segue.errors import BadOption
from tests.log_samples import Sample
from training.prepare.pipeline import Engine, PrepareReport, prepare, prepare_options
from training.prepare.ray_engine import connected

# Ray itself is not imported here, because it reads its environment when it is.
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a dataset."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def facts(report: PrepareReport) -> tuple[Any, ...]:
    """The report without the folder of the dataset."""
    return (
        (report.kind, report.files, report.lines, report.malformed),
        (report.malformed_reasons, report.malformed_examples, report.steps, report.dataset.facts),
    )


def assert_same(sample: Sample, folder: Path, engine: Engine) -> PrepareReport:
    """The engine and the one in memory write the same files and reports, and leave nothing else in the folder."""
    files, options = sample.write(folder / "log"), prepare_options(**sample.options)
    in_memory = prepare(sample.kind, files, folder / "memory", options)
    report = prepare(sample.kind, files, folder / "engine", options, engine=engine)
    assert contents(folder / "engine") == contents(folder / "memory")
    assert len(contents(folder / "engine")) == 3
    assert facts(report) == facts(in_memory)
    assert sorted(path.name for path in folder.iterdir()) == ["engine", "log", "memory"]
    return report


def skip_if_busy(message: str) -> None:
    """Skip if the machine is too busy for Ray, which gives its own processes 30 s to start (three attempts)."""
    if "timed out during startup" in message:
        pytest.skip(f"this machine is too busy for Ray: {message}")


@contextlib.contextmanager
def ray_of_two() -> Iterator[Any]:
    """A Ray of two processes."""
    with contextlib.ExitStack() as stack:
        try:
            ray = stack.enter_context(connected(cpus=2))
        except BadOption as error:
            skip_if_busy(str(error))
            raise
        yield ray
