"""What one core of the service can do, beside what its parts can do, in one run.

    python -m benchmarks.serving.run --folder /tmp/serving --tracks 600000

Trains a release on synthetic sessions, enlarges it, indexes it, starts Redis and the service, and drives it.
The service has a core of its own, Redis and the generator share the other. Writes results/serving_TRACKS.json
and a plot of latency against offered load. What has been trained, enlarged and indexed is not done again.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.serving import report

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
# Recall@20 asked of the index of each size.
RECALL = {100_000: 0.99, 600_000: 0.99, 1_000_000: 0.99, 10_000_000: 0.95}
SOAKED = 600_000
P99_TARGET_MS = 20  # the capacity is the largest offered load that is answered within it
SERVER_CORE, OTHER_CORE = 0, max(os.sched_getaffinity(0))
CONNECTIONS = 32


def segue(*arguments: object) -> None:
    """One command of ours."""
    subprocess.run([sys.executable, "-m", "segue", *map(str, arguments)], check=True)


def release_of(folder: Path, tracks: int, kind: str, recall: float) -> Path:
    """A trained release, enlarged and indexed; made where it is not there."""
    from benchmarks.serving.enlarge import enlarge
    from segue.release import open_release

    dataset, trained, large = folder / "dataset", folder / "trained", folder / f"release-{tracks}-{kind}"
    if not trained.is_dir():
        segue("simulate", "--tracks", 2000, "--sessions", 6000, "--out", dataset, "--overwrite")
        settings = [f"--set={option}" for option in ("dimension=128", "heads=8", "norm=pre", "init_scale=0.1")]
        segue("train", dataset, "--model", "sasrec", "--recipe", "demo", *settings, "--out", trained)
    if not large.is_dir():
        part = folder / f"part-{tracks}-{kind}"
        release = enlarge(open_release(trained), tracks, part) if not part.is_dir() else open_release(part)
        segue("index", release.path, "--kind", kind, "--recall", recall)
        part.rename(large)
    return large


def sessions_of(release: Path, file: Path) -> None:
    """The release's sample windows as sessions for the generator."""
    from segue.catalogue import PAD_ROW
    from segue.release import open_release

    opened = open_release(release)
    windows, catalogue = opened.sample_windows, opened.mapped_catalogue
    lines = zip(windows.tracks.tolist(), windows.skipped.tolist(), strict=True)
    sessions = [
        [(catalogue.track_id(row), skip) for row, skip in zip(rows, skips, strict=True) if row != PAD_ROW]
        for rows, skips in lines
    ]
    file.write_text(json.dumps([session for session in sessions if session]))


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """An empty Redis on a core of its own."""
    from service.sessions.embedded_redis import embedded_redis

    shutil.rmtree(folder, ignore_errors=True)  # sessions of another catalogue would be gone on with
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {OTHER_CORE})  # the server inherits it
    with embedded_redis(folder, "everysec") as url:
        os.sched_setaffinity(0, before)
        yield url


