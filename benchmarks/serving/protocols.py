"""What the service's own HTTP connection is worth beside uvicorn's own means.

    python -m benchmarks.serving.protocols --folder /tmp/serving --tracks 600000

Serves one release by the service's connection, by uvicorn's two protocols as they are, and by uvicorn behind HAProxy
with the shipped configuration; admission control is then a layer of the app. Measures each by closed loops and at five
times its capacity, in several rounds turn about, and sends each the requests whose ends are hard to tell. The service
has a core of its own; Redis, HAProxy and the generator share the other. Writes results/protocols.json.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.serving.run import OTHER_CORE, RECALL, RESULTS, load, redis, release_of, served, sessions_of

PORT: Final = 8911
PROXY_PORT: Final = 8912
CONNECTIONS: Final = 1024
TIMES: Final = 5
SHED_AFTER_MS: Final = 40
VARIANTS: Final = ("own connection", "httptools", "h11", "httptools, limit_concurrency", "httptools behind HAProxy")
_ALWAYS: Final = ("/health/", "/metrics", "/releases", "/operations", "/ops")
_HAPROXY: Final = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
_HOST: Final = b"Host: localhost\r\n"
_EVENTS: Final = json.dumps({"events": [{"type": "play", "track_id": "track:00000001"}]}).encode()
_JSON: Final = b"Content-Type: application/json\r\n"


class AdmissionLayer:
    """Admission control where the protocol does not have it: once uvicorn has made a task for the request."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        from service.http.admission_control import OVERLOADED_RESPONSE

        if scope["type"] == "http" and not scope["path"].startswith(_ALWAYS):
            admission_control = scope["state"]["admission_control"]
            if admission_control.is_full():
                admission_control.on_rejection()
                await OVERLOADED_RESPONSE(scope, receive, send)
                return
            admission_control.enter(scope)
        await self._app(scope, receive, send)


def serve(variant: str, arguments: list[str]) -> None:
    """`segue serve` with another protocol."""
    from segue.cli import main
    from service import server as process

    usual = process._uvicorn_config

    def changed(settings: Any, app: Any, **options: Any) -> Any:
        config = usual(settings, app, **options)
        if variant != VARIANTS[0]:
            config.http = "h11" if variant == "h11" else "httptools"
            config.h11_max_incomplete_event_size = 65_536
            if "limit_concurrency" in variant:
                config.limit_concurrency = 64
            else:
                config.app = AdmissionLayer(app)
        return config

    process._uvicorn_config = changed
    sys.exit(main(["serve", *arguments]))


@contextlib.contextmanager
def serving(folder: Path, release: Path, url: str, variant: str, latency_budget_ms: int) -> Iterator[tuple[int, Any]]:
    """The variant on the server's core; its port and process."""
    command = [sys.executable, "-m", "benchmarks.serving.protocols", "--serve", variant, "--", release]
    environment = {
        "SEGUE_DATA_DIR": str(folder / "data"),
        "SEGUE_RANKING_THREADS": "1",
        "SEGUE_LOG_LEVEL": "error",
        "SEGUE_LATENCY_BUDGET_MS": str(latency_budget_ms),
        "SEGUE_READ_TIMEOUT_S": "2",
    }
    with served([*command, "--redis-url", url, "--port", PORT], environment, PORT) as process:
        if "HAProxy" not in variant:
            yield PORT, process
            return
        with haproxy():
            yield PROXY_PORT, process


@contextlib.contextmanager
def haproxy() -> Iterator[None]:
    """HAProxy with the shipped configuration, but for its addresses and name server."""
    program = shutil.which("haproxy")
    if program is None:
        sys.exit("haproxy is missing: install it, or leave this variant out with --variants")
    text = _HAPROXY.read_text().replace("bind :8000", f"bind 127.0.0.1:{PROXY_PORT}")
    text = re.sub(r"resolvers docker\n(?:    .*\n)+", "", text)
    text = re.sub(r" *default-server resolvers docker init-addr none\n", "", text)
    text = re.sub(r"server-template replica \d+ service:8000", f"server replica 127.0.0.1:{PORT}", text)
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(text)
        file.flush()
        process = subprocess.Popen(
            [program, "-db", "-f", file.name],
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {OTHER_CORE}),  # noqa: PLW1509 (no threads here)
        )
        try:
            live = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            for _ in range(100):
                with contextlib.suppress(OSError):
                    if b" 200 " in exchange(PROXY_PORT, live):
                        break
                if process.poll() is not None:
                    sys.exit("haproxy has ended")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(10)


