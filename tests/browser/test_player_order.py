"""The player when answers and messages come late, or in another order than they were asked for."""

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.player_page import NO_TIME_LIMIT, next_tracks, playwright, search_and_play

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def session_of(page: "Page") -> str:
    found: str = page.evaluate("localStorage.getItem('segue.session')")
    return found


def wait_for_ever(page: "Page") -> None:
    """Have the page wait for every answer, however slow the machine is."""
    page.add_init_script(NO_TIME_LIMIT)
    page.reload()
    playwright.expect(page.locator("#next > li")).to_have_count(15)


def hold(page: "Page", pattern: str) -> "list[Route]":
    """Hold the first request of this kind until the test lets it go. Others pass."""
    held: list[Route] = []

    def first(route: "Route") -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route(pattern, first)
    return held


def is_held(page: "Page", held: "list[Route]") -> None:
    for _ in range(1_200):
        if held:
            return
        page.wait_for_timeout(50)  # the handler runs meanwhile
    raise AssertionError("there was no such request")


def let_go(page: "Page", held: "list[Route]") -> None:
    """Let the held request go, and wait until the page has its answer."""
    with page.expect_response(lambda answer: answer.request == held[0].request) as answered:
        held[0].continue_()
    answered.value.finished()
    for _ in range(5):
        page.evaluate(TWO_FRAMES)


def report(running: httpx.Client, session_id: str, track_id: str, kind: str = "play") -> None:
    """An event in another tab."""
    body = {"events": [{"type": kind, "track_id": track_id}]}
    assert running.post(f"/sessions/{session_id}/events", json=body).status_code == 200


def test_a_session_that_cannot_be_opened_is_followed_and_the_old_one_is_not(
    page: "Page", running: httpx.Client
) -> None:
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(page.locator("#session li")).to_have_count(1)
    old = session_of(page)
    before = next_tracks(page)
    page.route("**/recommendations?*", lambda route: route.fulfill(status=500, json={"title": "Error", "status": 500}))
    page.get_by_role("button", name="New session").click()
    playwright.expect(page.get_by_role("alert")).to_be_visible()
    playwright.expect(page.locator("#session li")).to_have_count(0)
    page.wait_for_timeout(500)  # the first message of the stream
    playwright.expect(page.get_by_role("alert")).to_be_visible()
    page.unroute("**/recommendations?*")
    new = session_of(page)
    assert new != old
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as after a while: the page connects again
    playwright.expect(page.locator("#next > li").first).not_to_have_attribute("data-track", before[0])
    report(running, old, "g1-t01")
    report(running, new, "g3-t01")
    playwright.expect(page.locator("#session li")).to_have_count(1)
    playwright.expect(page.locator("#now .title")).to_have_text("Song 37")
    page.evaluate(TWO_FRAMES)
    playwright.expect(page.locator("#session li")).to_have_count(1)


def test_late_reasons_do_not_bring_an_old_list_back(page: "Page") -> None:
    wait_for_ever(page)
    held = hold(page, "**/recommendations?*explain=true*")
    search_and_play(page, "g2-t05", "Song 29")
    is_held(page, held)
    before = next_tracks(page)
    page.locator("#tune > summary").click()
    with page.expect_response("**/recommendations?*max_per_artist=1*explain=true*") as explained:
        page.locator("#per-artist").select_option("1")
    explained.value.finished()
    page.evaluate(TWO_FRAMES)
    after = next_tracks(page)
    assert after != before
    let_go(page, held)
    assert next_tracks(page) == after


def test_a_timer_does_not_replace_what_the_listener_pressed(page: "Page", running: httpx.Client) -> None:
    page.clock.install()
    page.reload()
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(page.locator("#session li")).to_have_count(1)
    page.clock.pause_at(datetime.fromtimestamp(page.evaluate("Date.now()") / 1000 + 60, UTC))
    page.get_by_role("button", name="Finish").click()
    playwright.expect(page.locator("#now .title")).not_to_have_text("Song 29")
    page.route("**/events*", lambda route: route.abort())
    page.clock.run_for(10_400)  # the track counts as played now, which cannot be reported
    playwright.expect(page.get_by_role("alert")).to_contain_text("is not saved yet")
    page.clock.run_for(5_000)
    page.locator("body").press("s")
    page.clock.run_for(15_200)  # the track ends
    page.unroute("**/events*")
    page.clock.run_for(4_000)  # it is reported again
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    [_, play] = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    assert play["outcome"] == "skipped"
    assert 15_000 <= play["ms_played"] < 18_000


@pytest.mark.parametrize(
    ("kind", "track_id", "shown"), [("play", "g3-t01", ["played", "played"]), ("skip", "g2-t05", ["skipped"])]
)
def test_what_happens_in_another_tab_during_an_action_is_shown(
    page: "Page", running: httpx.Client, kind: str, track_id: str, shown: list[str]
) -> None:
    def answer_late(route: "Route") -> None:
        answer = route.fetch()
        report(running, session_of_page, track_id, kind)
        time.sleep(1)  # the stream tells the page of both plays meanwhile
        route.fulfill(response=answer)

    session_of_page = session_of(page)
    page.route("**/events*", answer_late)
    page.get_by_label("Title, artist or id").fill("g2-t05")
    page.locator("#found .play").filter(has_text="Song 29").first.click()
    playwright.expect(page.locator("#session li")).to_have_class([re.compile(outcome) for outcome in shown])


def test_a_station_of_the_session_before_is_not_that_of_the_new_one(page: "Page") -> None:
    wait_for_ever(page)
    search_and_play(page, "g2-t05", "Song 29")
    held = hold(page, "**/station")
    page.get_by_role("button", name="Radio from Artist 2").click()
    is_held(page, held)
    page.get_by_role("button", name="New session").click()
    playwright.expect(page.locator("#session li")).to_have_count(0)
    let_go(page, held)
    search_and_play(page, "g2-t06", "Song 30")
    playwright.expect(page.locator("#station")).to_have_text("Radio from Artist 2")
