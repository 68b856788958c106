"""The player page in a real browser, opened on a running service; and what its tests do and see on it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
playwright.expect.set_options(timeout=30_000)  # five seconds are too few on a busy machine

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


NOTE_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`violation of ${event.effectiveDirective} by ${event.blockedURI}`))
"""

# A script for a page that is to wait for every answer, however slow the machine is.
NO_TIME_LIMIT = "AbortSignal.timeout = () => new AbortController().signal"


@contextlib.contextmanager
def opened(
    browser: "Browser", address: str, faults: list[str], fragment: str = "", path: str = "/", **options: Any
) -> "Iterator[Page]":
    """A page of a service; `fragment` is what its address has behind #, `options` are those of a browser's context.

    `faults` gets what went wrong: exceptions, what the content policy forbade, requests to anybody else.
    A call that is answered by 4xx is none, though Chromium notes it on its console.
    """
    options = {"viewport": {"width": 1100, "height": 800}, "reduced_motion": "reduce"} | options
    context = browser.new_context(base_url=address, **options)
    context.set_default_timeout(30_000)
    context.add_init_script(NOTE_VIOLATIONS)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(address) else faults.append(request.url))
    page.on("console", lambda said: None if said.text.startswith("Failed to load") else faults.append(said.text))
    page.goto(f"{path}#{fragment}" if fragment else path)
    yield page
    context.close()


def search_and_play(page: "Page", words: str, title: str) -> None:
    page.get_by_label("Title, artist or id").fill(words)
    page.locator("#found .play").filter(has_text=title).first.click()
    playwright.expect(page.locator("#now .title")).to_have_text(title)


def next_tracks(page: "Page") -> list[str]:
    return [item.get_attribute("data-track") or "" for item in page.locator("#next > li").all()]


def shows(page: "Page", tracks: list[str]) -> None:
    """Wait until these are its next tracks."""
    found = "[...document.querySelectorAll('#next > li')].map((item) => item.dataset.track).join(' ')"
    page.wait_for_function(f"(wanted) => {found} === wanted", arg=" ".join(tracks))


def keep_picture(page: "Page", state: str, of: str = "player", *, full_page: bool = True) -> None:
    """Save a screenshot in the folder that SEGUE_SCREENSHOTS names, if it is set.

    A page that is many screens tall takes a busy machine longer than the browser waits: save its first screen only.
    """
    if folder := os.environ.get("SEGUE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{of}-{state.replace(' ', '-')}.png", full_page=full_page)


def look_for_barriers(page: "Page", state: str) -> None:
    """axe finds no violation of WCAG 2.2 AA and no bad practice; a picture is kept.

    It looks from the top of the page: wherever else the page stands, its header may cover a part of some button.
    """
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    keep_picture(page, state)
    found = axe.run(page, options={"rules": {"target-size": {"enabled": True}}})
    assert found.violations_count == 0, f"{state}: {found.generate_report()}"
