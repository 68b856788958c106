"""Trainings on toy data that are run by one process and by two: `torchrun ... tests/fit_together.py FOLDER`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from segue.errors import BadOption
from segue.window import Sessions, SessionViews
from training.checkpoint import Checkpoints
from training.data.splits import Examples
from training.distributed import init_distributed
from training.models.encoders.encoder import SessionEncoder
from training.models.encoders.gru4rec import Gru4Rec
from training.models.encoders.sasrec import SasRec
from training.options import Gru4RecOptions, NeuralOptions, SasRecOptions
from training.processes import Processes
from training.run import end_process
from training.trainer import FitResult, fit

TRACKS, SESSIONS, LENGTH = 40, 57, 6
SIZES: dict[str, Any] = {
    "dimension": 16,
    "window": 6,
    "epochs": 3,
    "patience": 3,
    "batch_size": 7,  # odd, and one session is left for the last step: fewer than processes
    "negatives": 20,
    "dropout": 0.0,
}


@dataclass(frozen=True)
class Case:
    """A training; in float64 rounding has no time to grow, so that equal means equal."""

    encoder: type[SessionEncoder]
    options: NeuralOptions
    dtype: torch.dtype = torch.float64


def sasrec(**options: Any) -> SasRecOptions:
    return SasRecOptions(**SIZES | {"heads": 2} | options)


CASES = {
    "sasrec": Case(SasRec, sasrec()),
    "gru4rec": Case(Gru4Rec, Gru4RecOptions(**SIZES)),
    "every row": Case(SasRec, sasrec(updates="all")),
    "averaged": Case(SasRec, sasrec(ema_decay=0.9)),
    "skip loss alone": Case(SasRec, sasrec(alpha=0.0)),
    "float32": Case(SasRec, sasrec(), torch.float32),
    "dropout": Case(SasRec, sasrec(dropout=0.2), torch.float32),
}


class Killed(Exception):
    """Stops training."""


class Reporter:
    """Stops training after some steps, where there are any."""

    def __init__(self, steps: int = 0) -> None:
        self.left = steps

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def epoch(self, line: dict[str, float]) -> None: ...


def planted(count: int, seed: int) -> Sessions:
    """After track t comes t + 1 (in a ring); every third track is always skipped. Lengths differ."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LENGTH + 1, count)
    rows = np.concatenate([(rng.integers(TRACKS) + np.arange(length)) % TRACKS + 1 for length in lengths])
    return Sessions(rows, rows % 3 == 0, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def asked(sessions: Sessions) -> Examples:
    ends = sessions.offsets[1:] - 1
    inputs = sessions.cut(sessions.offsets[:-1], ends)
    return Examples(SessionViews.of(inputs), sessions.rows[ends], sessions.skipped[ends], np.arange(len(ends)))


def fitted(
    case: Case, folder: Path, processes: Processes, reporter: Reporter | None = None, identity: Any = None
) -> FitResult:
    """Train, from the checkpoint in `folder` where there is one."""
    with _default(case.dtype):
        encoder = case.encoder(TRACKS + 1, case.options)
        encoder.initialise(torch.Generator().manual_seed(0))
        checkpoints = Checkpoints(folder, case.options.model_dump() if identity is None else identity)
        told = (planted(SESSIONS, 0), asked(planted(21, 1)), checkpoints, reporter or Reporter())
        return fit(encoder, *told, processes=processes)


def killed(case: Case, folder: Path, processes: Processes, steps: int) -> None:
    """Train for so many steps, and leave a checkpoint after the last but one."""
    with mock.patch("training.trainer.CHECKPOINT_EVERY_S", 0.0):
        try:
            fitted(case, folder, processes, Reporter(steps))
        except Killed:
            processes.barrier()  # until the checkpoint is whole


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _refusal(case: Case, folder: Path, processes: Processes, identity: dict[str, Any]) -> str:
    try:
        fitted(case, folder, processes, identity=identity)
    except BadOption as error:
        return str(error)
    return ""


def sharded(folder: Path, processes: Processes) -> None:
    """The first case with each process holding a part of the table; its checkpoint is read by those that do not."""
    processes.sharded = True
    killed(CASES["sasrec"], folder / "sharded.training", processes, steps=13)
    done = fitted(CASES["sasrec"], folder / "sharded.training", processes)
    keep("sharded", done, folder, processes)
    killed(CASES["sasrec"], folder / "made whole.training", processes, steps=13)
    processes.sharded = False
    keep("made whole", fitted(CASES["sasrec"], folder / "made whole.training", processes), folder, processes)


def keep(name: str, done: FitResult, folder: Path, processes: Processes) -> None:
    """The weights and the history of the leader."""
    if processes.is_main:
        torch.save(done.encoder.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(done.history))


def main(folder: Path) -> None:
    """Train every case together."""
    with init_distributed("cpu") as processes:
        for name in ("resumed", "handed on"):
            killed(CASES["sasrec"], folder / f"{name}.training", processes, steps=13)  # in the second epoch
        for name, case in {**CASES, "resumed": CASES["sasrec"]}.items():
            keep(name, fitted(case, folder / f"{name}.training", processes), folder, processes)
        sharded(folder, processes)
        refusals = {
            "other options": _refusal(CASES["sasrec"], folder / "a", processes, {"seed": processes.rank}),
            "published": _refusal(Case(SasRec, sasrec(negative_pairing="published")), folder / "b", processes, {}),
        }
        processes.sharded = True
        refusals["sharded"] = _refusal(CASES["averaged"], folder / "c", processes, {})
        (folder / f"refusals-{processes.rank}.json").write_text(json.dumps(refusals))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_process()
