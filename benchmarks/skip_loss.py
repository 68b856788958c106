"""What the skip loss does to the ranking of played and skipped targets, against the same encoder without it.

Trains SASRec with and without the NCE term over several seeds, by the recipe of the data, and evaluates both on the
same test targets (full protocol). Intervals of a system are over sessions, of ranks' metrics averaged over the seeds;
the difference is paired: the same session under both losses. What is done already is read back, so that an interrupted
run goes on.

    SEGUE_DATA=folder python benchmarks/skip_loss.py mssd --folder /tmp/mssd
    python benchmarks/skip_loss.py planted --folder /tmp/planted
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.arrays import Float64
from segue.ranking_metrics import METRICS, NOT_FOUND, Estimate, bootstrap
from segue.release import open_release
from training.dataset import Dataset, open_dataset
from training.encoders.sasrec import SasRecOptions
from training.evaluate import Question, evaluate
from training.listening_logs import prepare
from training.models import Job, train
from training.options import Options, read_options
from training.planted_sessions import simulate
from training.splits import Split

RESULTS = Path(__file__).parent / "results"
RECIPES = {"mssd": "mssd", "planted": "demo"}
SHOWN = ("HR@1", "HR@10", "HR@20", "MRR@10")
GROUPS = ("all", "played", "skipped")
NCE, PLAIN = "sasrec", "sasrec --no-nce"
PLANTED_TRACKS, PLANTED_SESSIONS = 2_000, 12_000


class Printed:
    """Reports an epoch a line."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Say nothing."""

    def epoch(self, line: dict[str, float]) -> None:
        """Print the line."""
        print("  ", {name: round(value, 4) for name, value in line.items()}, flush=True)


def dataset_of(data: str, folder: Path) -> Dataset:
    out = folder / "dataset"
    if (out / "dataset.json").is_file():
        return open_dataset(out)
    if data == "planted":
        return simulate(PLANTED_TRACKS, PLANTED_SESSIONS, out, seed=1)
    if "SEGUE_DATA" not in os.environ:
        sys.exit("SEGUE_DATA is not set: name the folder that holds mssd-sample.csv.gz")
    prepare("events", [f"{os.environ['SEGUE_DATA']}/mssd-sample.csv.gz"], out)
    return open_dataset(out)


def ranks_of(name: str, model: str, options: Options, dataset: Dataset, split: Split, folder: Path) -> Float64:
    """Rank of every test target under one system, trained unless it has been."""
    from segue.cli.models import answers_of

    out, kept = folder / name, folder / f"{name}.json"
    if not kept.is_file():
        print(name, flush=True)
        release = open_release(out) if out.exists() else train(Job(model, options, dataset, split, out), Printed())
        question = Question(dataset, release, split)
        kept.write_text(json.dumps(evaluate(question, answers_of(question))))
    ranks = json.loads(kept.read_text())["ranks"]
    return np.array([NOT_FOUND if rank is None else rank for rank in ranks], dtype=np.float64)


def measured(per_seed: list[Float64]) -> dict[str, Float64]:
    """For every metric its value for each session, averaged over the seeds."""
    return {metric: np.mean([METRICS[metric](ranks) for ranks in per_seed], axis=0) for metric in SHOWN}


def shown(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {"value": round(estimate.value, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("--folder", type=Path, required=True, help="where dataset and releases go; outside the tree")
    parser.add_argument("--split", choices=["last-play", "new-sessions"], default="last-play")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    started = time.monotonic()
    dataset = dataset_of(chosen.data, chosen.folder)
    folder: Path = chosen.folder / chosen.split
    recipe = RECIPES[chosen.data]

    systems: dict[str, list[Float64]] = {NCE: [], PLAIN: []}
    for seed in chosen.seeds:
        for system, beta in ((NCE, None), (PLAIN, 0.0)):
            options = read_options(SasRecOptions, recipe, [], "sasrec", seed=seed, beta=beta)
            name = f"{'nce' if beta is None else 'plain'}-{seed}"
            systems[system].append(ranks_of(name, "sasrec", options, dataset, chosen.split, folder))
    for baseline in ("markov", "popularity"):
        systems[baseline] = [ranks_of(baseline, baseline, Options(), dataset, chosen.split, folder)]

    skipped = np.array(json.loads((folder / "markov.json").read_text())["target_skipped"])
    members = {"all": np.ones_like(skipped), "played": ~skipped, "skipped": skipped}
    values = {system: measured(per_seed) for system, per_seed in systems.items()}
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {
        "data": chosen.data,
        "split": chosen.split,
        "recipe": recipe,
        "seeds": chosen.seeds,
        "targets": {group: int(members[group].sum()) for group in GROUPS},
        "systems": {
            system: {
                group: {metric: shown(bootstrap(value[members[group]], rng)) for metric, value in of.items()}
                for group in GROUPS
            }
            for system, of in values.items()
        },
        "each_seed": {
            system: [{metric: round(float(METRICS[metric](ranks).mean()), 4) for metric in SHOWN} for ranks in per_seed]
            for system, per_seed in systems.items()
        },
        "paired_difference": {
            group: {
                metric: shown(bootstrap((values[NCE][metric] - values[PLAIN][metric])[members[group]], rng))
                for metric in SHOWN
            }
            for group in GROUPS
        },
        "minutes": round((time.monotonic() - started) / 60, 1),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"skip_loss_{chosen.data}_{chosen.split}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"| targets | system | {' | '.join(SHOWN)} |", f"|---|---|{'---|' * len(SHOWN)}"]

    def cell(of: dict[str, float], sign: str = "") -> str:
        return f"{of['value']:{sign}.4f} [{of['low']:{sign}.4f}, {of['high']:{sign}.4f}]"

    for group in GROUPS:
        label = f"{group} ({result['targets'][group]:,})"
        for system, of in result["systems"].items():
            lines.append(f"| {label} | {system} | {' | '.join(cell(of[group][metric]) for metric in SHOWN)} |")
        paired = result["paired_difference"][group]
        lines.append(f"| {label} | NCE - plain, paired | {' | '.join(cell(paired[m], '+') for m in SHOWN)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
