"""Whether invalid bodies keep a service from answering others.

    python -m benchmarks.serving.invalid_bodies RELEASE --seconds 10

Starts the service, measures `GET /health/live` while nothing else is asked, and then while 8 connections post the
largest invalid bodies that its limits allow, one kind after the other. The p99 is to stay within 100 ms. The load comes
from a process of its own. Writes results/invalid_bodies.json.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from service.api.recommendations import WhatIfRequest
from service.api.releases import SwapRequest
from service.api.sessions import EventsRequest
from service.settings import Settings

CONNECTIONS = 8
EVERY_S = 0.005
MOST_MS = 100.0
RESULTS = Path(__file__).parents[1] / "results"
EVENTS, WHAT_IF, SWAP = "/sessions/invalid/events", "/recommendations/what-if", "/releases/current"
_EVENT = '{"type":"play","track_id":"a"'
# What a body begins with, what is repeated to its limit, and what it ends with.
KINDS = {
    "unknown fields": ('{"events":[' + _EVENT + "}]", ',"%x":0', "}"),
    "events with unknown fields": ('{"events":[' + _EVENT + "}", "," + _EVENT + ',"x":0' * 1000 + "}", "]}"),
    "empty events": ('{"events":[{}', ",{}", "]}"),
    "lists": ('{"events":[[]', ",[]", "]}"),
    "texts": ('{"events":[""', ',""', "]}"),
    "escaped quotes": ('{"events":["\\""', ',"\\""', "]}"),
    "one long id": ('{"events":[' + _EVENT[:-1], "a", '"}]}'),
}
UNCOUNTED = 16_000  # below the size from which values are counted


def bodies() -> Iterator[tuple[str, str, str, bytes]]:
    """Kind, method, path and body of each load."""
    most: int = Settings.model_fields["max_request_bytes"].default
    largest = {
        ("POST", EVENTS): EventsRequest.bytes_limit(most),
        ("POST", WHAT_IF): WhatIfRequest.bytes_limit(most),
    }
    for kind, (begin, piece, end) in KINDS.items():
        for (method, path), size in largest.items():
            for bound in (size, UNCOUNTED):
                yield f"{kind}, {bound // 1024} KiB", method, path, _filled(begin, piece, end, bound)
    yield "unknown fields, 4 KiB", "PUT", SWAP, _filled('{"name":1', ',"%x":0', "}", SwapRequest.bytes_limit(most))


def _filled(begin: str, piece: str, end: str, size: int) -> bytes:
    parts, length, number = [begin], len(begin) + len(end), 0
    while True:
        part = piece % number if "%x" in piece else piece
        if length + len(part) > size:
            return ("".join(parts) + end).encode()
        parts.append(part)
        length += len(part)
        number += 1


@contextlib.contextmanager
def service(release: Path) -> Iterator[str]:
    """The address of a service with an embedded Redis, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "segue", "serve", str(release), "--port", "0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SEGUE_")}
        environment["SEGUE_DATA_DIR"] = f"{folder}/data"
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not re.match(r"http://\S+$", line):
                raise SystemExit(f"the service of {release} does not start: see above")
            yield line.strip()
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def latencies_ms(address: str, seconds: float) -> list[float]:
    """The latencies of `GET /health/live` on one connection, asked again and again."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    found, ends_at = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends_at:
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        found.append((time.perf_counter() - began) * 1000)
        time.sleep(EVERY_S)
    connection.close()
    return found


def _post(address: str, request: tuple[str, str, bytes], began: Any, leaving: Any, answers: Any) -> None:
    """Post one body on 8 connections until `leaving` is set; for a process of its own."""
    method, path, body = request
    parts = urlsplit(address)

    def ask() -> None:
        counted: dict[str, int] = {}
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        while not leaving.is_set():
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                status = str(answer.status)
            except (OSError, http.client.HTTPException):
                connection.close()
                status = "closed"
            counted[status] = counted.get(status, 0) + 1
            began.set()
        connection.close()
        answers.put(counted)

    threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def under(address: str, request: tuple[str, str, bytes], seconds: float) -> dict[str, Any]:
    """Latencies of health while the body is posted, and what became of the bodies."""
    context = multiprocessing.get_context("spawn")
    began, leaving, answers = context.Event(), context.Event(), context.Queue()
    poster = context.Process(target=_post, args=(address, request, began, leaving, answers))
    poster.start()
    began.wait(60)
    found = latencies_ms(address, seconds)
    leaving.set()
    counted: dict[str, int] = {}
    for _ in range(CONNECTIONS):
        for status, count in answers.get(timeout=90).items():
            counted[status] = counted.get(status, 0) + count
    poster.join(30)
    return {**_summary(found), "answers": counted}


def _summary(found: list[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(found, [50, 99])
    return {"requests": len(found), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "most_ms": round(max(found), 2)}


def measure(release: Path, seconds: float) -> dict[str, Any]:
    """All kinds of bodies, after the idle service, in one run."""
    with service(release) as address:
        latencies_ms(address, 1)
        idle = _summary(latencies_ms(address, seconds))
        lines = []
        print(f"{'body':44} {'p50 ms':>8} {'p99 ms':>8} {'to idle':>8}  answers")
        print(f"{'none':44} {idle['p50_ms']:8.2f} {idle['p99_ms']:8.2f} {1:8.1f}")
        for kind, method, path, body in bodies():
            found = under(address, (method, path, body), seconds)
            ratio = found["p99_ms"] / idle["p99_ms"]
            name = f"{method} {path.split('/')[-1]}: {kind}"
            print(f"{name:44} {found['p50_ms']:8.2f} {found['p99_ms']:8.2f} {ratio:8.1f}  {found['answers']}")
            lines.append({"body": name, "bytes": len(body), "p99_to_idle": round(ratio, 1), **found})
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "connections": CONNECTIONS,
        "seconds": seconds,
        "idle": idle,
        "under": lines,
    }


def main() -> int:
    """Measure, print a table and write the result; 1 if a p99 is above 100 ms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS / "invalid_bodies.json")
    arguments = parser.parse_args()
    result = measure(arguments.release, arguments.seconds)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    slowest = max(line["p99_ms"] for line in result["under"])
    print(f"slowest p99 {slowest:.1f} ms; the goal is {MOST_MS:.0f} ms")
    return int(slowest > MOST_MS)


if __name__ == "__main__":
    sys.exit(main())
