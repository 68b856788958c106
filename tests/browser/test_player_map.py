"""The map of the player in a real browser: the session's path grows, points have names, and mouse and keys move it."""

from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest

from tests.browser.player_page import look_for_barriers, opened, playwright, search_and_play
from tests.conftest import WINDOW

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

# Where the tracks of genre 3 are: to the left of the centre (write_tiny_release in tests/conftest.py).
LEFT = (-0.8, 0.0)


@pytest.fixture
def map_(page: "Page") -> "Locator":
    """The map, all of it: it follows the session no more."""
    found = page.locator("#map[data-points='72']")
    playwright.expect(found).to_be_visible()
    page.get_by_role("button", name="Whole map").click()
    return found


def spot(map_: "Locator", place: tuple[float, float]) -> tuple[float, float]:
    """The pixels of a place while the whole map is shown, from the canvas' corner."""
    box = map_.bounding_box()
    assert box is not None
    scale = min(box["width"], box["height"]) / 2 / 1.08
    return box["width"] / 2 + place[0] * scale, box["height"] / 2 - place[1] * scale


# A change is drawn in the next frame, that of a size one later. A busy machine takes its time for each.
DRAWN = "for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);"


def picture(map_: "Locator") -> str:
    """All that is drawn."""
    found: str = map_.evaluate(f"async (canvas) => {{ {DRAWN} return canvas.toDataURL(); }}")
    return found


def painted(map_: "Locator", place: tuple[float, float]) -> int:
    """How many pixels within 12 of a place are painted."""
    x, y = spot(map_, place)
    script = (
        f"async (canvas, [x, y]) => {{ {DRAWN}"
        + """
        const ratio = canvas.width / canvas.clientWidth;
        const [left, top, side] = [(x - 12) * ratio, (y - 12) * ratio, 24 * ratio];
        const { data } = canvas.getContext("2d").getImageData(left, top, side, side);
        return data.filter((value, at) => at % 4 === 3 && value > 0).length }"""
    )
    found: int = map_.evaluate(script, [x, y])
    return found


def test_the_path_grows_with_the_session(page: "Page", map_: "Locator", running: httpx.Client) -> None:
    playwright.expect(map_).to_have_attribute("data-path", "0")
    before = painted(map_, LEFT)
    search_and_play(page, "g3-t00", "Song 36")
    playwright.expect(map_).to_have_attribute("data-path", "1")
    assert painted(map_, LEFT) > before  # a mark lies where the track's point is
    search_and_play(page, "g1-t00", "Song 12")
    page.get_by_role("button", name="Skip").click()
    playwright.expect(map_).to_have_attribute("data-path", "2")
    playwright.expect(page.locator("#map-words")).to_contain_text("Song 36 (played), Song 12 (skipped)")
    playwright.expect(map_).to_have_attribute("data-move", "moved away from Song 12")
    playwright.expect(map_).to_have_attribute("data-regions", "g0|g1|g2|g3|g4|g5")
    session_id = page.evaluate("localStorage.getItem('segue.session')")
    answer = running.get(f"/recommendations?session_id={session_id}&k=15&repeat=never&explain=true").json()
    query = answer["explanation"]["places"]["query"]
    playwright.expect(map_).to_have_attribute("data-query", " ".join(f"{value:g}" for value in query))


def test_the_path_is_that_of_the_whole_session(page: "Page", map_: "Locator", running: httpx.Client) -> None:
    """Also of what the encoder, which sees five plays here, has forgotten; and after a reload."""
    before = painted(map_, LEFT)
    search_and_play(page, "g3-t00", "Song 36")
    for count in range(2, WINDOW + 4):
        page.locator("#next .play").first.click()
        playwright.expect(page.locator("#session li")).to_have_count(count)
    session_id = page.evaluate("localStorage.getItem('segue.session')")
    running.post(
        f"/sessions/{session_id}/events", json={"events": [{"type": "play", "track_id": "not here"}]}
    ).raise_for_status()
    for _ in range(2):
        playwright.expect(page.locator("#session li")).to_have_count(WINDOW + 4)
        playwright.expect(map_).to_have_attribute("data-path", str(WINDOW + 3))
        playwright.expect(map_).to_have_attribute("data-seen", str(WINDOW))
        playwright.expect(page.locator("#map-words")).to_contain_text("Path of the session: Song 36 (played)")
        assert painted(map_, LEFT) > before
        page.reload()


def test_a_point_has_a_name_and_can_be_played(page: "Page", map_: "Locator") -> None:
    x, y = spot(map_, (-0.8 + 0.11, 0.0))  # the last of its genre, apart from no other by much
    map_.hover(position={"x": x + 3, "y": y})
    playwright.expect(page.locator("#map-name")).to_have_text("Song 47, Artist 3")
    map_.click(position={"x": x + 3, "y": y})
    page.get_by_role("button", name="Play next: Song 47").click()
    playwright.expect(page.locator("#queue li")).to_have_count(1)
    page.get_by_role("button", name="Play Song 47", exact=True).click()
    playwright.expect(page.locator("#now .title")).to_have_text("Song 47")
    playwright.expect(map_).to_have_attribute("data-path", "1")
    map_.hover(position={"x": x + 3, "y": y})
    playwright.expect(page.locator("#map-name")).to_contain_text("played")


