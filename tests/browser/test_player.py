"""The player page in a real browser: search, play, skip, reload."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", running: httpx.Client) -> "Iterator[Page]":
    context = browser.new_context(
        base_url=str(running.base_url), viewport={"width": 1100, "height": 800}, reduced_motion="reduce"
    )
    context.set_default_timeout(10_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if running.base_url.host not in request.url else None)
    page.goto("/")
    playwright.expect(page.locator("#next li")).to_have_count(15)
    yield page
    context.close()
    assert faults == []  # no exception, and nothing asked of anybody else


def search_and_play(page: "Page", words: str, title: str) -> None:
    page.get_by_label("Title, artist or id").fill(words)
    page.locator("#found button").filter(has_text=title).first.click()
    playwright.expect(page.locator("#now .title")).to_have_text(title)


def next_tracks(page: "Page") -> list[str]:
    return [item.get_attribute("data-track") or "" for item in page.locator("#next li").all()]


def test_playing_and_skipping_move_the_next_tracks(page: "Page") -> None:
    playwright.expect(page.locator("#source")).to_contain_text("most played")
    search_and_play(page, "artist 2 g2", "Song 30")
    playwright.expect(page.locator("#source")).to_contain_text("1 played and 0 skipped")
    assert {track[:2] for track in next_tracks(page)[:11]} == {"g2"}
    assert page.locator("#next .move.new").count() > 0

    search_and_play(page, "g4-", "Song 48")
    before = next_tracks(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    playwright.expect(page.locator("#session li.played")).to_have_count(2)  # what ranked first plays now
    assert next_tracks(page) != before
    assert not any(track.startswith("g4") for track in next_tracks(page))
    playwright.expect(page.locator("#now .title")).to_have_text(
        "Song 35"
    )  # the skip outweighs the taste for popular tracks

    page.get_by_role("button", name="Played through").click()
    playwright.expect(page.locator("#session li.played")).to_have_count(3)
    if picture := os.environ.get("SEGUE_SCREENSHOT"):
        page.screenshot(path=picture, full_page=True)


def test_a_reload_keeps_the_session_and_a_new_one_is_empty(page: "Page") -> None:
    search_and_play(page, "g3-t05", "Song 41")
    shown = next_tracks(page)
    page.reload()
    playwright.expect(page.locator("#session li")).to_have_text([re.compile("Song 41")])
    playwright.expect(page.locator("#now .title")).to_have_text("Song 41")
    playwright.expect(page.locator("#next li").first).to_have_attribute("data-track", shown[0])
    assert next_tracks(page) == shown
    page.get_by_role("button", name="New session").click()
    playwright.expect(page.locator("#session li")).to_have_count(0)
    playwright.expect(page.locator("#source")).to_contain_text("most played")


def test_the_keyboard_is_enough(page: "Page") -> None:
    page.get_by_label("Title, artist or id").focus()
    page.keyboard.type("g5-t03")
    playwright.expect(page.locator("#found button")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#now .title")).to_have_text("Song 63")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)


def test_an_error_is_said_in_words(page: "Page") -> None:
    page.route("**/events*", lambda route: route.abort())
    page.get_by_label("Title, artist or id").fill("g0-t00")
    page.locator("#found button").first.click()
    playwright.expect(page.get_by_role("alert")).to_have_text("The service does not answer. Is it still running?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_shows_everything(page: "Page", scheme: "Literal['light', 'dark']") -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 320, "height": 640})
    search_and_play(page, "g2-t05", "Song 29")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 320
    if picture := os.environ.get("SEGUE_SCREENSHOT"):
        page.screenshot(path=picture.replace(".png", f"-320-{scheme}.png"), full_page=True)
