"""Steps `index-*`: search time by batch size, beside the CPU index of the same file and the card's copy bandwidth.

Two times a batch: `device_ms` is FAISS's search alone, queries and answers on the host; `whole_ms` is the search that
the service calls, with exact scores from NumPy. Two shares of the copy bandwidth by `device_ms`: `read_share` counts
the index once, `moved_share` also counts the scores, which FAISS writes to the card's memory and reads back.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import facts
from benchmarks.gpu.sizes import Sizes
from benchmarks.index_search import clustered
from index import faiss_cpu
from index.exact import RECALL_K, RecallBenchmark
from index.faiss_cpu import FaissIndex
from index.tuning import settings
from segue.arrays import Float32

ASKED = 48  # what the service asks of its index for a list of 20
_HALF, _SCORE = 2, 4  # bytes
_LEAST_TIMES, _WARM_UP = 5, 2
_CPU_BATCHES = (1, 32, 256)
_LARGE = 5_000_000  # tracks from which on one of the two inverted files has to do


def measure(sizes: Sizes, _: Path, number: int) -> dict[str, Any]:
    """Build, tune and time each kind over the catalogue of this number."""
    tracks, target = sizes.catalogues[number], sizes.recalls[number]
    bandwidth = [_copy_bytes_per_s(sizes)]
    embeddings, asked = clustered(tracks, sizes.dimension, sizes.queries, np.random.default_rng(0))
    exam = RecallBenchmark.of(asked, embeddings)
    queries = near(embeddings, max(sizes.batches))
    print(f"{tracks:,} x {sizes.dimension}, exact answers to {sizes.queries} queries", flush=True)
    kinds: dict[str, Any] = {}
    wanted: list[faiss_cpu.Kind] = ["flat", "ivf"] if tracks >= _LARGE else ["flat", "ivf", "ivf-sq8"]
    for kind in wanted:
        kinds[kind] = _kind(kind, exam, target, queries, sizes)
        print(kind, {key: value for key, value in kinds[kind].items() if key != "batches"}, flush=True)
    bandwidth.append(_copy_bytes_per_s(sizes))
    copied = float(np.median(bandwidth))
    for row in kinds["flat"]["batches"]:
        row.update(shares(tracks, sizes.dimension, row["batch"], row["device_ms"], copied))
    return {
        "tracks": tracks,
        "dimension": sizes.dimension,
        "recall_target": target,
        "asked": ASKED,
        "copy_bytes_per_s": copied,
        "kinds": kinds,
    }


def shares(tracks: int, dimension: int, batch: int, device_ms: float, copy_bytes_per_s: float) -> dict[str, float]:
    """Shares of the copy bandwidth of one flat search in half precision."""
    read = tracks * dimension * _HALF
    scores = 2 * batch * tracks * _SCORE  # written by the product, read by the selection
    at_best_ms = 1000 / copy_bytes_per_s
    return {
        "read_share": round(read * at_best_ms / device_ms, 4),
        "moved_share": round((read + scores) * at_best_ms / device_ms, 4),
    }


def near(embeddings: Float32, count: int) -> Float32:
    """Queries near tracks. [count, dimension] float32."""
    rng = np.random.default_rng(1)
    rows = rng.integers(1, len(embeddings), count)
    found: Float32 = embeddings[rows] + 0.7 * rng.standard_normal((count, embeddings.shape[1]), dtype=np.float32)
    return found


def _kind(kind: faiss_cpu.Kind, exam: RecallBenchmark, target: float, queries: Float32, sizes: Sizes) -> dict[str, Any]:
    embeddings = exam.test_queries.embeddings
    started = time.perf_counter()
    on_cpu = faiss_cpu.build(embeddings, kind)
    build_s = time.perf_counter() - started
    used, started = facts.card_used_mib(), time.perf_counter()
    index = sizes.placed(on_cpu, embeddings)
    index.search(queries[:1], RECALL_K)
    open_s, now_used = time.perf_counter() - started, facts.card_used_mib()
    index = tuned(index, exam, target)
    on_cpu = on_cpu.tuned(index.parameters)
    cpu_batches = () if kind == "flat" and not sizes.dry_run else _CPU_BATCHES  # a flat one takes minutes there
    return {
        "build_s": round(build_s, 2),
        "open_s": round(open_s, 2),
        "card_mib": None if used is None or now_used is None else now_used - used,
        "parameters": index.parameters.model_dump(exclude_none=True),
        "recall_at_20": round(exam.test_queries.recall(index), 4),
        "batches": [_batch(index, queries[:batch], sizes.repeat_s) for batch in sizes.batches],
        "cpu": [_batch(on_cpu, queries[:batch], sizes.repeat_s) for batch in cpu_batches if batch <= len(queries)],
    }


def tuned(index: FaissIndex, exam: RecallBenchmark, target: float) -> FaissIndex:
    """The index at the first setting that reaches the recall on both halves of the queries, else at the last one."""
    candidate = index
    for _, _, candidate in settings(index):
        if exam.tuning.recall(candidate) >= target and exam.test_queries.recall(candidate) >= target:
            break
    return candidate


def _batch(index: FaissIndex, queries: Float32, seconds: float) -> dict[str, Any]:
    count = min(ASKED * index.parameters.rerank, index._max_candidates())
    device = repeated(lambda: index._positions(queries, count, None), seconds)
    whole = repeated(lambda: index.search(queries, RECALL_K), seconds)
    return {
        "batch": len(queries),
        "device_ms": round(1000 * device, 4),
        "whole_ms": round(1000 * whole, 4),
        "queries_per_s": round(len(queries) / whole, 1),
    }


def repeated(work: Callable[[], object], seconds: float) -> float:
    """Median seconds of `work`, repeated for about so long; FAISS returns once the answers are on the host."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < _LEAST_TIMES + _WARM_UP or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[_WARM_UP:]))


def _copy_bytes_per_s(sizes: Sizes) -> float:
    """Measured in another process, so that torch holds no memory of the card here."""
    argv = [sys.executable, "-m", "benchmarks.gpu.environment", *(["--dry-run"] if sizes.dry_run else [])]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True, cwd=facts.ROOT).stdout)
