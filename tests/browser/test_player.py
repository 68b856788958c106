"""The player page in a real browser: search, play, skip, reload."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.http.keys import new_key, write_keys
from tests.browser.player_page import (
    keep_picture,
    look_for_barriers,
    next_tracks,
    opened,
    playwright,
    search_and_play,
    shows,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route


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
    playwright.expect(page.locator("#session li.started")).to_have_count(1)  # what ranked first plays now
    assert next_tracks(page) != before
    assert not any(track.startswith("g4") for track in next_tracks(page))
    playwright.expect(page.locator("#now .title")).to_have_text(
        "Song 35"
    )  # the skip outweighs the taste for popular tracks
    playwright.expect(page.locator("#next li.playing .title")).to_have_text("Song 35")

    page.get_by_role("button", name="Finish").click()
    playwright.expect(page.locator("#session li.played")).to_have_count(2)
    keep_picture(page, "session")


def test_each_track_says_why_it_is_where_it_is(page: "Page", running: httpx.Client) -> None:
    """The details on the page are those of the API: what each play and skip adds, the rank without skips."""
    search_and_play(page, "artist 2 g2", "Song 30")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    playwright.expect(page.locator("#next .reason").first).to_have_text("close to Song 30")
    assert page.locator("#next .reason").all_text_contents().count("close to Song 30") == 1  # said once, not 15 times
    search_and_play(page, "g4-", "Song 48")
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li")).to_have_count(3)
    session_id = page.evaluate("localStorage.getItem('segue.session')")
    answer = running.get(f"/recommendations?session_id={session_id}&k=15&repeat=never&explain=true").json()
    assert next_tracks(page) == [item["track_id"] for item in answer["items"]]
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    first = page.locator("#next > li").first
    first.locator(".why").click()
    without = answer["explanation"]["items"][0].get("rank_without_skips")
    playwright.expect(first.locator(".details p")).to_contain_text(
        f"Rank without skips: {without}." if without else "below 200"
    )
    values = [float(text.replace("\N{MINUS SIGN}", "-")) for text in first.locator("li .score").all_inner_texts()]
    assert sum(values) == pytest.approx(answer["items"][0]["score"], abs=0.02)
    first.locator(".why").click()
    playwright.expect(first.locator(".details")).to_have_count(0)


def test_many_reasons_are_told_in_few_lines_that_add_up(page: "Page", running: httpx.Client) -> None:
    answer = {"title": "of what the service answers"}

    def of_more_plays(route: "Route") -> None:
        content = route.fetch().json()
        plays = content["explanation"]["plays"]
        content["explanation"]["plays"] = [*plays, *plays]
        for item in content["explanation"]["items"]:
            halves = [value / 2 for value in item["contributions"]]
            item["contributions"] = [*halves, *halves]
        answer["score"] = str(content["items"][0]["score"])
        route.fulfill(json=content)

    page.route("**/recommendations?*explain=true*", of_more_plays)
    events = [{"type": "play", "track_id": f"g{number}-t00"} for number in range(5)]
    session_id = page.evaluate("localStorage.getItem('segue.session')")
    running.post(f"/sessions/{session_id}/events", json={"events": events}).raise_for_status()
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    first = page.locator("#next > li").first
    first.locator(".why").click()
    playwright.expect(first.locator("li")).to_have_count(6)
    playwright.expect(first.locator("li").last).to_contain_text("5 more plays")
    values = [float(text.replace("\N{MINUS SIGN}", "-")) for text in first.locator("li .score").all_inner_texts()]
    assert sum(values) == pytest.approx(float(answer["score"]), abs=0.04)
    playwright.expect(first.locator(".details p")).to_contain_text(f"Total score: {float(answer['score']):.2f}")


def test_the_list_does_not_jump_when_its_reasons_come(page: "Page") -> None:
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    page.route("**/recommendations?*explain=true*", lambda route: route.abort())
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    tops = """async () => {
      await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
      await Promise.allSettled(document.getAnimations().map((animation) => animation.finished));
      return [...document.querySelectorAll('#next > li')].map((item) => item.getBoundingClientRect().top);
    }"""  # once the tracks have moved to their new ranks
    without = page.evaluate(tops)
    page.unroute("**/recommendations?*explain=true*")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    assert page.evaluate(tops) == pytest.approx(without, abs=2)


def test_arrows_say_how_the_ranks_have_changed(page: "Page", running: httpx.Client) -> None:
    """From the list that was on the screen, without the track that starts, to the one that the API answers now."""
    search_and_play(page, "g2-t05", "Song 29")
    search_and_play(page, "g4-t00", "Song 48")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    others = [track for track in next_tracks(page) if track != "g4-t09"]
    before = {track: rank for rank, track in enumerate(others, start=1)}
    search_and_play(page, "g4-t09", "Song 57")
    playwright.expect(page.locator("#source")).to_contain_text("3 played")
    session_id = page.evaluate("localStorage.getItem('segue.session')")
    items = running.get(f"/recommendations?session_id={session_id}&k=15&repeat=never").json()["items"]
    expected = []
    for rank, track in enumerate((item["track_id"] for item in items), start=1):
        was = before.get(track, 0)
        moved = f"{'up' if was > rank else 'down'} {abs(was - rank)}, was {was}"
        expected.append("new in the list" if not was else "" if was == rank else moved)
    said = page.locator("#next > li .move").evaluate_all(
        "(all) => all.map((move) => move.querySelector('.hidden-text')?.textContent ?? '')"
    )
    assert said == expected
    assert {words.partition(" ")[0] for words in said} >= {"up", "new"}


def test_what_is_pressed_while_an_answer_is_on_its_way_is_done_after_it(page: "Page") -> None:
    search_and_play(page, "g2-t05", "Song 29")

    def answer_later(route: "Route") -> None:
        page.wait_for_timeout(300)
        route.continue_()

    page.route("**/events*", answer_later)
    page.get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="Finish").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    playwright.expect(page.locator("#session li.played")).to_have_count(1)
    playwright.expect(page.locator("#session li.started")).to_have_count(1)


def test_reasons_come_although_the_stream_tells_what_is_known_meanwhile(page: "Page") -> None:
    """And although the service refuses at first. The stream looks at the session twice a second."""
    asked: list[str] = []

    def answer_late(route: "Route") -> None:
        asked.append(route.request.url)
        page.wait_for_timeout(700)
        if len(asked) == 1:
            route.fulfill(status=503, json={"title": "Overloaded", "status": 503, "detail": "try again"})
        else:
            route.continue_()

    page.route("**/recommendations?*explain=true*", answer_late)
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    assert len(asked) == 2
    playwright.expect(page.locator("#map")).to_have_attribute("data-path", "1")


def test_what_is_queued_plays_next(page: "Page") -> None:
    search_and_play(page, "g2-t05", "Song 29")
    page.get_by_label("Title, artist or id").fill("g5-t03")
    page.get_by_role("button", name="Add to queue: Song 63").first.click()
    playwright.expect(page.get_by_role("status")).to_have_text("Song 63 plays next.")
    playwright.expect(page.locator("#queue li")).to_have_count(1)
    page.get_by_role("button", name="Finish").click()
    playwright.expect(page.locator("#now .title")).to_have_text("Song 63")
    playwright.expect(page.locator("#queue-part")).to_be_hidden()


def test_a_track_that_is_heard_to_its_end_is_followed_by_the_first_of_the_list(page: "Page") -> None:
    page.clock.install()  # before the page takes the real one
    page.reload()
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    first = page.locator("#next .title").first.inner_text()
    page.clock.run_for(11_000)
    page.get_by_role("button", name="Pause").click()
    playwright.expect(page.locator("#time")).to_have_text(re.compile(r"0:1\d of 0:30"))
    heard = page.locator("#time").inner_text()
    page.clock.run_for(60_000)
    playwright.expect(page.locator("#time")).to_have_text(heard)
    page.get_by_role("button", name="Resume").click()
    page.clock.run_for(20_200)
    playwright.expect(page.locator("#now .title")).to_have_text(first)
    playwright.expect(page.locator("#session li.played")).to_have_count(1)
    playwright.expect(page.locator("#session li.started")).to_have_count(1)
    page.clock.run_for(10_200)  # so long, and it counts as played
    playwright.expect(page.locator("#story")).to_contain_text(f"You are listening to {first}")
    playwright.expect(page.locator("#session li.played")).to_have_count(2)
    playwright.expect(page.locator("#session li.started")).to_have_count(0)


def test_a_track_that_has_started_starts_again_after_a_reload(page: "Page") -> None:
    search_and_play(page, "g2-t05", "Song 29")
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.started")).to_have_count(1)
    started = page.locator("#now .title").inner_text()
    page.reload()
    playwright.expect(page.locator("#now .title")).to_have_text(started)
    playwright.expect(page.locator("#session li.started")).to_have_count(1)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(2)
    playwright.expect(page.locator("#session li.played")).to_have_count(0)


def test_another_tab_on_the_same_session_follows(page: "Page") -> None:
    other = page.context.new_page()
    other.goto("/")
    playwright.expect(other.locator("#next > li")).to_have_count(15)
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(other.locator("#now .title")).to_have_text("Song 29")
    playwright.expect(other.locator("#session li")).to_have_text([re.compile("Song 29")])
    page.get_by_role("button", name="Skip").click()
    playwright.expect(other.locator("#session li.skipped")).to_have_text([re.compile("Song 29")])
    shows(other, next_tracks(page))


def test_a_link_replays_the_session_for_somebody_else(page: "Page", browser: "Browser", running: httpx.Client) -> None:
    search_and_play(page, "g2-t05", "Song 29")
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li")).to_have_count(2)
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    shown = next_tracks(page)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy link").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("Copy the address")
    link = page.url
    faults: list[str] = []
    with opened(browser, str(running.base_url), faults, link.partition("/#")[2]) as elsewhere:
        elsewhere.get_by_role("button", name="Replay here").click()
        playwright.expect(elsewhere.locator("#session li")).to_have_count(1)
        playwright.expect(elsewhere.locator("#session li").first).to_have_class("skipped")
        shows(elsewhere, shown)
        ids = [one.evaluate("localStorage.getItem('segue.session')") for one in (page, elsewhere)]
        assert ids[0] != ids[1]
        assert "#" not in elsewhere.url
    assert faults == []


def test_a_reload_keeps_the_session_and_a_new_one_is_empty(page: "Page") -> None:
    search_and_play(page, "g3-t05", "Song 41")
    shown = next_tracks(page)
    page.reload()
    playwright.expect(page.locator("#session li")).to_have_text([re.compile("Song 41")])
    playwright.expect(page.locator("#now .title")).to_have_text("Song 41")
    playwright.expect(page.locator("#next > li").first).to_have_attribute("data-track", shown[0])
    assert next_tracks(page) == shown
    page.get_by_role("button", name="New session").click()
    playwright.expect(page.locator("#session li")).to_have_count(0)
    playwright.expect(page.locator("#source")).to_contain_text("most played")


def test_the_keyboard_is_enough(page: "Page") -> None:
    page.get_by_label("Title, artist or id").focus()
    page.keyboard.type("g5-t03")
    playwright.expect(page.locator("#found .play")).to_have_count(1)
    for _ in range(3):  # past "Show me" and "New session"
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#now .title")).to_have_text("Song 63")
    page.keyboard.press("Tab")  # the button that queues the track
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)


def test_all_of_the_page_is_light(page: "Page") -> None:
    """In bytes as they are sent, of everything but the map's points; and all of it is the service's own (`faults`)."""
    weights = page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".map((entry) => [new URL(entry.name).pathname, entry.encodedBodySize])"
    )
    of_page = {path: size for path, size in weights if path == "/" or path.startswith("/web/")}
    assert len(of_page) > 10
    assert sum(of_page.values()) < 300_000


@pytest.mark.parametrize(
    ("what", "violation"),
    [
        ("add('script', {textContent: 'window.in = 1'})", "script"),
        ("document.body.insertAdjacentHTML('beforeend', '<img src=/web/icon.svg onload=\"window.in = 1\">')", "script"),
        ("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">')", "style"),
        ("add('style', {textContent: 'p { color: red }'})", "style"),
        ("add('img', {src: 'http://127.0.0.1:9/pixel.gif'})", "img"),
        ("fetch('http://127.0.0.1:9/').catch(() => 0)", "connect"),
        ("add('iframe', {src: '/'})", "frame"),
    ],
)
def test_the_content_policy_forbids_what_the_page_does_not_do(
    browser: "Browser", running: httpx.Client, what: str, violation: str
) -> None:
    faults: list[str] = []
    with opened(browser, str(running.base_url), faults) as page:
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        assert faults == []
        add = "const add = (tag, facts) => document.body.append(Object.assign(document.createElement(tag), facts))"
        page.evaluate(f"() => {{ {add}; {what} }}")
        page.wait_for_timeout(300)
        assert page.evaluate("window.in") is None
    assert any(fault.startswith(f"violation of {violation}") for fault in faults), faults


def test_a_service_with_keys_asks_for_one(
    browser: "Browser", start_service: Callable[..., Any], tmp_path: Path
) -> None:
    text, kept = new_key("player", ["client", "read"])
    weak, kept_weak = new_key("weak", ["client"])
    write_keys(tmp_path / "keys.toml", [kept, kept_weak])
    address = start_service(api_keys=tmp_path / "keys.toml").address()
    faults: list[str] = []
    with opened(browser, address, faults) as page:
        key = page.get_by_label("API key")
        for wrong, told in (("segue_wrong", "unknown or revoked"), (weak, "needs read")):
            playwright.expect(key).to_be_visible()
            key.fill(wrong)
            key.press("Enter")
            playwright.expect(page.get_by_role("alert")).to_contain_text(told)
        look_for_barriers(page, "key wanted")
        key.fill(text)
        page.get_by_role("button", name="Use this key").click()
        playwright.expect(key).to_be_hidden()
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        search_and_play(page, "g2-t05", "Song 29")
        playwright.expect(page.get_by_role("alert")).to_be_hidden()
        assert text not in page.content()
        page.reload()
        playwright.expect(page.locator("#now .title")).to_have_text("Song 29")
        playwright.expect(key).to_be_hidden()
        assert page.evaluate("Object.keys(localStorage)") == ["segue.session"]
    assert faults == []
