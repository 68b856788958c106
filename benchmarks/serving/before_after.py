"""Two versions of the service in one run, turn about: requests a second of one core, and their ratio.

    git worktree add ../before COMMIT
    python -m benchmarks.serving.before_after --folder /tmp/serving --before ../before

With `--before . --prelude CODE` the same version is compared with itself, with one thing switched off.

Both are this environment's packages with another source tree, on one release and one Redis, and run at the same time on
one core. Load goes to one after the other, a few seconds each: a shared machine changes its speed within minutes, so
only neighbouring measurements can be compared. The ratio is the median over the pairs, with the interval of a
bootstrap. The processor time of a request is measured too. Writes results/before_after.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.serving.run import RECALL, RESULTS, load, redis, release_of, served, sessions_of

PORTS: Final = {"before": 8911, "after": 8913}
SCENARIOS: Final = ("recommend", "report", "report_and_recommend")
HERE: Final = Path(__file__).parents[2]


def serving(
    folder: Path, release: Path, url: str, name: str, tree: Path, prelude: str = "", workers: int = 1
) -> AbstractContextManager[psutil.Process]:
    """The service of a source tree, rejecting nothing. `prelude` is Python that runs before it.

    One worker runs on the server's core, several run on all cores.
    """
    settings = (tree / "service" / "settings.py").read_text()
    budget = "LATENCY_BUDGET_MS" if "latency_budget_ms" in settings else "SHED_AFTER_MS"  # as old versions call it
    environment = {
        "PYTHONPATH": str(tree),
        "PYTHONSAFEPATH": "1",  # or `-m` would find the code of the current folder first
        "SEGUE_DATA_DIR": str(folder / f"data-{name}"),
        "SEGUE_RANKING_THREADS": "1",
        "SEGUE_LOG_LEVEL": "warning",
        f"SEGUE_{budget}": "0",
    }
    redis_url = f"{url}?db={list(PORTS).index(name)}"
    start = f"{prelude}\nimport sys\nfrom segue.cli import main\nsys.exit(main())"
    command = [sys.executable, "-c", start, "serve", release, "--redis-url", redis_url, "--port", PORTS[name]]
    return served([*command, "--workers", workers], environment, PORTS[name], workers)


def commit_of(tree: Path) -> str:
    """The short name of its commit."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def cpu_s(process: psutil.Process) -> float:
    """Processor time of the service and its workers so far, in seconds."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def measure(folder: Path, scenario: str, seconds: float, name: str, process: psutil.Process) -> tuple[float, float]:
    """Requests a second, and the service's processor time of a request in microseconds."""
    began = cpu_s(process)
    done = load(folder, PORTS[name], scenario, seconds, warm_up_s=0.0)
    return done["per_s"], (cpu_s(process) - began) / done["requests"] * 1e6


def figures(pairs: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, Any]:
    """Of pairs [pairs, before and after, requests a second and processor time]; ratios above 1 are gains."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name, before, after, ratios in (
        ("per_s", pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 1, 0] / pairs[:, 0, 0]),
        ("cpu_us", pairs[:, 0, 1], pairs[:, 1, 1], pairs[:, 0, 1] / pairs[:, 1, 1]),
    ):
        drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        found[name] = {
            "before": round(float(np.median(before)), 1),
            "after": round(float(np.median(after)), 1),
            "ratio": round(float(np.median(ratios)), 3),
            "interval_95": np.percentile(drawn, [2.5, 97.5]).round(3).tolist(),
            "ratio_of_each_pair": ratios.round(3).tolist(),
        }
    return found


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where releases and logs go; outside the tree")
    parser.add_argument("--before", type=Path, required=True, help="source tree of the earlier version")
    parser.add_argument("--prelude", default="", help="Python that runs before the earlier version")
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "before_after.json")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    release = release_of(chosen.folder, chosen.tracks, chosen.kind, RECALL.get(chosen.tracks, 0.99))
    sessions_of(release, chosen.folder / "sessions.json")
    trees = {"before": chosen.before.resolve(), "after": HERE}
    result: dict[str, Any] = {"tracks": chosen.tracks, "pairs": chosen.pairs, "seconds": chosen.seconds}
    result |= {"prelude": chosen.prelude} if chosen.prelude else {}
    with redis(chosen.folder / "redis") as url, ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                serving(chosen.folder, release, url, name, tree, chosen.prelude if name == "before" else "")
            )
            for name, tree in trees.items()
        }
        for name in trees:
            load(chosen.folder, PORTS[name], "fill", 60)
        for scenario in SCENARIOS:
            pairs = np.zeros((chosen.pairs, 2, 2))
            for number in range(-1, chosen.pairs):  # the first pair warms up
                for which, (name, process) in list(enumerate(processes.items()))[:: -1 if number % 2 else 1]:
                    pairs[number, which] = measure(chosen.folder, scenario, chosen.seconds, name, process)
            result[scenario] = figures(pairs)
    result |= {f"commit_{name}": commit_of(tree) for name, tree in trees.items()}
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
