"""Two releases on one session, side by side, in a real browser; and the player's keys."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from segue.release import Release, ReleaseMetadata, write_release
from tests.browser.player_page import (
    keep_picture,
    look_for_barriers,
    next_tracks,
    opened,
    playwright,
    search_and_play,
    shows,
)
from tests.conftest import encoder_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIDES = ("#compare-lists > div:nth-child(1)", "#compare-lists > div:nth-child(2)")


@pytest.fixture(scope="module")
def reluctant(tiny_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The tiny release, whose tracks from the sixth of a genre on are nearer to another genre: it ranks otherwise."""
    draft = ReleaseMetadata(**{name: getattr(tiny_release.manifest, name) for name in ReleaseMetadata.model_fields})
    embeddings = tiny_release.item_embeddings.copy()
    embeddings[7::12] = embeddings[19]
    arrays = {"item_embeddings.npy": embeddings, "map.npy": tiny_release.array("map.npy")}
    path = tmp_path_factory.mktemp("reluctant") / "reluctant"
    return write_release(path, draft, tiny_release.catalogue, arrays, encoder_of(embeddings))


@pytest.fixture
def both(tiny_release: Release, reluctant: Release, start_service: Callable[..., Any], tmp_path: Path) -> httpx.Client:
    folder = tmp_path / "releases"
    folder.mkdir()
    (folder / "other").mkdir()
    for file in reluctant.path.iterdir():
        (folder / "other" / file.name).write_bytes(file.read_bytes())
    client: httpx.Client = start_service(releases_dir=folder, experiment="other:0").client()
    return client


@pytest.fixture
def comparing(browser: "Browser", both: httpx.Client) -> "Iterator[Page]":
    faults: list[str] = []
    with both, opened(browser, str(both.base_url), faults) as page:
        page.get_by_role("button", name="Compare two releases").click()
        playwright.expect(page.locator(f"{SIDES[1]} li")).to_have_count(15)
        yield page
    assert faults == []


def shown(page: "Page", side: str) -> list[tuple[str, str]]:
    """Track and what is said of it, in order."""
    items = page.locator(f"{side} li").all()
    return [(item.get_attribute("data-track") or "", item.locator(".move").text_content() or "") for item in items]


def test_both_lists_are_those_of_the_api_and_say_where_they_differ(
    comparing: "Page", both: httpx.Client, tiny_release: Release, reluctant: Release
) -> None:
    search_and_play(comparing, "g1-t00", "Song 12")
    playwright.expect(comparing.locator("#compare-words")).to_contain_text("are in both lists")
    playwright.expect(comparing.locator(f"{SIDES[1]} li").first).to_have_attribute("data-track", re.compile("^g1"))
    session_id = comparing.evaluate("localStorage.getItem('segue.session')")
    lists = []
    for release in (tiny_release, reluctant):
        query = {"session_id": session_id, "k": 15, "repeat": "never", "release": release.name}
        lists.append([item["track_id"] for item in both.get("/recommendations", params=query).json()["items"]])
    assert lists[0] != lists[1]
    for side, own, other in ((SIDES[0], lists[0], lists[1]), (SIDES[1], lists[1], lists[0])):
        assert [track for track, _ in shown(comparing, side)] == own
        for rank, (track, said) in enumerate(shown(comparing, side)):
            there = other.index(track) if track in other else None
            if there is None:
                assert "in this list only" in said
            elif there == rank:
                assert "at the same rank in both" in said
            else:
                assert f"{abs(there - rank)} {'higher' if there > rank else 'lower'} than" in said
    shared = len(set(lists[0]) & set(lists[1]))
    playwright.expect(comparing.locator("#compare-words")).to_contain_text(f"{shared} of 15 tracks are in both lists")


