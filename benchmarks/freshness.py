"""What `segue train --init-from` saves when there is new listening, and what it costs in hits, beside a full training.

    python -m benchmarks.freshness --data synthetic --seeds 3 --folder /tmp/segue-bench/freshness --store
    python -m benchmarks.freshness --data mssd --seeds 3 --folder /tmp/segue-bench/freshness --store

Listening is split in time: the first four fifths of the sessions are known to the release that training goes on from,
all of them to what is measured. Of synthetic tracks one in twenty appears with the last fifth alone. Every system is
asked for the test targets of all sessions; `new` are those whose track the release did not know.

Seconds are of one processor, spent by the whole call: training, validation, export and map. Prints JSON; --store keeps
it in results/freshness.json. `mssd` needs SEGUE_DATA.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from benchmarks.index_search import machine
from segue.catalogue import PAD_ROW
from segue.cli.train import open_recommender
from segue.release import Release, open_release
from segue.window import to_windows
from service.releases.rankers import OnnxEncoder
from training.data.dataset import Dataset, RawInteractions, open_dataset, write_listening
from training.data.splits import Examples, examples
from training.data.synthetic import simulate_sessions
from training.evaluation.evaluate import LocalRecommender, Question, evaluate
from training.options import SasRecOptions, read_options
from training.run import TrainingJob, train
from training.run_log import source_commit

RESULTS = Path(__file__).parent / "results" / "freshness.json"
RECIPES = {"synthetic": "demo", "mssd": "mssd"}
KNOWN_SESSIONS, LATER_TRACKS = 0.8, 0.05
TRACKS, SESSIONS, WORLD = 1_000, 6_000, 1


class Silent:
    """A reporter that ignores all progress."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Ignore a finished step."""

    def epoch(self, line: dict[str, float]) -> None:
        """Ignore a finished epoch."""


def synthetic() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The plays of the first sessions, and of all; of the later tracks, first sessions hold none in either."""
    plays = simulate_sessions(TRACKS, SESSIONS, WORLD).plays
    count = round(TRACKS * LATER_TRACKS)
    later = [f"t{number:07d}" for number in np.random.default_rng(0).permutation(TRACKS)[:count].tolist()]
    first = pl.col("session_id").str.tail(-1).cast(pl.Int64) < SESSIONS * KNOWN_SESSIONS
    everything = plays.filter(~(first & pl.col("track_id").is_in(later)))
    return everything.filter(first), everything


def mssd() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same of the extract of Spotify's sessions, in the order of the file."""
    file = Path(os.environ["SEGUE_DATA"]) / "mssd-sample.csv.gz"
    plays = pl.read_csv(file).sort("session_id", "position").with_columns(pl.col("skipped").cast(pl.Boolean))
    number = pl.col("session_id").rank("dense")
    return plays.filter(number <= plays["session_id"].n_unique() * KNOWN_SESSIONS), plays


def listening(plays: pl.DataFrame) -> RawInteractions:
    """The same plays as a dataset is written from; the plays of a session follow one another."""
    tracks = plays.select("track_id").unique(maintain_order=True)
    coded = plays.join(tracks.with_row_index("code"), on="track_id", how="left", maintain_order="left")
    sessions = plays.group_by("session_id", maintain_order=True).len()
    return RawInteractions(
        tracks=tracks,
        codes=coded["code"].to_numpy(),
        skipped=coded["skipped"].to_numpy(),
        offsets=np.concatenate([[0], sessions["len"].to_numpy().cumsum()]).astype(np.int64),
        session_ids=sessions["session_id"],
    )


def hits(release: Release, dataset: Dataset, known: Any) -> dict[str, float]:
    """HR@10 of test targets: all, played ones, and those of tracks that are not `known` ([num_rows] bool)."""
    question = Question(dataset, release, "last-play")
    result = evaluate(question, LocalRecommender(open_recommender(release, exact=True), question.to_release()))
    asked = examples(dataset, "last-play", "test")
    ranks = np.array([np.inf if rank is None else rank for rank in result["ranks"]])
    hit, new = ranks <= 10, ~known[asked.targets]
    return {
        "all": float(hit.mean()),
        "played": float(hit[~asked.target_skipped].mean()),
        "new": float(hit[new].mean()) if new.any() else float("nan"),
        "new_targets": int(new.sum()),
        "new in lists": listed(release, asked, known),
    }


