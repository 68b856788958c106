"""A service behind the real HAProxy with the shipped configuration: what it lets through, and for how long."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import hostile
from tests.live.proxy import needs_haproxy, proxy_for
from tests.sealing import sealed
from tests.stopwatch import Stopwatch

pytestmark = needs_haproxy
StartService = Callable[..., Any]

HIDDEN = (
    "/metrics",
    "/metrics?x=1",
    "/metrics/",
    "/%6detrics",
    "/%6Detrics",
    "/m%65trics",
    "/%6d%65%74%72%69%63%73",
    "/metrics%0A",
    "/metrics%00",
    "/metrics%3Fx",
    "/%2Fmetrics",
    "//metrics",
    "///%6detrics",
    "/./metrics",
    "/%2e/metrics",
    "/../metrics",
    "/x/../metrics",
    "/x/%2E%2E/%6detrics",
    "/x/y/../../metrics",
    "/x/..//metrics",
    "/metrics/x/..",
)
# Ids that look like the hidden path.
SERVED = ("/recommendations?session_id=metrics", "/tracks?query=metrics", "/releases/current", "/", "/health/ready")


def asked(client: httpx.Client, method: str, target: str) -> httpx.Response:
    """The answer to this very target, which httpx would write in its own way."""
    request = client.build_request(method, "/")
    request.extensions["target"] = target.encode()
    return client.send(request)


def test_metrics_are_hidden_however_their_path_is_written(start_service: StartService, tmp_path: Path) -> None:
    address = start_service().address()
    with httpx.Client(base_url=address, trust_env=False) as direct:
        assert "segue_" in asked(direct, "GET", "/%6detrics").text, "the service decodes paths"
    with proxy_for(address, tmp_path) as proxy, httpx.Client(base_url=proxy, trust_env=False) as client:
        for target in (*HIDDEN, f"{proxy}/metrics", f"{proxy}/%6detrics"):
            for method in ("GET", "HEAD", "POST"):
                answer = asked(client, method, target)
                assert answer.status_code == 404, target
                # The proxy's own answer is empty: the request has not reached the service.
                assert "content-security-policy" not in answer.headers, target
        for target in SERVED:
            assert asked(client, "GET", target).status_code == 200, target
        assert asked(client, "GET", "/sessions/metrics").headers["content-security-policy"]


@pytest.mark.slow
def test_an_idle_stream_outlives_every_time_limit_of_the_proxy(start_service: StartService, tmp_path: Path) -> None:
    """Longer than the longest limit that could end it, which is that of a silent client (30 s)."""
    with (
        proxy_for(start_service().address(), tmp_path) as proxy,
        httpx.Client(base_url=proxy, trust_env=False, timeout=60) as client,
        client.stream("GET", "/sessions/idle/stream", headers={"Accept": "text/event-stream"}) as answer,
        Stopwatch() as watch,
    ):
        assert answer.status_code == 200
        longest = latest = 0.0
        for _ in answer.iter_raw():
            now = watch.seconds
            longest, latest = max(longest, now - latest), now
            if latest > 40:
                break
        assert latest > 40, "the stream has ended"
        assert 3 < longest < 8


@pytest.mark.slow
def test_a_swap_that_takes_longer_than_other_requests_may_is_answered_by_the_service(
    start_service: StartService, releases_dir: Path, tmp_path: Path
) -> None:
    """A release whose encoder never ends takes the whole time of its trial."""
    shutil.copytree(releases_dir / "second", releases_dir / "endless")
    (releases_dir / "endless" / "encoder.onnx").write_bytes(hostile.endless_encoder())
    sealed(releases_dir / "endless")
    service = start_service(releases_dir=releases_dir, release=releases_dir / "first", release_validation_timeout_s=35)
    with (
        proxy_for(service.address(), tmp_path) as proxy,
        httpx.Client(base_url=proxy, trust_env=False, timeout=60) as client,
    ):
        began = time.monotonic()
        answer = client.put("/releases/%63urrent", json={"name": "endless"})
        assert time.monotonic() - began > 30
        assert answer.status_code == 422, answer.text
        assert "35 s" in answer.json()["detail"]
