"""The states of the player on screens of four widths, light and dark: nothing overflows, and axe finds nothing."""

from typing import TYPE_CHECKING, Literal

import pytest

from tests.browser.player_page import keep_picture, look_for_barriers, playwright, search_and_play

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZES = {1440: 900, 768: 1024, 390: 844, 320: 640}
ROWS = {1440: 5, 768: 5, 390: 3, 320: 1}  # next tracks on the screen after a skip, without scrolling


def fits(page: "Page", width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def on_screen(page: "Page", selector: str, height: int) -> int:
    """How many of the elements are entirely on the screen."""
    boxes = [one.bounding_box() for one in page.locator(selector).all()]
    return sum(box is not None and box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_every_state_fits_every_screen(page: "Page", width: int, scheme: "Literal['light', 'dark']") -> None:
    """axe looks at the first screen of a width, and at all states where most of them differ: 1440 and 320 pixels."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": SIZES[width]})

    def look(state: str) -> None:
        fits(page, width)
        if width in {1440, 320}:
            look_for_barriers(page, f"{state} {width} {scheme}")
        else:
            keep_picture(page, f"{state} {width} {scheme}")

    look("nothing played")
    search_and_play(page, "artist 2 g2", "Song 30")
    search_and_play(page, "g2-t00", "Song 24")
    search_and_play(page, "g4-t00", "Song 48")
    page.get_by_label("Title, artist or id").fill("")
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.locator("#story-words")).to_contain_text("You skipped Song 48")
    page.get_by_role("button", name="Pause").click()  # looking takes longer than the next track
    playwright.expect(page.locator("#next .why")).to_have_count(15)
    playwright.expect(page.locator("#map[data-points]")).to_be_attached()
    playwright.expect(page.locator("#found")).to_be_hidden()
    name = page.locator("#now .title")  # it needs room beside the buttons
    assert name.evaluate("e => e.clientWidth >= Math.min(e.scrollWidth, 150)")
    assert on_screen(page, "#story", SIZES[width]) == 1
    assert on_screen(page, "#next > li", SIZES[width]) >= ROWS[width]
    look_for_barriers(page, f"skipped {width} {scheme}")
    page.locator("#next .why").first.click()
    page.get_by_text("Which tracks?").click()
    page.locator("#tune summary").click()
    page.get_by_text("Legend and keys").click()
    page.get_by_text("Keyboard shortcuts", exact=True).click()
    look("all open")
    page.get_by_role("button", name="What if you had played it?").click()
    playwright.expect(page.locator("#next-title")).to_contain_text("had you played")
    page.get_by_label("Title, artist or id").fill("no such track")
    playwright.expect(page.locator("#found")).to_contain_text("No track matches")
    page.route("**/events*", lambda route: route.abort())
    page.get_by_role("button", name="Skip").click()
    playwright.expect(page.get_by_role("alert")).to_be_visible()
    look("error")