def test_it_follows_the_session_until_it_is_moved(page: "Page") -> None:
    map_ = page.locator("#map[data-points='72']")
    playwright.expect(map_).to_be_visible()

    def is_whole() -> bool:
        """Whether it looks as it does where all of it is asked for."""
        shown = picture(map_)
        page.get_by_role("button", name="Whole map").click()
        return bool(shown == picture(map_))

    def play(number: int) -> None:
        page.locator("#next .play").first.click()
        playwright.expect(map_).to_have_attribute("data-path", str(number))

    play(1)
    assert not is_whole()
    play(2)
    assert is_whole()  # as it was asked for all of it before
    page.get_by_role("button", name="Follow session").click()
    play(3)
    assert not is_whole()


def test_the_mouse_and_the_buttons_move_it(page: "Page", map_: "Locator") -> None:
    whole = painted(map_, LEFT)
    box = map_.bounding_box()
    assert box is not None
    x, y = spot(map_, LEFT)
    map_.scroll_into_view_if_needed()
    box = map_.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.down()
    page.mouse.move(box["x"] + x + 80, box["y"] + y + 60, steps=4)
    page.mouse.up()
    playwright.expect(page.locator("#map-chosen")).to_have_text("")  # it was moved, not chosen
    assert painted(map_, LEFT) < whole
    page.get_by_role("button", name="Whole map").click()
    assert painted(map_, LEFT) == whole
    page.get_by_role("button", name="Zoom in").click()
    assert painted(map_, LEFT) != whole


def test_keys_move_it_and_choose_a_track(page: "Page", map_: "Locator") -> None:
    page.locator("body").press("m")
    playwright.expect(map_).to_be_focused()
    search_and_play(page, "g3-t00", "Song 36")
    page.get_by_role("button", name="Follow session").click()
    map_.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    playwright.expect(page.get_by_role("status")).to_contain_text("n the centre")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#map-chosen")).not_to_be_empty()
    page.keyboard.press("Home")


def test_the_wheel_scrolls_the_page_unless_the_map_is_in_focus(page: "Page", map_: "Locator") -> None:
    map_.hover()
    at = page.evaluate("scrollY")
    drawn = picture(map_)
    page.evaluate("addEventListener('scrollend', () => { window.hasScrolled = true; })")
    page.mouse.wheel(0, -200)
    page.wait_for_function("(before) => window.hasScrolled && scrollY < before", arg=at)
    map_.focus()
    map_.hover()
    at = page.evaluate("scrollY")
    page.mouse.wheel(0, -200)
    page.wait_for_function("(before) => document.querySelector('#map').toDataURL() !== before", arg=drawn)
    assert page.evaluate("scrollY") == at


def test_two_fingers_move_it_and_one_scrolls_the_page(browser: "Browser", running: httpx.Client) -> None:
    faults: list[str] = []
    with opened(browser, str(running.base_url), faults) as page:
        map_ = page.locator("#map[data-points]")
        playwright.expect(map_).to_be_visible()
        before = picture(map_)
        touch = """(canvas, [id, kind, x, y]) => canvas.dispatchEvent(new PointerEvent(kind,
            {pointerId: id, pointerType: "touch", clientX: x, clientY: y, bubbles: true}))"""
        box = map_.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def steps(*events: tuple[int, str, float]) -> Any:
            for finger, kind, across in events:
                map_.evaluate(touch, [finger, f"pointer{kind}", x + across, y])
            return picture(map_)

        assert steps((7, "down", 0), (7, "move", 50), (7, "up", 50)) == before
        assert steps((7, "down", -20), (8, "down", 20), (8, "move", 120), (8, "up", 120), (7, "up", -20)) != before
    assert faults == []


def test_a_release_without_a_map_is_played_without_one(page: "Page") -> None:
    def without_places(route: Any) -> None:
        answer = route.fetch()
        content = answer.json()
        content["explanation"].pop("places")
        route.fulfill(response=answer, json=content)

    page.route("**/recommendations?*explain=true*", without_places)
    page.reload()
    search_and_play(page, "g3-t00", "Song 36")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    playwright.expect(page.locator("#map-part")).to_be_hidden()


def test_the_player_plays_although_the_code_of_the_map_did_not_come(page: "Page") -> None:
    page.route("**/web/map.js", lambda route: route.abort())
    page.reload()
    search_and_play(page, "g3-t00", "Song 36")
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    playwright.expect(page.locator("#map-about")).to_have_text(
        "The map cannot be loaded. Load the page again to see it."
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_stands_in_nobodys_way(page: "Page", map_: "Locator", scheme: "Literal['light', 'dark']") -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    search_and_play(page, "g3-t00", "Song 36")
    search_and_play(page, "g1-t00", "Song 12")
    page.get_by_role("button", name="Skip").click()
    playwright.expect(map_).to_have_attribute("data-path", "2")
    page.get_by_role("button", name="Follow session").click()
    map_.focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#map-chosen")).not_to_be_empty()
    look_for_barriers(page, f"map {scheme}")