@contextlib.contextmanager
def served(command: list[object], environment: dict[str, str], port: int, workers: int = 1) -> Iterator[psutil.Process]:
    """A server on the server's core, as soon as it answers. More than one worker: on all cores."""
    cores = {SERVER_CORE} if workers == 1 else os.sched_getaffinity(0)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | threads | environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509 (no threads here)
    )
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/health/live", trust_env=False)
                break
            if process.poll() is not None:
                sys.exit(f"{command} has ended")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def uvicorn(app: str, redis_url: str, release: Path, port: int) -> contextlib.AbstractContextManager[psutil.Process]:
    """One of the references, run as the service is."""
    options = ["--port", port, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.serving.references:{app}", "--factory", *options]
    return served(command, {"REDIS_URL": redis_url, "RELEASE": str(release)}, port)


def load(folder: Path, port: int, scenario: str, seconds: float, **more: Any) -> dict[str, Any]:
    """One run of the generator, on the other core."""
    plan = {
        "host": "127.0.0.1",
        "port": port,
        "scenario": scenario,
        "seconds": seconds,
        "warm_up_s": 1.0 if scenario != "fill" else 0.0,
        "connections": CONNECTIONS,
        "sessions": str(folder / "sessions.json"),
    } | more
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    answers = folder / "load.json"
    with answers.open("w") as out:  # not a pipe: a long result has come damaged through one
        subprocess.run(
            [sys.executable, HERE / "load.py", file],
            check=True,
            stdout=out,
            preexec_fn=lambda: os.sched_setaffinity(0, {OTHER_CORE}),
        )
    result: dict[str, Any] = json.loads(answers.read_text())
    shown = {key: value for key, value in result.items() if key != "kept"}
    print(f"{scenario} {more.get('rate', '')} {shown}", flush=True)
    return result


def parts_alone(release: Path) -> dict[str, float]:
    """Microseconds of a request's encoding and search, alone and in batches of eight, on one core."""
    code = f"""
import json, time, numpy as np
from pathlib import Path
from index.tuning import open_index
from segue.release import ENCODER, open_release
from segue.window import Windows
from service.releases.rankers import OnnxEncoder
release = open_release(Path({str(release)!r}))
windows, encoder, index = release.sample_windows, OnnxEncoder(release.path / ENCODER), open_index(release)
queries = encoder.encode(windows)
def us(run, batch):
    best = []
    for _ in range(5):
        began = time.perf_counter()
        for i in range(0, 400, batch):
            run(slice(i, i + batch))
        best.append((time.perf_counter() - began) / 400 * 1e6)
    return float(np.median(best))
encode = lambda which: encoder.encode(windows.select(which))
search = lambda which: index.search(queries[which], 48)
parts = [("encode", encode), ("search", search)]
print(json.dumps({{f"{{name}}_us_in_{{batch}}": us(run, batch) for name, run in parts for batch in (1, 8)}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    )
    return dict(json.loads(done.stdout))


def recall(release: Path, kept: list[Any], sessions: list[Any]) -> dict[str, float]:
    """Of what was served: the share of exact search's first 20; how many lists equal those asked one at a time."""
    from segue.release import open_release
    from segue.sessions import NEVER_REPEAT, Outcome, Play
    from segue.window import to_sessions
    from service.releases.loaded import load_release, recommender_of

    kept = kept[:500]
    plays = [
        [Play(t, Outcome.SKIPPED if s else Outcome.PLAYED) for t, s in sessions[int(path.split("s-")[1].split("&")[0])]]
        for path, _ in kept
    ]
    live = load_release(release)
    alone = [[track.track_id for track in live.recommend(one, 20, repeat="never").tracks] for one in plays]
    opened = open_release(release)
    exact, catalogue = recommender_of(opened, exact=True), opened.mapped_catalogue
    lists = [
        {catalogue.track_id(row) for row in found.rows.tolist()}
        for found in exact.recommend(to_sessions(plays, catalogue), 20, repeat=NEVER_REPEAT)
    ]
    hits = [len(set(ids) & best) / 20 for (_, ids), best in zip(kept, lists, strict=True)]
    same = [ids == one for (_, ids), one in zip(kept, alone, strict=True)]
    return {"recall@20": round(float(np.mean(hits)), 4), "equal_to_one_at_a_time": round(float(np.mean(same)), 4)}


def memory(process: psutil.Process) -> dict[str, int]:
    """Resident and proportional MiB of a process and its children."""
    infos = [one.memory_full_info() for one in [process, *process.children(recursive=True)]]
    return {"rss_mib": sum(i.rss for i in infos) >> 20, "pss_mib": sum(i.pss for i in infos) >> 20}


def service(
    folder: Path,
    release: Path,
    url: str,
    workers: int = 1,
    latency_budget_ms: float = 0,
    port: int = 8911,
    index_device: str = "cpu",
) -> contextlib.AbstractContextManager[psutil.Process]:
    """The service on the server's core. Load is shed only if `latency_budget_ms` is set."""
    command = [sys.executable, "-m", "segue", "serve", release, "--redis-url", url, "--port", port]
    environment = {
        "SEGUE_DATA_DIR": str(folder / "data"),
        "SEGUE_RANKING_THREADS": "1",
        "SEGUE_LOG_LEVEL": "warning",
        "SEGUE_LATENCY_BUDGET_MS": str(latency_budget_ms),
        "SEGUE_INDEX_DEVICE": index_device,
    }
    return served([*command, "--workers", workers], environment, port)


def closed_loops(folder: Path, process: psutil.Process, seconds: float) -> dict[str, Any]:
    """As much as 32 listeners can have of each call."""
    result: dict[str, Any] = {}
    for scenario in ("recommend", "report", "report_and_recommend"):
        before = process.cpu_times()
        result[scenario] = load(folder, 8911, scenario, seconds, keep=scenario == "recommend")
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        result[scenario]["server_cpu"] = round(used / seconds, 3)
    return result


def offered(folder: Path, most: float, seconds: float) -> list[dict[str, Any]]:
    """The capacity curve: latency against offered load, up to twice what the closed loop reached."""
    return [
        {"share": share, "rate": round(most * share)}
        | load(folder, 8911, "recommend", seconds, rate=most * share, connections=256)
        for share in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0)
    ]


