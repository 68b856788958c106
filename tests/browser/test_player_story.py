"""What the last skip changed, in the player: the sentence, its arrows and reasons, undo, what-if, options, Show me."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.browser.player_page import next_tracks, opened, playwright, search_and_play, shows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

STORY = "#story-words"


def session_of(page: "Page") -> str:
    found: str = page.evaluate("localStorage.getItem('segue.session')")
    return found


def taste(page: "Page") -> None:
    """Two plays of one genre, then a track of another is playing."""
    search_and_play(page, "g2-t05", "Song 29")
    search_and_play(page, "g2-t08", "Song 32")
    search_and_play(page, "g4-t00", "Song 48")


def had_it_been_played(client: httpx.Client, plays: list[dict[str, Any]], k: int = 100) -> list[str]:
    events = [{"type": "play", "track_id": play["track_id"]} for play in plays]
    body = {"events": events, "k": k, "repeat": "never"}
    items = client.post("/recommendations/what-if", json=body).raise_for_status().json()["items"]
    return [item["track_id"] for item in items]


def test_the_sentence_counts_what_the_skip_changed(page: "Page", running: httpx.Client) -> None:
    """The lists before and after the skip alone: the next track does not count before its outcome is known."""
    taste(page)
    before = next_tracks(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator(STORY)).to_contain_text("You skipped Song 48")
    after = next_tracks(page)
    plays = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    assert [play["outcome"] for play in plays] == ["played", "played", "skipped"]
    left = [track for track in before if track not in after]
    moved = sum(after.index(track) != before.index(track) for track in after if track in before)
    assert len(left) > 1
    told = f"You skipped Song 48: {len(left)} tracks left the list, {len(left)} came in" + f", {moved} moved" * (
        moved > 0
    )
    playwright.expect(page.locator(STORY)).to_have_text(f"{told}.")
    page.get_by_text("Which tracks?").click()
    playwright.expect(page.locator("#story-which")).to_contain_text(f"(was {before.index(left[0]) + 1})")


def test_the_marks_of_the_rows_are_those_that_the_sentence_counts(page: "Page") -> None:
    taste(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    for _ in range(2):  # at once, and with the list had the track been played
        for kind, marked in (("came", "#next li.new"), ("moved", "#next li.up, #next li.down")):
            counted = page.locator(f"#story-words .count.{kind} b").all_inner_texts()
            assert page.locator(marked).count() == sum(map(int, counted))
        playwright.expect(page.locator("#next .why")).to_have_count(15)


def test_a_list_that_stays_has_no_marks(page: "Page") -> None:
    taste(page)
    page.locator("body").press("e")
    playwright.expect(page.locator(STORY)).to_have_text("Song 48 ended: the list stays.")
    playwright.expect(page.locator("#next li.new, #next li.up, #next li.down")).to_have_count(0)
    playwright.expect(page.get_by_text("Which tracks?")).to_be_hidden()


def test_a_row_says_where_it_would_be_only_where_that_differs(page: "Page", running: httpx.Client) -> None:
    taste(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    plays = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    there = had_it_been_played(running, plays)
    here = next_tracks(page)
    expected = []
    for rank, track in enumerate(here):
        if track not in there:
            expected.append("not in the list had you played it")
        else:
            would = there.index(track)
            expected.append("" if would == rank else f"would be #{would + 1} had you played it")
    assert len(set(expected)) > 2
    playwright.expect(page.locator("#next .reason")).to_have_text(expected)
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    playwright.expect(page.locator("#next .reason")).to_have_text(expected)  # also with the details


def test_what_if_shows_the_other_list_and_returns(page: "Page", running: httpx.Client) -> None:
    taste(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    mine = next_tracks(page)
    plays = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    page.locator("body").press("w")
    shows(page, had_it_been_played(running, plays, 15))
    playwright.expect(page.locator("#next-title")).to_have_text("Next tracks, had you played Song 48")
    page.get_by_role("button", name="Back to your session").click()
    shows(page, mine)
    playwright.expect(page.locator("#next-title")).to_have_text("Next tracks")
    assert running.get(f"/sessions/{session_of(page)}").json()["plays"] == plays  # nothing was reported


def test_undo_continues_in_a_copy_without_the_skip(page: "Page", running: httpx.Client) -> None:
    taste(page)
    before, old = next_tracks(page), session_of(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    playwright.expect(page.locator(STORY)).to_contain_text("Undone: this is a copy of the session")
    shows(page, before)
    playwright.expect(page.locator("#now .title")).to_have_text("Song 48")
    assert session_of(page) != old
    copied = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    assert [(play["track_id"], play["outcome"]) for play in copied] == [
        ("g2-t05", "played"), ("g2-t08", "played"), ("g4-t00", "played"),
    ]  # fmt: skip
    kept = running.get(f"/sessions/{old}").json()["plays"]
    assert kept[-1]["outcome"] == "skipped"  # as the tooltip says
    playwright.expect(page.get_by_role("button", name="Undo")).to_be_hidden()


@pytest.fixture
def lively(browser: "Browser", running: httpx.Client) -> "Iterator[Page]":
    """The player of somebody who did not ask for reduced motion."""
    faults: list[str] = []
    with opened(browser, str(running.base_url), faults, reduced_motion="no-preference") as page:
        playwright.expect(page.locator("#next > li")).to_have_count(15)
        yield page
    assert faults == []


# What is shown for a moment only: the page keeps it itself, as a look from outside may come too late.
KEEP_MOMENTS = """() => {
    window.moments = { titles: [], leaving: [] };
    const title = document.querySelector("#now-title");
    new MutationObserver(() => moments.titles.push(title.textContent)).observe(title, { childList: true });
    new MutationObserver((changes) => changes.forEach(({ addedNodes }) =>
        moments.leaving.push(...[...addedNodes].map((node) => node.className))
    )).observe(document.querySelector("#leaving"), { childList: true });
}"""


def test_tracks_that_leave_are_seen_leaving_and_the_next_one_starts_in_a_moment(lively: "Page") -> None:
    taste(lively)
    lively.locator("body").press("p")  # the clock stands still: the track that starts is not counted meanwhile
    lively.evaluate(KEEP_MOMENTS)
    lively.get_by_role("button", name="Skip").click()
    lively.wait_for_function("() => moments.titles.includes('Skipped')")
    assert "ghost by-skip" in lively.evaluate("moments.leaving")
    opaque = "(row) => !/rgba|transparent/.test(getComputedStyle(row).backgroundColor)"
    assert all(row.evaluate(opaque) for row in lively.locator("#next > li").all())  # rows pass over each other
    playwright.expect(lively.locator("#leaving .ghost")).to_have_count(0)
    playwright.expect(lively.locator("#now-title")).to_have_text("Now playing")
    playwright.expect(lively.locator("#session li.started")).to_have_count(1)


def test_reduced_motion_is_honoured(page: "Page") -> None:
    taste(page)
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator(STORY)).to_contain_text("You skipped Song 48")
    assert page.evaluate("document.getAnimations().length") == 0
    playwright.expect(page.locator("#leaving .ghost")).to_have_count(0)
    playwright.expect(page.locator("#now-title")).to_have_text("Now playing")


def test_presses_in_quick_succession_are_all_skips(lively: "Page") -> None:
    search_and_play(lively, "g2-t05", "Song 29")
    for number in range(1, 5):
        lively.locator("body").press("s")
        playwright.expect(lively.locator("#session li.skipped")).to_have_count(number)
    playwright.expect(lively.locator("#session li.played")).to_have_count(0)


def test_a_demonstration_ends_with_a_skip(page: "Page", running: httpx.Client) -> None:
    page.get_by_role("button", name="Show me").click()
    playwright.expect(page.locator(STORY)).to_contain_text("You skipped", timeout=15_000)
    playwright.expect(page.get_by_role("button", name="Show me")).to_be_visible()
    plays = running.get(f"/sessions/{session_of(page)}").json()["plays"]
    assert [play["outcome"] for play in plays] == ["played"] * 3 + ["skipped"]
    assert len({play["track_id"][:2] for play in plays[:3]}) == 1  # of one genre
    assert plays[3]["track_id"][:2] != plays[0]["track_id"][:2]


def test_a_click_ends_the_demonstration(page: "Page") -> None:
    asked: list[Route] = []
    is_stopped = False

    def pass_one(route: "Route") -> None:
        """The first step, and no other until the demonstration is stopped."""
        asked.append(route)
        if is_stopped or len(asked) == 1:
            route.continue_()

    page.route("**/events*", pass_one)
    page.get_by_role("button", name="Show me").click()
    playwright.expect(page.locator("#session li")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    is_stopped = True
    for held in asked[1:]:
        held.continue_()
    playwright.expect(page.get_by_role("button", name="Show me")).to_be_visible()
    page.wait_for_timeout(1_000)
    assert page.locator("#session li").count() <= 2  # the step that was on its way
    playwright.expect(page.locator("#session li.skipped")).to_have_count(0)


def test_options_limit_the_list_until_they_are_reset(page: "Page") -> None:
    search_and_play(page, "g2-t05", "Song 29")
    playwright.expect(page.locator("#chips button")).to_have_text(["All", *(f"g{number}" for number in range(6))])
    page.locator("#chips").get_by_role("button", name="g4").click()
    playwright.expect(page.locator("#next > li[data-track^='g4']")).to_have_count(12)
    playwright.expect(page.locator("#next > li")).to_have_count(12)
    page.get_by_role("button", name="Skip").click()  # the list that an event returns is limited too
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    playwright.expect(page.locator("#next > li")).to_have_count(12)
    page.locator("#tune summary").click()
    page.get_by_label("No explicit tracks").check()
    playwright.expect(page.locator("#next > li")).to_have_count(8)
    playwright.expect(page.locator("#tuned")).to_have_text("(2 set)")
    page.reload()
    playwright.expect(page.locator("#next > li")).to_have_count(8)
    page.locator("#tune summary").click()
    page.get_by_role("button", name="Reset").click()
    playwright.expect(page.locator("#next > li")).to_have_count(15)
    page.get_by_label("Tracks per artist").select_option("1")
    playwright.expect(page.locator(STORY)).to_contain_text("You changed the options")
    page.wait_for_function(  # one track of each of the six artists, then further ones
        "() => new Set([...document.querySelectorAll('#next .artist')].slice(0, 6).map((a) => a.innerText)).size === 6"
    )
    playwright.expect(page.get_by_label("Caution")).to_be_hidden()  # the release has no play head


def test_what_the_service_does_not_know_is_hidden(page: "Page") -> None:
    """A station, likes and bans: asked of /openapi.json, and a station that is not found hides itself."""
    search_and_play(page, "g2-t05", "Song 29")
    described = page.request.get("/openapi.json").json()
    knows = "put" in described["paths"].get("/sessions/{session_id}/station", {})
    playwright.expect(page.get_by_role("button", name="Radio from")).to_be_visible(visible=knows)
    sent: list[Any] = []

    def with_station(route: "Route") -> None:
        described["paths"]["/sessions/{session_id}/station"] = {"put": {}}
        described["components"]["schemas"]["EventType"]["enum"] = ["play", "skip", "like", "ban"]
        route.fulfill(json=described)

    def refuse(route: "Route") -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(status=405, json={"title": "Method not allowed", "status": 405})

    page.route("**/openapi.json", with_station)
    page.route("**/station", refuse)
    page.reload()
    playwright.expect(page.locator("#next .like")).to_have_count(15)
    page.get_by_role("button", name="Radio from Artist 2").click()
    playwright.expect(page.get_by_role("button", name="Radio from")).to_be_hidden()
    assert sent == [{"artists": ["Artist 2"], "weight": 0.5}]


def test_a_cover_is_drawn_from_its_track(page: "Page") -> None:
    """The same after a reload, of one colour within a genre, and different for each track."""
    covers = "(all) => all.map((row) => [row.dataset.track, row.querySelector('.art').outerHTML])"
    first = dict(page.locator("#next > li").evaluate_all(covers))
    page.reload()
    playwright.expect(page.locator("#next > li")).to_have_count(15)
    assert dict(page.locator("#next > li").evaluate_all(covers)) == first
    assert len(set(first.values())) == 15


def test_tracks_that_the_release_does_not_have_are_told(page: "Page", running: httpx.Client) -> None:
    search_and_play(page, "g2-t05", "Song 29")
    body = {"events": [{"type": "play", "track_id": "of nobody"}]}
    running.post(f"/sessions/{session_of(page)}/events", json=body).raise_for_status()
    page.reload()
    playwright.expect(page.locator("#tally")).to_have_text(
        "2 played, 0 skipped. 1 track is not in this release and is ignored."
    )
