"""How much host memory a dataset of 100 million plays takes: to write, to open, to train on, to prepare from a log.

Generates sessions over a catalogue whose tracks are played as often as a Zipf law says, and a log of such plays; then
each of the four runs in a process of its own, whose memory is read from the kernel 20 times a second: anonymous memory,
mapped files, and the largest sum of both. With `--limit-gb` a process gets no more private memory than that
(RLIMIT_DATA) and ends where it asks for more.

    python -m benchmarks.large_dataset --folder /tmp/large --plays 100000000
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import training.data.loader
import training.validation
from training.data.dataset import RawInteractions, open_dataset, write_listening
from training.data.loader import epoch_batches
from training.options import SasRecOptions
from training.prepare.disk_engine import disk_engine
from training.prepare.pipeline import Engine, prepare
from training.run import TrainingJob
from training.run import train as train_model

SEED = 7
TRACKS = 1_000_000
SHORTEST, LONGEST = 12, 21  # plays a session
PLAYS_A_CHUNK = 5_000_000
ZIPF = 1.05
RESULTS = Path(__file__).parent / "results" / "large_dataset.json"


def lengths_of(plays: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Plays of each session: so many that they make `plays` in all. [sessions] int64."""
    rng = np.random.default_rng((SEED, 0))
    lengths = rng.integers(SHORTEST, LONGEST, size=plays // SHORTEST + 1, endpoint=True)
    ends = np.cumsum(lengths)
    kept = int(np.searchsorted(ends, plays, side="left")) + 1
    lengths = lengths[:kept].copy()
    lengths[-1] -= int(ends[kept - 1]) - plays
    return lengths


def plays_of(
    start: int, count: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint32]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Tracks (by a Zipf law; half of them what comes after the track before) and skips of a chunk of plays."""
    rng = np.random.default_rng((SEED, 1, start))
    reached = np.cumsum((np.arange(TRACKS) + 10.0) ** -ZIPF)
    drawn = np.searchsorted(reached, rng.random(count) * reached[-1], side="right")
    follows = rng.random(count) < 0.5
    follows[0] = False
    drawn[follows] = (drawn[np.flatnonzero(follows) - 1] * 31 + 7) % TRACKS
    return drawn.astype(np.uint32), rng.random(count) < 0.3


def generate(folder: Path, plays: int) -> None:
    """Tracks and skips of all plays as flat files, a chunk at a time."""
    tracks = np.lib.format.open_memmap(folder / "tracks.npy", mode="w+", dtype=np.uint32, shape=(plays,))
    skipped = np.lib.format.open_memmap(folder / "skips.npy", mode="w+", dtype=np.bool_, shape=(plays,))
    for start in range(0, plays, PLAYS_A_CHUNK):
        chunk = slice(start, min(start + PLAYS_A_CHUNK, plays))
        tracks[chunk], skipped[chunk] = plays_of(start, chunk.stop - chunk.start)


def generate_log(folder: Path, log: Path) -> None:
    """The same plays as an event log of listeners (user_id, timestamp, track_id), nearly in the order of time."""
    tracks, skipped = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tracks", "skips"))
    lengths = lengths_of(len(tracks))
    users = len(tracks) // 500 + 1
    sessions = PLAYS_A_CHUNK // LONGEST
    with log.open("wb") as file:
        for start in range(0, len(lengths), sessions):
            part = lengths[start : start + sessions]
            plays = slice(int(lengths[:start].sum()), int(lengths[: start + len(part)].sum()))
            rng = np.random.default_rng((SEED, 2, start))
            number = np.repeat(np.arange(len(part)), part)
            gap_before = np.where(skipped[plays], 20, 200)  # the play before was skipped, or heard
            elapsed = np.cumsum(gap_before)
            begins = 1_500_000_000 + start * 5 + rng.integers(86_400 * 7, size=len(part))
            at = begins[number] + elapsed - elapsed[np.cumsum(part) - part][number]
            frame = pl.DataFrame(
                {"user": rng.integers(users, size=len(part))[number], "timestamp": at, "track": tracks[plays]}
            ).sort("timestamp", maintain_order=True)
            named = frame.select(
                user_id=pl.format("user-{}", "user"),
                timestamp="timestamp",
                track_id=pl.format("track-{}", pl.col("track").cast(pl.String).str.zfill(8)),
            )
            named.write_csv(file, include_header=start == 0)


def write(folder: Path) -> None:
    """Write the dataset of the generated plays."""
    tracks = np.load(folder / "tracks.npy", mmap_mode="r")
    lengths = lengths_of(len(tracks))
    listening = RawInteractions(
        tracks=pl.DataFrame({"track_id": _ids("t", TRACKS)}),
        codes=tracks,
        skipped=np.load(folder / "skips.npy", mmap_mode="r"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        session_ids=_ids("s", len(lengths)),
    )
    write_listening(folder / "dataset", listening, "generated", {"plays": len(tracks)}, overwrite=True)


class _Epochs:
    """Prints what an epoch gave."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Nothing."""

    def epoch(self, line: dict[str, float]) -> None:
        """The line of an epoch."""
        print(json.dumps(line))


def train(folder: Path, steps: int) -> None:
    """What `segue train --model sasrec` does, with an epoch of so many steps and 1,000 questions of validation."""
    vars(training.data.loader)["epoch_batches"] = lambda *given: itertools.islice(epoch_batches(*given), steps)
    vars(training.validation)["SESSIONS"] = 1_000
    for name in ("release", "release.training"):
        shutil.rmtree(folder / name, ignore_errors=True)
    data = open_dataset(folder / "dataset")
    train_model(TrainingJob("sasrec", SasRecOptions(epochs=1), data, "last-play", folder / "release"), _Epochs())


def prepare_log(folder: Path, engine: Engine | None) -> None:
    """Make a dataset of the log."""
    prepare("events", [folder / "log.csv"], folder / "prepared", overwrite=True, engine=engine)


def _ids(letter: str, count: int) -> pl.Series:
    return letter + pl.int_range(count, eager=True).cast(pl.String).str.zfill(8)


def measured(command: Sequence[str], limit_gb: float | None) -> dict[str, float]:
    """Seconds and memory of a process; raises where it fails."""
    limit = None if limit_gb is None else int(limit_gb * 1e9)
    bounds = (lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))) if limit else None
    started, most = time.perf_counter(), dict.fromkeys(("RssAnon", "RssFile", "VmHWM"), 0)
    process = subprocess.Popen(command, preexec_fn=bounds)  # noqa: PLW1509
    while process.poll() is None:
        for name, value in _memory(process.pid).items():
            most[name] = max(most[name], value)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_rss_gb": round(most["VmHWM"] / 1e9, 2),
        "peak_anonymous_gb": round(most["RssAnon"] / 1e9, 2),
        "peak_mapped_gb": round(most["RssFile"] / 1e9, 2),
    }


