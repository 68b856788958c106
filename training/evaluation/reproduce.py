"""Train and evaluate many systems for several seeds, splits, protocols and policies, to reproduce the paper's tables.

A run is one system with one seed on one split. Each run calls the commands `segue train` and `segue evaluate` in
separate processes. Several runs can therefore run in parallel, and the peak memory of each run is measured separately.
Finished runs are skipped. Interrupted training resumes from its checkpoint. Each run writes these files:

    FOLDER/SPLIT/SYSTEM-SEED/           the release
    FOLDER/SPLIT/SYSTEM-SEED.log        the commands and their output
    FOLDER/SPLIT/SYSTEM-SEED.full.json  the output of `segue evaluate --output`, one file per protocol and policy for
                                        repeats: `full.never.json` and `full.after-2.json` are of other policies
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from segue.errors import BadOption, SegueError
from segue.release import read_manifest
from training.data.dataset import Dataset
from training.data.splits import Split, Targets
from training.notes import training_notes
from training.options import NeuralOptions, Options, read_options
from training.registry import MODELS, system_name

Protocol: TypeAlias = Literal["full", "sampled"]

_STOP_WAIT_S: Final = 10.0
_PLAIN: Final = {"beta": 0.0}
NEURAL: Final = ("sasrec", "bert4rec", "gru4rec", "caser")


@dataclass(frozen=True)
class System:
    """A model and the options that define one variant of the model. The options override those of a recipe."""

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


SYSTEMS: Final[dict[str, System]] = {
    **{name: System(name, _PLAIN) for name in NEURAL},
    **{f"{name}+nce": System(name) for name in NEURAL},
    **{name: System(name) for name, model in MODELS.items() if not issubclass(model.options, NeuralOptions)},
    **{name: System(name, _PLAIN) for name in MODELS if name.startswith("hybrid")},
    **{f"{name}+nce": System(name) for name in MODELS if name.startswith("hybrid")},
    # Variants for the open questions of the paper (docs/evaluation.md).
    "sasrec+nce+published-pairing": System("sasrec", {"negative_pairing": "published"}),
    "sasrec+next-played": System("sasrec", {**_PLAIN, "objective": "next-played"}),
    "sasrec+nce+next-played": System("sasrec", {"objective": "next-played"}),
    "sasrec+played-only": System("sasrec", {**_PLAIN, "plays": "played"}),
}


@dataclass(frozen=True)
class Run:
    """One system with one seed on one split of a dataset."""

    system: str
    options: Options
    split: Split
    dataset: Path
    fingerprint: str
    folder: Path
    targets: Targets = "last"

    @property
    def name(self) -> str:
        """Return the file name of the run without its extension, such as `sasrec+nce-0`."""
        return f"{self.system}-{self.options.seed}"

    @property
    def release(self) -> Path:
        """Return the path of the run's release."""
        return self.folder / self.split / self.name

    def result(self, protocol: Protocol, repeat: str) -> Path:
        """Return the path of the run's evaluation result for `protocol` and a policy for repeats."""
        policy = "" if repeat == "allow" else f".{repeat.replace(':', '-')}"
        return self.folder / self.split / f"{self.name}.{protocol}{policy}.json"


@dataclass(frozen=True)
class Plan:
    """All runs on one dataset, and the protocols and policies for repeats to evaluate them with."""

    runs: Sequence[Run]
    protocols: Sequence[Protocol]
    repeats: Sequence[str] = ("allow",)

    @property
    def results(self) -> list[Path]:
        """Return the result files of all runs."""
        return [path for run in self.runs for path in self.results_of(run)]

    def results_of(self, run: Run) -> list[Path]:
        """Return the result files of one run."""
        return [run.result(protocol, repeat) for protocol in self.protocols for repeat in self.repeats]


@dataclass(frozen=True)
class Wanted:
    """The requested systems, seeds, splits, protocols, policies and options. They apply to every dataset."""

    systems: Sequence[str]
    seeds: Sequence[int]
    splits: Sequence[Split]
    protocols: Sequence[Protocol]
    recipe: str | None
    settings: Sequence[str] = ()
    targets: Targets = "last"
    repeats: Sequence[str] = ("allow",)


def plan(wanted: Wanted, dataset: Path, fingerprint: str, folder: Path) -> Plan:
    """Return the runs in the order of execution.

    A deterministic model runs only with the first seed.

    Raises:
        BadOption: A system or an option is unknown.

    """
    unknown = [name for name in wanted.systems if name not in SYSTEMS]
    if unknown:
        raise BadOption(f"--system {unknown[0]!r}: expected one of {', '.join(SYSTEMS)}")
    runs = [
        Run(name, _options(name, wanted, seed), split, dataset, fingerprint, folder, wanted.targets)
        for split in wanted.splits
        for seed in wanted.seeds
        for name in dict.fromkeys(wanted.systems)
        if seed == wanted.seeds[0] or MODELS[SYSTEMS[name].model].seeded
    ]
    return Plan(runs, wanted.protocols, tuple(dict.fromkeys(wanted.repeats)))


