"""Step `tests`: every test marked `gpu`. On a card none of them may be skipped."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.step_errors import StepFailed

_MARK = "mark.gpu"


def measure(sizes: Sizes, _: Path) -> dict[str, Any]:
    """Run them. Raises StepFailed where one fails, or none ran on a card."""
    files = sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py") if _MARK in file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # torch warns where an operation has no deterministic version on a card: shown, and no failure.
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-W",
            "default::UserWarning",
            "-p",
            "no:cacheprovider",
        ]
        subprocess.run([*argv, f"--junitxml={report}", *files], cwd=ROOT, check=False)
        if not report.is_file():
            raise StepFailed("pytest left no report: see its output above")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))  # noqa: S314 (pytest has just written it)
    result = {outcome: [_name(case) for case in cases if _outcome(case) == outcome] for outcome in _OUTCOMES}
    if result["failed"]:
        raise StepFailed(f"{len(result['failed'])} of {len(cases)} tests failed: {', '.join(result['failed'])}")
    if not sizes.dry_run and (result["skipped"] or not result["passed"]):
        raise StepFailed(f"{len(result['skipped'])} of {len(cases)} tests were skipped: {', '.join(result['skipped'])}")
    return {"tests": len(cases), **result}


_OUTCOMES = ("passed", "skipped", "failed")


def _outcome(case: ElementTree.Element) -> str:
    found = {child.tag for child in case}
    return "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '')}::{case.get('name', '')}"
