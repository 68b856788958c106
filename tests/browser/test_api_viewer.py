"""The API viewer in a real browser: it shows every call, sends requests, and obeys the content policy."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from service.http.keys import new_key, write_keys
from tests.browser.api_viewer_page import call, try_out
from tests.browser.conftest import watched
from tests.browser.player_page import keep_picture, playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_every_call_is_shown_and_nothing_is_forbidden_or_fetched_elsewhere(
    browser: "Browser", running: httpx.Client
) -> None:
    description = running.get("/openapi.json").json()
    names = {
        f"operations-{call['tags'][0]}-{call['operationId']}"
        for calls in description["paths"].values()
        for call in calls.values()
    }
    with watched(browser, str(running.base_url), "/docs") as page:
        playwright.expect(page.locator(".opblock")).to_have_count(len(names))
        assert {one.get_attribute("id") for one in page.locator(".opblock").all()} == names
        # All at once: each click would draw the page again, which takes minutes on a busy machine.
        page.locator(".opblock-summary-control").evaluate_all("controls => controls.forEach(one => one.click())")
        playwright.expect(page.locator(".opblock-body")).to_have_count(len(names), timeout=60_000)
        page.locator(".models .json-schema-2020-12-accordion").first.click()
        keep_picture(page, "all", "api-viewer", full_page=False)


def test_a_call_is_sent_and_answered(browser: "Browser", running: httpx.Client) -> None:
    with watched(browser, str(running.base_url), "/docs") as page:
        assert try_out(page, "recommendations-recommendations", session_id="viewer") == "200"
        body = page.locator(".live-responses-table tr.response .response-col_description").first
        playwright.expect(body).to_contain_text('"source": "popularity"')


def test_a_key_is_asked_for_and_sent(browser: "Browser", start_service: Callable[..., Any], tmp_path: Path) -> None:
    text, key = new_key("viewer", ["client"])
    write_keys(tmp_path / "keys.toml", [key])
    service = start_service(api_keys=tmp_path / "keys.toml")
    with watched(browser, service.address(), "/docs") as page:
        assert try_out(page, "tracks-find_tracks") == "401"
        page.locator(".btn.authorize").click()
        page.get_by_label("auth-bearer-value").fill(text)
        page.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").click()
        page.locator("#operations-tracks-find_tracks").get_by_role("button", name="Execute").click()
        status = page.locator(".live-responses-table tr.response .response-col_status").first
        playwright.expect(status).to_have_text("200")
        page.goto("/docs?")  # without the name of the call, which would be shown already
        assert try_out(page, "tracks-find_tracks") == "401"  # the key is not kept


def test_a_description_that_cannot_be_loaded_is_one_line(browser: "Browser", running: httpx.Client) -> None:
    with watched(browser, str(running.base_url), "/docs") as page:
        page.route("**/openapi.json", lambda route: route.fulfill(status=503, body=""))
        page.reload()
        playwright.expect(page.locator("#viewer")).to_contain_text("cannot be loaded: openapi.json: HTTP 503")
        page.unroute("**/openapi.json")
        page.reload()
        assert call(page, "tracks-find_tracks").is_visible()
