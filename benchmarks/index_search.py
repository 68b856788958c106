"""Search time and recall of every kind of index, against exact search in the same run, on one thread.

    python benchmarks/index_search.py --tracks 600000 --dimension 128 --threads-to-build 1

Synthetic: tracks lie around cluster centres of unequal size, with unequal lengths as popularity gives them; queries lie
near tracks' clusters and are not tracks. As in `segue index`, each kind is searched at the first setting that reaches
the recall target on both halves of the queries; recall@20 and the median time of a single query are the second half's.
Figures for a trained release stand in its own index.json. Results go to benchmarks/results/index_search.json, by size.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")  # before NumPy and FAISS are imported: they read it once

import faiss  # noqa: E402
import numpy as np  # noqa: E402

from index import faiss_cpu  # noqa: E402
from index.exact import RECALL_K, RecallBenchmark  # noqa: E402
from index.tuning import settings  # noqa: E402
from segue.arrays import Float32  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "index_search.json"


def clustered(tracks: int, dimension: int, queries: int, rng: np.random.Generator) -> tuple[Float32, Float32]:
    """Item embeddings [tracks + 1, dimension] and queries [queries, dimension], both float32."""
    clusters = max(1, tracks // 300)
    centres = rng.standard_normal((clusters, dimension), dtype=np.float32)
    sizes = rng.lognormal(sigma=1.0, size=clusters)
    member = rng.choice(clusters, size=tracks, p=sizes / sizes.sum())
    embeddings = np.zeros((tracks + 1, dimension), dtype=np.float32)
    embeddings[1:] = centres[member] + 0.7 * rng.standard_normal((tracks, dimension), dtype=np.float32)
    embeddings[1:] *= rng.lognormal(sigma=0.15, size=(tracks, 1)).astype(np.float32)
    near = centres[rng.choice(member, size=queries)]
    asked: Float32 = near + 0.7 * rng.standard_normal((queries, dimension), dtype=np.float32)
    return embeddings, asked


def measure(kind: faiss_cpu.Kind, exam: RecallBenchmark, target: float, threads_to_build: int) -> dict[str, Any]:
    faiss.omp_set_num_threads(threads_to_build)
    started = time.perf_counter()
    index = faiss_cpu.build(exam.test_queries.embeddings, kind)
    build_s = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    curve = []
    for parameter, value, tuned in settings(index):
        recall, ms = exam.tuning.recall(tuned), exam.tuning.ms(tuned)
        curve.append({"parameter": parameter, "value": value, "recall": recall, "ms": ms})
        index = tuned
        if (recall >= target and exam.test_queries.recall(tuned) >= target) or ms > exam.exact_ms:
            break
    recall, ms = exam.test_queries.recall(index), exam.test_queries.ms(index)
    exact_ms = exam.test_queries.ms(
        exam.exact, 40
    )  # beside each kind, since a shared machine's speed changes in minutes
    return {
        "build_s": round(build_s, 2),
        "parameters": index.parameters.model_dump(exclude_none=True),
        "recall_at_20": round(recall, 4),
        "ms": round(ms, 4),
        "exact_ms": round(exact_ms, 3),
        "times_faster_than_exact": round(exact_ms / ms, 1),
        "mb": round(len(index.to_bytes()) / 1e6, 1),
        "curve": curve,
    }


def machine() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return {
        "cpu": model[0].partition(": ")[2] if model else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "faiss": faiss.__version__,
        "commit": commit.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--kinds", nargs="+", choices=faiss_cpu.KINDS, default=faiss_cpu.KINDS)
    parser.add_argument("--threads-to-build", type=int, default=1)
    parser.add_argument("--budget-s", type=float, default=900, help="no further kind is begun after this many seconds")
    options = parser.parse_args()
    begun = time.perf_counter()
    embeddings, queries = clustered(options.tracks, options.dimension, options.queries, np.random.default_rng(0))
    exam = RecallBenchmark.of(queries, embeddings)
    print(f"{options.tracks:,} x {options.dimension}, load {os.getloadavg()[0]:.1f}")
    kinds: dict[str, Any] = {}
    for kind in options.kinds:
        if time.perf_counter() - begun > options.budget_s:
            print(f"{kind:9} left out: {options.budget_s:.0f} s are over")
            continue
        kinds[kind] = row = measure(kind, exam, options.recall, options.threads_to_build)
        print(
            f"{kind:9} built in {row['build_s']:7.1f} s, {row['mb']:6.1f} MB, {row['ms']:.3f} ms a query, "
            f"recall@{RECALL_K} {row['recall_at_20']:.4f}, exact {row['exact_ms']:.2f} ms, "
            f"{row['times_faster_than_exact']:.1f} times faster, "
            f"{row['parameters']}",
            flush=True,
        )
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[f"{options.tracks}x{options.dimension}"] = {
        "machine": machine(),
        "options": vars(options),
        "load_average": os.getloadavg(),
        "exact_ms": round(float(np.median([row["exact_ms"] for row in kinds.values()])), 3) if kinds else None,
        "kinds": kinds,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
