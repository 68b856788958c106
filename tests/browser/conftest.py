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
    """A page of a service, on which nothing may go wrong: see `opened`."""
    from tests.browser.player_page import opened

    faults: list[str] = []
    with opened(browser, address, faults, path=path, **options) as page:
        yield page
    assert faults == []


@pytest.fixture
def page(browser: "Browser", running: httpx.Client) -> "Iterator[Page]":
    from tests.browser.player_page import opened, playwright

    faults: list[str] = []
    with opened(browser, str(running.base_url), faults) as page:
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        yield page
    assert faults == []
