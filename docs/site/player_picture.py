"""The README's animated picture: a session on the real page of a running service.

    segue demo --no-browser
    python docs/site/player_picture.py http://127.0.0.1:8000 docs/player.webp

Runs "Show me", which plays three tracks and skips one, then looks at the list had the track been played. Needs
Playwright and Chromium.
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
MOVES = 6


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
        expect(self._page.locator("#next > li")).to_have_count(15)
        self.shoot(then_ms)

    def save(self, path: Path) -> None:
        """As an animation that repeats without end."""
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
        film = Film(page)
        film.shoot(1200)
        page.locator("#show-me").click()
        while not page.locator("#story[data-kind=skip]").is_visible():
            film.shoot(400)
        expect(page.locator("#session li.started")).to_be_visible()
        page.locator("body").press("p")  # or the next track counts as played while pictures are taken
        film.move(3500)
        page.locator("body").press("w")
        film.move(2000)
        page.locator("body").press("w")
        film.move(2500)
        browser.close()
    film.save(chosen.out)


if __name__ == "__main__":
    main()
