"""How many lists of an IVF index a query must visit: by the means of their tracks, and by centroids of length 1.

    python benchmarks/visited_lists.py RELEASE

RELEASE has been indexed by `segue index --kind ivf` or another of the ivf kinds; the queries are its encoder's, for its
own sample windows. Prints, for each number of lists, the share of the 20 nearest tracks that lie in them and how many
tracks they hold, for both orders of the same lists. Writes results/visited_lists_TRACKS.json.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index.exact import ExactIndex
from index.faiss_cpu import FaissIndex
from index.tuning import open_index
from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.release import ENCODER, Release, open_release
from service.releases.rankers import OnnxEncoder

HERE = Path(__file__).parent
VISITED = (4, 8, 16, 32, 64, 96, 160)
QUERIES = 400
NEAREST = 20


def lists_of(structure: Any, tracks: int) -> Int:
    """The list of each track. [tracks] int64."""
    found = np.full(tracks, -1, dtype=np.int64)
    for number in range(structure.nlist):
        size = structure.invlists.list_size(number)
        if size:
            found[faiss.rev_swig_ptr(structure.invlists.get_ids(number), size)] = number
    return found


def measure(release: Release) -> dict[str, Any]:
    """Shares and sizes by number of lists, for both orders."""
    index = open_index(release)
    assert isinstance(index, FaissIndex), "the release has no ivf index: run segue index --kind ivf"
    structure = index.structure
    queries = OnnxEncoder(release.path / ENCODER).encode(release.sample_windows)[:QUERIES]
    nearest = ExactIndex(release.item_embeddings).search(queries, NEAREST).rows
    lists = lists_of(structure, len(release.item_embeddings) - FIRST_TRACK_ROW)
    wanted, sizes = lists[nearest - FIRST_TRACK_ROW], np.bincount(lists, minlength=structure.nlist)
    means = structure.quantizer.reconstruct_n(0, structure.nlist)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    orders: dict[str, Float32] = {"means": means, "length 1": means / np.where(lengths > 0, lengths, 1)}
    found: dict[str, Any] = {"tracks": len(lists), "lists": structure.nlist, "queries": len(queries)}
    for name, centroids in orders.items():
        order = np.argsort(-(queries @ centroids.T), axis=1)
        found[name] = {
            visited: {
                "share": round(float((wanted[:, :, None] == order[:, None, :visited]).any(axis=2).mean()), 4),
                "tracks": round(float(sizes[order[:, :visited]].sum(axis=1).mean())),
            }
            for visited in VISITED
            if visited <= structure.nlist
        }
    return found


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("release", type=Path)
    result = measure(open_release(parser.parse_args().release))
    result["commit"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    (HERE / "results" / f"visited_lists_{result['tracks']}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
