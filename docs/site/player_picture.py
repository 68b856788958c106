"""The README's animated picture: a session on the real page of a running service.

    segue demo --no-browser
    python docs/site/player_picture.py http://127.0.0.1:8000 docs/player.webp

Plays, skips what comes next, looks at the reasons and at the other release, as a listener would; needs Playwright and
Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

SIZE = ViewportSize(width=1180, height=860)
WIDTH = 1000  # of the picture: what README pages have room for
MOVING_MS = 60  # between two pictures while the list moves
MOVES = 8


class Film:
    """Pictures of a page, each with the milliseconds that it is shown."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[Image.Image] = []
        self._ms: list[int] = []

    def shoot(self, ms: int) -> None:
        """One picture."""
        shot = Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")
        self._frames.append(shot.resize((WIDTH, WIDTH * shot.height // shot.width), Image.Resampling.LANCZOS))
        self._ms.append(ms)

    def move(self, then_ms: int) -> None:
        """What an event changes, and time to look at it."""
        for _ in range(MOVES):
            self.shoot(MOVING_MS)
            self._page.wait_for_timeout(MOVING_MS)
        expect(self._page.locator("#next .why")).to_have_count(15)
        self.shoot(then_ms)

    def save(self, path: Path) -> None:
        """As an animation that begins anew without end."""
        first, *others = self._frames
        first.save(path, save_all=True, append_images=others, duration=self._ms, loop=0, quality=60, method=6)


def main() -> None:
    """Play a session and keep its pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", help="of a running service, as http://127.0.0.1:8000")
    parser.add_argument("out", type=Path, help="a .webp file")
    chosen = parser.parse_args()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(base_url=chosen.address, viewport=SIZE)
        page.goto("/")
        expect(page.locator("#next > li")).to_have_count(15)
        # Screenshots take the time of browser and service: how long answers take meanwhile tells nothing.
        page.locator("#latency").evaluate("(words) => { words.style.visibility = 'hidden' }")
        film = Film(page)
        film.shoot(1200)
        page.locator("#found .play").first.click()
        film.move(1500)
        for _ in range(2):
            page.get_by_role("button", name="Finish").click()
            film.move(1200)
        page.get_by_role("button", name="Skip").click()
        film.move(1800)
        page.locator("#next summary").first.click()
        film.shoot(2500)
        page.locator("#next summary").first.click()
        page.get_by_role("button", name="Skip").click()
        film.move(2000)
        page.locator("body").press("r")
        film.move(2500)
        browser.close()
    film.save(chosen.out)


if __name__ == "__main__":
    main()
