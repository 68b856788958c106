"""Step `training-run`: all epochs of the training that the step `training` has extrapolated.

It takes the paper's batch size where that ends in time, else the fastest variant. It stops itself before the step's
bound; the epochs that were finished then give the figure.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.training_set import drawn, split
from benchmarks.gpu.training_speed import made, options
from benchmarks.training.ours import Enough
from training.checkpoint import Checkpoints
from training.processes import Processes
from training.trainer import fit

_DEFAULT: Final = (64, "float32")


def measure(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Train, with validation after each epoch and checkpoints."""
    batch_size, precision = chosen_variant(folder / "training.out.json", sizes)
    print(f"batches of {batch_size}, {precision}", flush=True)
    training, validation = split(drawn(sizes.sessions, sizes.tracks))
    given = options(batch_size, precision).model_copy(update={"epochs": sizes.epochs, "patience": sizes.epochs})
    reporter = Timed(time.monotonic() + sizes.run_s)
    with contextlib.suppress(Enough):
        checkpoints = Checkpoints(folder / f"training-run-{batch_size}-{precision}", given.model_dump())
        fit(made(sizes, given), training, validation, checkpoints, reporter, Processes(sizes.torch_device))
        checkpoints.remove()
    result: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision,
        "epochs": sizes.epochs,
        "epochs_done": len(reporter.epoch_s),
        "epoch_s": [round(seconds, 2) for seconds in reporter.epoch_s],
        "sessions_per_s": reporter.sessions_per_s,
        "losses": reporter.losses,
        "seconds": round(sum(reporter.epoch_s), 1),
        "whole_s": whole_s(reporter.epoch_s, sizes.epochs),
    }
    if sizes.torch_device == "cuda":
        result["most_allocated_bytes"] = torch.cuda.max_memory_allocated()
    return result


def chosen_variant(file: Path, sizes: Sizes) -> tuple[int, str]:
    """Batch size and precision: the smallest batches that end in time, in the faster precision."""
    try:
        variants = json.loads(file.read_text())["result"]["variants"]
    except (OSError, ValueError, KeyError):
        return _DEFAULT
    plain = [variant for variant in variants if not variant["compiled"]]
    for batch_size in sizes.batch_sizes:
        fastest = min((v for v in plain if v["batch_size"] == batch_size), key=lambda v: float(v["extrapolated_s"]))
        if fastest["extrapolated_s"] <= sizes.run_s:
            return batch_size, str(fastest["precision"])
    fastest = min(plain, key=lambda v: float(v["extrapolated_s"]))
    return int(fastest["batch_size"]), str(fastest["precision"])


def whole_s(epoch_s: list[float], epochs: int) -> float | None:
    """Seconds of all epochs; extrapolated from those that were finished. None where none was."""
    if not epoch_s:
        return None
    return round(sum(epoch_s) + (epochs - len(epoch_s)) * sum(epoch_s) / len(epoch_s), 1)


class Timed:
    """Takes the time of each epoch, validation included, and ends the training when its time is over."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.began = time.monotonic()
        self.epoch_s: list[float] = []
        self.sessions_per_s: list[float] = []
        self.losses: list[float] = []

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:  # noqa: ARG002
        """A step was taken."""
        if time.monotonic() > self.until:
            raise Enough

    def epoch(self, line: dict[str, float]) -> None:
        """An epoch ended."""
        now = time.monotonic()
        self.epoch_s.append(now - self.began)
        self.began = now
        self.sessions_per_s.append(line["sessions_per_s"])
        self.losses.append(round(line["loss"], 4))
        print(
            f"epoch {line['epoch']:.0f}: {self.epoch_s[-1]:.1f} s, {line['sessions_per_s']:,.0f} sessions/s", flush=True
        )
