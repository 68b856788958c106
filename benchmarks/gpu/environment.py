"""Step `environment`: the card, the driver, the libraries and the copy bandwidth that figures are compared with."""

from pathlib import Path
from typing import Any

from benchmarks.gpu import facts
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.step_errors import StepFailed

COPIED_BYTES = 4 * 2**30
_DRY_COPIED_BYTES = 2**24


def measure(sizes: Sizes, _: Path) -> dict[str, Any]:
    """Report the environment. Raises StepFailed where torch or FAISS sees no card."""
    import torch

    from index.faiss_cpu import faiss
    from index.faiss_gpu import gpu_available

    found: dict[str, Any] = {
        "card": facts.card(),
        "machine": facts.machine(),
        "packages": facts.packages(),
        "torch": {"cuda": torch.version.cuda, "sees_card": torch.cuda.is_available()},
        "faiss": {"version": faiss.__version__, "options": faiss.get_compile_options(), "sees_card": gpu_available()},
    }
    if not sizes.dry_run:
        if not torch.cuda.is_available():
            raise StepFailed(f"torch {torch.__version__} sees no CUDA device: check nvidia-smi and the driver")
        if not gpu_available():
            raise StepFailed(f"FAISS {faiss.__version__} sees no CUDA device: install faiss-gpu in place of faiss-cpu")
        found["torch"] |= {
            "capability": list(torch.cuda.get_device_capability()),
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        }
    found["copy_bytes_per_s"] = copy_bytes_per_s(sizes)
    return found


def copy_bytes_per_s(sizes: Sizes, times: int = 20) -> float:
    """Bytes read and written a second by copies within the device's memory: the median of some."""
    import numpy as np
    import torch

    device = torch.device(sizes.torch_device)
    size = _DRY_COPIED_BYTES if sizes.dry_run else min(COPIED_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.ones(int(size) // 4, device=device)
    target = torch.empty_like(source)
    seconds = [_seconds(lambda: target.copy_(source), device) for _ in range(times)]
    return float(2 * size / np.median(seconds[3:]))


def _seconds(work: Any, device: Any) -> float:
    """The time of `work` on the device: by CUDA events where it is a card."""
    import time

    import torch

    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    cuda: Any = torch.cuda  # its events have no types
    before, after = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


if __name__ == "__main__":  # for steps whose own process must not hold torch's memory on the card
    import sys

    from benchmarks.gpu.sizes import DRY, FULL

    print(copy_bytes_per_s(DRY if "--dry-run" in sys.argv else FULL))
