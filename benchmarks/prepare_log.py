"""The time and memory that `segue prepare` needs for a large log, compared with simpler passes over the same file.

Generates a log of the size and shape of Last.fm 1K, or a log in JSON Lines. Each pass runs in its own process. Passes
run in turn, several rounds in the same run, because a shared machine changes its speed within minutes.

    python -m benchmarks.prepare_log --folder /tmp/log                          19 million lines like Last.fm 1K
    python -m benchmarks.prepare_log --folder /tmp/log --before ../before       the same, compared with another commit
    python -m benchmarks.prepare_log --folder /tmp/log --jsonl --lines 5100000  1 GB of JSON Lines

Writes results/prepare_lfm1k.json or results/prepare_jsonl.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
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
RESULTS = Path(__file__).parent / "results"
HERE = Path(__file__).parents[1]


def invented_ids(rng: np.random.Generator, count: int) -> pl.Series:
    """`count` ids of 36 characters that look like a MusicBrainz id."""
    hex_digits = np.frombuffer(b"0123456789abcdef", dtype="S1")[rng.integers(0, 16, (count, 36), dtype=np.uint8)]
    hex_digits[:, [8, 13, 18, 23]] = b"-"
    return pl.Series(hex_digits.view("S36").ravel().astype("U36"))


def invented_names(rng: np.random.Generator, count: int, words: int) -> pl.Series:
    """Return `count` names of `words` words and a number, which makes nearly all of them distinct."""
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


def write_jsonl(path: Path, lines: int) -> None:
    """Write `lines` JSON objects: users one after another, oldest play first, one play in five skipped."""
    rng = np.random.default_rng(SEED)
    tracks = invented_tracks(rng).select("track_mbid", "artist", "track")
    users = np.sort(rng.integers(0, lines // 500 + 1, lines))
    with path.open("wb") as file:
        for start in range(0, lines, LINES_A_CHUNK):
            of = users[start : start + LINES_A_CHUNK]
            elapsed = np.cumsum(seconds_between_plays(rng, len(of)))
            seconds = NEWEST + elapsed - elapsed[np.searchsorted(of, of, side="left")]
            played = (TRACKS * rng.random(len(of)) ** 3).astype(np.int64)
            plays = pl.DataFrame({"user_id": of, "timestamp": seconds * 1000, "skipped": rng.random(len(of)) < 0.2})
            chunk = plays.select(
                pl.format("user_{}", pl.col("user_id").cast(pl.String).str.zfill(6)).alias("user_id"),
                pl.col("timestamp").cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "skipped",
            )
            named = tracks[played].rename({"track_mbid": "track_id", "artist": "artist_name", "track": "track_name"})
            chunk.hstack(named.with_columns(track_id=pl.concat_str(pl.lit("t"), "track_id"))).write_ndjson(file)


# Programs of the passes. Their arguments are the log and the folder of the dataset.
COUNT_LINES = """
import sys
with open(sys.argv[1], "rb") as file:
    print(sum(block.count(b"\\n") for block in iter(lambda: file.read(1 << 22), b"")))
"""
# Polars alone: every field of every line is read, and nothing is kept but the sum of the lengths.
SCAN_TSV = """
import sys, polars as pl
schema = dict.fromkeys(["user", "time", "artist_mbid", "artist", "track_mbid", "title"], pl.String)
form = dict(separator="\\t", has_header=False, quote_char=None, schema=schema, missing_columns="insert")
pl.scan_csv(sys.argv[1], **form).select(pl.all().str.len_bytes().sum()).collect(engine="streaming")
"""
SCAN_JSONL = """
import sys, polars as pl
names = ["user_id", "timestamp", "skipped", "track_id", "artist_name", "track_name"]
schema = {name: pl.Boolean if name == "skipped" else pl.String for name in names}
sums = [pl.col(pl.String).str.len_bytes().sum(), pl.col("skipped").sum()]
pl.scan_ndjson(sys.argv[1], schema=schema).select(sums).collect(engine="streaming")
"""
READ_EVENTS = """
import sys
from pathlib import Path
import polars as pl
from training.prepare.options import PrepareOptions
from training.prepare.reading import parsed
from training.prepare.sources import FileSlice, LogFile, opened
with opened(FileSlice(LogFile(Path(sys.argv[1]))), "events", Path(sys.argv[2]).parent, None) as plain:
    lines = parsed("events", plain, PrepareOptions())
    names = ["problem", "owner", "track", "at", "title", "artist", "skipped"]
    lines.frame.select(pl.col(names).null_count()).collect(engine="streaming")
