"""Step `training`: SASRec with the skip loss at the size of MSSD: steps by batch size and precision, and a profile.

    python -m benchmarks.gpu.training_speed --compiled --out FILE.json

times the encoder under torch.compile, in a process of its own: compiling may take long or fail, which must not take
the other figures along.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.environment import copy_bytes_per_s
from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.sizes import DRY, FULL, Sizes
from benchmarks.gpu.training_set import drawn
from benchmarks.training import bound, ours
from segue.window import Sessions
from training.models.encoders.sasrec import SasRec
from training.options import SasRecOptions

BETA: Final = 0.5  # of the skip loss: the paper's for MSSD
_COMPILED_LIMIT_S: Final = 70
_PROFILED_STEPS: Final = 20
_PRECISIONS: Final = ("float32", "bfloat16")


def measure(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Time every variant; what compiling gives is told, also where it gives nothing."""
    sessions = drawn(sizes.sessions, sizes.tracks)
    bandwidth = copy_bytes_per_s(sizes)
    result: dict[str, Any] = {
        "sessions": len(sessions),
        "plays": len(sessions.rows),
        "tracks": sizes.tracks,
        "copy_bytes_per_s": bandwidth,
        "variants": [],
    }
    for batch_size in sizes.batch_sizes:
        for precision in _PRECISIONS:
            variant = timed(sessions, sizes, options(batch_size, precision), bandwidth)
            result["variants"].append(variant)
            print(variant, flush=True)
    result["variants"].append(_compiled(sizes, folder))
    print(result["variants"][-1], flush=True)
    result["profile"] = profiled(sessions, sizes, options(sizes.batch_sizes[0], "float32"))
    if sizes.torch_device == "cuda":
        result["most_allocated_bytes"] = torch.cuda.max_memory_allocated()
        result["card_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return result


def options(batch_size: int, precision: str) -> SasRecOptions:
    """The paper's options with a batch size and a precision."""
    return SasRecOptions.model_validate({"beta": BETA, "batch_size": batch_size, "precision": precision})


def timed(
    sessions: Sessions, sizes: Sizes, chosen: SasRecOptions, bandwidth: float, *, compiled: bool = False
) -> dict[str, Any]:
    """Milliseconds of a step, sessions a second, and how long all epochs would take without validation."""
    encoder = made(sizes, chosen, compiled=compiled)
    clock = ours.trained(encoder, sessions, sizes.torch_device, sizes.steps + ours.WARM_UP)
    taken = np.diff(clock.at)[min(ours.WARM_UP, len(clock.at) // 2) :]
    step_s = float(np.median(taken))
    rows, moved = bound.bytes_moved(sessions, sizes.tracks + 1, chosen)
    steps = -(-len(sessions) // chosen.batch_size)
    return {
        "batch_size": chosen.batch_size,
        "precision": chosen.precision,
        "compiled": compiled,
        "step_ms": round(1000 * step_s, 4),
        "sessions_per_s": round(chosen.batch_size / step_s, 1),
        "rows_a_step": round(rows, 1),
        "bandwidth_share": round(moved / step_s / bandwidth, 5),
        "epochs": sizes.epochs,
        "extrapolated_s": round(sizes.epochs * steps * float(np.mean(taken)), 1),
    }


def made(sizes: Sizes, chosen: SasRecOptions, *, compiled: bool = False) -> SasRec:
    """An encoder with first weights; `compiled`: its prediction goes through torch.compile."""
    encoder = SasRec(sizes.tracks + 1, chosen)
    encoder.initialise(torch.Generator().manual_seed(0))
    if compiled:
        # Without a card the graph is captured, and run as it is: compiling for a CPU takes minutes.
        backend = "eager" if sizes.dry_run else "inductor"
        encoder.predict = torch.compile(encoder.predict, dynamic=True, backend=backend)  # type: ignore[method-assign]
    return encoder


def profiled(sessions: Sessions, sizes: Sizes, chosen: SasRecOptions) -> dict[str, Any]:
    """Where a step's time goes: shares of its parts on the host, and the longest kernels on the card."""
    encoder = made(sizes, chosen)
    shares = ours.phases(encoder, sessions, sizes.torch_device, _PROFILED_STEPS)
    result: dict[str, Any] = {"phases": {name: round(share, 4) for name, share in shares.items()}}
    if sizes.torch_device == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            clock = ours.trained(encoder, sessions, "cuda", _PROFILED_STEPS)
        took = {event.key: event.self_device_time_total / 1e3 / _PROFILED_STEPS for event in profiler.key_averages()}
        longest = sorted(took.items(), key=lambda one: -one[1])[:10]
        result["kernels_ms"] = {name[:100]: round(ms, 5) for name, ms in longest}
        step_ms = 1000 * float(np.median(np.diff(clock.at)))
        result["busy_share"] = round(sum(took.values()) / step_ms, 4)
    return result


def _compiled(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """The same in a process of its own; `failed` says why there is no figure."""
    out = folder / "compiled.json"
    out.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "benchmarks.gpu.training_speed", "--compiled", "--out", str(out)]
    argv += ["--dry-run"] if sizes.dry_run else []
    told = {"batch_size": sizes.batch_sizes[0], "precision": "float32", "compiled": True}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            subprocess.run(argv, cwd=ROOT, stderr=errors, timeout=_COMPILED_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            return told | {"failed": f"not compiled and timed within {_COMPILED_LIMIT_S} s"}
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(out.read_text()))
        errors.seek(0)
        last = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return told | {"failed": last[-1][:200] if last else "no result"}


def main() -> None:
    """One variant under torch.compile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compiled", action="store_true", required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    sizes = DRY if chosen.dry_run else FULL
    sessions = drawn(sizes.sessions, sizes.tracks)
    variant = timed(
        sessions, sizes, options(sizes.batch_sizes[0], "float32"), copy_bytes_per_s(sizes), compiled=chosen.compiled
    )
    chosen.out.write_text(json.dumps(variant))


if __name__ == "__main__":
    main()
