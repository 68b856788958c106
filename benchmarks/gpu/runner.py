"""Runs steps, each in a process of its own with a time limit; keeps results, so that a later run goes on from there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu import facts
from benchmarks.gpu.plan import STEPS, Step

_WATCHED_EVERY_S: Final = 1.0


@dataclass
class CardMemory:
    """The most memory of the card that was in use, by all processes, while it was watched."""

    before_mib: int | None = None
    most_mib: int | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch within the block."""
        self.before_mib = self.most_mib = facts.card_used_mib()
        thread = threading.Thread(target=self._watch, daemon=True)
        if self.before_mib is not None:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            if self.before_mib is not None:
                thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_WATCHED_EVERY_S):
            self.most_mib = max(self.most_mib or 0, facts.card_used_mib() or 0)


def step_command(step: Step, run: "Run", out: Path) -> list[str]:
    """The command whose process is a step."""
    argv = [sys.executable, "-m", "benchmarks.gpu.step", step.name, "--work", str(run.work), "--out", str(out)]
    return [*argv, "--dry-run"] if run.dry_run else argv


@dataclass(frozen=True)
class Run:
    """Where a run keeps what, and how long it may take."""

    results: Path  # a file gpu_NAME.json for each step
    work: Path  # indexes, releases and checkpoints, which later steps use
    dry_run: bool
    until: float  # by time.monotonic()
    command: Callable[[Step, "Run", Path], list[str]] = step_command

    def file(self, step: Step) -> Path:
        """Where the result of a step is kept."""
        return self.results / f"gpu_{step.name.replace('-', '_')}.json"

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    def finished(self, step: Step) -> bool:
        """Whether there is a result of this kind of run, of a step that succeeded."""
        content = read(self.file(step))
        return content is not None and "failed" not in content and content["dry_run"] == self.dry_run


def read(file: Path) -> dict[str, Any] | None:
    """The content of a result file; None where there is none, or it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "dry_run" in found else None


def run_all(steps: Sequence[Step], run: Run, tell: Callable[[str], None], *, again: bool = False) -> list[str]:
    """Run the steps that are not finished. The names of those that are not finished afterwards."""
    run.results.mkdir(parents=True, exist_ok=True)
    run.work.mkdir(parents=True, exist_ok=True)
    open_steps: list[str] = []
    for step in steps:
        if STEPS[0].name in open_steps:
            tell(f"{step.name}: not started, as {STEPS[0].name} is not in order")
            open_steps.append(step.name)
        elif run.finished(step) and not again:
            tell(f"{step.name}: finished before, {run.file(step)} is kept (--again repeats it)")
        elif run.left_s < step.least_s:
            tell(f"{step.name}: not started, {run.left_s:.0f} s are left and it may take {step.most_s} s")
            open_steps.append(step.name)
        else:
            tell(
                f"{step.name}: {step.about}; at most {min(step.most_s, run.left_s):.0f} s, {run.left_s:.0f} s are left"
            )
            content = run_one(step, run)
            _write(run.file(step), content)
            outcome = f"failed, {content['failed']}" if "failed" in content else "done"
            tell(f"{step.name}: {outcome}, {content['seconds']:.0f} s; {run.left_s:.0f} s are left")
            open_steps += [step.name] if "failed" in content else []
    return open_steps


def run_one(step: Step, run: Run) -> dict[str, Any]:
    """Run one step in its own process: what its result file holds."""
    out = run.work / f"{step.name}.out.json"
    out.unlink(missing_ok=True)
    memory, began = CardMemory(), time.monotonic()
    limit_s = min(step.most_s, run.left_s)
    with memory.watched():
        returncode = _ended(run.command(step, run, out), limit_s, dry_run=run.dry_run)
    content: dict[str, Any] = {
        "step": step.name,
        "dry_run": run.dry_run,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": facts.commit(),
        "command": f"python -m benchmarks.gpu --only {step.name}" + (" --dry-run" if run.dry_run else ""),
        "card": facts.card(),
        "card_mib": {"before": memory.before_mib, "most": memory.most_mib},
        "seconds": round(time.monotonic() - began, 1),
    }
    if returncode is None:
        return content | {"failed": f"stopped after {limit_s:.0f} s"}
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return content | {"failed": f"its process ended with {returncode} and left no result"}
    return {**content, **found}


def _ended(argv: Sequence[str], limit_s: float, *, dry_run: bool) -> int | None:
    """The exit code of a process; None where it was stopped, with all that it had started, after `limit_s`."""
    env = os.environ | {"PYTHONPATH": _with_root(), "PYTHONUNBUFFERED": "1"} | _threads(dry_run=dry_run)
    process = subprocess.Popen(argv, env=env, cwd=facts.ROOT, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Its group, which is its own: what it started and did not end holds memory of the card.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)


def _threads(*, dry_run: bool) -> dict[str, str]:
    """What a step's libraries are told of threads, unless the user has: all cores, one thread in a dry run.

    Some benchmarks set one thread where nothing is set, and an index of millions is built by all cores. Threads that
    wait go to sleep soon, as in the command line: other work may have the cores.
    """
    number = "1" if dry_run else str(len(os.sched_getaffinity(0)))
    wanted = {"OMP_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number, "GOMP_SPINCOUNT": "3000"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _with_root() -> str:
    before = os.environ.get("PYTHONPATH")
    return f"{facts.ROOT}{os.pathsep}{before}" if before else str(facts.ROOT)


def _write(file: Path, content: dict[str, Any]) -> None:
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(file)
