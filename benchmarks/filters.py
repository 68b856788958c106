"""What filters cost an index, and what they find: recall and time by the share of tracks that a filter allows.

    python -m benchmarks.filters RELEASE

RELEASE has an index, such as the one that benchmarks.serving.run makes. The queries are its encoder's, for its own
sample windows. Filters allow a share of the tracks: at random; all copies of random trained tracks, as a market that
lacks some artists; or the tracks that lie furthest in a random direction of the embeddings, as a genre. Each search is
compared with an exact search among the allowed tracks. Writes results/filters_TRACKS.json.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from index.exact import ExactIndex
from index.tuning import open_index
from segue.arrays import Bool, Float32, Int
from segue.catalogue import PAD_ROW
from segue.filters import Allowed
from segue.recommend import Recommender
from segue.release import ENCODER, Release, open_release
from segue.window import Sessions
from service.releases.loaded import load_release
from service.releases.rankers import OnnxEncoder

HERE: Final = Path(__file__).parent
SHARES: Final = (1.0, 0.5, 0.25, 0.1, 0.03, 0.015, 0.01, 0.001)
QUERIES: Final = 300
NEAREST: Final = 20
ROUNDS: Final = 5


def masks(release: Release, share: float, rng: np.random.Generator) -> dict[str, Bool]:
    """Return three filters that allow about this share of the tracks. [tracks] each."""
    embeddings = np.asarray(release.item_embeddings)[1:]
    codes: Int = release.catalogue.attributes["artist"].codes.astype(np.int64)
    along = embeddings @ rng.standard_normal((embeddings.shape[1],)).astype(np.float32)
    return {
        "random": rng.random(len(embeddings)) < share,
        "artists": (rng.random(int(codes.max()) + 1) < share)[codes],
        "direction": along >= np.quantile(along, 1 - share),
    }


def search_ms(index: Any, queries: Float32, allowed: Allowed | None) -> float:
    """Median processor time of a search in milliseconds, one query at a time."""
    taken = []
    for query in queries:
        began = time.thread_time()
        index.search(query[None], NEAREST, allowed)
        taken.append(1000 * (time.thread_time() - began))
    return float(np.median(taken))


def answer_ms(recommender: Recommender, sessions: list[Sessions]) -> float:
    """Median processor time of a recommendation in milliseconds, one session at a time."""
    taken = []
    for session in sessions:
        began = time.thread_time()
        recommender.recommend(session, NEAREST)
        taken.append(1000 * (time.thread_time() - began))
    return float(np.median(taken))


def sessions_of(release: Release) -> list[Sessions]:
    """The sample windows, each as a batch of one session."""
    windows, found = release.sample_windows, []
    for tracks, skipped in zip(windows.tracks[:QUERIES], windows.skipped[:QUERIES], strict=True):
        known = tracks != PAD_ROW
        found.append(Sessions(tracks[known], skipped[known], np.array([0, np.count_nonzero(known)])))
    return found


def measure(release: Release) -> dict[str, Any]:
    """Recall@20, filled lists and times for each kind of filter and share."""
    rng = np.random.default_rng(0)
    index, exact = open_index(release), ExactIndex(release.item_embeddings)
    queries = OnnxEncoder(release.path / ENCODER).encode(release.sample_windows)[:QUERIES]
    recommender, sessions = load_release(release.path).recommender, sessions_of(release)
    lines = []
    for share in SHARES:
        for kind, mask in masks(release, share, rng).items():
            allowed = Allowed(mask)
            found, best = index.search(queries, NEAREST, allowed).rows, exact.search(queries, NEAREST, allowed).rows
            hits = [len(set(a) & set(b) - {0}) / max(len(set(b) - {0}), 1) for a, b in zip(found, best, strict=True)]
            # Alternating, so that a change of the machine's speed meets both.
            searches = [(search_ms(index, queries, None), search_ms(index, queries, allowed)) for _ in range(ROUNDS)]
            within = recommender.within(allowed)
            answers = [(answer_ms(recommender, sessions), answer_ms(within, sessions)) for _ in range(ROUNDS)]
            lines.append(
                {
                    "filter": kind,
                    "share": share,
                    "allowed": allowed.count,
                    "recall": round(float(np.mean(hits)), 4),
                    "filled": round(float((found != 0).all(axis=1).mean()), 4),
                    "search_ms": round(float(np.median([one for _, one in searches])), 4),
                    "search_ms_without": round(float(np.median([one for one, _ in searches])), 4),
                    "recommendations_per_second_ratio": round(
                        float(np.median([one / other for one, other in answers])), 3
                    ),
                }
            )
            print(lines[-1], flush=True)
    return {
        "tracks": release.manifest.tracks,
        "index": json.loads((release.path / "index.json").read_text()),
        "lines": lines,
    }


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("release", type=Path)
    result = measure(open_release(parser.parse_args().release))
    result["commit"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    (HERE / "results" / f"filters_{result['tracks']}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
