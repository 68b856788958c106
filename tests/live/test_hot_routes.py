"""The two hot calls: answered without FastAPI's machinery, as FastAPI's own routes would answer them."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from segue.release import Release
from service.http.middleware import HotRoutes
from tests.conftest import ServiceProcess, track_ids

IDS = track_ids()
Both = tuple[httpx.Client, httpx.Client]
JSON = {"content-type": "application/json"}


def events(*plays: tuple[str, str]) -> dict[str, Any]:
    return {"events": [{"type": kind, "track_id": track, "event_id": uuid4().hex} for kind, track in plays]}


def head_of(session_id: str, content: bytes) -> bytes:
    lines = (f"POST /sessions/{session_id}/events HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode()


def filled(client: httpx.Client, *plays: tuple[str, str]) -> str:
    session_id = f"hot-{uuid4().hex}"
    if plays:
        client.post(f"/sessions/{session_id}/events", json=events(*plays)).raise_for_status()
    return session_id


@pytest.fixture(scope="module")
def both(tiny_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Clients of a service as it is, and of one whose hot calls are answered by FastAPI's own routes."""
    preludes = ("pass", "import service.app; service.app.HOT_ROUTES = frozenset()")
    with contextlib.ExitStack() as opened:
        clients = []
        for prelude in preludes:
            service = ServiceProcess(tiny_release.path, tmp_path_factory.mktemp("service"), prelude=prelude)
            opened.callback(service.stop)
            clients.append(opened.enter_context(service.client()))
        hot, plain = clients
        yield hot, plain


def same(both: Both, method: str, path: str, **request: Any) -> httpx.Response:
    """Send a request to both services, and compare the answers to the byte."""
    name = {"X-Request-ID": "the-same"}
    hot, plain = (client.request(method, path, headers=JSON | name, **request) for client in both)
    assert hot.status_code == plain.status_code
    assert hot.content == plain.content
    headers = [{**answer.headers, "date": "a second may have passed"} for answer in (hot, plain)]
    assert headers[0] == headers[1]
    return hot


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("session_id=a", 200),
        ("session_id=a&k=7", 200),
        ("k=100&session_id=a", 200),
        ("session_id=a&repeat=never", 200),
        ("repeat=after:3&session_id=a", 200),
        ("session_id=a&repeat=never&repeat=after%3A3", 422),
        ("session_id=a&exclude_heard=false", 422),  # an unknown parameter is never ignored: it could be a filter
        ("session_id=a&exclude=g0-t00&exclude=no%20track", 200),
        ("session_id=a&exclude=with+blank", 200),
        ("session_id=a&k=07", 200),
        ("session_id=a&k=7&k=3", 422),
        ("session_id=b&session_id=a", 422),
        ("session_id=a&nothing=1", 422),
        ("session_id=a&service=1&request=2&path=3", 422),
        ("session_id=%61", 200),
        ("session_id=unknown&", 200),
        ("session_id=a&explain=true", 200),
        ("session_id=a&release=v0", 404),
        ("", 422),
        ("session_id", 422),
        ("session_id=", 422),
        ("session_id=a b", 422),
        ("session_id=a%0a", 422),
        ("session_id=%ff", 422),
        ("session_id=a&k=0", 422),
        ("session_id=a&k=101", 422),
        ("session_id=a&k=", 422),
        ("session_id=a&k=1.5", 422),
        ("session_id=a&k=many&repeat=maybe&explain=2", 422),
        ("session_id=a&repeat=", 422),
        ("session_id=a&repeat=after:0", 422),
        ("session_id=a&repeat=after:1001", 422),
        ("session_id=a&repeat=never%0a", 422),
        ("session_id=a&release=/etc", 422),
        ("session_id=a&exclude=", 422),
        ("session_id=a&exclude=x&exclude=%00", 422),
        ("session_id=a" + "&exclude=x" * 101, 422),
    ],
)
def test_recommendations_are_those_of_fastapis_route(both: Both, query: str, status: int) -> None:
    report = events(("play", IDS[0]), ("skip", IDS[14]), ("play", "unknown"))
    for client in both:
        if not client.get("/sessions/a").is_success:
            client.post("/sessions/a/events", json=report).raise_for_status()
    answer = same(both, "GET", f"/recommendations?{query}")
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["items"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/sessions/{}/events", 200),
        ("/sessions/{}/events?recommend=4", 200),
        ("/sessions/{}/events?recommend=04", 200),
        ("/sessions/{}/events?recommend=04&nothing=1", 422),
        ("/sessions/{}/events?recommend=9&recommend=2", 422),
        ("/sessions/{}/events?session_id=other", 422),
        ("/sessions/{}/events?recommend=5&repeat=never", 200),
        ("/sessions/{}/events?repeat=after:2", 200),
        ("/sessions/{}/events?recommend=5&repeat=after:", 422),
        ("/sessions/{}/events?recommend=0", 422),
        ("/sessions/{}/events?recommend=", 422),
        ("/sessions/{}/events?recommend=x", 422),
        ("/sessions/{}%20x/events", 422),
        ("/sessions/{}%0a/events", 422),
        ("/sessions/{}%2fx/events", 404),
        ("/sessions//events", 404),
        ("/sessions/{}/events/", 404),
    ],
)
def test_reported_events_are_those_of_fastapis_route(both: Both, path: str, status: int) -> None:
    body = events(("play", IDS[3]), ("skip", IDS[3]), ("play", "unknown"), ("play", IDS[13]))
    body["events"].append(body["events"][0])
    answer = same(both, "POST", path.format(f"hot-{uuid4().hex}"), content=json.dumps(body))
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["duplicates"] == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"events":[]}', b'{"events":[{"type":"plai"}]}', b"\xff"])
def test_invalid_bodies_are_those_of_fastapis_route(both: Both, content: bytes) -> None:
    assert same(both, "POST", "/sessions/a/events?recommend=3", content=content).status_code == 422


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_are_those_of_fastapis_route(both: Both, method: str) -> None:
    assert same(both, method, "/sessions/a/events").status_code == 405


