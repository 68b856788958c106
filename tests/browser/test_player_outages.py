"""The player while the service or Redis is away: it recovers, and no event is lost in silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.browser.player_page import keep_picture, opened, playwright, search_and_play
from tests.live.redis_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route


def session_of(page: "Page") -> str:
    found: str = page.evaluate("localStorage.getItem('segue.session')")
    return found


def event_ids(page: "Page") -> list[tuple[str, str]]:
    """Type and id of each event that a page sends from now on."""
    sent: list[tuple[str, str]] = []

    def note(request: Any) -> None:
        if "/events" in request.url:
            sent.extend((event["type"], event["event_id"]) for event in json.loads(request.post_data)["events"])

    page.on("request", note)
    return sent


def test_it_reconnects_by_itself(browser: "Browser", start_service: Callable[..., Any], tmp_path: Path) -> None:
    """Redis lost and back, the service ended and started again. What was pressed meanwhile is sent again, once."""
    with Server(tmp_path / "its-redis", appendonly="yes") as redis:
        service = start_service(redis_url=redis.url)
        address = service.address()
        with opened(browser, address, []) as page:
            search_and_play(page, "g2-t05", "Song 29")
            page.locator("body").press("p")  # the clock stands still: the track does not end meanwhile
            redis.kill()
            playwright.expect(page.get_by_role("alert")).to_contain_text("Sessions are unavailable")
            keep_picture(page, "Redis away")
            redis.start()
            playwright.expect(page.get_by_role("alert")).to_be_hidden()
            assert service.stop() == 0
            playwright.expect(page.get_by_role("alert")).to_contain_text("does not answer")
            sent = event_ids(page)
            page.locator("body").press("s")
            playwright.expect(page.get_by_role("alert")).to_contain_text("Your skip of Song 29 is not saved yet")
            playwright.expect(page.locator("#session li.skipped")).to_have_count(0)
            keep_picture(page, "service away")
            start_service(redis_url=redis.url, port=int(address.rpartition(":")[2]))
            playwright.expect(page.get_by_role("alert")).to_be_hidden(timeout=30_000)
            playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
            assert len(sent) > 1
            assert len(set(sent)) == 1  # the same event, with its id
            plays = httpx.get(f"{address}/sessions/{session_of(page)}").json()["plays"]
            assert [(play["track_id"], play["outcome"]) for play in plays] == [("g2-t05", "skipped")]


def test_a_page_that_is_opened_while_redis_is_away_recovers(
    browser: "Browser", start_service: Callable[..., Any], tmp_path: Path
) -> None:
    with Server(tmp_path / "its-redis", appendonly="yes") as redis:
        address = start_service(redis_url=redis.url).address()
        redis.kill()
        with opened(browser, address, []) as page:
            playwright.expect(page.get_by_role("alert")).to_contain_text("Sessions are unavailable. Retrying")
            redis.start()
            playwright.expect(page.locator("#next > li")).to_have_count(15, timeout=20_000)
            playwright.expect(page.get_by_role("alert")).to_be_hidden()
            search_and_play(page, "g2-t05", "Song 29")
            playwright.expect(page.locator("#session li")).to_have_count(1)


@pytest.mark.parametrize("loss", ["answer", "overload"])
def test_an_event_is_stored_once_although_its_answer_is_lost(page: "Page", running: httpx.Client, loss: str) -> None:
    """The service stores the skip, and the connection ends before the answer; or it is overloaded at first."""
    search_and_play(page, "g2-t05", "Song 29")
    sent = event_ids(page)

    def lose(route: "Route") -> None:
        if len(sent) > 1:
            route.continue_()
        elif loss == "answer":
            route.fetch()
            route.abort()
        else:
            route.fulfill(status=503, json={"title": "Overloaded", "status": 503, "detail": "try again"})

    page.route("**/events*", lose)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    playwright.expect(page.get_by_role("alert")).to_be_hidden()
    assert len(sent) == 2
    assert len(set(sent)) == 1
    plays = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    assert [play["outcome"] for play in plays] == ["skipped"]


def test_an_event_that_cannot_be_saved_is_said_and_a_new_session_gives_it_up(page: "Page") -> None:
    search_and_play(page, "g2-t05", "Song 29")
    page.route("**/events*", lambda route: route.abort())
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("Your skip of Song 29 is not saved yet")
    page.get_by_role("button", name="New session").click()
    playwright.expect(page.locator("#session li")).to_have_count(0)
    playwright.expect(page.get_by_role("alert")).to_be_hidden()


def test_an_error_shows_wherever_the_page_is_scrolled(page: "Page") -> None:
    for width, height in ((1100, 800), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        # At once: an answer of the service clears the message.
        box = page.evaluate("""() => {
          scrollTo(0, document.documentElement.scrollHeight);
          const error = document.querySelector("#error[role=alert]");
          error.hidden = false;
          error.textContent = "The service does not answer.";
          return error.getBoundingClientRect().toJSON();
        }""")
        assert box["width"] > 0
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
