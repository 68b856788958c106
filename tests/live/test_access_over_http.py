"""Keys, limits and headers of a running service."""

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from segue.cli import main
from service.http.admission_control import MAX_HEAD_BYTES, MAX_PARAMETERS, MAX_TARGET_BYTES
from service.http.auth import CALLS, OPEN
from service.http.middleware import RESPONSE_HEADERS
from tests.stopwatch import Stopwatch

StartService = Callable[..., Any]
BODY = {"events": [{"type": "play", "track_id": "g0-t00"}]}
BODIES = {
    "/rank": {**BODY, "candidates": ["g0-t00", "g0-t01"]},
    "/removed-tracks": {"track_ids": ["g0-t00"], "removed": False},
    "/recommendations/batch": {"sessions": [BODY, {"session_id": "s"}]},
}
KEYS = ("client", "read", "metrics", "admin")


class Keys:
    """A keys file that `segue keys` writes."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def new(self, name: str, *scopes: str) -> str:
        arguments = ["keys", "new", name, *(f"--scope={scope}" for scope in scopes), f"--file={self.path}"]
        assert main(arguments) == 0
        return self._capsys.readouterr().out.strip()

    def revoke(self, name: str) -> None:
        assert main(["keys", "revoke", name, f"--file={self.path}"]) == 0


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(tmp_path / "keys.toml", capsys)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def url_of(template: str) -> str:
    for name, value in {
        "{session_id}": "s",
        "{listener_id}": "l",
        "{track_id:path}": "g0-t00",
        "{position}": "0",
        "{path:path}": "player.js",
    }.items():
        template = template.replace(name, value)
    return template + ("?session_id=s" if template == "/recommendations" else "")


def has_headers(answer: httpx.Response) -> bool:
    return all(answer.headers.get_list(name) == [value] for name, value in RESPONSE_HEADERS)


def test_every_call_by_every_key(start_service: StartService, keys: Keys) -> None:
    """The table: 401 without a known key, 403 where the scope is missing, and otherwise the call's own answer."""
    texts = {scope: keys.new(scope, scope) for scope in KEYS}
    holders = {"none": {}, "wrong": bearer("segue_wrong"), **{scope: bearer(text) for scope, text in texts.items()}}
    with start_service(api_keys=keys.path).client() as client:
        for (method, template), scope in CALLS.items():
            for holder, headers in holders.items():
                body = {"json": BODIES.get(template, BODY)} if method == "POST" else {}
                answer = client.request(method, url_of(template), headers=headers, **body)
                case = f"{method} {template} with {holder}: {answer.status_code}"
                assert has_headers(answer), case
                if scope is OPEN or holder in (scope, "admin"):
                    # PUT /releases/current without a body, a stream that is not accepted, and GET of the session that
                    # the DELETE before it erased
                    assert answer.status_code in {200, 204, 404, 405, 406, 409, 415}, case
                elif holder in KEYS:
                    assert answer.status_code == 403, case
                    assert f'error="insufficient_scope", scope="{scope}"' in answer.headers["www-authenticate"], case
                    assert f"needs {scope}" in answer.json()["detail"]
                else:
                    assert answer.status_code == 401, case
                    assert answer.headers["www-authenticate"].startswith('Bearer realm="segue"'), case
                if answer.status_code in {401, 403} and method != "HEAD":
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert answer.json()["status"] == answer.status_code


def test_a_key_counts_only_as_one_bearer(start_service: StartService, keys: Keys) -> None:
    key = keys.new("reader", "read")
    with start_service(api_keys=keys.path).client() as client:

        def status(*headers: tuple[str, str], query: str = "") -> int:
            answer: httpx.Response = client.get(f"/releases/current{query}", headers=list(headers))
            return answer.status_code

        assert status(("Authorization", f"Bearer {key}")) == 200
        assert status(("Authorization", f"bearer  {key}")) == 200
        for wrong in (f"Basic {key}", key, f"Bearer{key}", "Bearer", f"Bearer {key}x", f"Bearer {key[:-1]}"):
            assert status(("Authorization", wrong)) == 401
        assert status(("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")) == 401
        assert status(("X-API-Key", key), ("Cookie", f"key={key}"), query=f"?key={key}&access_token={key}") == 401


