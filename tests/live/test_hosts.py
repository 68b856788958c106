"""A service without keys is out of reach for other sites' pages: by the name in Host, and by what a body says it is."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.auth import CALLS
from service.http.keys import new_key, write_keys

StartService = Callable[..., Any]
BODY = {"events": [{"type": "play", "track_id": "g0-t00"}]}
HOT = ("GET /recommendations?session_id=s", "POST /sessions/s/events")
OTHERS = (
    "GET /recommendations?k=3&session_id=s",
    "POST /sessions/s/events?recommend=1",
    "GET /health/live",
    "GET /",
    "DELETE /sessions/s",
)


def ask(client: httpx.Client, call: str, **headers: str) -> httpx.Response:
    method, _, path = call.partition(" ")
    return client.request(method, path, json=BODY if method == "POST" else None, headers=headers)


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    detail: str = answer.json()["detail"]
    return detail


@pytest.mark.parametrize("call", [*HOT, *OTHERS])
def test_loopback_by_its_names_is_answered(running: httpx.Client, call: str) -> None:
    port = running.base_url.port
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"127.9.9.9:{port}", f"[::1]:{port}", "x.localhost."):
        assert ask(running, call, Host=host).is_success, host


@pytest.mark.parametrize("call", [*HOT, *OTHERS])
@pytest.mark.parametrize(
    "host",
    [
        *(
            "rebound.example",
            "rebound.example:8000",
            "localhost.rebound.example",
            "127.0.0.1.rebound.example",
            "10.0.0.1",
        ),
        *(
            "evil-localhost",
            "[::2]",
            "127.0.0.1:80:80",
            "localhost@rebound.example",
            "rebound.example#localhost",
            "",
            "[",
        ),
        *("127.0.0.1, rebound.example", "localhost/", "2130706433x", "0.0.0.0", "localhost:port"),
    ],
)
def test_another_name_is_refused(running: httpx.Client, call: str, host: str) -> None:
    assert "SEGUE_ALLOWED_HOSTS" in refused(ask(running, call, Host=host), 421)


def test_nothing_is_done_for_another_name(running: httpx.Client) -> None:
    for call in ("POST /sessions/rebound/events", "POST /sessions/rebound/events?recommend=5"):
        refused(ask(running, call, Host="rebound.example"), 421)
    assert running.get("/sessions/rebound").status_code == 404
    for method, template in CALLS:
        path = template.replace("{session_id}", "s").replace("{track_id:path}", "t").replace("{path:path}", "player.js")
        assert running.request(method, path, headers={"Host": "rebound.example"}).status_code == 421


@pytest.mark.parametrize(
    "lines", ["", "Host: localhost\r\nHost: rebound.example\r\n", "Host: localhost\r\nHost: localhost\r\n"]
)
def test_one_name_is_given(running: httpx.Client, lines: str) -> None:
    with socket.create_connection((running.base_url.host, running.base_url.port or 0), timeout=5) as client:
        client.sendall(f"GET /recommendations?session_id=s HTTP/1.1\r\n{lines}\r\n".encode())
        assert client.recv(100).split()[1] in (b"400", b"421")


@pytest.mark.parametrize("query", ["", "?recommend=1"])
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ],
)
def test_a_body_says_that_it_is_json(running: httpx.Client, kind: str | None, query: str) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for method, path in (("POST", f"/sessions/simple/events{query}"), ("PUT", "/releases/current")):
        assert "application/json" in refused(running.request(method, path, content=b"{}", headers=headers), 415)
    assert running.get("/sessions/simple").status_code == 404


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;a=b"])
def test_json_by_any_spelling_is_taken(running: httpx.Client, kind: str) -> None:
    answer = running.post("/sessions/spelt/events", json=BODY, headers={"Content-Type": kind})
    assert answer.status_code == 200


def test_names_of_yours_are_answered_as_well(start_service: StartService) -> None:
    with start_service(allowed_hosts="music.example, 10.0.0.7").client() as client:
        for host in ("music.example", "Music.Example:8000", "10.0.0.7:80", "localhost"):
            assert ask(client, HOT[0], Host=host).status_code == 200
        refused(ask(client, HOT[0], Host="rebound.example"), 421)


def test_with_keys_names_are_checked_only_where_they_are_set(start_service: StartService, tmp_path: Path) -> None:
    key, kept = new_key("tests", ["admin"])
    write_keys(tmp_path / "keys.toml", [kept])
    headers = {"Host": "music.example", "Authorization": f"Bearer {key}"}
    service = start_service(api_keys=tmp_path / "keys.toml")
    with service.client() as client:
        assert ask(client, HOT[0], **headers).status_code == 200
    service.stop()
    with start_service(api_keys=tmp_path / "keys.toml", allowed_hosts="radio.example").client() as client:
        refused(ask(client, HOT[0], **headers), 421)
        assert ask(client, HOT[0], **headers | {"Host": "radio.example"}).status_code == 200


def test_what_a_gateway_sends_is_the_gateways(start_service: StartService) -> None:
    with start_service(allow_unauthenticated="true").client() as client:
        assert ask(client, HOT[0], Host="music.example").status_code == 200


@pytest.mark.parametrize("wrong", ["music.example:80", "https://music.example", "*", "a b", "a,b c"])
def test_a_name_that_is_none_is_told_at_the_start(start_service: StartService, wrong: str) -> None:
    service = start_service(allowed_hosts=wrong)
    assert service.process.wait(30) != 0
    service.stop()
    assert "allowed_hosts is" in service.output[-1]
