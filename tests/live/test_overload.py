"""A full service refuses at once what it cannot answer in time, and slow clients take nobody's place."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

StartService = Callable[..., Any]
GENERATOR = Path(__file__).parents[2] / "benchmarks" / "serving" / "load.py"
# A release that takes its time: each encoding sleeps.
SLOW = (
    "import time, service.onnx_encoder as o; encode = o.OnnxEncoder.encode;"
    "o.OnnxEncoder.encode = lambda self, windows: (time.sleep(0.002 * len(windows)), encode(self, windows))[1]"
)
PLAY = {"events": [{"type": "play", "track_id": "g0-t00"}]}


def address_of(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port or 0


def load(folder: Path, client: httpx.Client, **plan: Any) -> dict[str, Any]:
    """What benchmarks/serving/load.py finds."""
    host, port = address_of(client)
    sessions = folder / "sessions.json"
    sessions.write_text(json.dumps([[["g0-t00", False]], [["g1-t00", False], ["g2-t00", True]]]))
    common = {"host": host, "port": port, "sessions": str(sessions), "scenario": "recommend", "warm_up_s": 0.0}
    file = folder / "plan.json"
    file.write_text(json.dumps(common | plan))
    done = subprocess.run([sys.executable, GENERATOR, file], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not GENERATOR.exists(), reason="the benchmarks are not part of the wheel")
def test_beyond_capacity_served_requests_are_in_time_and_the_others_refused_at_once(
    start_service: StartService, tmp_path: Path
) -> None:
    """Two milliseconds of encoding a session: 500 requests a second in one thread, and five times that is asked."""
    with start_service(prelude=SLOW, ranking_threads=1).client() as client:
        load(tmp_path, client, scenario="fill", connections=2, seconds=10)
        phases = [[6, 2500], [6, 200]]
        found = load(tmp_path, client, connections=500, seconds=12, phases=phases)
        under, after = found["phases"]
        assert under["served_per_s"] > 100
        assert under["refused_per_s"] > 500
        assert under["served_p99_ms"] < 300  # 100 on a machine that does nothing else
        assert under["refused_p50_ms"] < 50
        assert under["refused_p99_ms"] < 200
        assert after["last_refused_or_late_s"] < 5
        assert set(found["failures"]) == {"503"}
        metrics = client.get("/metrics").text
        shed = re.search(r"^segue_shed_requests_total (\S+)$", metrics, re.MULTILINE)
        assert shed is not None
        assert float(shed[1]) == sum(found["failures"].values())