def test_what_is_no_call_is_closed_too(start_service: StartService, keys: Keys) -> None:
    admin, listen = keys.new("operator", "admin"), keys.new("app", "client")
    with start_service(api_keys=keys.path).client() as client:
        for path in ("/nowhere", "/sessions/a/b", "/docs/files", "/web"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=bearer(listen)).status_code == 403
            assert client.get(path, headers=bearer(admin)).status_code == 404


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_keys_are_rotated_while_the_service_runs(start_service: StartService, keys: Keys, workers: int) -> None:
    """The walk of docs/operate/access.md: a new key beside the old one, clients change over, the old one goes."""
    old = keys.new("app-1", "read")
    service = start_service(workers=workers, api_keys=keys.path)
    address = service.address()

    def statuses(key: str) -> set[int]:
        return {
            httpx.get(f"{address}/releases/current", headers=bearer(key), trust_env=False).status_code
            for _ in range(8 * workers)  # a connection each, so that every worker gets some
        }

    assert statuses(old) == {200}
    new = keys.new("app-2", "read")
    time.sleep(1.1)
    assert statuses(new) == {200}
    assert statuses(old) == {200}
    keys.revoke("app-1")
    time.sleep(1.1)
    assert statuses(old) == {401}
    assert statuses(new) == {200}
    keys.path.write_text("[[keys]\n")
    time.sleep(1.1)
    assert statuses(new) == {200}
    service.stop()
    assert sum("keys_reload_failed" in line for line in service.output) == workers
    assert not any(key in line for key in (old, new) for line in service.output)


