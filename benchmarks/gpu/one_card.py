"""Step `processes`: two processes that would train on one card are refused in one clear line."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.step_errors import StepFailed

_WORKER: Final = "benchmarks.gpu.one_card_process"
_LIMIT_S: Final = 50
MORE_THAN_CARDS: Final = "--nproc-per-node asks for more processes than this machine has GPUs: start at most"
SAME_CARD: Final = "use the same GPU ("


def measure(sizes: Sizes, _: Path) -> dict[str, Any]:
    """Start two in two ways. Raises StepFailed where they train, or end in another way than by the line."""
    result = {"same card": _one_line(by_hand(sizes), SAME_CARD)}
    if not sizes.dry_run:
        import torch

        cards = torch.cuda.device_count()
        result["more processes than cards"] = _one_line(by_torchrun(cards + 1), MORE_THAN_CARDS, starter=True)
    return result


def by_hand(sizes: Sizes) -> list[str]:
    """What two processes say that were started as if on two machines, and so take the same card."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_started(sizes, rank, port) for rank in range(2)]
    try:
        said = [process.communicate(timeout=_LIMIT_S)[0] for process in processes]
    except subprocess.TimeoutExpired:
        raise StepFailed(f"two processes on one card were not refused within {_LIMIT_S} s") from None
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode == 0 for process in processes):
        raise StepFailed("two processes on one card were not refused")
    return said


def _started(sizes: Sizes, rank: int, port: int) -> "subprocess.Popen[str]":
    own = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = os.environ | {name: str(value) for name, value in own.items()}
    argv = [sys.executable, "-m", _WORKER, sizes.torch_device]
    return subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def by_torchrun(processes: int) -> list[str]:
    """What more processes than there are cards say, started by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    argv = [*torchrun, "-m", _WORKER, "cuda"]
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{processes} processes were not refused within {_LIMIT_S} s") from None
    if done.returncode == 0:
        raise StepFailed(f"{processes} processes were not refused")
    return [done.stdout + done.stderr]


def _one_line(said: list[str], expected: str, *, starter: bool = False) -> str:
    """The line of the refusal. Raises StepFailed where one of them says nothing of the kind, or has a traceback.

    `starter`: torchrun's own output is among it, which ends with a traceback of torchrun whatever a process says.
    """
    lines = [next((line for line in text.splitlines() if expected in line), "") for text in said]
    if not all(lines) or (not starter and any("Traceback" in text for text in said)):
        raise StepFailed(f"expected a line with {expected!r} and no traceback, found: {' | '.join(said)[-2000:]}")
    return lines[0]