def listed(release: Release, asked: Examples, known: Any) -> float:
    """The share of the places in lists of ten that tracks have which are not `known`."""
    windows = to_windows(asked.inputs.select(slice(0, len(asked.targets))), release.manifest.window.length)
    scores = OnnxEncoder(release.path / "encoder.onnx").encode(windows) @ release.item_embeddings.T
    scores[:, PAD_ROW] = -np.inf
    return float((~known[np.argpartition(-scores, 10, axis=1)[:, :10]]).mean())


@contextmanager
def long_rows() -> Iterator[None]:
    """Within, new tracks begin with rows as long as those of others, however many lists that puts them into."""
    with patch("training.warm_start.popularity_calibrated_scale", lambda *_: 1.0):
        yield


@contextmanager
def drawn_rows() -> Iterator[None]:
    """Within, new tracks begin with rows drawn at random, as in a training from the start."""
    with patch("training.warm_start.cooccurrence_init", lambda table, *_: (np.zeros(0, np.int64), table[:0])):
        yield


def measured(job: TrainingJob, known: Any) -> dict[str, Any]:
    started = time.process_time()
    release = train(job, Silent())
    seconds = time.process_time() - started
    told = release.manifest.evaluation
    found = {"cpu_s": round(seconds, 1), "epochs": told["epochs"], "validation": told["validation"]["HR@10"]}
    return found | hits(release, job.dataset, known)


def one_seed(data: str, seed: int, folder: Path, further: list[int]) -> dict[str, Any]:
    options = read_options(SasRecOptions, RECIPES[data], [], "sasrec", seed=seed)
    first, everything = (open_dataset(folder / name) for name in ("first", "everything"))
    train(TrainingJob("sasrec", options, first, "last-play", folder / f"old-{seed}", overwrite=True), Silent())
    origin = open_release(folder / f"old-{seed}")
    known = np.isin(np.array(["", *everything.catalogue.track_ids]), origin.catalogue.track_ids)

    def on(epochs: int) -> dict[str, Any]:
        changed = options.model_copy(update={"epochs": epochs})
        out = folder / f"fresh-{seed}-{epochs}"
        return measured(
            TrainingJob("sasrec", changed, everything, "last-play", out, overwrite=True, origin=origin), known
        )

    found = {
        "full": measured(TrainingJob("sasrec", options, everything, "last-play", folder / f"full-{seed}", True), known)
    }
    found |= {f"from, {epochs} epochs": on(epochs) for epochs in further}
    for name, begun in (("as long as others", long_rows), ("drawn", drawn_rows)):
        with begun():
            found |= {f"from, {epochs} epochs, new rows {name}": on(epochs) for epochs in (further[0], further[-1])}
    return found


def means(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        system: {name: round(float(np.mean([one[system][name] for one in seeds])), 4) for name in seeds[0][system]}
        for system in seeds[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(RECIPES), required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--further", type=int, nargs="+", default=[0, 1, 3], help="epochs of --init-from")
    parser.add_argument("--folder", type=Path, required=True, help="for datasets and releases")
    parser.add_argument("--store", action="store_true", help="keep the result in benchmarks/results/freshness.json")
    given = parser.parse_args()
    folder = given.folder / given.data
    plays = synthetic() if given.data == "synthetic" else mssd()
    datasets = [
        write_listening(folder / name, listening(part), given.data, overwrite=True)
        for name, part in zip(("first", "everything"), plays, strict=True)
    ]
    seeds: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        with threadpool_limits(1):
            seeds.append(one_seed(given.data, seed, folder, given.further))
        figures = means(seeds)
        result = {
            "machine": machine(),
            "commit": source_commit(),
            "sessions": [len(dataset.sessions) for dataset in datasets],
            "tracks": [len(dataset.catalogue) for dataset in datasets],
            "means": figures,
            "seeds": seeds,
        }
        print(json.dumps(figures | {"seeds": len(seeds)}, indent=2), flush=True)
        if given.store:
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(kept | {given.data: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
