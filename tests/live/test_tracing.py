"""Names of requests, and traces sent to a collector: what a real service says over real HTTP."""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

from segue.errors import BadOption  # noqa: E402 (after the check that OpenTelemetry is there)
from segue.release import Release  # noqa: E402
from service.app import check_settings  # noqa: E402
from service.settings import Settings  # noqa: E402
from tests.conftest import recommended  # noqa: E402

StartService = Callable[..., Any]
EVENT = {"events": [{"type": "play", "track_id": "g1-t00"}]}


class TestRequestId:
    def test_a_request_gets_a_name_and_the_answer_says_it(self, running: httpx.Client) -> None:
        names = [running.get("/recommendations?session_id=named").headers["x-request-id"] for _ in range(3)]
        assert len(set(names)) == 3

    @pytest.mark.parametrize("path", ["/recommendations?session_id=named", "/tracks", "/nothing", "/sessions/no one"])
    def test_a_name_that_a_proxy_gave_is_kept(self, running: httpx.Client, path: str) -> None:
        assert running.get(path, headers={"X-Request-ID": "edge-7/abc"}).headers["x-request-id"] == "edge-7/abc"

    @pytest.mark.parametrize("given", [b"two words", b"a" * 129, b'"quoted"', "é".encode(), b""])
    def test_what_is_no_name_is_replaced(self, running: httpx.Client, given: bytes) -> None:
        told = running.get("/tracks", headers={b"X-Request-ID": given}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{16}-\d+", told)

    def test_log_lines_say_it(self, start_service: StartService) -> None:
        service = start_service(log_level="debug")
        with service.client() as client:
            client.get("/tracks", headers={"X-Request-ID": "look-for-me"})
        service.stop()
        [line] = [line for line in service.output if "look-for-me" in line]
        assert '"event": "request"' in line


def test_batches_are_measured(running: httpx.Client) -> None:
    running.post("/sessions/batched/events", json=EVENT)
    recommended(running, "batched")
    metrics = running.get("/metrics").text
    for of in ("ranking", "redis"):
        [count] = re.findall(rf'^segue_batch_size_count{{stage="{of}"}} (\S+)', metrics, re.MULTILINE)
        assert float(count) > 0


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A collector of spans: its address, and what was sent to it."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", received
        server.shutdown()


def test_a_request_is_traced_through_its_steps(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (address, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "segue-in-test")
        service = start_service(tracing=True)
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        with service.client() as client:
            client.post("/sessions/secret-listener/events", json=EVENT).raise_for_status()
            client.get(
                "/recommendations?session_id=secret-listener", headers={"traceparent": f"00-{trace}-{parent}-01"}
            ).raise_for_status()
        service.stop()
        deadline = time.monotonic() + 10
        while not received and time.monotonic() < deadline:
            time.sleep(0.05)
        content = b"".join(received)
    assert b"secret-listener" not in content
    assert b"segue-in-test" in content
    requests = [trace_service.ExportTraceServiceRequest.FromString(body) for body in received]
    spans = [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    of_trace = {span.name: span for span in spans if span.trace_id.hex() == trace}
    assert of_trace.keys() == {"GET /recommendations", "redis commands", "encode", "search"}
    root = of_trace.pop("GET /recommendations")
    assert root.parent_span_id.hex() == parent
    assert {span.parent_span_id for span in of_trace.values()} == {root.span_id}
    assert {a.key: a.value.int_value for a in root.attributes} == {"http.response.status_code": 200}
    assert "POST /sessions/{session_id}/events" in {span.name for span in spans}


def test_tracing_without_its_extra_is_told_in_one_line(tiny_release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.ops.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadOption, match=r"SEGUE_TRACING=true: .* is missing; .*pip install '.\[tracing\]'"):
        check_settings(Settings(release=tiny_release.path, tracing=True))
