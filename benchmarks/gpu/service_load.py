"""Steps `service-*`: the service under load with the index on the device, beside the CPU index in the same run.

As in benchmarks/serving/run.py the service has one core, and Redis and the load generator another one. On the device it
searches the flat index in half precision, which finds at least as much as the CPU's.
"""

import json
import re
import socket
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.gpu import facts
from benchmarks.gpu.service_release import folders
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.step_errors import StepFailed
from benchmarks.serving import run as serving

_ASKED_FOR_RECALL: Final = 200  # lists
_BUCKET: Final = re.compile(r'^segue_batch_size_bucket\{le="([^"]+)",stage="ranking"\} (\S+)', re.MULTILINE)


def measure(sizes: Sizes, folder: Path, number: int) -> dict[str, Any]:
    """Load either service; requests a second, latencies, recall, and the batches that formed."""
    tracks = sizes.catalogues[number]
    plain, indexed = folders(folder, tracks)
    if not (indexed / "index.faiss").is_file():
        raise StepFailed(f"{indexed} has no index: run the step release-* of this catalogue first")
    serving.sessions_of(plain, folder / "sessions.json")
    sessions = json.loads((folder / "sessions.json").read_text())
    with serving.redis(folder / "redis") as url:
        on_cpu = _loaded(sizes, folder, indexed, url, "cpu")
        on_device = _loaded(sizes, folder, plain, url, sizes.device)
    for one in (on_cpu, on_device):
        one["recall_at_20"] = recall(plain, one.pop("kept"), sessions)
    return {"tracks": tracks, "cpu": on_cpu, "gpu": on_device, "ratio": _ratio(on_cpu, on_device)}


def _ratio(on_cpu: dict[str, Any], on_device: dict[str, Any]) -> float:
    """Requests a second with the device to those with the CPU, each at its best number of connections."""
    device_best, cpu_best = (max(float(load["per_s"]) for load in one["loads"]) for one in (on_device, on_cpu))
    return round(device_best / cpu_best, 3)


def _loaded(sizes: Sizes, folder: Path, release: Path, url: str, device: str) -> dict[str, Any]:
    port, used = _free_port(), facts.card_used_mib()
    result: dict[str, Any] = {"device": device, "loads": []}
    with serving.service(folder, release, url, port=port, index_device=device) as process:
        _wait_until_ready(port)
        now_used = facts.card_used_mib()
        result["card_mib"] = None if used is None or now_used is None else now_used - used
        serving.load(folder, port, "fill", 60)
        for connections in sizes.connections:
            before = _batches(port)
            load = serving.load(
                folder, port, "recommend", sizes.load_s, connections=connections, keep=True, warm_up_s=sizes.load_s / 8
            )
            result["kept"] = load.pop("kept")
            result["loads"].append({"connections": connections, **load, "batches": formed(before, _batches(port))})
        result |= serving.memory(process)
    return result


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_ready(port: int) -> None:
    httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=60, trust_env=False).raise_for_status()


def _batches(port: int) -> dict[str, float]:
    """The histogram of the service's batch sizes: how many were at most so large."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
    return {bound: float(count) for bound, count in _BUCKET.findall(text)}


def formed(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The share of batches of each size between two readings; a size stands for those above the next smaller one."""
    grown = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    counts = dict(zip(grown, np.diff([0.0, *grown.values()]).tolist(), strict=True))
    total = sum(counts.values())
    return {bound: round(count / total, 4) for bound, count in counts.items()} if total else {}


def recall(release: Path, kept: list[Any], sessions: list[Any]) -> float:
    """The share of exact search's first 20 among the tracks that were served."""
    from segue.release import open_release
    from segue.sessions import NEVER_REPEAT, Outcome, Play
    from segue.window import to_sessions
    from service.releases.loaded import recommender_of

    kept = kept[:_ASKED_FOR_RECALL]
    numbers = [int(path.split("s-")[1].split("&")[0]) for path, _ in kept]
    plays = [[Play(t, Outcome.SKIPPED if s else Outcome.PLAYED) for t, s in sessions[number]] for number in numbers]
    opened = open_release(release)
    catalogue = opened.mapped_catalogue
    answers = recommender_of(opened, exact=True).recommend(to_sessions(plays, catalogue), 20, repeat=NEVER_REPEAT)
    lists = [{catalogue.track_id(row) for row in answer.rows.tolist()} for answer in answers]
    return round(float(np.mean([len(set(ids) & best) / 20 for (_, ids), best in zip(kept, lists, strict=True)])), 4)