def places_moved(client: httpx.Client, release: Release, session_id: str) -> str:
    """The mean move of the tracks that are in the lists with the skip and without it, by the API."""
    query: dict[str, Any] = {"session_id": session_id, "k": 15, "repeat": "never", "release": release.name}
    here = [item["track_id"] for item in client.get("/recommendations", params=query).json()["items"]]
    plays = client.get(f"/sessions/{session_id}").json()["plays"]
    events = [{"type": "play", "track_id": play["track_id"]} for play in plays]
    body: dict[str, Any] = {"events": events, "k": 15, "repeat": "never", "release": release.name}
    there = [item["track_id"] for item in client.post("/recommendations/what-if", json=body).json()["items"]]
    both = [track for track in here if track in there]
    return f"{sum(abs(here.index(track) - there.index(track)) for track in both) / max(1, len(both)):.1f}"


def test_a_skip_moves_both(comparing: "Page", both: httpx.Client, tiny_release: Release, reluctant: Release) -> None:
    numbers = comparing.locator("#compare-lists .number")
    playwright.expect(numbers.first).to_have_text("Skip a track to see how far the list moves.")
    search_and_play(comparing, "g3-t00", "Song 36")
    search_and_play(comparing, "g1-t00", "Song 12")
    playwright.expect(comparing.locator(f"{SIDES[0]} li[data-track^='g1']").first).to_be_attached()
    comparing.get_by_role("button", name="Skip").click()
    for side in SIDES:
        playwright.expect(comparing.locator(f"{side} li[data-track^='g1']")).to_have_count(0)
    session_id = comparing.evaluate("localStorage.getItem('segue.session')")
    told = [f"{places_moved(both, release, session_id)} places moved" for release in (tiny_release, reluctant)]
    playwright.expect(numbers).to_contain_text(told)
    playwright.expect(numbers.first).to_contain_text("by the skip of Song 12")
    comparing.get_by_role("button", name="Compare two releases").click()
    playwright.expect(comparing.locator("#compare-part")).to_be_hidden()


