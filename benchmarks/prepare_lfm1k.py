"""How long `prepare` takes for a log of the size and shape of Last.fm 1K, and how much memory.

Generates a log (nothing of the real one is needed), prepares it in a process of its own, and sets the time beside
that of two simpler passes over the same file in the same run: counting its lines, and scanning its columns.

    python benchmarks/prepare_lfm1k.py --folder /tmp/lfm1k --lines 19150868
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

SEED = 20090505
USERS = 992
TRACKS = 1_500_000
ARTISTS = 107_000
LINES_A_CHUNK = 1_000_000
NEWEST = 1_241_481_600  # 2009-05-05T00:00:00Z, seconds since 1970
WORDS = (
    *("love", "night", "blue", "river", "golden", "heart", "of", "the", "dream", "ocean", "silence"),
    *("fire", "electric", "moon", "paper", "garden", "東京", "für", "café"),
)
RESULTS = Path(__file__).parent / "results" / "prepare_lfm1k.json"


def invented_ids(rng: np.random.Generator, count: int) -> pl.Series:
    """`count` ids of 36 characters that look like a MusicBrainz id."""
    hex_digits = np.frombuffer(b"0123456789abcdef", dtype="S1")[rng.integers(0, 16, (count, 36), dtype=np.uint8)]
    hex_digits[:, [8, 13, 18, 23]] = b"-"
    return pl.Series(hex_digits.view("S36").ravel().astype("U36"))


def invented_names(rng: np.random.Generator, count: int, words: int) -> pl.Series:
    """`count` names of so many words with a number at the end that makes nearly all of them distinct."""
    vocabulary = pl.Series([word.title() for word in WORDS])
    frame = pl.DataFrame([vocabulary.gather(rng.integers(0, len(WORDS), count)).alias(str(n)) for n in range(words)])
    return frame.select(pl.concat_str(pl.all(), pl.int_range(count, dtype=pl.Int32), separator=" ")).to_series()


def invented_tracks(rng: np.random.Generator) -> pl.DataFrame:
    """The columns of a log line that belong to the track; one track in nine has no MusicBrainz id."""
    artist = np.minimum(rng.zipf(1.3, TRACKS) - 1, ARTISTS * 10) % ARTISTS
    artist = np.where(rng.random(TRACKS) < 0.7, rng.integers(0, ARTISTS, TRACKS), artist)
    nameless = pl.Series(rng.random(TRACKS) < 0.11)
    return pl.DataFrame(
        {
            "artist_mbid": invented_ids(rng, ARTISTS).gather(artist),
            "artist": invented_names(rng, ARTISTS, 2).gather(artist),
            "track_mbid": invented_ids(rng, TRACKS),
            "track": invented_names(rng, TRACKS, 3),
        }
    ).with_columns(track_mbid=pl.when(nameless).then(pl.lit("")).otherwise(pl.col("track_mbid")))


def write_log(path: Path, lines: int) -> None:
    """Write `lines` lines: users one after another, each newest first; the last line of a chunk is cut short."""
    rng = np.random.default_rng(SEED)
    tracks = invented_tracks(rng)
    user_of_line = np.sort(rng.choice(USERS, lines, p=rng.dirichlet(np.full(USERS, 0.8))).astype(np.int16))
    oldest = NEWEST
    with path.open("wb") as file:
        for start in range(0, lines, LINES_A_CHUNK):
            users = user_of_line[start : start + LINES_A_CHUNK]
            elapsed = np.cumsum(seconds_between_plays(rng, len(users)))
            since_first = elapsed - elapsed[np.searchsorted(users, users, side="left")]
            seconds = np.where(users == user_of_line[max(start - 1, 0)], oldest - 200, NEWEST) - since_first
            oldest = int(seconds[-1])
            played = (TRACKS * rng.random(len(users)) ** 3).astype(np.int64)  # a few tracks are played very often
            plays = pl.DataFrame({"user": users, "at": seconds * 1000}).select(
                user=pl.format("user_{}", pl.col("user").cast(pl.String).str.zfill(6)),
                at=pl.col("at").cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
            chunk = pl.concat([plays, tracks[played]], how="horizontal")
            chunk.head(-1).write_csv(file, include_header=False, separator="\t", quote_style="never")
            file.write(b"\t".join(text.encode() for text in chunk.row(-1)[:4]) + b"\n")


def seconds_between_plays(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """One play in a hundred is skipped within 30 s, one in twenty is the last before a pause."""
    kind = rng.random(count)
    gaps = np.where(kind < 0.01, rng.integers(1, 30, count), rng.integers(120, 420, count))
    return np.where(kind > 0.95, rng.integers(1_200, 90_000, count), gaps)


def timed(what: str, work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{what}: {seconds:.2f} s")
    return seconds


def count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 22), b""))


def scan_columns(path: Path) -> pl.DataFrame:
    """Polars alone: every field of every line read, nothing kept but its length."""
    names = ["user", "time", "artist_mbid", "artist", "track_mbid", "title"]
    frame = pl.scan_csv(
        path,
        separator="\t",
        has_header=False,
        quote_char=None,
        schema=dict.fromkeys(names, pl.String),
        missing_columns="insert",
    )
    return frame.select(pl.all().str.len_bytes().sum()).collect(engine="streaming")


def prepare_in_own_process(path: Path, out: Path) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of `prepare`, measured by the system on a child process."""
    script = (
        "import sys; from pathlib import Path; from training.prepare.pipeline import prepare;"
        "prepare('lfm1k', [sys.argv[1]], Path(sys.argv[2]), overwrite=True)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", script, str(path), str(out)]
    wall = timed("prepare", lambda: subprocess.run(command, check=True, cwd=Path(__file__).parents[1]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # ru_maxrss is the largest of all children, in KiB; this is the only large one.
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_rss_gb": round(after.ru_maxrss * 1024 / 1e9, 2)}


def commit() -> str:
    ran = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where the log and the dataset go")
    parser.add_argument("--lines", type=int, default=19_150_868, help="as many as Last.fm 1K has")
    parser.add_argument("--keep", action="store_true", help="keep the generated log for another run")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / f"lfm1k-{options.lines}.tsv"
    if not log.exists():
        timed("generate", lambda: write_log(log, options.lines))
    load_before = os.getloadavg()[0]
    baselines = {
        "count_lines_s": round(timed("count lines", lambda: count_lines(log)), 2),
        "polars_scan_s": round(timed("polars scan", lambda: scan_columns(log)), 2),
    }
    prepared = prepare_in_own_process(log, options.folder / "dataset")
    facts = json.loads((options.folder / "dataset" / "dataset.json").read_text())
    result = {
        "lines": options.lines,
        "log_gb": round(log.stat().st_size / 1e9, 2),
        "prepare": prepared,
        "baselines_same_run": baselines,
        "prepare_over_polars_scan": round(prepared["wall_s"] / baselines["polars_scan_s"], 1),
        "dataset": facts["counts"] | {"malformed_lines": facts["malformed_lines"]},
        "polars": pl.__version__,
        "cpus": os.cpu_count(),
        "load_before": round(load_before, 2),
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": f"python benchmarks/prepare_lfm1k.py --folder FOLDER --lines {options.lines}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    shutil.rmtree(options.folder / "dataset")
    if not options.keep:
        log.unlink()


if __name__ == "__main__":
    main()
