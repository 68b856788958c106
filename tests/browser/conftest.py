"""A real Chromium for the tests of the pages. Skips where there is none."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_FLAGS: Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NOTE_VIOLATIONS: Final = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`violation of ${event.effectiveDirective} by ${event.blockedURI}`))
"""


@pytest.fixture(scope="module")  # playwright runs once at a time in a thread, and a module may start its own
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def watched(browser: "Browser", address: str, path: str, **options: Any) -> "Iterator[Page]":
    """A page of a service, on which nothing may go wrong: exceptions, what the policy forbids, requests to others.

    A call that is answered by 4xx is none of these, though Chromium notes it on its console.
    """
    faults: list[str] = []
    context = browser.new_context(base_url=address, reduced_motion="reduce", **options)
    context.set_default_timeout(10_000)
    context.add_init_script(_NOTE_VIOLATIONS)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(address) else faults.append(request.url))
    page.on("console", lambda said: None if said.text.startswith("Failed to load") else faults.append(said.text))
    page.goto(path)
    yield page
    context.close()
    assert faults == []
