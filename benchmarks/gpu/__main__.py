"""Prove and measure everything that runs on a GPU: `python -m benchmarks.gpu`, or `make gpu-check`.

Each step is a process with a time limit. A finished step is kept and skipped by the next run, so that the whole can be
done in several commands:  python -m benchmarks.gpu --minutes 9.5
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import goals, table
from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.plan import STEPS
from benchmarks.gpu.runner import Run, run_all

DRY_FOLDER = ROOT / "build" / "gpu-check"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps that were chosen; 0 if all of them are finished afterwards."""
    chosen = _parser().parse_args(arguments)
    results = chosen.results or (DRY_FOLDER / "results" if chosen.dry_run else table.RESULTS)
    work = chosen.work or (DRY_FOLDER / "work" if chosen.dry_run else ROOT / "build" / "gpu-work")
    if chosen.dry_run and results.resolve() == table.RESULTS.resolve():
        print(f"--results {results}: a dry run measures no GPU; choose another folder", file=sys.stderr)
        return 2
    if chosen.dry_run and chosen.again:
        shutil.rmtree(work, ignore_errors=True)
    wanted = [step for step in STEPS if step.name in (chosen.only or [s.name for s in STEPS])]
    run = Run(results, work, chosen.dry_run, time.monotonic() + 60 * chosen.minutes)
    left_open = run_all([s for s in wanted if s.name not in chosen.skip], run, _tell, again=chosen.again)
    page = table.page(table.read_all(results), dry_run=chosen.dry_run)
    print(page)
    for line in goals.lines(table.read_all(results), dry_run=chosen.dry_run):
        print(line)
    if results.resolve() == table.RESULTS.resolve():
        table.write(table.README, page)
    if left_open:
        print(f"not finished: {', '.join(left_open)}; the same command goes on with these")
    return 1 if left_open else 0


def _parser() -> argparse.ArgumentParser:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="run these steps")
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="leave these steps out")
    parser.add_argument("--again", action="store_true", help="repeat steps that are finished")
    parser.add_argument("--minutes", type=float, default=30.0, help="start no step, and let none run, beyond these")
    parser.add_argument("--results", type=Path, help="folder of gpu_*.json  [default: benchmarks/results]")
    parser.add_argument("--work", type=Path, help="folder of indexes, releases, checkpoints  [default: build/gpu-work]")
    parser.add_argument(
        "--dry-run", action="store_true", help="small sizes on the CPU, into build/gpu-check: tries the code alone"
    )
    return parser


def _tell(line: str) -> None:
    print(f"gpu-check: {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
