"""What the map of the tracks costs a training, and how well it keeps neighbours together, beside principal components.

    python -m benchmarks.track_map --release releases/mine --tracks 1000 60000 600000 --store

Seconds are of synthetic catalogues (benchmarks/index_search.py), on one thread. Trustworthiness over the ten nearest
(Venna and Kaski, 2001: 1 is the best, 0.5 what chance gives) is of the release's own embeddings, by direction; of 3,000
drawn at random where there are more. Prints JSON; --store keeps it in results/track_map.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_limits

from benchmarks.index_search import clustered, machine
from segue.release import open_release
from training.track_map import LANDMARKS, track_map

RESULTS = Path(__file__).parent / "results" / "track_map.json"
DIMENSION, ASKED, NEIGHBOURS = 128, 3_000, 10


def seconds(tracks: int) -> float:
    embeddings, _ = clustered(tracks, DIMENSION, 1, np.random.default_rng(0))
    plays = np.random.default_rng(1).zipf(1.5, tracks + 1)
    started = time.perf_counter()
    track_map(embeddings, plays)
    return round(time.perf_counter() - started, 2)


def trust(path: Path) -> dict[str, Any]:
    release = open_release(path)
    embeddings = np.asarray(release.item_embeddings)
    places = track_map(embeddings, release.catalogue.plays)[1:]
    directions = embeddings[1:] / np.maximum(np.linalg.norm(embeddings[1:], axis=1, keepdims=True), 1e-9)
    some = np.random.default_rng(0).permutation(len(places))[:ASKED]
    flat = PCA(2, random_state=0).fit_transform(directions[some])
    return {
        "release": release.name,
        "tracks": len(places),
        "map": round(trustworthiness(directions[some], places[some], n_neighbors=NEIGHBOURS), 3),
        "principal_components": round(trustworthiness(directions[some], flat, n_neighbors=NEIGHBOURS), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--tracks", type=int, nargs="+", default=[1_000, 60_000, 600_000])
    parser.add_argument("--store", action="store_true", help="keep the result in benchmarks/results/track_map.json")
    given = parser.parse_args()
    with threadpool_limits(1):
        track_map(np.eye(60, dtype=np.float32), np.ones(60, dtype=np.int64))  # what is loaded at the first one
        result = {
            "machine": machine(),
            "landmarks": LANDMARKS,
            "seconds": {str(tracks): seconds(tracks) for tracks in given.tracks},
            "trustworthiness": trust(given.release),
        }
    print(json.dumps(result, indent=2))
    if given.store:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
