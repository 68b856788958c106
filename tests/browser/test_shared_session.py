"""A link with a session in it: the page shows it, and reports nothing before a click."""

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.player_page import look_for_barriers, opened, playwright, search_and_play

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FRAGMENT = "replay=+g2-t05,-g4-t01,+marker%20of%20nobody"
# Whatever a link may hold instead of a session.
DAMAGED = ("replay=+%E0%A4", "replay=+%", "replay=+a,%")
NO_SESSION = ("", "replay=", "play=+a", "replay", "Replay=+a")


def writes(page: "Page") -> list[str]:
    """The requests that a page makes from now on and that are not GET."""
    made: list[str] = []
    page.on("request", lambda request: made.append(request.url) if request.method != "GET" else None)
    return made


def session_of(page: "Page") -> str:
    found: str = page.evaluate("localStorage.getItem('segue.session')")
    return found


def is_settled(page: "Page") -> None:
    playwright.expect(page.locator("#next > li")).to_have_count(15)


@pytest.mark.parametrize("answer", ["Replay here", "Keep my session"])
def test_a_shared_session_is_reported_after_a_click_only(
    browser: "Browser", running: httpx.Client, answer: str
) -> None:
    faults: list[str] = []
    with opened(browser, str(running.base_url), faults) as page:
        is_settled(page)
        search_and_play(page, "g1-t03", "Song 15")
        mine = session_of(page)
        made = writes(page)
        page.goto("about:blank")  # as a link on another page is followed
        page.goto(f"{running.base_url}#{FRAGMENT}")
        is_settled(page)
        shared = page.locator("#shared li")
        playwright.expect(shared).to_have_count(3)
        playwright.expect(shared.first).to_contain_text("Song 29")
        playwright.expect(shared.nth(2)).to_contain_text("marker of nobody")
        playwright.expect(page.locator("#shared-words")).to_contain_text("Nothing has been reported")
        playwright.expect(page.locator("#session li")).to_have_count(1)
        page.wait_for_timeout(500)
        assert made == []
        assert session_of(page) == mine
        look_for_barriers(page, "shared session")

        page.get_by_role("button", name=answer).click()
        playwright.expect(page.locator("#shared-part")).to_be_hidden()
        playwright.expect(page.locator("#session li")).to_have_count(3 if answer.startswith("Replay") else 1)
        assert len(made) == answer.startswith("Replay")
        assert (session_of(page) == mine) == (not answer.startswith("Replay"))
        assert "#" not in page.url
        plays = running.get(f"/sessions/{session_of(page)}").json()["plays"]
        assert [play["track_id"] for play in plays] == (
            ["g2-t05", "g4-t01", "marker of nobody"] if answer.startswith("Replay") else ["g1-t03"]
        )
        page.reload()
        is_settled(page)
        playwright.expect(page.locator("#shared-part")).to_be_hidden()
    assert [fault for fault in faults if not fault.startswith("about:")] == []


def test_a_link_that_is_followed_within_the_page_is_shown_too(page: "Page") -> None:
    made = writes(page)
    page.evaluate(f"location.hash = '{FRAGMENT}'")
    playwright.expect(page.locator("#shared li")).to_have_count(3)
    page.wait_for_timeout(300)
    assert made == []


def test_a_very_long_link_is_cut(page: "Page") -> None:
    page.evaluate("location.hash = 'replay=' + Array(5000).fill('+g2-t05').join(',')")
    playwright.expect(page.locator("#shared-words")).to_contain_text("1000 events")
    playwright.expect(page.locator("#shared li")).to_have_count(21)


@pytest.mark.parametrize("fragment", [*DAMAGED, *NO_SESSION])
def test_what_is_no_session_reports_nothing(browser: "Browser", running: httpx.Client, fragment: str) -> None:
    faults: list[str] = []
    with opened(browser, str(running.base_url), faults, fragment) as page:
        made = writes(page)
        is_settled(page)
        playwright.expect(page.locator("#shared-part")).to_be_visible(visible=fragment in DAMAGED)
        playwright.expect(page.locator("#shared-replay")).to_be_hidden()
        if fragment in DAMAGED:
            playwright.expect(page.locator("#shared-words")).to_contain_text("The link is damaged")
            page.get_by_role("button", name="Keep my session").click()
            playwright.expect(page.locator("#shared-part")).to_be_hidden()
        assert made == []
    assert faults == []