def test_a_key_and_a_session_that_ask_too_often_have_to_wait(start_service: StartService, keys: Keys) -> None:
    one, two = keys.new("one", "client"), keys.new("two", "client")
    limits = {"key_rate_limit": 0.08, "session_rate_limit": 0.04, "rate_limit_burst_s": 100}  # 8 and 4 at once
    with start_service(api_keys=keys.path, **limits).client() as client:

        def ask(key: str, session_id: str) -> httpx.Response:
            query = {"session_id": session_id}
            answer: httpx.Response = client.get("/recommendations", params=query, headers=bearer(key))
            return answer

        with Stopwatch() as watch:
            answers = [ask(one, "a") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
        seconds = int(answers[-1].headers["retry-after"])
        assert 24 - watch.wall_seconds <= seconds <= 25
        assert answers[-1].json()["detail"] == f"the rate limit of this session is exceeded: try again in {seconds} s"
        assert client.post("/sessions/a/events", json=BODY, headers=bearer(one)).status_code == 429
        assert ask(one, "b").status_code == 200
        assert ask(one, "c").json()["detail"].startswith("the rate limit of the key 'one' is exceeded: try again in ")
        assert ask(two, "c").status_code == 200
        assert client.get("/health/live").status_code == 200


def test_a_session_is_limited_without_keys_too(start_service: StartService) -> None:
    with start_service(session_rate_limit=0.001, rate_limit_burst_s=0).client() as client:
        assert client.post("/sessions/a/events", json=BODY).status_code == 200
        answer = client.get("/sessions/a")
        assert answer.status_code == 429
        assert 900 <= int(answer.headers["retry-after"]) <= 1000


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_open_to_others_is_refused_in_one_line(start_service: StartService, workers: int) -> None:
    service = start_service(workers=workers, host="0.0.0.0")
    assert service.process.wait(30) != 0
    service.stop()
    assert "host is 0.0.0.0, so other machines could connect without a key" in service.output[-1]
    assert "SEGUE_ALLOW_UNAUTHENTICATED=true" in service.output[-1]


def test_a_service_behind_a_gateway_says_that_it_is_open(start_service: StartService) -> None:
    service = start_service(host="0.0.0.0", allow_unauthenticated="true")
    port = service.address().rpartition(":")[2]
    assert httpx.get(f"http://127.0.0.1:{port}/tracks", trust_env=False).status_code == 200


class TestEveryAnswer:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/", 200),
            ("GET", "/web/player.js", 200),
            ("GET", "/tracks", 200),
            ("GET", "/metrics", 200),
            ("GET", "/nowhere", 404),
            ("PUT", "/tracks", 405),
            ("GET", "/recommendations", 422),
        ],
    )
    def test_carries_the_headers(self, running: httpx.Client, method: str, path: str, status: int) -> None:
        answer = running.request(method, path)
        assert answer.status_code == status
        assert has_headers(answer)
        assert "server" not in answer.headers

    def test_even_to_nonsense(self, running: httpx.Client) -> None:
        answer = exchange(running, b"NONSENSE\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"\r\nx-content-type-options: nosniff\r\n" in answer

    def test_allows_no_script_or_style_but_its_own_files(self) -> None:
        policy = dict(part.split(" ", 1) for part in dict(RESPONSE_HEADERS)["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
        assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}


class TestTheHeadOfARequest:
    def test_is_bounded(self, running: httpx.Client) -> None:
        assert running.get("/tracks", headers={"X": "x" * (MAX_HEAD_BYTES - 2000)}).status_code == 200
        answer = running.get("/tracks", headers={"X": "x" * MAX_HEAD_BYTES})
        assert answer.status_code == 431
        assert answer.headers["content-type"] == "application/problem+json"
        assert has_headers(answer)
        many = {f"X-{number}": "x" for number in range(MAX_HEAD_BYTES // 6)}
        assert running.get("/tracks", headers=many).status_code == 431
        assert running.get("/tracks").status_code == 200

    def test_its_path_and_query_are_bounded(self, running: httpx.Client) -> None:
        assert running.get("/tracks", params={"query": "x" * MAX_TARGET_BYTES}).status_code == 422
        assert running.get(f"/tracks/{'x' * MAX_TARGET_BYTES}/similar").status_code == 422
        fits = "&".join("exclude=b" for _ in range(100))
        assert running.get(f"/recommendations?session_id=a&{fits}").status_code == 200
        answer = running.get(f"/tracks?{'&'.join('a=b' for _ in range(MAX_PARAMETERS + 1))}")
        assert answer.status_code == 422
        assert answer.json()["detail"] == f"the query has more than {MAX_PARAMETERS} parameters: send fewer"
        most = "&".join("exclude=b" for _ in range(MAX_PARAMETERS - 1))  # with session_id as many as may be
        answer = running.get(f"/recommendations?session_id=a&{most}")
        assert "exclude" in answer.json()["detail"]

    @pytest.mark.parametrize("part", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9])
    def test_without_an_end_is_answered_and_the_connection_closed(self, running: httpx.Client, part: bytes) -> None:
        filler = part[-6:] if part.endswith(b"\n") else b"xxxxxx"
        answer = exchange(running, part, filler * 1000, times=100)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"\r\nconnection: close\r\n" in answer
        assert b"\r\nx-content-type-options: nosniff\r\n" in answer
        assert answer.endswith(b"}")

    def test_is_counted_anew_for_each_request_of_a_connection(self, running: httpx.Client) -> None:
        head = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 30_000 + b"\r\n\r\n"
        with connection(running) as client:
            for _ in range(5):
                client.sendall(head[:20_000])
                time.sleep(0.02)
                client.sendall(head[20_000:])
                answer = b""
                while not answer.endswith(b"}"):
                    answer += client.recv(10_000)
                assert answer.startswith(b"HTTP/1.1 200")

    def test_a_large_body_does_not_count(self, running: httpx.Client) -> None:
        padded = b'{"events": [{"type": "play", "track_id": "g0-t00"}]}' + b" " * 49_000
        for _ in range(3):
            answer = running.post(
                "/sessions/padded/events", content=padded, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 200


def connection(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10)


def exchange(client: httpx.Client, first: bytes, more: bytes = b"", times: int = 0) -> bytes:
    """Send `first`, then `more` so many times, or until the service ends the connection; what it answered."""
    received = b""
    with connection(client) as opened, contextlib.suppress(ConnectionError):
        opened.sendall(first)
        with contextlib.suppress(ConnectionError):
            for _ in range(times):
                opened.sendall(more)
                time.sleep(0.001)
        while part := opened.recv(65_536):
            received += part
    return received


@pytest.fixture
def sessions_in_logs(start_service: StartService) -> Any:
    """A service whose store fails in a way that nobody foresaw, at every session."""
    prelude = (
        "import service.sessions.store as s;"
        "s.SessionStore.session = lambda self, session_id: {}[0];"
        "s.SessionStore.erase = lambda self, session_id: {}[0]"
    )
    return start_service(prelude=prelude, log_level="debug", log_hash_key="k" * 32)


def test_logs_hold_hashes_for_session_ids(sessions_in_logs: Any) -> None:
    with sessions_in_logs.client() as client:
        for session_id in ("listener-one", "listener-two", "listener-one"):
            assert client.get(f"/sessions/{session_id}").status_code == 500
        assert client.delete("/sessions/listener-one").status_code == 500
        assert client.get("/recommendations", params={"session_id": "listener-one"}).status_code == 500
    sessions_in_logs.stop()
    logged = "\n".join(sessions_in_logs.output)
    assert "request_error" in logged
    assert "listener-" not in logged
    paths = [
        line.partition('"path": "')[2].partition('"')[0] for line in sessions_in_logs.output if "request_error" in line
    ]
    assert paths[0] == paths[2] == paths[3] != paths[1]
    assert len(paths[0]) == len("/sessions/") + 12
