"""An encoder as two source trees export it: processor time of a window in ONNX Runtime, and cost of the export.

    git worktree add ../before COMMIT
    python -m benchmarks.encoder_export --before ../before

Both trees export the same SASRec, each in a process of its own. The two files are then timed by turns in this process,
on one thread. A ratio above 1 is a gain; it is the median over the rounds, with the interval of a bootstrap. Writes
results/encoder_export.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch

from benchmarks.serving.before_after import commit_of
from segue.release import ENCODER, ITEM_EMBEDDINGS
from segue.window import Windows
from service.releases.rankers import OnnxEncoder
from training.export_onnx import export_encoder, item_embeddings
from training.models.encoders.sasrec import SasRec
from training.options import SasRecOptions

HERE: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results"
BATCHES: Final = (1, 4, 16)
WINDOWS: Final = 256  # of each measurement
WINDOW: Final = 20


def export(out: Path, tracks: int) -> dict[str, float]:
    """Export an encoder twice. Return nodes, seconds of processor time, and MiB above those that the encoder takes."""
    torch.set_num_threads(1)
    options = SasRecOptions(window=WINDOW, norm="pre")
    export_encoder(SasRec(100, SasRecOptions(dimension=16, heads=2)))  # import what exports need
    encoder = SasRec(tracks + 1, options)
    encoder.initialise(torch.Generator().manual_seed(0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(2):
        began = time.process_time()
        content = export_encoder(encoder)
        seconds.append(round(time.process_time() - began, 2))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    (out / ENCODER).write_bytes(content)
    np.save(out / ITEM_EMBEDDINGS, item_embeddings(encoder))
    nodes = len(onnx.ModelProto.FromString(content).graph.node)
    return {"nodes": nodes, "first_s": seconds[0], "second_s": seconds[1], "peak_mib": round(more, 1)}


def windows_us(encoder: OnnxEncoder, windows: Windows, batch: int) -> float:
    """Return the processor time of a window in microseconds."""
    began = time.process_time()
    for start in range(0, len(windows), batch):
        encoder.encode(windows.select(slice(start, start + batch)))
    return (time.process_time() - began) / len(windows) * 1e6


def compare(folders: dict[str, Path], tracks: int, rounds: int) -> dict[str, Any]:
    """Return microseconds by size of the batch, and the ratio of both trees."""
    rng = np.random.default_rng(0)
    rows = rng.integers(1, tracks + 1, (WINDOWS, WINDOW), dtype=np.int64)
    windows = Windows(rows, rng.random(rows.shape) < 0.4)
    encoders = {name: OnnxEncoder(folder / ENCODER) for name, folder in folders.items()}
    queries = [encoder.encode(windows) for encoder in encoders.values()]
    result: dict[str, Any] = {"largest_difference": float(np.abs(queries[0] - queries[1]).max())}
    for batch in BATCHES:
        found = np.array(
            [[windows_us(encoders[name], windows, batch) for name in ("before", "after")] for _ in range(rounds)]
        )
        ratios = found[:, 0] / found[:, 1]
        drawn = np.median(rng.choice(ratios, (2000, rounds)), axis=1)
        interval = np.percentile(drawn, [2.5, 97.5]).round(3).tolist()
        before, after = np.median(found, axis=0).round(1).tolist()
        ratio = [round(float(np.median(ratios)), 3), *interval]
        result[f"batch_{batch}"] = {"before_us": before, "after_us": after, "ratio": ratio}
    return result


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="source tree of an earlier version")
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)  # in the processes of the two trees
    chosen = parser.parse_args()
    if chosen.export is not None:
        print(json.dumps(export(chosen.export, chosen.tracks)))
        return
    if chosen.before is None:
        parser.error("give --before, the source tree of an earlier version")
    trees = {"before": chosen.before.resolve(), "after": HERE}
    result: dict[str, Any] = {"tracks": chosen.tracks, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in trees}
        for name, tree in trees.items():
            folders[name].mkdir()
            command = [sys.executable, __file__, "--export", str(folders[name]), "--tracks", str(chosen.tracks)]
            environment = os.environ | {"PYTHONPATH": f"{tree}:{HERE}", "PYTHONSAFEPATH": "1"}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            result[name] = {"commit": commit_of(tree), **json.loads(done.stdout)}
        result |= compare(folders, chosen.tracks, chosen.rounds)
    (RESULTS / "encoder_export.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
