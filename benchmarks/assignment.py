"""What it costs to find the nearest list of a track while an index of many lists is built, and how often it is found.

    python benchmarks/assignment.py RELEASE --lists 32768

Draws centroids and tracks from the release's item embeddings, builds the HNSW graph over them as `index/ivf.py`
does, and looks for the nearest centroid with several numbers of candidates, on one thread. Prints the processor time of
a track, and the share of the tracks whose nearest centroid is found. Writes results/assignment_LISTS.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np

from segue.release import open_release

HERE: Final = Path(__file__).parent
CANDIDATES: Final = (128, 64, 32, 16, 8)
NEIGHBOURS: Final = 32
TRACKS: Final = 4_000


def measure(release: Path, lists: int) -> dict[str, Any]:
    """Return the figures by number of candidates."""
    faiss.omp_set_num_threads(1)
    embeddings = open_release(release).item_embeddings
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(embeddings) - 1, lists + TRACKS, replace=False) + 1
    centroids, tracks = (np.ascontiguousarray(embeddings[rows]) for rows in (drawn[:lists], drawn[lists:]))
    dimension = centroids.shape[1]
    exact: Any = faiss.IndexFlatL2(dimension)
    exact.add(centroids)
    _, nearest = exact.search(tracks, 1)
    graph: Any = faiss.IndexHNSWFlat(dimension, NEIGHBOURS, faiss.METRIC_L2)
    graph.add(centroids)
    found: dict[str, Any] = {"lists": lists, "tracks": TRACKS}
    for candidates in CANDIDATES:
        graph.hnsw.efSearch = candidates
        began = time.process_time()
        _, lines = graph.search(tracks, 1)
        found[str(candidates)] = {
            "us": round((time.process_time() - began) / TRACKS * 1e6, 1),
            "found": round(float((lines == nearest).mean()), 4),
        }
    return found


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("--lists", type=int, default=32_768)
    chosen = parser.parse_args()
    found = measure(chosen.release, chosen.lists)
    (HERE / "results" / f"assignment_{chosen.lists}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
