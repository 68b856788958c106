"""How fast SASRec trains here, in RecTools and in RecBole, on the same sessions, and against what the machine can do.

    python -m benchmarks.training.run --folder /tmp/training

Every measurement is a process of its own with the same number of threads. Peers run between two runs of ours, so that
what else the machine does counts for both; a ratio is a peer's rate to the mean of the two. Environments of the peers
are made as by benchmarks/peers/run.py. Writes benchmarks/results/training.json, and training.md beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import torch

from benchmarks.peers.run import RESULTS, environment
from benchmarks.training.generated import written
from benchmarks.training.report import page

HERE = Path(__file__).parent
OURS = (sys.executable, "-m", "benchmarks.training.ours")
# RecBole's examples are prefixes: 896 are those of 64 sessions. A thousand negatives encode each a thousand times.
PEERS: dict[str, tuple[str, list[str]]] = {
    "RecTools, 1,000 negatives": ("rectools", ["--loss", "sampled_softmax", "--negatives", "1000"]),
    "RecTools, full softmax": ("rectools", ["--loss", "softmax"]),
    "RecTools, BCE, 1 negative": ("rectools", ["--loss", "BCE", "--negatives", "1"]),
    "RecBole, BPR, 1,000 negatives": ("recbole", ["--loss", "BPR", "--negatives", "1000", "--batch-size", "1000"]),
    "RecBole, full softmax": ("recbole", ["--loss", "CE", "--batch-size", "896"]),
    "RecBole, BPR, 1 negative": ("recbole", ["--loss", "BPR", "--negatives", "1", "--batch-size", "896"]),
}
LARGEST_FOR_PEERS = 600_000


def watched(command: Sequence[str | Path], chosen: argparse.Namespace, cwd: Path | None = None) -> dict[str, Any]:
    """Run a measurement; it ends early, and the result says so, where it takes too long or too much memory."""
    out = chosen.folder / f"one_{os.getpid()}.json"
    out.unlink(missing_ok=True)
    most = chosen.most_gib * 2**30
    env = os.environ | {"OMP_NUM_THREADS": str(chosen.threads)}
    common = ["--threads", str(chosen.threads), "--out", out]
    started, peak = time.monotonic(), 0
    with (
        (chosen.folder / "log").open("ab") as log,
        subprocess.Popen([*command, *common], stdout=log, stderr=log, env=env, cwd=cwd) as process,
    ):
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, seen.memory_info().rss if process.poll() is None else 0)
            late = time.monotonic() - started > chosen.timeout_s
            if late or peak > most:
                process.kill()
                why = f"stopped after {chosen.timeout_s:.0f} s"
                return {"failed": why if late else f"more than {chosen.most_gib:g} GiB", "peak_rss_bytes": peak}
            time.sleep(0.1)
    if process.returncode or not out.is_file():
        return {"failed": f"ended with {process.returncode}", "peak_rss_bytes": peak}
    return dict(json.loads(out.read_text()))


def ours(tracks: int, chosen: argparse.Namespace, *extra: str) -> dict[str, Any]:
    command: list[str | Path] = [
        *OURS,
        written(chosen.folder, tracks),
        "--seconds",
        str(chosen.seconds),
        "--device",
        chosen.device,
    ]
    return watched([*command, *extra], chosen)


def beside(tracks: int, peer: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """A peer between two runs of ours."""
    library, arguments = PEERS[peer]
    script = HERE / f"{library}_speed.py"
    before = ours(tracks, chosen)
    python = environment(library, chosen.peers)
    command: list[str | Path] = [
        python,
        script,
        written(chosen.folder, tracks),
        "--seconds",
        str(chosen.seconds),
        *arguments,
    ]
    found = watched(command, chosen, cwd=chosen.folder)  # RecBole leaves logs where it runs
    runs = [run for run in (before, ours(tracks, chosen)) if "failed" not in run]
    if runs and "failed" not in found:
        for unit in ("sessions_per_s", "sessions_per_cpu_s"):
            found[f"ours to it, {unit}"] = fmean(run[unit] for run in runs) / found[unit]
    for run in runs:
        found["its memory to ours"] = found["peak_rss_bytes"] / run["peak_rss_bytes"]
    print(tracks, peer, json.dumps(found), flush=True)
    return found


def of_rounds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over the rounds that gave one."""
    good = [run for run in runs if "failed" not in run] or runs[:1]
    figures = {
        key: median(run[key] for run in good) for key, value in good[0].items() if isinstance(value, float | int)
    }
    nested = {key: value for key, value in good[0].items() if isinstance(value, dict)}
    parts = {key: {name: median(run[key][name] for run in good) for name in value} for key, value in nested.items()}
    return {**good[0], **figures, **parts, "runs": len(good)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where sessions and logs go; outside the tree")
    parser.add_argument("--peers", type=Path, help="where the peers' environments are; FOLDER if not given")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 60_000, 600_000, 5_000_000])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of CPU time in steps, a measurement")
    parser.add_argument("--timeout-s", type=float, default=240.0)
    parser.add_argument("--most-gib", type=float, default=16.0, help="of memory that a measurement may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for ours alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    chosen = parser.parse_args(arguments)
    chosen.folder = chosen.folder.resolve()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    chosen.peers = (chosen.peers or chosen.folder).resolve()
    result: dict[str, Any] = {
        "threads": chosen.threads,
        "device": chosen.device,
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "ours": {},
        "peers": {},
    }
    settings = {"without NCE": (), "with NCE": ("--beta", "0.5"), "bfloat16": ("--precision", "bfloat16")}
    of_ours: dict[tuple[int, str], list[dict[str, Any]]] = {}
    of_peers: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for _ in range(chosen.rounds):
        for tracks in chosen.sizes:
            for name, extra in settings.items():
                of_ours.setdefault((tracks, name), []).append(ours(tracks, chosen, "--profile", *extra))
                print(tracks, name, json.dumps(of_ours[tracks, name][-1]), flush=True)
            for peer in chosen.only if tracks <= LARGEST_FOR_PEERS and chosen.device == "cpu" else ():
                of_peers.setdefault((tracks, peer), []).append(beside(tracks, peer, chosen))
        for kind, found in (("ours", of_ours), ("peers", of_peers)):
            for (tracks, name), runs in found.items():
                result[kind].setdefault(str(tracks), {})[name] = of_rounds(runs)
        chosen.out.write_text(json.dumps(result, indent=2) + "\n")
        chosen.out.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    main()
