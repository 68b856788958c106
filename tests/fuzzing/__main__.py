"""`python -m tests.fuzzing bodies=1000 logs=50 --seed S --folder F`: targets and cases, in this process.

A JSON line each says what came of them. Native code is fuzzed here, so the process may end at any case, as it does at
one that takes too long. Whoever started it then finds in `F/case` which one it was, by which it is repeated:
`python -m tests.fuzzing bodies=1 --first NUMBER ...`.
"""

import argparse
import faulthandler
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.fuzzing import exports, files, log_commands, log_files, planted, requests, wire

TARGETS: Final[dict[str, Any]] = {
    **requests.TARGETS,
    **wire.TARGETS,
    **files.TARGETS,
    **exports.TARGETS,
    **log_files.TARGETS,
    **log_commands.TARGETS,
}
_MOST_BYTES: Final = 8 * 2**30


def main() -> None:
    """Fuzz the targets that are named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="+", help=f"name=cases; {', '.join(TARGETS)}")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang-s", type=float, default=20)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for target in given.targets:
        name, _, cases = target.partition("=")
        facts = fuzz(name, range(given.first, given.first + int(cases)), given.seed, given.hang_s, given.folder)
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


def fuzz(name: str, cases: range, seed: int, hang_s: float, folder: Path) -> dict[str, Any]:
    """Give a target its cases; what came of them. What must not be is raised, or ends the process."""
    (folder / name).mkdir()
    outcomes: Counter[str] = Counter()
    slowest = (0.0, 0)
    began = time.monotonic()
    with (folder / "case").open("w") as case, (TARGETS | planted.TARGETS)[name](folder / name) as target:
        for number in cases:
            case.seek(0)
            case.write(f"{name} {number}\n")
            case.flush()
            faulthandler.dump_traceback_later(hang_s, exit=True)
            started = time.monotonic()
            # Each case has a generator of its own, so that it can be repeated alone.
            outcomes[target.case(random.Random(f"{seed}/{number}"))] += 1
            slowest = max(slowest, (time.monotonic() - started, number))
        faulthandler.cancel_dump_traceback_later()
    return {
        "target": name,
        "cases": len(cases),
        "seconds": round(time.monotonic() - began, 1),
        "slowest_ms": round(slowest[0] * 1000, 1),
        "slowest_case": slowest[1],
        "outcomes": dict(sorted(outcomes.items())),
    }


if __name__ == "__main__":
    faulthandler.enable()
    main()
