"""The built documentation site: it builds strictly, every link leads somewhere, a browser shows it on any screen."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="the documents are not part of the wheel")

from docs.site import hooks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a broken link or a page that is not in the navigation is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
class TestSite:
    def test_no_page_takes_anything_from_elsewhere(self, site: Path) -> None:
        pages = [page for page in site.rglob("*.html") if page.name != "report.html"]
        assert len(pages) > 25
        for page in pages:
            text = page.read_text(encoding="utf-8")
            taken = re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="([^"]*)"', text)
            taken += re.findall(r'<link[^>]*\bhref="([^"]*)"', text)
            assert not [address for address in taken if re.match(r"(https?:)?//", address)], page

    def test_every_asked_figure_is_there(self, site: Path) -> None:
        text = (site / "science.html").read_text(encoding="utf-8")
        assert "<!-- results" not in text
        for picture in re.findall(r'src="(results/[^"]*)"', text):
            assert (site / picture).is_file(), picture
        value = json.loads((RESULTS / "synthetic" / "report.json").read_text())["questions"][0]["systems"][
            "gru4rec+nce"
        ]
        assert f"{value['groups']['played']['HR@10']['value']:.3f}\xa0[" in text

    def test_the_reports_lie_beside_the_pages(self, site: Path) -> None:
        for name in ("synthetic", "mssd"):
            assert (site / "results" / name / "report.html").read_bytes() == (
                RESULTS / name / "report.html"
            ).read_bytes()

    def test_every_page_shows_the_version(self, site: Path) -> None:
        for page in site.rglob("*.html"):
            if page.name != "report.html":
                assert f"Segue {hooks.version()}." in page.read_text(encoding="utf-8"), page

    def test_home_leads_to_five_groups(self, site: Path) -> None:
        text = (site / "index.html").read_text(encoding="utf-8")
        groups = re.findall(r'<h2 id="[^"]*">([^<]*)<', text)
        assert groups == ["What it is", "Try it", "Learn", "Operate", "Reference"]
        assert f"Version {hooks.version()}" in text
        assert (site / "player-phone.webp").stat().st_size < 80_000

    def test_nothing_of_the_site_is_packaged(self) -> None:
        assert "docs" not in re.findall(r"include = \[(.*)\]", (ROOT / "pyproject.toml").read_text())[0]


class Links(HTMLParser):
    """The ids of a page, and the addresses it leads to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.ids.add(value or "")
            elif name in ("href", "src", "srcset"):
                self.addresses.append(value or "")


def broken(folder: Path) -> list[str]:
    """The links of a folder of pages that lead nowhere, each after its page. Links to other sites are not followed."""
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    return [
        f"{page.relative_to(folder)}: {address}"
        for page, links in pages.items()
        for address in links.addresses
        if not _leads_somewhere(address, page, pages)
    ]


def _leads_somewhere(address: str, page: Path, pages: dict[Path, Links]) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    if parts.scheme in ("http", "https"):
        return re.fullmatch(r"[\w.-]+(:\d+)?", parts.netloc) is not None and not re.search(r"\s", address)
    if parts.scheme or parts.netloc:
        return parts.scheme in ("data", "mailto")
    path = unquote(parts.path)
    if page.name == "404.html":  # shown in place of any page, so its links begin at the root
        path = path.removeprefix("/")
    target = (page.parent / path).resolve() if path else page
    if parts.fragment and target in pages:
        return unquote(parts.fragment) in pages[target].ids
    return target.is_file() or (target.is_dir() and (target / "index.html").is_file())