def soak(folder: Path, process: psutil.Process, rate: float, minutes: int) -> list[dict[str, Any]]:
    """The same load minute after minute: latency and memory of each."""
    return [
        load(folder, 8911, "recommend", 60, rate=rate, connections=256, warm_up_s=0.0) | memory(process)
        for _ in range(minutes)
    ]


def measure(folder: Path, release: Path, tracks: int, seconds: float, soak_minutes: int) -> dict[str, Any]:
    """Everything of one size."""
    sessions_of(release, folder / "sessions.json")
    sessions = json.loads((folder / "sessions.json").read_text())
    result: dict[str, Any] = {"tracks": tracks, "index": json.loads((release / "index.json").read_text())}
    result["index"].pop("tried", None)
    result["index_mib"] = (release / "index.faiss").stat().st_size >> 20
    result["embeddings_mib"] = (release / "item_embeddings.npy").stat().st_size >> 20
    with redis(folder / "redis") as url:
        result["parts"] = parts_alone(release)
        print(result["parts"], flush=True)
        began = time.perf_counter()
        with service(folder, release, url) as process:
            result["ready_s"] = round(time.perf_counter() - began, 2)
            load(folder, 8911, "fill", 600)
            result |= closed_loops(folder, process, seconds)
            result["recommend"] |= recall(release, result["recommend"].pop("kept"), sessions)
            result["at_300_per_s"] = load(folder, 8911, "recommend", seconds, rate=300, connections=256)
            most = result["recommend"]["per_s"]
            result["offered"] = offered(folder, most, seconds)
            within = [one["rate"] for one in result["offered"] if one["p99_ms"] <= P99_TARGET_MS]
            result["capacity_per_s"] = max(within, default=0)
            result["soak"] = soak(folder, process, 0.8 * result["capacity_per_s"], soak_minutes)
        for workers, name in ((1, "memory_of_one_worker"), (2, "memory_of_two_workers")):
            with service(folder, release, url, workers) as process:
                load(folder, 8911, "recommend", seconds)
                result[name] = memory(process)
        with uvicorn("constant", url, release, 8912):
            result["constant"] = load(folder, 8912, "constant", seconds)
        with uvicorn("one_read", url, release, 8913):
            result["one_read"] = load(folder, 8913, "recommend", seconds)
        if tracks <= 1_000_000:
            with uvicorn("naive", url, release, 8914):
                result["naive"] = load(folder, 8914, "recommend", seconds)
    return result | ratios(result)


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """The service beside the references of the same run."""
    parts, served_per_s = result["parts"], result["recommend"]["per_s"]
    limit = 1e6 / (1e6 / result["one_read"]["per_s"] + parts["encode_us_in_8"] + parts["search_us_in_8"])
    found = {
        "recommend to sum of parts": round(served_per_s / limit, 3),
        "recommend to one read": round(served_per_s / result["one_read"]["per_s"], 3),
    }
    if "naive" in result:
        found["recommend to naive"] = round(served_per_s / result["naive"]["per_s"], 1)
    return {"sum_of_parts_per_s": round(limit, 1), "ratios": found}


def main() -> None:
    """Measure each size that was named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where releases and logs go; outside the tree")
    parser.add_argument("--tracks", type=int, nargs="+", default=list(RECALL))
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--soak-minutes", type=int, default=10, help="at 80 %% of the capacity, for 600,000 tracks")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
    )
    for tracks in chosen.tracks:
        release = release_of(chosen.folder, tracks, chosen.kind, RECALL.get(tracks, 0.99))
        minutes = chosen.soak_minutes if tracks == SOAKED else 0
        result = measure(chosen.folder, release, tracks, chosen.seconds, minutes)
        result |= {"commit": commit.stdout.strip(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        (RESULTS / f"serving_{tracks}.json").write_text(json.dumps(result, indent=2) + "\n")
        report.plot(result, RESULTS / f"serving_{tracks}.svg")
        print(json.dumps(result["ratios"]))
    files = sorted(RESULTS.glob("serving_*.json"), key=lambda file: int(file.stem.partition("_")[2]))
    (RESULTS / "serving.md").write_text(report.table([json.loads(file.read_text()) for file in files]))


if __name__ == "__main__":
    main()
