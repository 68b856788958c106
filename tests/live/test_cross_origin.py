"""Pages of other sites: they cannot make a service without keys work, unless their origin is allowed (CORS)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.auth import CALLS
from service.http.keys import new_key, write_keys

StartService = Callable[..., Any]
BODY = {"events": [{"type": "play", "track_id": "g0-t00"}]}
ALLOWED, OTHER = "https://music.example", "https://other.example"
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
PAGES = ("/", "/docs", "/ops")


def path_of(template: str) -> str:
    path = template.replace("{session_id}", "s").replace("{track_id:path}", "g0-t00").replace("{position}", "0")
    path = path.replace("{path:path}", "player.js")
    return path + ("?session_id=s" if path == "/recommendations" else "")


def problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    if answer.request.method != "HEAD":
        assert answer.headers["content-type"] == "application/problem+json"
        detail: str = answer.json()["detail"]
        return detail
    return ""


class TestAnotherSite:
    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image", "Origin": OTHER},
            {"Sec-Fetch-Site": "Cross-Site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Origin": "null"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
            {"Sec-Fetch-Site": "", "Sec-Fetch-Mode": "navigate"},
        ],
    )
    def test_is_refused_by_every_call(
        self, running: httpx.Client, call: tuple[str, str], headers: dict[str, str]
    ) -> None:
        method, template = call
        answer = running.request(method, path_of(template), headers=headers, json=BODY if method == "POST" else None)
        problem(answer, 403)
        assert "access-control-allow-origin" not in answer.headers

    def test_has_nothing_done(self, running: httpx.Client) -> None:
        for path in ("/sessions/foreign/events", "/sessions/foreign/events?recommend=5"):
            problem(running.post(path, json=BODY, headers={"Sec-Fetch-Site": "cross-site"}), 403)
        assert running.get("/sessions/foreign").status_code == 404

    @pytest.mark.parametrize("path", PAGES)
    def test_may_link_to_the_pages(self, running: httpx.Client, path: str) -> None:
        assert running.get(path, headers=LINK).status_code == 200

    @pytest.mark.parametrize(
        "path", ["/recommendations?session_id=s", "/operations", "/sessions/s/stream", "/web/player.js", "/tracks"]
    )
    def test_may_link_to_nothing_else(self, running: httpx.Client, path: str) -> None:
        problem(running.get(path, headers=LINK), 403)

    def test_may_not_post_to_the_pages(self, running: httpx.Client) -> None:
        problem(running.post("/", headers=LINK), 403)

    def test_that_says_both_is_refused(self, running: httpx.Client) -> None:
        for sites in (("same-origin", "cross-site"), ("cross-site", "same-origin"), ("same-origin", "same-origin")):
            problem(running.get("/tracks", headers=[("Sec-Fetch-Site", site) for site in sites]), 403)

    @pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
    def test_is_not_what_the_own_pages_and_the_user_are(self, running: httpx.Client, site: str) -> None:
        for path in ("/tracks", "/recommendations?session_id=s", "/", "/web/player.js"):
            assert running.get(path, headers={"Sec-Fetch-Site": site}).status_code == 200

    def test_gets_no_further_than_the_key_where_there_are_keys(
        self, start_service: StartService, tmp_path: Path
    ) -> None:
        text, kept = new_key("app", ["client"])
        write_keys(tmp_path / "keys.toml", [kept])
        with start_service(api_keys=tmp_path / "keys.toml").client() as client:
            headers = {"Sec-Fetch-Site": "cross-site"}
            problem(client.get("/tracks", headers=headers), 401)
            assert client.get("/tracks", headers=headers | {"Authorization": f"Bearer {text}"}).status_code == 200


@pytest.fixture
def allowing(start_service: StartService) -> Iterator[httpx.Client]:
    with start_service(cors_origins=f"{ALLOWED}, http://localhost:3000").client() as client:
        yield client


def preflight(
    client: httpx.Client, path: str, origin: str = ALLOWED, method: str = "POST", sent: str = ""
) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": method, "Sec-Fetch-Site": "cross-site"}
    if sent:
        headers["Access-Control-Request-Headers"] = sent
    return client.options(path, headers=headers)


class TestAnAllowedOrigin:
    def test_may_read_every_answer(self, allowing: httpx.Client) -> None:
        calls = (
            ("GET", "/tracks", 200),
            ("GET", "/recommendations?session_id=s", 200),
            ("GET", "/nowhere", 404),
            ("PATCH", "/tracks", 405),
            ("GET", "/recommendations", 422),
            ("GET", "/map", 200),
            ("POST", "/sessions/s/events", 200),
            ("POST", "/sessions/s/events?recommend=5", 200),
        )
        for method, path, status in calls:
            headers = {"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"}
            answer = allowing.request(method, path, headers=headers, json=BODY if method == "POST" else None)
            assert answer.status_code == status
            assert answer.headers.get_list("access-control-allow-origin") == [ALLOWED]
            assert "Origin" in answer.headers["vary"]
            exposed = answer.headers["access-control-expose-headers"]
            assert {"Retry-After", "X-Request-ID"} <= set(exposed.split(", "))
            assert "access-control-allow-credentials" not in answer.headers

    def test_is_told_so_of_failures_too(self, start_service: StartService) -> None:
        prelude = "import service.sessions.store as s; s.SessionStore.session = lambda self, session_id: {}[0]"
        with start_service(prelude=prelude, cors_origins=ALLOWED).client() as client:
            answer = client.get("/sessions/s", headers={"Origin": ALLOWED})
            assert answer.status_code == 500
            assert answer.headers["access-control-allow-origin"] == ALLOWED

    def test_may_ask_before_it_sends(self, allowing: httpx.Client) -> None:
        for path in ("/sessions/s/events", "/releases/current", "/recommendations/what-if"):
            answer = preflight(allowing, path, sent="authorization, content-type, x-request-id")
            assert answer.status_code == 200
            assert answer.headers.get_list("access-control-allow-origin") == [ALLOWED]
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert "Authorization" in answer.headers["access-control-allow-headers"]
        assert allowing.get("/health/ready").status_code == 200  # and takes nobody's place

    def test_may_not_send_anything(self, allowing: httpx.Client) -> None:
        assert "method" in problem(preflight(allowing, "/tracks", method="PATCH"), 403)
        assert "headers" in problem(preflight(allowing, "/tracks", sent="x-other"), 403)

    @pytest.mark.parametrize(
        "origin",
        [OTHER, "null", "http://music.example", f"{ALLOWED}:8443", "https://music.example.evil.example", f"{ALLOWED}/"],
    )
    def test_is_exactly_that_one(self, allowing: httpx.Client, origin: str) -> None:
        answer = preflight(allowing, "/tracks", origin)
        assert "origin" in problem(answer, 403)
        assert "access-control-allow-origin" not in answer.headers
        answer = allowing.get("/tracks", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
        problem(answer, 403)
        assert "access-control-allow-origin" not in answer.headers
        same_site = allowing.get("/tracks", headers={"Origin": origin})
        assert "access-control-allow-origin" not in same_site.headers

    def test_sends_its_preflight_without_a_key_and_the_rest_with_it(
        self, start_service: StartService, tmp_path: Path
    ) -> None:
        text, kept = new_key("app", ["client"])
        write_keys(tmp_path / "keys.toml", [kept])
        with start_service(
            api_keys=tmp_path / "keys.toml", cors_origins="*", key_rate_limit=0.001, rate_limit_burst_s=2000
        ).client() as client:
            for _ in range(5):
                assert preflight(client, "/sessions/s/events", OTHER, sent="authorization").status_code == 200
            headers = {"Origin": OTHER, "Authorization": f"Bearer {text}"}
            answers = [
                client.get("/tracks", headers={"Origin": OTHER}),
                client.get("/operations", headers=headers),
                *(client.get("/tracks", headers=headers) for _ in range(3)),
            ]
            assert [answer.status_code for answer in answers] == [401, 403, 200, 200, 429]
            assert {answer.headers["access-control-allow-origin"] for answer in answers} == {"*"}


def test_cors_is_off_unless_origins_are_set(running: httpx.Client) -> None:
    assert (
        running.options("/tracks", headers={"Origin": ALLOWED, "Access-Control-Request-Method": "GET"}).status_code
        == 405
    )
    assert "access-control-allow-origin" not in running.get("/tracks", headers={"Origin": ALLOWED}).headers


@pytest.mark.parametrize(
    "wrong",
    [
        *("*", "music.example", "https://music.example/", "https://music.example/page", "https://*.example", "null"),
        *("https://music.example:443", "http://music.example:80", "ftp://a", "https://a@b", f"*,{ALLOWED}", "https://"),
    ],
)
def test_an_origin_that_is_none_is_told_at_the_start(start_service: StartService, wrong: str) -> None:
    service = start_service(cors_origins=wrong)
    assert service.process.wait(30) != 0
    service.stop()
    assert "cors_origins" in service.output[-1]
