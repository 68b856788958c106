"""A log prepared in this process and by an engine, and whether the two are the same to the byte."""

from pathlib import Path
from typing import Any

from tests.log_samples import Sample
from training.prepare.pipeline import Engine, PrepareReport, prepare, prepare_options


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a dataset."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def told(report: PrepareReport) -> tuple[Any, ...]:
    """All that a report says but where the dataset is."""
    return (
        (report.kind, report.files, report.lines, report.malformed),
        (report.malformed_reasons, report.malformed_examples, report.steps, report.dataset.facts),
    )


def assert_same(sample: Sample, folder: Path, engine: Engine) -> PrepareReport:
    """The two datasets have the same files, the reports say the same, and nothing else is left in the folder."""
    files, options = sample.write(folder / "log"), prepare_options(**sample.options)
    plain = prepare(sample.kind, files, folder / "plain", options)
    report = prepare(sample.kind, files, folder / "tasks", options, engine=engine)
    assert contents(folder / "tasks") == contents(folder / "plain")
    assert len(contents(folder / "tasks")) == 3
    assert told(report) == told(plain)
    assert sorted(path.name for path in folder.iterdir()) == ["log", "plain", "tasks"]
    return report
