"""A real Chromium, the player page of the service that many tests share, and any other page."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from tests.browser.player_page import CHROMIUM, FLAGS, playwright  # here, as it skips where there is none

    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def watched(browser: "Browser", address: str, path: str, **options: Any) -> "Iterator[Page]":
    """A page of a service, on which nothing may go wrong: exceptions, what the policy forbids, requests to others.

    A call that is answered by 4xx is none of these, though Chromium notes it on its console.
    """
    from tests.browser.player_page import NOTE_VIOLATIONS

    faults: list[str] = []
    context = browser.new_context(base_url=address, reduced_motion="reduce", **options)
    context.set_default_timeout(10_000)
    context.add_init_script(NOTE_VIOLATIONS)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(address) else faults.append(request.url))
    page.on("console", lambda said: None if said.text.startswith("Failed to load") else faults.append(said.text))
    page.goto(path)
    yield page
    context.close()
    assert faults == []


@pytest.fixture
def page(browser: "Browser", running: httpx.Client) -> "Iterator[Page]":
    from tests.browser.player_page import opened, playwright

    faults: list[str] = []
    with opened(browser, str(running.base_url), faults) as page:
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        yield page
    assert faults == []
