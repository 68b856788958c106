"""Two versions of the service in one run, turn about: requests a second of one core, and their ratio.

    git worktree add ../before COMMIT
    python -m benchmarks.serving.before_after --folder /tmp/serving --before ../before

Both are this environment's packages with another source tree, on the same release and Redis. Each round measures both;
the first to run alternates, and the ratio is the median of the rounds'. Writes results/before_after.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.serving.run import RECALL, RESULTS, load, redis, release_of, served, sessions_of

PORT: Final = 8911
SCENARIOS: Final = ("recommend", "report", "report_and_recommend")
HERE: Final = Path(__file__).parents[2]


def serving(folder: Path, release: Path, url: str, tree: Path) -> AbstractContextManager[psutil.Process]:
    """The service of a source tree on the server's core, refusing nothing."""
    environment = {
        "PYTHONPATH": str(tree),
        "SEGUE_DATA_DIR": str(folder / f"data-{tree.name}"),
        "SEGUE_RANKING_THREADS": "1",
        "SEGUE_LOG_LEVEL": "warning",
        "SEGUE_LATENCY_BUDGET_MS": "0",
    }
    return served(
        [sys.executable, "-m", "segue", "serve", release, "--redis-url", url, "--port", PORT], environment, PORT
    )


def commit_of(tree: Path) -> str:
    """The short name of its commit."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where releases and logs go; outside the tree")
    parser.add_argument("--before", type=Path, required=True, help="source tree of the earlier version")
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "before_after.json")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    release = release_of(chosen.folder, chosen.tracks, chosen.kind, RECALL.get(chosen.tracks, 0.99))
    sessions_of(release, chosen.folder / "sessions.json")
    trees = {"before": chosen.before.resolve(), "after": HERE}
    found: dict[str, dict[str, list[float]]] = {name: {one: [] for one in trees} for name in SCENARIOS}
    with redis(chosen.folder / "redis") as url:
        for number in range(chosen.rounds):
            for name in list(trees)[:: -1 if number % 2 else 1]:
                with serving(chosen.folder, release, url, trees[name]):
                    load(chosen.folder, PORT, "fill", 60)
                    for scenario in SCENARIOS:
                        found[scenario][name].append(load(chosen.folder, PORT, scenario, chosen.seconds)["per_s"])
    result: dict[str, Any] = {"tracks": chosen.tracks, "rounds": chosen.rounds}
    for scenario, figures in found.items():
        ratios = np.array(figures["after"]) / np.array(figures["before"])
        result[scenario] = {
            "before_per_s": round(float(np.median(figures["before"])), 1),
            "after_per_s": round(float(np.median(figures["after"])), 1),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_of_each_round": ratios.round(3).tolist(),
        }
    result |= {f"commit_{name}": commit_of(tree) for name, tree in trees.items()}
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
