"""The pages behind a proxy that strips a path prefix: in a real browser, every request stays under the prefix."""

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.api.operations import WEB
from tests.browser.api_viewer_page import try_out
from tests.browser.player_page import opened, playwright, search_and_play

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PREFIX = "/music/segue"


class StrippingProxy(socketserver.ThreadingTCPServer):
    """A reverse proxy on loopback that takes `PREFIX` away from the path, and answers 404 to any other path."""

    daemon_threads = False

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Proxied)
        self.to = (host, port)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.outside: list[str] = []
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, and whatever is still open."""
        self.shutdown()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()  # waits for its threads
        self._thread.join(10)


class _Proxied(socketserver.StreamRequestHandler):
    """One request of a connection, which is then closed."""

    server: StrippingProxy

    def handle(self) -> None:
        """Pass it on, and the answer back."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return  # a connection that the browser opened in advance
            head += line
        method, path, _ = head.decode("latin-1").split(" ", 2)
        if not path.startswith(f"{PREFIX}/"):
            self.server.outside.append(path)
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        lines = [
            line for line in head.decode("latin-1").split("\r\n")[1:-2] if not line.lower().startswith("connection:")
        ]
        length = re.search(rb"(?im)^content-length: (\d+)", head)
        body = self.rfile.read(int(length[1])) if length else b""
        request = "\r\n".join([f"{method} {path.removeprefix(PREFIX)} HTTP/1.1", *lines, "Connection: close", "", ""])
        with socket.create_connection(self.server.to) as service, contextlib.suppress(OSError):
            self.server.open |= {service, self.request}
            service.settimeout(30)
            service.sendall(request.encode("latin-1") + body)
            while part := service.recv(65_536):
                self.request.sendall(part)
            self.server.open -= {service, self.request}


@pytest.fixture
def proxy(running: httpx.Client) -> Iterator[StrippingProxy]:
    started = StrippingProxy(running.base_url.host, running.base_url.port or 0)
    yield started
    started.stop()


def failed(page: Any) -> list[str]:
    """The answers of 400 and more, and the requests without an answer, from now on."""
    found: list[str] = []
    page.on("response", lambda answer: found.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    return found


def test_the_player_works_under_a_prefix(browser: "Browser", proxy: StrippingProxy) -> None:
    faults: list[str] = []
    with opened(browser, proxy.address, faults, path=f"{PREFIX}/?") as page:
        found = failed(page)
        page.reload()
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        search_and_play(page, "artist 2 g2", "Song 30")
        playwright.expect(page.locator("#source")).to_contain_text("1 played and 0 skipped")
        playwright.expect(page.locator("#next .why")).to_have_count(15)
        page.get_by_role("button", name="Skip").click()
        playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
        playwright.expect(page.locator("#map-part")).to_be_visible()
        # A session that holds nothing yet is a 404 by design.
        assert [one for one in found if not re.search(r"404 .*/sessions/player-[^/]+$", one)] == []
        assert page.url.startswith(f"{proxy.address}{PREFIX}/")
    assert proxy.outside == []
    assert faults == []


def test_the_operators_page_works_under_a_prefix(browser: "Browser", proxy: StrippingProxy) -> None:
    faults: list[str] = []
    with opened(browser, proxy.address, faults, path=f"{PREFIX}/ops") as page:
        found = failed(page)
        page.reload()
        playwright.expect(page.locator("#state")).not_to_have_text("Asking the service …")
        playwright.expect(page.locator("main")).to_contain_text("tiny")
        page.get_by_role("link", name="Player").click()
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        assert page.url == f"{proxy.address}{PREFIX}/"
        assert [one for one in found if not re.search(r"404 .*/sessions/player-[^/]+$", one)] == []
    assert proxy.outside == []
    assert faults == []


def test_the_api_viewer_works_under_a_prefix(browser: "Browser", proxy: StrippingProxy) -> None:
    faults: list[str] = []
    with opened(browser, proxy.address, faults, path=f"{PREFIX}/docs") as page:
        found = failed(page)
        page.reload()
        assert try_out(page, "tracks-find_tracks") == "200"
        assert page.locator(".request-url").inner_text().endswith(f"{PREFIX}/tracks?limit=20")
        assert found == []
    assert proxy.outside == []
    assert faults == []


@pytest.mark.parametrize("file", sorted(path.name for path in WEB.iterdir()))
def test_no_file_of_the_pages_names_a_path_from_the_root(file: str) -> None:
    text = (WEB / file).read_text(encoding="utf-8")
    absolute = (
        r"""(?:href|src|action)=["']/""",
        r"""(?:from|import)\s*\(?["'`]/""",
        r"""(?:fetch|call|bytes|send|watch|open|assign|replace|addressOf)\(["'`]/""",
        r"""url\(["']?/""",
        r"""location(?:\.href)?\s*=\s*["'`]/""",
    )
    for pattern in absolute:
        assert not re.search(pattern, text), pattern


def test_openapi_names_the_prefix_as_its_server(start_service: Callable[..., Any], tmp_path: Path) -> None:
    with start_service(root_path=PREFIX).client() as client:
        assert client.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
        assert client.get("/recommendations?session_id=a").status_code == 200
        assert client.get("/web/player.js").status_code == 200
        assert client.get(f"{PREFIX}/recommendations?session_id=a").status_code == 404  # the proxy strips it
        for path in ("/tracks/", "/ops/", "/web", "/web/"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers.get("location")) == (404, None)


@pytest.mark.parametrize(
    "wrong", ["music", "/", "/music/", "//music", "/a b", "/a?b", "/a#b", "https://a.example/b", "/.."]
)
def test_a_prefix_that_is_none_is_told_at_the_start(start_service: Callable[..., Any], wrong: str) -> None:
    service = start_service(root_path=wrong)
    assert service.process.wait(30) != 0
    service.stop()
    assert "root_path is" in service.output[-1]