def exchange(port: int, *pieces: bytes, wait_s: float = 0.5, shut_down: bool = False) -> bytes:
    """Send each piece in a segment of its own; what came back, and `<closed>` if the service closed."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.002 if len(pieces) > 10 else 0.05)
            if shut_down:
                client.shutdown(socket.SHUT_WR)
            client.settimeout(wait_s)
            while part := client.recv(65_536):
                received += part
            received += b"<closed>"
        except TimeoutError:
            pass
        except OSError:
            received += b"<closed>"
    return received


def _statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


def _post(session: str, *headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /sessions/%b/events HTTP/1.1\r\n%b%b\r\n%b" % (session.encode(), _HOST, b"".join(headers), body)


def _trailers_are_no_headers(port: int) -> bool:
    chunks = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(_EVENTS), _EVENTS, _JSON)
    return _statuses(exchange(port, _post("trailers", b"Transfer-Encoding: chunked\r\n", body=chunks))) == [415]


def _endless(port: int, begin: bytes, more: bytes) -> bool:
    """Whether the service closes before a megabyte of it."""
    return exchange(port, begin, *[more * (10_000 // len(more))] * 100).endswith(b"<closed>")


def _bodies_stay_bodies(port: int) -> bool:
    hidden = b"GET /health/live HTTP/1.1\r\n%b\r\n" % _HOST
    offers = (b"Upgrade", b"uPGrade")
    for offer in offers:
        length = b"Content-Length: %d\r\n" % len(hidden)
        whole = _post("offer", b"Connection: Upgrade\r\n", offer + b": h2c\r\n", _JSON, length, body=hidden)
        at = whole.index(offer) + 3
        if len(_statuses(exchange(port, whole[:at], whole[at : -len(hidden)], hidden))) != 1:
            return False
    connect = b"CONNECT /health/live HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (_HOST, len(hidden))
    return len(_statuses(exchange(port, connect, hidden))) == 1


def _slow_clients_are_let_go(port: int) -> bool:
    return exchange(port, b"GET /health/live HTTP/1.1\r\nX: ", wait_s=7.0).endswith(b"<closed>")


def _complete_requests_are_answered(port: int) -> bool:
    get = b"GET /health/live HTTP/1.1\r\n%bX: %b\r\n\r\n" % (_HOST, b"a" * 200)
    return len(_statuses(exchange(port, get * 300 + get[:20], get[20:], wait_s=1.5))) == 301


def _half_closed_clients_are_answered(port: int) -> bool:
    get = b"GET /recommendations?session_id=half&k=1 HTTP/1.1\r\n%b\r\n" % _HOST
    return _statuses(exchange(port, get, shut_down=True, wait_s=1.0)) == [200]


CASES: Final[dict[str, Callable[[int], bool]]] = {
    "trailers are no headers": _trailers_are_no_headers,
    "an endless header is refused": lambda port: _endless(port, b"GET / HTTP/1.1\r\nX: ", b"y"),
    "endless trailers are refused": lambda port: _endless(
        port, _post("t", b"Transfer-Encoding: chunked\r\n", body=b"0\r\n"), b"X: y\r\n"
    ),
    "endless chunk extensions are refused": lambda port: _endless(
        port, _post("t", b"Transfer-Encoding: chunked\r\n", body=b"1;"), b"a=b;"
    ),
    "a body is never a request": _bodies_stay_bodies,
    "slow clients are let go": _slow_clients_are_let_go,
    "complete requests are answered before the next head": _complete_requests_are_answered,
    "half-closed clients are answered": _half_closed_clients_are_answered,
    "no HTTP is a problem document": lambda port: b"problem+json" in exchange(port, b"hello\r\n\r\n"),
    "one Host is needed": lambda port: _statuses(exchange(port, b"GET /health/live HTTP/1.1\r\n\r\n")) == [400],
}


def one_round(folder: Path, release: Path, url: str, variant: str, seconds: float) -> dict[str, Any]:
    """Capacity of both calls, then GETs at five times it with admission control."""
    found: dict[str, Any] = {}
    with serving(folder, release, url, variant, 0) as (port, _):
        load(folder, port, "fill", 60)
        for scenario in ("recommend", "report_and_recommend"):
            found[scenario] = load(folder, port, scenario, seconds)["per_s"]
    with serving(folder, release, url, variant, SHED_AFTER_MS) as (port, process):
        rate = TIMES * found["recommend"]
        more: dict[str, Any] = {"connections": CONNECTIONS, "phases": [[seconds, rate]], "warm_up_s": 0.0}
        [under] = load(folder, port, "recommend", seconds, **more)["phases"]
        found["overload"] = under | {"rss_mib": psutil.Process(process.pid).memory_info().rss >> 20}
    return found


def cases(folder: Path, release: Path, url: str, variant: str) -> dict[str, bool]:
    """Which rules hold."""
    with serving(folder, release, url, variant, 0) as (port, _):
        return {name: holds(port) for name, holds in CASES.items()}


def summary(rounds: list[dict[str, Any]]) -> dict[str, float | None]:
    """Medians over the rounds."""
    found: dict[str, float | None] = {
        f"{name}_per_s": round(float(np.median([one[name] for one in rounds])), 1)
        for name in ("recommend", "report_and_recommend")
    }
    for name in ("served_per_s", "served_p99_ms", "refused_per_s", "refused_p99_ms", "rss_mib"):
        values = [one["overload"][name] for one in rounds if one["overload"][name] is not None]
        found[f"overload_{name}"] = round(float(np.median(values)), 1) if values else None
    return found


def main() -> None:
    """Measure, print and keep what was found."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[4:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where releases and logs go; outside the tree")
    parser.add_argument("--tracks", type=int, default=600_000)
    parser.add_argument("--kind", default="ivf-pq4", help="kind of index")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "protocols.json")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    release = release_of(chosen.folder, chosen.tracks, chosen.kind, RECALL.get(chosen.tracks, 0.99))
    sessions_of(release, chosen.folder / "sessions.json")
    rounds: dict[str, list[dict[str, Any]]] = {variant: [] for variant in chosen.variants}
    held: dict[str, dict[str, bool]] = {}
    with redis(chosen.folder / "redis") as url:
        for variant in chosen.variants:
            held[variant] = cases(chosen.folder, release, url, variant)
            print(variant, held[variant], flush=True)
        for _ in range(chosen.rounds):
            for variant in chosen.variants:
                rounds[variant].append(one_round(chosen.folder, release, url, variant, chosen.seconds))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True)
    result = {
        "tracks": chosen.tracks,
        "variants": {name: summary(rounds[name]) | {"cases": held[name]} for name in chosen.variants},
        "rounds": rounds,
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["variants"], indent=2))


if __name__ == "__main__":
    main()