def test_a_body_in_pieces_is_put_together(running: httpx.Client) -> None:
    session_id = filled(running)
    content = json.dumps(events(*(("play", track) for track in IDS[:30]))).encode()
    head = head_of(session_id, content)
    with socket.create_connection((running.base_url.host, running.base_url.port or 0), timeout=5) as client:
        client.sendall(head + content[:100])
        for start in range(100, len(content), 400):
            client.sendall(content[start : start + 400])
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert len(running.get(f"/sessions/{session_id}").json()["plays"]) == 30


def test_a_body_without_a_length_is_read(running: httpx.Client) -> None:
    session_id = filled(running)

    def chunks() -> Iterator[bytes]:
        content = json.dumps(events(("play", IDS[0]))).encode()
        yield content[:10]
        yield content[10:]

    assert running.post(f"/sessions/{session_id}/events", content=chunks(), headers=JSON).json()["length"] == 1


def test_a_client_that_leaves_within_its_body_stores_nothing(running: httpx.Client) -> None:
    session_id = filled(running)
    content = json.dumps(events(("play", IDS[0]))).encode()
    head = head_of(session_id, content)
    with socket.create_connection((running.base_url.host, running.base_url.port or 0), timeout=5) as client:
        client.sendall(head + content[:-1])
    assert running.get(f"/sessions/{session_id}").status_code == 404
    assert 'route="/sessions/{session_id}/events",status="499"' in running.get("/metrics").text


def test_metrics_name_the_hot_routes(running: httpx.Client) -> None:
    running.get(f"/recommendations?session_id={filled(running, ('play', IDS[0]))}")
    metrics = running.get("/metrics").text
    assert 'segue_http_requests_total{method="GET",route="/recommendations",status="200"}' in metrics
    assert 'segue_http_requests_total{method="POST",route="/sessions/{session_id}/events",status="200"}' in metrics


def test_an_endpoint_that_fails_its_own_validation_is_a_fault_of_the_service() -> None:
    """It must not be reported as an invalid request."""

    async def fails(request: Request, k: Annotated[int, Query(ge=1)] = 1) -> Response:
        return Response(TypeAdapter(int).validate_python(f"not a number, {k}, {request.method}"))

    app = FastAPI()
    app.add_api_route("/fails", fails)
    [route] = [one for one in app.routes if isinstance(one, APIRoute)]

    async def ask(query: str) -> int:
        transport = httpx.ASGITransport(HotRoutes(app, [route]))
        async with httpx.AsyncClient(transport=transport, base_url="http://hot") as client:
            return (await client.get(f"/fails?{query}")).status_code

    assert asyncio.run(ask("k=0")) == 422
    with pytest.raises(ValidationError, match="not a number"):
        asyncio.run(ask("k=2"))
