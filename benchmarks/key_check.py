"""Whether the time of a key check tells anything about the key.

    python benchmarks/key_check.py

Asks a keyring of 50 keys for the first, the middle and the last of them, for two wrong keys, and for one that differs
from the first in its last character alone, in random order, each time as bytes of their own, as a request brings them.
Prints the median time of each, and Welch's t of each against a wrong key, as dudect does: beyond
4.5 a difference is there, be it of a nanosecond (Reparaz, Balasch and Verbauwhede, "Dude, is my code
constant time?", 2017, https://eprint.iacr.org/2016/1123). Writes results/key_check.json.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from service.http.keys import Keyring, new_key, write_keys

HERE = Path(__file__).parent
KEYS = 50
AGAINST = "wrong"
CROPPED = 0.05  # of the slowest calls: interruptions of the machine, not the check


def measure(ring: Keyring, texts: dict[str, bytes], calls: int) -> dict[str, np.ndarray]:
    """Nanoseconds of each call, by what was asked for; the order is drawn."""
    order = [(name, bytes(bytearray(text))) for name, text in texts.items() for _ in range(calls)]
    random.Random(0).shuffle(order)
    found: dict[str, list[int]] = {name: [] for name in texts}
    gc.disable()
    for name, text in order:
        began = time.perf_counter_ns()
        ring.find(text)
        found[name].append(time.perf_counter_ns() - began)
    return {name: np.array(times) for name, times in found.items()}


def welch_t(one: np.ndarray, other: np.ndarray) -> float:
    """Welch's t of two samples."""
    return float((one.mean() - other.mean()) / np.sqrt(one.var() / len(one) + other.var() / len(other)))


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=40_000, help="of each kind")
    chosen = parser.parse_args()
    made = [new_key(f"key-{number}", ["client"]) for number in range(KEYS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        write_keys(file, [key for _, key in made])
        ring = Keyring(file, clock=lambda: 0.0)  # the file is not looked at again: that is no part of the check
    first = made[0][0]
    texts = {
        "first": first,
        "middle": made[KEYS // 2][0],
        "last": made[-1][0],
        AGAINST: new_key("wrong", ["client"])[0],
        "another wrong": new_key("wrong", ["client"])[0],
        "first but for a character": first[:-1] + ("A" if first[-1] != "A" else "B"),
    }
    times = measure(ring, {name: text.encode() for name, text in texts.items()}, chosen.calls)
    most = np.quantile(np.concatenate(list(times.values())), 1 - CROPPED)
    kept = {name: values[values <= most] for name, values in times.items()}
    result = {
        "keys": KEYS,
        "calls": chosen.calls,
        "median_ns": {name: statistics.median(values.tolist()) for name, values in kept.items()},
        "mean_ns": {name: round(float(values.mean()), 1) for name, values in kept.items()},
        "t": {name: round(welch_t(values, kept[AGAINST]), 2) for name, values in kept.items() if name != AGAINST},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
        ).stdout.strip(),
    }
    (HERE / "results" / "key_check.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
