"""What a hybrid costs in serving: one release with its encoder alone and with transition counts, in one run.

    python -m benchmarks.serving.hybrid --folder /tmp/serving

Counts the transitions of synthetic sessions (9 million plays of 600,000 tracks), adds them to the release that
benchmarks.serving.run makes, and serves both releases at the same time on one core. Load goes to one after the other
(benchmarks.serving.before_after). Reports requests a second, p99, processor time of a request, private and shared
memory of a worker, and the time and size of the counts. Writes results/serving_hybrid.json.
"""

import argparse
import json
import os
import platform
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.before_after import HERE, commit_of, cpu_s, serving
from benchmarks.serving.run import RECALL, RESULTS, load, redis, release_of
from segue.hybrid import HIDDEN, REPEAT_FEATURES, TRACK_FEATURES, Network
from segue.ngram import FILES as COUNT_FILES
from segue.release import (
    ENCODER,
    INDEX,
    ITEM_EMBEDDINGS,
    Release,
    ReleaseMetadata,
    open_release,
    sample_arrays,
    with_index,
    write_release,
)
from segue.window import Sessions
from training.models.mixture import prior_mixture
from training.models.ngram import MAX_FOLLOWERS, count_transitions

NAMES = ("before", "after")  # the encoder alone, the hybrid; the ports of before_after
SESSION = 15  # plays
PLAYLIST = 60  # tracks
SERVED = 20_000  # sessions that the load uses


