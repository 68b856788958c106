"""The quick path answers what FastAPI's routes answer: the same request in another spelling goes the long way."""

import json
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import track_ids

IDS = track_ids()
JSON = {"content-type": "application/json"}


def events(*plays: tuple[str, str]) -> dict[str, Any]:
    return {"events": [{"type": kind, "track_id": track, "event_id": uuid4().hex} for kind, track in plays]}


def head_of(session_id: str, content: bytes) -> bytes:
    lines = (f"POST /sessions/{session_id}/events HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode()


def filled(client: httpx.Client, *plays: tuple[str, str]) -> str:
    session_id = f"quick-{uuid4().hex}"
    if plays:
        client.post(f"/sessions/{session_id}/events", json=events(*plays)).raise_for_status()
    return session_id


@pytest.mark.parametrize(
    ("quick", "long"),
    [
        ("session_id={}", "&session_id={}"),
        ("session_id={}&k=7", "k=7&session_id={}"),
        ("session_id={}&k=100", "k=100&session_id={}"),
        ("session_id={}&exclude_heard=false", "exclude_heard=0&session_id={}"),
        ("session_id={}&k=3&exclude_heard=true", "session_id={}&k=3&exclude_heard=yes"),
    ],
)
@pytest.mark.parametrize("plays", [(), (("play", IDS[0]), ("skip", IDS[14])), (("play", IDS[-1]), ("play", "unknown"))])
def test_recommendations_are_the_same_both_ways(
    running: httpx.Client, quick: str, long: str, plays: tuple[tuple[str, str], ...]
) -> None:
    session_id = filled(running, *plays)
    name = {"X-Request-ID": "the-same"}
    one, other = (running.get(f"/recommendations?{query.format(session_id)}", headers=name) for query in (quick, long))
    assert one.status_code == other.status_code == 200
    assert one.content == other.content
    told, as_well = ({**answer.headers, "date": "a second may have passed"} for answer in (one, other))
    assert told == as_well
    assert one.json()["items"]


@pytest.mark.parametrize("recommend", [None, 4])
def test_reported_events_are_the_same_both_ways(running: httpx.Client, recommend: int | None) -> None:
    body = events(("play", IDS[3]), ("skip", IDS[3]), ("play", "unknown"), ("play", IDS[13]))
    body["events"].append(body["events"][0])
    spellings = ("", "?nothing=1") if recommend is None else (f"?recommend={recommend}", f"?recommend=0{recommend}")
    answers = []
    for spelling in spellings:
        session_id = filled(running)
        answer = running.post(f"/sessions/{session_id}/events{spelling}", json=body)
        assert answer.status_code == 200
        answers.append(answer.text.replace(session_id, "it"))
    assert answers[0] == answers[1]
    assert json.loads(answers[0])["duplicates"] == 1


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


def test_a_body_without_a_length_goes_the_long_way(running: httpx.Client) -> None:
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


def test_metrics_name_the_route_of_a_quick_request(running: httpx.Client) -> None:
    running.get(f"/recommendations?session_id={filled(running, ('play', IDS[0]))}")
    metrics = running.get("/metrics").text
    assert 'segue_http_requests_total{method="GET",route="/recommendations",status="200"}' in metrics
    assert 'segue_http_requests_total{method="POST",route="/sessions/{session_id}/events",status="200"}' in metrics