class TestLinks:
    @pytest.mark.slow
    def test_every_link_of_the_site_leads_somewhere(self, site: Path) -> None:
        assert broken(site) == []

    def test_broken_links_are_found(self, tmp_path: Path) -> None:
        (tmp_path / "b.html").write_text('<h1 id="x"></h1><a name="old"></a>')
        good = (
            "b.html",
            "b.html#x",
            "b.html#old",
            "#here",
            "https://example.org/a?b#c",
            "http://127.0.0.1:8000",
            "data:,",
        )
        bad = (
            "c.html",
            "b.html#y",
            "#gone",
            "https://exa mple.org",
            "https:///a",
            "//example.org",
            "ftp://a.b",
            "../b.html",
        )
        links = "".join(f'<a href="{address}"></a>' for address in (*good, *bad))
        (tmp_path / "a.html").write_text(f'<p id="here"></p>{links}<img src="no.png">')
        assert broken(tmp_path) == [f"a.html: {address}" for address in (*bad, "no.png")]


# What the theme itself has; everything else on a page is ours.
OF_THE_THEME = {"aria-dialog-name": {"enabled": False}, "landmark-unique": {"enabled": False}}


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site's address, served from its folder."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
class TestBrowser:
    @pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
    def test_pages_are_accessible_and_ask_nobody_else(
        self, served: str, browser: Any, width: int, scheme: Literal["light", "dark"]
    ) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        faults: list[str] = []
        page.on("request", lambda r: None if r.url.startswith((served, "data:")) else faults.append(r.url))
        page.on("console", lambda message: faults.append(message.text))
        for name in ("index", "science", "reference/http", "how-to/filter-tracks"):
            page.goto(f"{served}/{name}.html")
            found = axe.Axe().run(page, options={"rules": OF_THE_THEME})
            assert found.violations_count == 0, found.generate_report()
        page.close()
        assert faults == []

    @pytest.mark.timeout(600)
    def test_no_page_scrolls_sideways(self, served: str, site: Path, browser: Any) -> None:
        page = browser.new_page()
        wide, broken_lines = [], []
        for path in sorted(site.rglob("*.html")):
            if path.name in ("report.html", "404.html"):
                continue
            page.goto(f"{served}/{path.relative_to(site)}")
            for width in (1440, 390, 320):
                page.set_viewport_size({"width": width, "height": 844})
                if page.evaluate("document.documentElement.scrollWidth") > width:
                    wide.append((path.name, width))
                broken_lines += page.evaluate(INTERVALS_OVER_LINES)
        page.close()
        assert (wide, broken_lines) == ([], [])

    def test_the_search_finds_pages(self, served: str, browser: Any) -> None:
        from playwright.sync_api import expect

        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for words, target in (
            ("log_q", "science.html"),
            ("rollback", "operate/releases.html"),
            ("GDPR", "operate/redis.html"),
            ("batch", "reference/http.html"),
        ):
            page.goto(f"{served}/index.html")
            page.keyboard.press("/")
            page.keyboard.type(words)
            expect(page.locator(f".md-search-result__link[href*='{target}']").first).to_be_visible()
        page.close()

    def test_first_screens(self, served: str, browser: Any) -> None:
        """A call is on the first screen of the HTTP page, and the picture of home keeps the size of its text."""
        for width, height in ((1440, 900), (390, 844)):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"{served}/reference/http.html")
            block = page.locator("pre", has_text="curl").first.bounding_box()
            assert block["y"] + block["height"] < height
            page.goto(f"{served}/index.html")
            shown = page.locator("picture img").evaluate("i => [i.currentSrc, i.naturalWidth, i.clientWidth]")
            if width == 390:
                assert shown[0].endswith("player-phone.webp")
                assert shown[2] >= 0.95 * shown[1] / 2  # drawn for 2 pixels per CSS pixel
            else:
                assert shown[0].endswith("player.webp")
            page.close()


# The cells of tables in which an interval starts on one line and ends on another.
INTERVALS_OVER_LINES = r"""() => {
  const found = [];
  for (const cell of document.querySelectorAll("td")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      for (const match of texts.currentNode.data.matchAll(/[\d.]+\s\[[-+\d.]+,\s[-+\d.]+\]/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, match.index);
        range.setEnd(texts.currentNode, match.index + match[0].length);
        if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1) found.push(match[0]);
      }
    }
  }
  return found;
}"""
