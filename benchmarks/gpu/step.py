"""One step, started by `benchmarks.gpu`: `python -m benchmarks.gpu.step NAME --work FOLDER --out FILE`."""

import argparse
import importlib
import json
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import STEPS, named
from benchmarks.gpu.sizes import DRY, FULL
from benchmarks.gpu.step_errors import StepFailed
from segue.errors import SegueError


def main() -> int:
    """Run the step and write its result, or why there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=[step.name for step in STEPS])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    chosen = parser.parse_args()
    step = named(chosen.step)
    module: Any = importlib.import_module(f"benchmarks.gpu.{step.module}")
    try:
        result = {"result": module.measure(DRY if chosen.dry_run else FULL, chosen.work, *step.arguments)}
    except (StepFailed, SegueError) as error:
        result = {"failed": str(error)}
    except (RuntimeError, MemoryError) as error:  # of torch and FAISS: a card without the memory, above all
        traceback.print_exc()
        result = {
            "failed": f"{type(error).__name__}: {(str(error).strip() or 'without a message').splitlines()[0][:300]}"
        }
    chosen.out.write_text(json.dumps(result), encoding="utf-8")
    return 1 if "failed" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