def synthetic_sessions(tracks: int, plays: int, seed: int = 0) -> Sessions:
    """Sessions that walk through playlists of popular tracks, with jumps to other tracks and some repeats."""
    rng = np.random.default_rng(seed)
    lists = max(tracks // 15, 1)
    by_popularity = rng.permutation(np.arange(1, tracks + 1))
    playlists = by_popularity[(tracks * rng.random((lists, PLAYLIST)) ** 2).astype(np.int64)]
    count = plays // SESSION
    chosen = (lists * rng.random(count) ** 1.5).astype(np.int64)
    place = (rng.integers(0, PLAYLIST, count)[:, None] + np.arange(SESSION)) % PLAYLIST
    rows = playlists[chosen[:, None], place]
    jumps = rng.random(rows.shape) < 0.15
    rows[jumps] = by_popularity[(tracks * rng.random(int(jumps.sum())) ** 2).astype(np.int64)]
    repeats = np.argwhere(rng.random(rows.shape) < 0.05)
    repeats = repeats[repeats[:, 1] > 1]
    rows[repeats[:, 0], repeats[:, 1]] = rows[repeats[:, 0], repeats[:, 1] - 2]
    offsets = np.arange(count + 1, dtype=np.int64) * SESSION
    return Sessions(rows.ravel(), rng.random(rows.size) < 0.4, offsets)


def with_counts(base: Release, sessions: Sessions, out: Path) -> dict[str, float]:
    """Write the hybrid of a release and the counts of `sessions`. Returns what counting took."""
    began = time.perf_counter()
    tables = count_transitions(sessions, len(base.catalogue) + 1, MAX_FOLLOWERS)
    seconds = time.perf_counter() - began
    arrays: dict[str, Any] = dict(zip(COUNT_FILES, map(np.asarray, tables), strict=True))
    arrays |= prior_mixture(0.2).arrays() | _network().arrays()
    stored = sum(arrays[name].nbytes for name in COUNT_FILES)
    draft = ReleaseMetadata.model_validate(base.manifest.model_dump(include=set(ReleaseMetadata.model_fields)))
    arrays |= {ITEM_EMBEDDINGS: np.asarray(base.item_embeddings), **sample_arrays(base.sample_windows)}
    encoder = (base.path / ENCODER).read_bytes()
    written = write_release(out, draft.model_copy(update={"model": "hybrid"}), base.catalogue, arrays, encoder)
    facts = json.loads((base.path / "index.json").read_text())
    with_index(written, (base.path / INDEX).read_bytes(), facts)
    plays = len(sessions.rows)
    return {
        "plays": plays,
        "count_s": round(seconds, 1),
        "stored_mb": round(stored / 1e6),
        "entries_per_play": round(len(tables.tracks) / plays, 2),
    }


def _network() -> Network:
    """A network with random small weights: its values do not change what it costs."""
    rng = np.random.default_rng(2)
    shapes = (len(TRACK_FEATURES), HIDDEN), (REPEAT_FEATURES, HIDDEN), (HIDDEN,)
    return Network(*(rng.normal(0, 0.05, shape) for shape in shapes))


def sessions_file(base: Release, sessions: Sessions, file: Path) -> None:
    """Write the first sessions as the generator of load reads them, cut at a random length."""
    rng, catalogue = np.random.default_rng(1), base.mapped_catalogue
    lines = []
    for i in range(SERVED):
        start = int(sessions.offsets[i])
        span = slice(start, start + int(rng.integers(3, SESSION + 1)))
        pairs = zip(sessions.rows[span].tolist(), sessions.skipped[span].tolist(), strict=True)
        lines.append([(catalogue.track_id(row), skip) for row, skip in pairs])
    file.write_text(json.dumps(lines))


def memory_of(pid: int) -> dict[str, int]:
    """Return the memory of a process in MB: its own, and pages of mapped files, which all workers share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    own = kb["Private_Dirty"] / 1000
    return {"own_mb": round(own), "mapped_mb": round(kb["Rss"] / 1000 - own)}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder for releases and logs, outside the tree")
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--plays", type=int, default=9_000_000)
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--pairs", type=int, default=10)
    chosen = parser.parse_args()
    base = open_release(release_of(chosen.folder, chosen.tracks, chosen.kind, RECALL.get(chosen.tracks, 0.99)))
    sessions = synthetic_sessions(chosen.tracks, chosen.plays)
    hybrid, kept = chosen.folder / f"hybrid-{chosen.tracks}", chosen.folder / f"hybrid-{chosen.tracks}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(with_counts(base, sessions, hybrid)))
    result: dict[str, Any] = {"tracks": chosen.tracks, "counts": json.loads(kept.read_text())}
    sessions_file(base, sessions, chosen.folder / "sessions.json")
    pairs = np.zeros((chosen.pairs, 2, 3))  # requests a second, p99 in ms, processor time in microseconds
    memory = {}
    ports = dict(zip(NAMES, (8911, 8913), strict=True))
    with redis(chosen.folder / "redis") as url, ExitStack() as stack:
        processes = {
            name: stack.enter_context(serving(chosen.folder, release, url, name, HERE))
            for name, release in zip(NAMES, (base.path, hybrid), strict=True)
        }
        for name in NAMES:
            load(chosen.folder, ports[name], "fill", 60)
        for number in range(-1, chosen.pairs):  # the first pair warms up
            for which in (0, 1) if number % 2 else (1, 0):
                name, process = NAMES[which], processes[NAMES[which]]
                began = cpu_s(process)
                done = load(chosen.folder, ports[name], "recommend", chosen.seconds, warm_up_s=0.0)
                used = (cpu_s(process) - began) / done["requests"] * 1e6
                pairs[number, which] = done["per_s"], done["p99_ms"], used
        for name, process in processes.items():
            memory[name] = memory_of(process.pid)
    rng = np.random.default_rng(0)
    for column, what in enumerate(("per_s", "p99_ms", "cpu_us")):
        ratios = pairs[:, 1, column] / pairs[:, 0, column]
        drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        result[what] = {
            "encoder": round(float(np.median(pairs[:, 0, column])), 1),
            "hybrid": round(float(np.median(pairs[:, 1, column])), 1),
            "ratio": round(float(np.median(ratios)), 3),
            "interval_95": np.percentile(drawn, [2.5, 97.5]).round(3).tolist(),
        }
    result |= {
        "memory": {"encoder": memory["before"], "hybrid": memory["after"]},
        "pairs": chosen.pairs,
        "commit": commit_of(HERE),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    (RESULTS / "serving_hybrid.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
