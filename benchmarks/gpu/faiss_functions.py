"""Whether the installed FAISS has every function that `index/` uses: `python -m benchmarks.gpu.faiss_functions`.

For the wheel of faiss-gpu on a machine without a card, where the GPU index itself cannot run.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.facts import ROOT

_OPTIONS: Final = {"GpuClonerOptions": ("useFloat16",), "SearchParametersIVF": ("nprobe",)}
_PARAMETERS: Final = {"index_cpu_to_gpu": ("provider", "device", "index", "options")}
_GPU_ONLY: Final = ("StandardGpuResources", "GpuClonerOptions", "index_cpu_to_gpu", "get_num_gpus")


def used(folder: Path) -> set[str]:
    """What the modules of a folder take from FAISS: names such as `ScalarQuantizer.QT_8bit`."""
    return {name for file in folder.glob("*.py") for name in _of_faiss(ast.parse(file.read_text(encoding="utf-8")))}


def _of_faiss(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("faiss.") and name.replace(".", "_").isidentifier():
                yield name.removeprefix("faiss.")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr"}:
            module, asked, *_ = node.args
            if ast.unparse(module) == "faiss" and isinstance(asked, ast.Constant):
                yield str(asked.value)


def missing(faiss: Any, names: set[str]) -> list[str]:
    """Those of the names that a FAISS lacks, and options and parameters that it has under other names."""
    found = [name for name in sorted(names) if not _has(faiss, name)]
    for name, options in _OPTIONS.items():
        if hasattr(faiss, name):
            found += [f"{name}.{option}" for option in options if not hasattr(getattr(faiss, name), option)]
    for name, parameters in _PARAMETERS.items():
        if hasattr(faiss, name) and tuple(inspect.signature(getattr(faiss, name)).parameters) != parameters:
            found.append(f"{name}({', '.join(parameters)})")
    return found


def _has(faiss: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(faiss, part):
            return False
        faiss = getattr(faiss, part)
    return True


def main() -> int:
    """Say what is missing; 1 if anything is."""
    from index.faiss_cpu import faiss

    names = used(ROOT / "index") | set(_GPU_ONLY)
    lacking = missing(faiss, names)
    print(
        f"FAISS {faiss.__version__}: {len(names) - len(lacking)} of {len(names)} functions that index/ uses are there"
    )
    for name in lacking:
        print(f"missing: faiss.{name}")
    return 1 if lacking else 0


if __name__ == "__main__":
    raise SystemExit(main())
