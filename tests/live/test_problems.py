"""Every error is a problem document (RFC 9457) that says what was found and what is expected."""

import json
import re
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any
from uuid import uuid4

import httpx
import pytest

JSON = {"content-type": "application/json"}
GOOD = {"type": "play", "track_id": "g0-t00"}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = answer.json()
    assert content["status"] == status
    assert content["type"] == "about:blank"
    assert content["title"]
    assert content["detail"]
    assert "\n" not in content["detail"]
    return content


@pytest.mark.parametrize(
    ("path", "field", "found"),
    [
        ("/recommendations", "query.session_id", "missing"),
        ("/recommendations?session_id=a%20b", "query.session_id", "'a b'"),
        ("/recommendations?session_id=a&k=0", "query.k", "'0'"),
        ("/recommendations?session_id=a&k=101", "query.k", "'101'"),
        ("/recommendations?session_id=a&repeat=perhaps", "query.repeat", "'perhaps'"),
        ("/recommendations?session_id=a&exclude=%00", "query.exclude.0", "'\\x00'"),
        (f"/recommendations?session_id=a{'&exclude=b' * 101}", "query.exclude", None),
        (f"/sessions/{'x' * 129}", "path.session_id", None),
        ("/sessions/a%00b", "path.session_id", "'a\\x00b'"),
        ("/tracks?limit=1000", "query.limit", "'1000'"),
        (f"/tracks?query={'x' * 201}", "query.query", None),
        ("/tracks/%00/similar", "path.track_id", "'\\x00'"),
    ],
)
def test_a_wrong_parameter_is_named(running: httpx.Client, path: str, field: str, found: str | None) -> None:
    [error] = problem(running.get(path), 422)["errors"]
    assert error["field"] == field
    assert found is None or error["found"] == found
    assert len(error["found"]) <= 80
    assert error["expected"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("", "body"),
        ("{", "body"),
        ("[]", "body"),
        ("nonsense \ud800", "body"),
        ("[" * 20_000, "body"),
        ("{}", "body.events"),
        ('{"events": []}', "body.events"),
        ('{"events": [], "more": 1}', "body.more"),
        (json.dumps({"events": [GOOD] * 101}), "body.events"),
        (json.dumps({"events": [{**GOOD, "type": "plai"}]}), "body.events.0.type"),
        (json.dumps({"events": [GOOD, {**GOOD, "track_id": ""}]}), "body.events.1.track_id"),
        (json.dumps({"events": [{**GOOD, "track_id": "a\x00b"}]}), "body.events.0.track_id"),
        (json.dumps({"events": [{**GOOD, "track_id": "\ud800"}]}), "body"),
        (json.dumps({"events": [{**GOOD, "track_id": "x" * 257}]}), "body.events.0.track_id"),
        (json.dumps({"events": [{**GOOD, "track_id": 7}]}), "body.events.0.track_id"),
        (json.dumps({"events": [{**GOOD, "ms_played": -1}]}), "body.events.0.ms_played"),
        (json.dumps({"events": [{**GOOD, "ms_played": "12"}]}), "body.events.0.ms_played"),
        (json.dumps({"events": [{**GOOD, "at": "2026-01-01T00:00:00"}]}), "body.events.0.at"),
        (json.dumps({"events": [{**GOOD, "at": "yesterday"}]}), "body.events.0.at"),
        (json.dumps({"events": [{**GOOD, "what": 1}]}), "body.events.0.what"),
    ],
)
def test_a_wrong_body_is_named(running: httpx.Client, body: str, field: str) -> None:
    content = body.encode("utf-8", "surrogatepass")
    answer = running.post("/sessions/wrong/events", content=content, headers=JSON)
    assert field in [error["field"] for error in problem(answer, 422)["errors"]]
    assert running.get("/sessions/wrong").status_code == 404  # all or nothing


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("application/json;q=0.5, text/html;q=0.6", True),
        ("*/*", False),
        ("application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=high", False),
        ("application/problem+json, text/html;q=0.9", False),
        ("", False),
    ],
)
def test_an_unknown_path_is_a_page_for_browsers_only(running: httpx.Client, accept: str, is_page: bool) -> None:
    answer = running.get("/nothing/<b>&/%2F", headers={"accept": accept})
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    if not is_page:
        assert "/nothing/<b>&//" in problem(answer, 404)["detail"]
        return
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<code>/nothing/&lt;b&gt;&amp;//</code>" in answer.text
    links = re.findall(r'href="([^"]*)"', answer.text)
    assert [answer.url.join(link).path for link in links] == ["/", "/docs", "/ops"]
    assert all(running.get(link).status_code == 200 for link in ("/", "/docs", "/ops"))


