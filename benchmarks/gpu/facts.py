"""What is known about the machine and the code: read by the steps, written beside their results."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("torch", "triton", "faiss-gpu", "faiss-cpu", "onnxruntime", "numpy", "polars")
_QUERY: Final = "name,driver_version,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit,pci.bus_id"


def commit() -> str:
    """The commit of the code: that of git, or SEGUE_COMMIT where the folder was copied without its history."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        found = ""
    return found or os.environ.get("SEGUE_COMMIT", "unknown")


def card() -> dict[str, str] | None:
    """The first card as nvidia-smi describes it; None where there is none."""
    told = _nvidia_smi(f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    if not told:
        return None
    values = [value.strip() for value in told.splitlines()[0].split(",")]
    return dict(zip(_QUERY.split(","), values, strict=True))


def card_used_mib() -> int | None:
    """Mebibytes of the first card's memory that are in use, by all processes; None where there is no card."""
    told = _nvidia_smi("--query-gpu=memory.used", "--format=csv,noheader,nounits")
    first = told.splitlines()[0].strip() if told else ""
    return int(first) if first.isdecimal() else None


def _nvidia_smi(*arguments: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def packages() -> dict[str, str]:
    """The versions of the packages that figures depend on; those that are not installed are missing."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory and Python."""
    models = [line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) // 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory[0] if memory else None,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