def test_what_is_live_no_more_is_not_compared(comparing: "Page", both: httpx.Client) -> None:
    both.put("/releases/current", json={"name": "other"}).raise_for_status()
    search_and_play(comparing, "g1-t00", "Song 12")
    playwright.expect(comparing.get_by_role("button", name="Compare two releases")).to_be_hidden()
    playwright.expect(comparing.locator("#compare-part")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_comparison_stands_in_nobodys_way(comparing: "Page", scheme: Any) -> None:
    comparing.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    search_and_play(comparing, "g1-t00", "Song 12")
    playwright.expect(comparing.locator("#compare-words")).to_contain_text("are in both lists")
    look_for_barriers(comparing, f"compare {scheme}")
    comparing.set_viewport_size({"width": 320, "height": 640})
    assert comparing.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.fixture
def switching(browser: "Browser", both: httpx.Client) -> "Iterator[Page]":
    faults: list[str] = []
    with both, opened(browser, str(both.base_url), faults) as page:
        search_and_play(page, "g1-t00", "Song 12")
        playwright.expect(page.locator("#next .why")).to_have_count(15)
        yield page
    assert faults == []


def wanted(page: "Page", client: httpx.Client, release: Release) -> list[str]:
    """What a release puts next in the session of a page, by the API."""
    session_id = page.evaluate("localStorage.getItem('segue.session')")
    query = {"session_id": session_id, "k": 15, "repeat": "never", "release": release.name}
    return [item["track_id"] for item in client.get("/recommendations", params=query).json()["items"]]


def test_the_list_is_that_of_the_release_that_is_chosen(
    switching: "Page", both: httpx.Client, tiny_release: Release, reluctant: Release
) -> None:
    """At once, after the next event, and after a reload; arrows tell how its list differs from the other's."""
    page = switching
    choice = page.get_by_label("Release", exact=True)
    playwright.expect(choice).to_have_value(tiny_release.name)
    before = wanted(page, both, tiny_release)
    assert next_tracks(page) == before
    choice.select_option(value=reluctant.name)
    other = wanted(page, both, reluctant)
    assert other != before
    shows(page, other)
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    playwright.expect(page.locator("#release")).to_contain_text(reluctant.name)
    playwright.expect(page.get_by_role("status")).to_contain_text("is selected")
    playwright.expect(page.locator("#session li")).to_have_count(1)  # the session is the same
    moved = [track for track, rank in zip(other, range(15), strict=True) if track in before and before[rank] != track]
    for track in moved:
        words = page.locator(f"#next li[data-track='{track}'] .move .hidden-text").text_content() or ""
        assert words.endswith(f"was {before.index(track) + 1}"), track
    assert moved
    assert both.get("/releases/current").json()["name"] == tiny_release.name  # for everybody else nothing has changed
    keep_picture(page, "other release")

    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#session li")).to_have_count(2)
    shows(page, wanted(page, both, reluctant))
    page.reload()
    shows(page, wanted(page, both, reluctant))
    playwright.expect(choice).to_have_value(reluctant.name)
    page.locator("body").press("r")
    shows(page, wanted(page, both, tiny_release))
    playwright.expect(choice).to_have_value(tiny_release.name)


def test_a_chosen_release_that_is_live_no_more_gives_way(
    switching: "Page", both: httpx.Client, tiny_release: Release, reluctant: Release
) -> None:
    choice = switching.get_by_label("Release", exact=True)
    choice.select_option(value=tiny_release.name)
    both.put("/releases/current", json={"name": "other"}).raise_for_status()
    switching.get_by_role("button", name="Finish").click()
    playwright.expect(switching.locator("#session li")).to_have_count(2)
    shows(switching, wanted(switching, both, reluctant))
    playwright.expect(switching.locator("#release")).to_contain_text(reluctant.name)
    playwright.expect(choice).to_be_hidden()
    playwright.expect(switching.get_by_role("alert")).to_be_hidden()


def test_one_release_leaves_no_choice(page: "Page") -> None:
    playwright.expect(page.get_by_role("button", name="Compare two releases")).to_be_hidden()
    playwright.expect(page.get_by_label("Release", exact=True)).to_be_hidden()


def test_keys_do_what_buttons_do_unless_they_are_turned_off(page: "Page") -> None:
    page.locator("body").press("/")
    page.keyboard.type("g5-t03 s")  # into the search, not a skip
    playwright.expect(page.get_by_label("Title, artist or id")).to_be_focused()
    page.get_by_label("Title, artist or id").fill("")
    page.locator("#new-session").focus()
    third = page.locator("#next > li").nth(2).get_attribute("data-track")
    page.keyboard.press("3")
    playwright.expect(page.locator("#session li.played")).to_have_count(1)
    assert (
        page.evaluate("fetch(`/sessions/${localStorage.getItem('segue.session')}`).then((a) => a.json())")["plays"][0][
            "track_id"
        ]
        == third
    )
    page.keyboard.press("p")
    playwright.expect(page.locator("#pause .label")).to_have_text("Resume")
    page.keyboard.press("s")
    playwright.expect(page.locator("#session li.skipped")).to_have_count(1)
    playwright.expect(page.locator("#session li")).to_have_count(2)  # the page does one thing at a time
    page.keyboard.press("e")
    playwright.expect(page.locator("#session li")).to_have_count(3)
    page.get_by_text("Keyboard shortcuts", exact=True).click()
    page.get_by_label("Enable shortcuts").uncheck()
    page.keyboard.press("s")
    page.reload()
    playwright.expect(page.locator("#next > li")).to_have_count(15)
    page.locator("body").press("s")
    page.wait_for_timeout(300)
    playwright.expect(page.locator("#session li")).to_have_count(3)


def test_seeds_are_of_many_artists(page: "Page") -> None:
    playwright.expect(page.locator("#found .artist")).to_have_text([f"Artist {number}" for number in range(6)])


def test_a_page_that_nobody_sees_holds_no_connection(page: "Page") -> None:
    """A browser opens six to a service, for all of its tabs."""
    search_and_play(page, "g2-t05", "Song 29")
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange")) }"""
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/stream")):
        page.evaluate(hide, True)
    with page.expect_request("**/stream"):
        page.evaluate(hide, False)
