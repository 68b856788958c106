"""What becomes of a service that is asked for several times what it can answer.

    python -m benchmarks.serving.overload --folder /tmp/serving --tracks 100000 --seconds 120

Measures the capacity of one core by closed loops, then offers multiples of it whether or not answers come, then half of
it. Served requests are to stay within 100 ms, refusals within 50 ms, memory bounded; recovery is when the last request
of the last phase was refused or late. The release is that of `benchmarks.serving.run`, made where it is not there; the
service has a core of its own, Redis and the generator share the other. Writes results/overload.json.
"""

import argparse
import json
import os
import platform
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.run import RECALL, RESULTS, load, memory, redis, release_of, service, sessions_of

CONNECTIONS = 1024
CAPACITY_S = 15
AFTERWARDS_S = 10
SCENARIOS = ("recommend", "report_and_recommend")
SHED_AFTER_MS = 40  # as the service has it


class MemoryWatch(threading.Thread):
    """The most memory that a process was seen to have, in MiB."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._leaving = threading.Event()
        self.most_mib = 0

    def run(self) -> None:
        """Record the largest resident memory every half second until stopped."""
        while not self._leaving.wait(0.5):
            self.most_mib = max(self.most_mib, memory(self._process)["rss_mib"])

    def stop(self) -> int:
        """End it; the answer is what it saw."""
        self._leaving.set()
        self.join()
        return self.most_mib


def overload(
    folder: Path, process: psutil.Process, scenario: str, rates: tuple[float, float], seconds: float
) -> dict[str, Any]:
    """The first rate for `seconds`, then the second; requests a second."""
    before = memory(process)["rss_mib"]
    watch = MemoryWatch(process)
    watch.start()
    phases = [[seconds, rates[0]], [AFTERWARDS_S, rates[1]]]
    in_all = seconds + AFTERWARDS_S
    found = load(folder, 8911, scenario, in_all, connections=CONNECTIONS, phases=phases, warm_up_s=0.0)
    under, after = found["phases"]
    return {
        **under,
        "generator_cpu": found["generator_cpu"],
        "generator_late_p99_ms": found["generator_late_p99_ms"],
        "recovery_s": after["last_refused_or_late_s"],
        "memory_before_mib": before,
        "memory_most_mib": watch.stop(),
        "memory_after_mib": memory(process)["rss_mib"],
    }


def measure(folder: Path, release: Path, seconds: float, multiples: list[float]) -> dict[str, Any]:
    """The capacity of each usual call, and each multiple of it."""
    sessions_of(release, folder / "sessions.json")
    result: dict[str, Any] = {"latency_budget_ms": SHED_AFTER_MS}
    with redis(folder / "redis") as url:
        with service(folder, release, url) as process:  # one that refuses nothing
            load(folder, 8911, "fill", 600)
            for scenario in SCENARIOS:
                result[scenario] = {"capacity_per_s": load(folder, 8911, scenario, CAPACITY_S)["per_s"]}
        with service(folder, release, url, latency_budget_ms=SHED_AFTER_MS) as process:
            for scenario in SCENARIOS:
                capacity = result[scenario]["capacity_per_s"]
                for times in multiples:
                    rates = (times * capacity, capacity / 2)
                    result[scenario][f"times_{times:g}"] = overload(folder, process, scenario, rates, seconds)
    return result


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where releases and logs go; outside the tree")
    parser.add_argument("--tracks", type=int, default=100_000)
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=120, help="of each multiple of the capacity")
    parser.add_argument("--times", type=float, nargs="+", default=[2, 5], help="multiples of the capacity")
    parser.add_argument("--out", type=Path, default=RESULTS / "overload.json")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    release = release_of(chosen.folder, chosen.tracks, chosen.kind, RECALL.get(chosen.tracks, 0.99))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True)
    result = {
        "tracks": chosen.tracks,
        "seconds": chosen.seconds,
        **measure(chosen.folder, release, chosen.seconds, chosen.times),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
