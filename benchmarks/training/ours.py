"""One measurement of `training.trainer` in a process of its own: time of steps, where it goes, memory, and the bound.

python -m benchmarks.training.ours SESSIONS.npz --seconds 15 --out FILE.json
"""

import argparse
import contextlib
import gc
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.training import bound
from segue.window import Sessions, SessionViews
from training.checkpoint import Checkpoints
from training.data.splits import Examples
from training.models.encoders.sasrec import SasRec
from training.options import SasRecOptions
from training.processes import Processes
from training.trainer import fit

WARM_UP = 10
LABELS = ("data", "encoder", "loss", "backward", "update")


class Enough(Exception):
    """Training has gone on for long enough."""


class Clock:
    """Takes the time of every step, and stops training after so many steps or seconds of CPU time."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = steps, seconds
        self.at: list[float] = []
        self.cpu: list[float] = []

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:  # noqa: ARG002
        """A step was taken."""
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.at) >= self.steps or (self.cpu[-1] - self.cpu[0] > self.seconds and len(self.at) > 2 * WARM_UP):
            raise Enough

    def epoch(self, line: dict[str, float]) -> None:
        """Nothing: too short a training for an epoch is no measurement, but no error."""

    def step_s(self, device: str) -> float:
        """Seconds of a step after the warm-up, the median, by the clock that the bound is measured with."""
        by_cpu = bound.clock(torch.device(device)) is time.process_time
        return float(np.median(np.diff(self.cpu if by_cpu else self.at)[WARM_UP:]))


def trained(encoder: SasRec, sessions: Sessions, device: str, steps: int, seconds: float = 1e9) -> Clock:
    """Take some steps."""
    clock = Clock(steps, seconds)
    first = np.arange(1)
    validation = Examples(SessionViews.of(sessions.select(first)), sessions.rows[:1], sessions.skipped[:1], first)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(encoder, sessions, validation, Checkpoints(Path(folder), {}), clock, Processes(device))
    gc.collect()  # both moments of the table, which the way out by an exception leaves in a cycle
    return clock


def phases(encoder: SasRec, sessions: Sessions, device: str, steps: int = 20) -> dict[str, float]:
    """Share of each labelled part of the step in its time. What is left: rows are chosen, lent and put back."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        clock = trained(encoder, sessions, device, steps)
    found = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages()}
    of = {name: found.get(f"segue: {name}", 0.0) for name in LABELS}
    of["loss"] -= of["encoder"]  # which is taken inside it
    whole = (clock.at[-1] - clock.at[0]) * steps / (steps - 1)
    return {name: seconds / whole for name, seconds in of.items()}


def kernels(encoder: SasRec, sessions: Sessions, steps: int = 20) -> dict[str, float]:
    """Milliseconds a step of the ten longest GPU kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        trained(encoder, sessions, "cuda", steps)
    of = {event.key: event.self_device_time_total / 1e3 / steps for event in profiler.key_averages()}
    return dict(sorted(of.items(), key=lambda one: -one[1])[:10])


def measured(sessions: Sessions, num_rows: int, chosen: argparse.Namespace) -> dict[str, Any]:
    options = SasRecOptions(beta=chosen.beta, precision=chosen.precision)
    encoder = SasRec(num_rows, options)
    encoder.initialise(torch.Generator().manual_seed(0))
    device = torch.device(chosen.device)
    clock = trained(encoder, sessions, chosen.device, steps=10_000, seconds=chosen.seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step_s = clock.step_s(chosen.device)
    wall_s = np.diff(clock.at)[WARM_UP:]
    result: dict[str, Any] = {
        "steps": len(wall_s),
        "step_ms": 1e3 * step_s,
        "step_wall_ms": 1e3 * float(np.median(wall_s)),
        "sessions_per_s": options.batch_size / float(np.median(wall_s)),
        "sessions_per_cpu_s": options.batch_size / float(np.median(np.diff(clock.cpu)[WARM_UP:])),
        "peak_rss_bytes": peak,
    }
    if device.type == "cuda":
        result |= {"device": torch.cuda.get_device_name(device), "gpu_bytes": torch.cuda.max_memory_allocated(device)}
    if chosen.profile:
        result |= bounded(encoder, sessions, num_rows, chosen, step_s)
        shares = phases(encoder, sessions, chosen.device)
        result["phases_ms"] = {name: 1e3 * step_s * share for name, share in shares.items()}
        if device.type == "cuda":
            result["kernels_ms"] = kernels(encoder, sessions)
    return result


def bounded(
    encoder: SasRec, sessions: Sessions, num_rows: int, chosen: argparse.Namespace, step_s: float
) -> dict[str, Any]:
    """The bound, measured beside the step, and the step's share of it."""
    device, steps = torch.device(chosen.device), 5
    flops = bound.counted(lambda: trained(encoder, sessions, chosen.device, steps)) / steps
    rows, moved = bound.bytes_moved(sessions, num_rows, encoder.options)
    rate, bandwidth = bound.flops_per_s(device, chosen.precision), bound.bytes_per_s(device)
    bound_s = flops / rate + moved / bandwidth
    return {
        "flops_a_step": flops,
        "rows_a_step": rows,
        "bytes_a_step": moved,
        "flops_per_s": rate,
        "bytes_per_s": bandwidth,
        "bound_ms": 1e3 * bound_s,
        "share_of_bound": bound_s / step_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    arrays = np.load(chosen.arrays)
    sessions = Sessions(arrays["rows"], arrays["skipped"], arrays["offsets"])
    chosen.out.write_text(json.dumps(measured(sessions, int(arrays["num_rows"]), chosen)))


if __name__ == "__main__":
    main()
