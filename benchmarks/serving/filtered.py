"""What filters cost over HTTP: requests a second without a filter, with filters, and before there were any.

    git worktree add ../before 96fce5b~1
    python -m benchmarks.serving.filtered --folder /tmp/serving --before ../before

Serves the release that benchmarks.serving.run makes with two source trees, both on one core, and asks for lists in
turn: the earlier tree, this one without a filter, and this one with each of FILTERS. A round has one measurement of
each, in random order. Ratios are medians over the rounds, with the interval of a bootstrap. Writes
results/serving_filters_TRACKS.json, or serving_filters_rate_TRACKS.json with --rate.
"""

import argparse
import json
import os
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.serving.before_after import HERE, PORTS, commit_of, cpu_s, serving
from benchmarks.serving.run import RECALL, RESULTS, load, memory, redis, release_of, sessions_of

# The parts of the tracks that they allow are about .5, .7, .1, .01 and .001.
FILTERS: Final = {
    "half, random": "bucket:0..499",
    "a market": "markets:M07",
    "a tenth, random": "bucket:0..99",
    "a hundredth, random": "bucket:0..9",
    "a thousandth, random": "bucket:0",
    "a genre": "genre:genre 7",
    "a market, not explicit": "markets:M07,explicit:false",
}
EARLIER, NONE = "earlier version", "no filter"


def measure(chosen: argparse.Namespace, release: Path) -> dict[str, Any]:
    """Return requests a second, p90, p99 and processor time of each kind of request, in rounds."""
    filters = chosen.only or list(FILTERS)
    kinds = [EARLIER, NONE, *filters] if chosen.before else [NONE, *filters]
    trees = {"before": chosen.before.resolve()} if chosen.before else {}
    found = np.zeros((chosen.rounds, len(kinds), 4))
    rng = np.random.default_rng(0)
    with redis(chosen.folder / "redis") as url, ExitStack() as stack:
        processes = {
            name: stack.enter_context(serving(chosen.folder, release, url, name, tree, workers=chosen.workers))
            for name, tree in (trees | {"after": HERE}).items()
        }
        for name in processes:
            load(chosen.folder, PORTS[name], "fill", 60)
        for number in range(-1, chosen.rounds):  # the first round warms up
            for place in rng.permutation(len(kinds)).tolist():
                kind = kinds[place]
                name = "before" if kind == EARLIER else "after"
                plan: dict[str, Any] = {"warm_up_s": 0.0}
                if kind in FILTERS:
                    plan["query"] = "repeat=never&filter=" + FILTERS[kind].replace(" ", "%20")
                if chosen.rate:
                    plan |= {"rate": chosen.rate, "connections": 256}
                began = cpu_s(processes[name])
                done = load(chosen.folder, PORTS[name], "recommend", chosen.seconds, **plan)
                used = (cpu_s(processes[name]) - began) / done["requests"] * 1e6
                found[number, place] = done["per_s"], done["p90_ms"], done["p99_ms"], used
        resident = memory(processes["after"])["pss_mib"]
    without = found[:, kinds.index(NONE)]
    lines = {kind: _line(found[:, place], without) for place, kind in enumerate(kinds)}
    if chosen.before:
        lines[NONE] |= _ratio(without, found[:, 0], "to_earlier")
    return {"kinds": lines, "pss_mib": resident}


def _line(values: Any, without: Any) -> dict[str, Any]:
    names = ("per_s", "p90_ms", "p99_ms", "cpu_us")
    medians = {name: round(float(np.median(values[:, place])), 2) for place, name in enumerate(names)}
    return medians | _ratio(values, without, "to_no_filter")


def _ratio(values: Any, others: Any, name: str) -> dict[str, Any]:
    """Return the ratio of requests a second, and of processor time so that above 1 is a gain, with their intervals."""
    rng = np.random.default_rng(0)
    found = {}
    for what, ratios in (("per_s", values[:, 0] / others[:, 0]), ("cpu", others[:, 3] / values[:, 3])):
        drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        interval = np.percentile(drawn, [2.5, 97.5]).round(3).tolist()
        found[f"{what}_{name}"] = [round(float(np.median(ratios)), 3), *interval]
    return found


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder for releases and logs, outside the tree")
    parser.add_argument("--before", type=Path, help="source tree of an earlier version")
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1, help="of the service; more than one: on all cores")
    parser.add_argument("--only", action="append", choices=list(FILTERS), help="a filter; repeatable")
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: as many as possible")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    release = release_of(chosen.folder, chosen.tracks, chosen.kind, RECALL.get(chosen.tracks, 0.99))
    sessions_of(release, chosen.folder / "sessions.json")
    options = {name: getattr(chosen, name) for name in ("tracks", "rounds", "rate", "workers")}
    result = options | measure(chosen, release)
    result |= {"commit": commit_of(HERE), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    name = "serving_filters" + ("_rate" if chosen.rate else "")
    name += f"_{chosen.workers}_workers" if chosen.workers > 1 else ""
    (RESULTS / f"{name}_{chosen.tracks}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
