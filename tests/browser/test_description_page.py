"""The page of `segue describe --html` in a real browser, opened as a file, under its content security policy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.browser.player_page import keep_picture
from tests.descriptions import week_of_listening

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytest.importorskip("altair")
pytest.importorskip("jinja2")

CHARTS = 7


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.data.describe.page import page
    from training.data.describe.statistics import describe

    folder = tmp_path_factory.mktemp("described")
    (folder / "week.html").write_text(page(describe(week_of_listening(folder / "week"))), encoding="utf-8")
    return folder / "week.html"


@contextmanager
def opened(browser: "Browser", file: Path, **facts: Any) -> "Iterator[Page]":
    """The page, which may ask for nothing but itself, and about which the browser may not complain."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True, **facts)
    faults: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: faults.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(file.as_uri())
    if facts.get("java_script_enabled", True):
        playwright.expect(page.locator(".chart.vega-embed svg")).to_have_count(CHARTS)
    yield page
    assert faults == [file.as_uri()]
    context.close()


def test_the_script_shows_what_the_page_showed_without_it(browser: "Browser", file: Path) -> None:
    with opened(browser, file) as page, opened(browser, file, java_script_enabled=False) as bare:
        for chart in ("lengths", "position", "previous", "files", "time-rate", "time-sessions"):
            before = bare.locator(f"[data-chart={chart}] .chart title").all_text_contents()
            marks = page.locator(f"[data-chart={chart}] .mark-rect.role-mark path").all()
            assert [mark.get_attribute("aria-label") for mark in marks] == before
            assert before


def test_a_tooltip_tells_the_rate(browser: "Browser", file: Path) -> None:
    with opened(browser, file) as page:
        page.get_by_label("played: skip rate").hover()
        tooltip = page.locator("#vg-tooltip-element")
        playwright.expect(tooltip).to_be_visible()
        playwright.expect(tooltip).to_contain_text(re.compile(r"played: skip rate \d+\.\d%, [\d,]+ of [\d,]+ plays"))


def test_a_table_of_values_opens_and_sorts(browser: "Browser", file: Path) -> None:
    with opened(browser, file) as page:
        figure = page.locator("[data-chart=position]")
        figure.get_by_text("Values of this chart as a table").click()
        figure.get_by_role("columnheader", name="plays").get_by_role("button").click()
        plays = [int(text) for text in figure.locator("tbody td:nth-child(2)").all_text_contents()]
        assert plays == sorted(plays)
        assert len(set(plays)) > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_nothing(browser: "Browser", file: Path, scheme: "Literal['light', 'dark']", width: int) -> None:
    with opened(browser, file, color_scheme=scheme, bypass_csp=True) as page:  # axe is put into the page
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        keep_picture(page, f"{width} {scheme}", of="description")


def test_it_prints_with_its_charts(browser: "Browser", file: Path) -> None:
    with opened(browser, file) as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 24, 29)"
        assert page.locator(".chart svg:visible").count() == CHARTS
        printed = page.pdf(prefer_css_page_size=True)
        assert printed.startswith(b"%PDF-")
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 2