def _memory(pid: int) -> dict[str, int]:
    """Bytes by name, as the kernel tells them; nothing once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = (line.split() for line in lines if line.startswith(("RssAnon:", "RssFile:", "VmHWM:")))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in found}


def commit() -> str:
    ran = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where all of it goes")
    parser.add_argument("--plays", type=int, default=100_000_000)
    parser.add_argument("--steps", type=int, default=200, help="steps of training")
    parser.add_argument("--limit-gb", type=float, help="private memory that each process may take")
    parser.add_argument("--only", action="append", choices=tuple(WORK), help="measure this alone; may be repeated")
    parser.add_argument("--inside", choices=tuple(WORK), help=argparse.SUPPRESS)  # the process that is measured
    options = parser.parse_args(arguments)
    if options.inside:
        WORK[options.inside](options.folder, options.steps)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "log.csv").exists():
        generate(options.folder, options.plays)
        generate_log(options.folder, options.folder / "log.csv")
    for name in options.only or WORK:
        command = [sys.executable, "-m", "benchmarks.large_dataset", "--folder", str(options.folder)]
        found = measured([*command, "--steps", str(options.steps), "--inside", name], options.limit_gb)
        print(name, json.dumps(found), flush=True)
        _note(options, name, found)


def _note(options: argparse.Namespace, name: str, found: dict[str, float]) -> None:
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result.setdefault(str(options.plays), {})[name] = {
        **found,
        "limit_gb": options.limit_gb,
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


WORK: dict[str, Callable[[Path, int], object]] = {
    "write": lambda folder, _: write(folder),
    "open": lambda folder, _: open_dataset(folder / "dataset"),
    "train": train,
    "prepare": lambda folder, _: prepare_log(folder, disk_engine()),
    "prepare_in_memory": lambda folder, _: prepare_log(folder, None),
}


if __name__ == "__main__":
    main()