def test_an_unknown_session_is_a_problem_document_for_browsers_too(running: httpx.Client) -> None:
    problem(running.get("/sessions/nobody", headers={"accept": BROWSER}), 404)


def test_what_is_unknown_is_a_404_in_words(running: httpx.Client) -> None:
    assert "'nobody'" in problem(running.get("/sessions/nobody"), 404)["detail"]
    assert "'no/such'" in problem(running.get("/tracks/no/such/similar"), 404)["detail"]
    assert "/nowhere" in problem(running.get("/nowhere"), 404)["detail"]
    problem(running.get("/web/nothing.js"), 404)
    problem(running.get("/sessions/a%2Fb"), 404)
    problem(running.get("/tracks/"), 404)


def test_a_wrong_method_names_the_right_ones(running: httpx.Client) -> None:
    for method, path, allowed in (
        ("PUT", "/sessions/a", "DELETE, GET, HEAD"),
        ("GET", "/sessions/a/events", "POST"),
        ("POST", "/recommendations", "GET, HEAD"),
        ("POST", "/web/player.js", "GET, HEAD"),
    ):
        answer = running.request(method, path)
        problem(answer, 405)
        assert answer.headers["allow"] == allowed


def test_a_body_is_limited_with_and_without_a_length(running: httpx.Client) -> None:
    problem(running.post("/sessions/large/events", content=b"x" * 50_001, headers=JSON), 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield b" " * 1000

    problem(running.post("/sessions/large/events", content=chunks(), headers=JSON), 413)
    assert running.get("/health/live").status_code == 200


def test_nonsense_is_refused_and_the_service_goes_on(running: httpx.Client) -> None:
    with socket.create_connection((running.base_url.host, running.base_url.port or 0), timeout=5) as client:
        client.sendall(b"NONSENSE\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert running.get("/health/ready").json() == {"status": "ready"}


def test_a_range_is_passed_over(running: httpx.Client) -> None:
    for path in ("/", "/web/player.js"):
        answer = running.get(path, headers={"Range": "bytes=9-3"})
        assert (answer.status_code, answer.content) == (200, running.get(path).content)


@pytest.mark.parametrize("offer", ["Upgrade: h2c", "upgrade: websocket", "UPGRADE: TLS/1.0"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_an_offer_to_go_on_by_another_protocol_is_passed_over(running: httpx.Client, offer: str, pieces: int) -> None:
    """As curl with --http2 makes it. The body belongs to the request all the same, and the next request is read."""
    body = b'{"events":[{"type":"play","track_id":"g0-t00"}]}'
    session_id = f"offer-{uuid4().hex}"
    head = (
        f"POST /sessions/{session_id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n{offer}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    address = (running.base_url.host, running.base_url.port or 0)
    with socket.create_connection(address, timeout=10) as client:
        for number in (1, 2):
            for piece in (head + body,) if pieces == 1 else (head, body):
                client.sendall(piece)
                time.sleep(0.1 * (pieces - 1))
            answer = HTTPResponse(client)
            answer.begin()
            assert (answer.status, json.loads(answer.read())["length"]) == (200, number)


def test_a_hundred_wrong_fields_are_named_and_no_more(running: httpx.Client) -> None:
    body = {"events": [GOOD], **{f"more-{number}": 1 for number in range(500)}}
    assert len(problem(running.post("/sessions/wrong/events", json=body), 422)["errors"]) == 100


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sessions/wrong/events"), ("POST", "/recommendations/what-if"), ("PUT", "/releases/current")],
)
def test_a_body_that_is_wrong_in_thousands_of_places_is_answered_by_one_error(
    running: httpx.Client, method: str, path: str
) -> None:
    for number in (400, 3000):
        content = json.dumps({f"{place:x}": 0 for place in range(number)}, separators=(",", ":"))
        if method == "PUT" and number > 400:
            continue  # larger than its body may be
        errors = problem(running.request(method, path, content=content, headers=JSON), 422)["errors"]
        assert len(errors) == (100 if number == 400 else 1)