"""
PREPARE = """
import sys
from pathlib import Path
from training.prepare.pipeline import prepare
prepare({kind!r}, [sys.argv[1]], Path(sys.argv[2]), overwrite=True)
"""


def run_pass(name: str, program: str, log: Path, out: Path, tree: Path = HERE) -> dict[str, float]:
    """Run a program in its own process with the code of `tree`. Return its wall and CPU seconds and peak memory."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, str(log), str(out)], env=environment, cwd=tree)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    cpu_s = used.ru_utime + used.ru_stime
    print(f"{name}: {wall_s:.2f} s, {cpu_s:.2f} s of processor time, {used.ru_maxrss / 1e6:.2f} GB", flush=True)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_rss_gb": used.ru_maxrss * 1024 / 1e9}


def ratio(rounds: Sequence[dict[str, dict[str, float]]], of: str, to: str, what: str) -> dict[str, float]:
    """The median over the rounds of one pass divided by another, with the smallest and the largest."""
    ratios = [one[of][what] / one[to][what] for one in rounds]
    return {"median": round(float(np.median(ratios)), 3), "low": round(min(ratios), 3), "high": round(max(ratios), 3)}


def commit(tree: Path = HERE) -> str:
    ran = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=tree)
    return ran.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the log and the dataset")
    parser.add_argument("--lines", type=int, default=19_150_868, help="lines of the log; default: as Last.fm 1K")
    parser.add_argument("--jsonl", action="store_true", help="a log in JSON Lines")
    parser.add_argument("--before", type=Path, help="a checkout of another commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the generated log for another run")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    name = "jsonl" if options.jsonl else "lfm1k"
    log, out = options.folder / f"{name}-{options.lines}", options.folder / "dataset"
    if not log.exists():
        (write_jsonl if options.jsonl else write_log)(log, options.lines)
    prepare = PREPARE.format(kind="events" if options.jsonl else "lfm1k")
    passes = {"polars_scan": SCAN_JSONL if options.jsonl else SCAN_TSV, "prepare": prepare}
    passes |= {"read": READ_EVENTS} if options.jsonl else {"count_lines": COUNT_LINES}
    rounds = []
    for _ in range(options.rounds):
        done = (
            {"prepare_before": run_pass("prepare_before", prepare, log, out, options.before)} if options.before else {}
        )
        done |= {one: run_pass(one, program, log, out) for one, program in passes.items()}
        rounds.append(done)
    facts = json.loads((out / "dataset.json").read_text())
    pairs = [("prepare", "prepare_before")] if options.before else []
    pairs += [("prepare", "polars_scan")] + ([("read", "polars_scan")] if options.jsonl else [])
    result = {
        "lines": options.lines,
        "log_gb": round(log.stat().st_size / 1e9, 2),
        "medians": {
            one: {what: round(float(np.median([done[one][what] for done in rounds])), 2) for what in rounds[0][one]}
            for one in rounds[0]
        },
        "ratios": {
            f"{of} / {to}": {what: ratio(rounds, of, to, what) for what in ("wall_s", "cpu_s", "peak_rss_gb")}
            for of, to in pairs
        },
        "dataset": facts["counts"] | {"malformed_lines": facts["malformed_lines"]},
        "rounds": options.rounds,
        "polars": pl.__version__,
        "cpus": os.cpu_count(),
        "commit": commit(),
        "commit_before": commit(options.before) if options.before else None,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (RESULTS / f"prepare_{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    shutil.rmtree(out)
    if not options.keep:
        log.unlink()


if __name__ == "__main__":
    main()
