"""The pages behind a proxy that strips a path prefix: in a real browser, every request stays under the prefix."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.player import WEB
from tests.browser.player_page import opened, playwright, search_and_play

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PREFIX = "/music/segue"
_MOST = 2**20


class StrippingProxy:
    """A reverse proxy on loopback that takes `PREFIX` away from the path, and answers 404 to any other path."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.outside: list[str] = []
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of a connection, which is then closed."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            if not path.startswith(f"{PREFIX}/"):
                self.outside.append(path)
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            lines = [line for line in head.split("\r\n")[1:-2] if not line.lower().startswith("connection:")]
            length = re.search(r"(?im)^content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            service_reader, service_writer = await asyncio.open_connection(*self._to)
            request = [f"{method} {path.removeprefix(PREFIX)} HTTP/1.1", *lines, "Connection: close", "", ""]
            service_writer.write("\r\n".join(request).encode("latin-1") + body)
            while part := await service_reader.read(_MOST):
                writer.write(part)
                await writer.drain()
            service_writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the browser has left
        finally:
            writer.close()

    def stop(self) -> None:
        """End it, and whatever is still open."""

        async def end() -> None:
            self._server.close()
            open_tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


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
