"""RecTools' SASRec and BERT4Rec, RecBole's GRU4Rec and Caser on the same split as ours, tuned, over seeds.

    SEGUE_DATA=folder python benchmarks/peers/run.py --folder /tmp/peers

Makes the two environments, exports the split, tunes each peer's learning rate on validation with seed 0, and runs the
best for every seed. What is there already is not done again. Writes benchmarks/results/peers_mssd.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from segue.ranking_metrics import METRICS, NOT_FOUND, bootstrap

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
PEERS = {
    "sasrec": "rectools",
    "sasrec-bce": "rectools",
    "bert4rec": "rectools",
    "gru4rec": "recbole",
    "caser": "recbole",
}
# As many as ours have in the recipe mssd.
EPOCHS = {"sasrec": 20, "sasrec-bce": 20, "bert4rec": 20, "gru4rec": 12, "caser": 12}
LEARNING_RATES = (0.0005, 0.001, 0.005)
SHOWN = ("HR@1", "HR@5", "HR@10", "HR@20", "MRR@10")


def environment(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, made where it is not there."""
    python = folder / peer / "bin" / "python"
    done = folder / f"{peer}.installed"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder / peer], check=True)
        requirements = HERE / f"requirements-{peer}.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
        done.touch()
    return python


def measured(model: str, learning_rate: float, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """One run's result, carried out unless it is there."""
    out: Path = chosen.folder / "results" / f"{model}-{learning_rate}-{seed}.json"
    if not out.is_file():
        out.parent.mkdir(exist_ok=True)
        script = HERE / f"{PEERS[model]}_run.py"
        command = [environment(PEERS[model], chosen.folder), script, chosen.folder / "mssd.npz", "--model", model]
        options = {"learning-rate": learning_rate, "seed": seed, "epochs": EPOCHS[model], "out": out}
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        with out.with_suffix(".log").open("wb") as log:
            subprocess.run(
                command,
                check=True,
                stdout=log,
                stderr=log,
                cwd=chosen.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        print(out.name, json.loads(out.read_text())["validation"], flush=True)
    return dict(json.loads(out.read_text()))


def of_model(model: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """A peer's figures: the learning rate by validation, then every seed's test figures."""
    tuned = {rate: measured(model, rate, 0, chosen)["validation"]["HR@10"] for rate in LEARNING_RATES}
    best = max(tuned, key=lambda rate: tuned[rate])
    runs = [measured(model, best, seed, chosen) for seed in chosen.seeds]
    ranks = [np.array([NOT_FOUND if rank is None else rank for rank in run["ranks"]]) for run in runs]
    rng = np.random.default_rng(0)
    means = {metric: np.mean([METRICS[metric](of_seed) for of_seed in ranks], axis=0) for metric in SHOWN}
    return {
        "peer": runs[0]["peer"],
        "version": runs[0]["version"],
        "validation HR@10 by learning rate": tuned,
        "learning_rate": best,
        "epochs": EPOCHS[model],
        "best_epochs": [run["best_epoch"] for run in runs],
        "test": {metric: vars_of(bootstrap(values, rng)) for metric, values in means.items()},
        "test of each seed": [{m: round(float(METRICS[m](of_seed).mean()), 4) for m in SHOWN} for of_seed in ranks],
        "seconds": [run["seconds"] for run in runs],
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
    }


def vars_of(estimate: Any) -> dict[str, float]:
    return {"value": round(estimate.value, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where environments and runs go; outside the tree")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if not (chosen.folder / "mssd.npz").is_file():
        if "SEGUE_DATA" not in os.environ:
            sys.exit("SEGUE_DATA is not set: name the folder that holds mssd-sample.csv.gz")
        dataset, log = chosen.folder / "mssd", f"{os.environ['SEGUE_DATA']}/mssd-sample.csv.gz"
        subprocess.run([sys.executable, "-m", "segue", "prepare", "events", log, "--out", dataset], check=True)
        subprocess.run([sys.executable, HERE / "export.py", dataset, chosen.folder / "mssd.npz"], check=True)
    for peer in dict.fromkeys(PEERS[model] for model in chosen.models):
        environment(peer, chosen.folder)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        found = list(pool.map(lambda model: of_model(model, chosen), chosen.models))
    result = {"data": "mssd, last-play", "when": time.strftime("%Y-%m-%d", time.gmtime())}
    result |= dict(zip(chosen.models, found, strict=True))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers_mssd.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
