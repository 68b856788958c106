"""The least time that a step can take on this machine: what it must multiply and move, over what the machine can do."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from segue.catalogue import FIRST_TRACK_ROW
from segue.window import Sessions
from training.data.loader import make_batch, touched_rows
from training.options import NeuralOptions

# Weights and both moments of a touched row are read and written, its gradient is written and read.
_PASSES_OVER_A_ROW = 8
_BATCHES = 10


def counted(step: Callable[[], object]) -> int:
    """Floating-point operations of matrix products in what `step` does: two for a multiply-add."""
    in_place: Any = {torch.ops.aten.addmm_: _of_addmm}  # which torch's own table lacks
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step()
    return int(counter.get_total_flops())


def _of_addmm(_: Any, left: Any, right: Any, **__: object) -> int:
    return int(2 * left[0] * left[1] * right[1])


def bytes_moved(sessions: Sessions, num_rows: int, options: NeuralOptions) -> tuple[float, float]:
    """Rows that a step touches and bytes that it must move, means over some batches."""
    rng = np.random.default_rng(0)
    rows, moved = [], []
    for _ in range(_BATCHES):
        batch = make_batch(
            sessions.select(rng.integers(0, len(sessions), options.batch_size)), options.window, options.objective
        )
        negatives = torch.randint(FIRST_TRACK_ROW, num_rows, (options.negatives,))
        rows.append(len(touched_rows(batch, negatives)))
        of_batch = sum(tensor.numel() * tensor.element_size() for tensor in batch)
        moved.append(_PASSES_OVER_A_ROW * rows[-1] * options.dimension * 4 + of_batch)
    return float(np.mean(rows)), float(np.mean(moved))


def clock(device: torch.device) -> Callable[[], float]:
    """What steps and the bound are timed by: CPU time of one thread on a CPU, which neighbours do not lengthen.

    Threads that wait for each other take no CPU time, or take it for nothing: several are timed as a GPU is.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def flops_per_s(device: torch.device, precision: str) -> float:
    """What products of 2048 x 2048 matrices reach, the median of some."""
    size = 2048
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    seconds = _median_s(lambda: left @ right, device)
    torch.set_float32_matmul_precision("highest")
    return float(2 * size**3 / seconds)


def bytes_per_s(device: torch.device) -> float:
    """Bytes read and written a second in copying 256 MB, the median of some."""
    source = torch.zeros(64_000_000, device=device).fill_(1.0)
    target = torch.zeros_like(source)
    return 2 * source.numel() * 4 / _median_s(lambda: target.copy_(source), device)


def _median_s(work: Callable[[], object], device: torch.device, times: int = 15) -> float:
    now = clock(device)
    seconds = []
    for _ in range(times):
        started = now()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(now() - started)
    return float(np.median(seconds[2:]))
