"""Damaged requests, bytes and files: none fails the service, ends a process, or keeps it busy.

`make test` takes 900 cases, a change 10,000 (.ci/run), and `make fuzz` 110,000.

The seed is fixed, so a case that fails is repeated by its number (tests/fuzzing/__main__.py).
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from tests.fuzzing.__main__ import TARGETS

# By what takes about as long: two processes for two cores.
MANY: Final = (
    {
        "bodies": 36_000,
        "wire": 12_000,
        "logs": 1_000,
        "exports": 1_000,
        "log-files": 2_000,
        "log-commands": 2_000,
        "encoders": 150,
        "settings": 2_000,
        "keys": 3_000,
        "datasets": 1_500,
    },
    {"calls": 50_000, "indexes": 150, "releases": 1_000, "json": 3_000, "event-logs": 500},
)
TENTH: Final = tuple({name: max(10, cases // 11) for name, cases in part.items()} for part in MANY)
FEW: Final = ({name: max(2, cases // 120) for part in MANY for name, cases in part.items()} | {"releases": 30},)
SLOWEST_MS: Final = 10_000  # of one case, beside whatever else the machine does; most take one or two


def fuzz(cases: dict[str, int], folder: Path, *more: str) -> list[dict[str, Any]]:
    """What came of the cases. Fails with what a process said that ended by itself, and the case that it ended at."""
    folder.mkdir()
    targets = [f"{name}={number}" for name, number in cases.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing", *targets, "--folder", str(folder), *more],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"},
        capture_output=True,
        text=True,
        timeout=890,
        check=False,
    )
    case = (folder / "case").read_text().strip() if (folder / "case").exists() else "none"
    assert done.returncode == 0, f"ended with {done.returncode} at {case}:\n{done.stderr[-4000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("parts", "least"),
    [
        (FEW, 700),
        pytest.param(TENTH, 9_900, marks=pytest.mark.slow),
        pytest.param(MANY, 100_000, marks=[pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)]),
    ],
    ids=["900", "10,000", "110,000"],
)
def test_nothing_fails_ends_or_hangs(
    parts: tuple[dict[str, int], ...], least: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(len(parts)) as pool:
        found = pool.map(fuzz, parts, [tmp_path / str(number) for number in range(len(parts))])
        facts = [one for of_part in found for one in of_part]
    with capsys.disabled():
        for one in facts:
            sys.stdout.write(f"\n  {json.dumps(one)}")
        sys.stdout.write(f"\n  {sum(one['cases'] for one in facts):,} cases\n")
    assert {one["target"] for one in facts} == set(TARGETS)
    assert sum(one["cases"] for one in facts) >= least
    assert max(one["slowest_ms"] for one in facts) < SLOWEST_MS
    # Damage that everybody refuses at once, or nobody notices, would test nothing.
    outcomes = {one["target"]: one["outcomes"] for one in facts}
    assert {"200", "421", "422"} <= set(outcomes["bodies"]) & set(outcomes["calls"])
    assert {"200", "400"} <= set(outcomes["wire"])
    for name in ("logs", "exports", "log-commands", "datasets", "releases", "keys", "json", "settings"):
        assert {"read", "refused"} == set(outcomes[name]), name


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("fails", r"ended with 1 at planted-fails 0:\n(?s:.*)status=500"),
        ("ends", r"ended with -6 at planted-ends 2:\n(?s:.*)Aborted"),
        ("hangs", r"ended with 1 at planted-hangs 2:\n(?s:.*)Timeout"),
    ],
)
def test_what_must_not_be_is_told_with_its_case(tmp_path: Path, harm: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        fuzz({f"planted-{harm}": 3}, tmp_path / "f", "--hang-s", "2")