def plan_notes(plan: Plan, dataset: Dataset) -> list[str]:
    """Return what the data do not support in the trainings of a plan, for a system with the skip loss if there is one.

    `dataset` is the opened dataset of the plan.
    """
    by_split: dict[Split, Run] = {}
    for run in sorted(plan.runs, key=lambda run: not getattr(run.options, "beta", 0)):
        by_split.setdefault(run.split, run)
    notes = [
        note
        for run in by_split.values()
        for note in training_notes(SYSTEMS[run.system].model, run.options, dataset, run.split, run.targets)
    ]
    return list(dict.fromkeys(notes))


def _options(name: str, wanted: Wanted, seed: int) -> Options:
    system = SYSTEMS[name]
    kind = MODELS[system.model].options
    neural = issubclass(kind, NeuralOptions)
    options = read_options(
        kind, wanted.recipe, wanted.settings if neural else (), model=system.model, **{**system.settings, "seed": seed}
    )
    found = system_name(system.model, options.model_dump())
    if found != name:
        raise BadOption(f"the options given make {name} a {found}: leave out what decides the version of a system")
    return options


OnProgress: TypeAlias = Callable[[str, int, int], None]  # name of the finished run, finished runs, total runs


def run_plan(plan: Plan, jobs: int, on_progress: OnProgress) -> list[Path]:
    """Execute all unfinished runs, `jobs` at a time, and return the result files of all runs.

    `on_progress` is called once at the start and after each finished run.

    Raises:
        BadOption: The folder contains a run with other options or of another dataset.
        SegueError: A command failed.

    """
    for run in plan.runs:
        _check_same_run(run)
    todo = [run for run in plan.runs if not all(path.is_file() for path in plan.results_of(run))]
    commands = _Commands(os.environ.get("OMP_NUM_THREADS") or str(max((os.cpu_count() or 1) // jobs, 1)))
    done = len(plan.runs) - len(todo)
    on_progress("", done, len(plan.runs))
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_do, run, plan, commands): run for run in todo}
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += 1
                    on_progress(f"{futures[future].split} {futures[future].name}", done, len(plan.runs))
        except BaseException:
            commands.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return plan.results


def _check_same_run(run: Run) -> None:
    """Check that existing files of `run` have the same options, targets and dataset, and the policy in their name.

    Raises:
        BadOption: One of them differs.

    """
    found: list[tuple[Path, Any, Any, Any]] = []
    if run.release.exists():
        manifest = read_manifest(run.release)
        trained = manifest.evaluation.get("targets", "last")
        found.append((run.release, manifest.options, manifest.dataset.fingerprint, trained))
    for file in run.folder.glob(f"{run.split}/{run.name}.*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        asked = content.get("targets", "last")
        repeat = content.get("repeat", "allow")
        if file != run.result(content["protocol"], repeat):
            raise BadOption(
                f"{file} was made with --repeat {repeat}, which its name does not say: choose another --out"
            )
        found.append((file, content["options"], content["dataset"]["fingerprint"], asked))
    expected = run.options.model_dump()
    for path, options, fingerprint, targets in found:
        if fingerprint != run.fingerprint:
            raise BadOption(f"{path} was made from another dataset: choose another --out")
        if targets != run.targets:
            raise BadOption(f"{path} was made with --targets {targets}, here {run.targets}: choose another --out")
        differing = sorted(key for key in expected | options if expected.get(key) != options.get(key))
        if differing:
            what = ", ".join(f"{key} {options.get(key)!r} there, {expected.get(key)!r} here" for key in differing[:3])
            raise BadOption(f"{path} was trained with other options ({what}): delete it or choose another --out")


def _do(run: Run, plan: Plan, commands: "_Commands") -> None:
    split = ["--split", run.split, "--targets", run.targets]
    run.release.parent.mkdir(parents=True, exist_ok=True)
    log = run.release.with_name(f"{run.name}.log")
    if not run.release.exists():
        settings = [f"--set={key}={value}" for key, value in run.options.model_dump().items()]
        model = SYSTEMS[run.system].model
        commands.run(["train", run.dataset, "--model", model, *settings, *split, "--out", run.release], log)
    for protocol, repeat in product(plan.protocols, plan.repeats):
        out = run.result(protocol, repeat)
        if not out.is_file():
            asked = ["--protocol", protocol, *split, "--repeat", repeat, "--exact", "--output", out]
            commands.run(["evaluate", run.release, run.dataset, *asked], log)


class _Commands:
    """Runs `segue` commands in separate processes and can stop all of them."""

    def __init__(self, threads: str) -> None:
        self._environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, arguments: Sequence[object], log: Path) -> None:
        """Run one command, append its output to `log` and wait until it exits.

        Raises:
            SegueError: The command failed, or `stop` was called earlier.

        """
        command = [sys.executable, "-m", "segue", *map(str, arguments)]
        with log.open("ab") as stream:
            stream.write(f"$ segue {' '.join(map(str, arguments))}\n".encode())
            stream.flush()
            with self._lock:
                if self._stopped:
                    raise SegueError("stopped")
                process = subprocess.Popen(command, stdout=stream, stderr=stream, env=self._environment)
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
            raise SegueError(f"segue {arguments[0]} ended with code {code}: {last} (all of it in {log})")

    def stop(self) -> None:
        """Terminate all running commands. The next run resumes training from the checkpoint.

        A command that is still importing modules can ignore SIGTERM. Kill every command that does not exit in time.
        """
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
            for process in self._running:
                try:
                    process.wait(_STOP_WAIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
