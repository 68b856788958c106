"""The pictures of the README and the home page: a session on the real page of a running service.

    segue demo --no-browser
    python docs/site/player_picture.py http://127.0.0.1:8000 docs/player.webp
    python docs/site/player_picture.py http://127.0.0.1:8000 docs/player-phone.webp --phone

Runs "Show me", which plays three tracks and skips one. The animation then shows the list had the track been played;
the still of the phone layout ends with the skip. Needs Playwright and Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

SIZE = ViewportSize(width=1180, height=860)
PHONE = ViewportSize(
    width=358, height=620
)  # the width of a picture on a page of 390 px, so that its text keeps its size
WIDTH = 1000  # of the picture: what README pages have room for
MOVING_MS = 60  # between two pictures while the list moves
MOVES = 6
BETWEEN_MS = 700  # between two pictures while a track plays


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


def session(page: Page, film: Film) -> None:
    """Run "Show me" until the list answers the skip."""
    page.goto("/")
    expect(page.locator("#next > li")).to_have_count(15)
    film.shoot(1200)
    page.locator("#show-me").click()
    while not page.locator("#story[data-kind=skip]").is_visible():
        film.shoot(BETWEEN_MS)
        page.wait_for_timeout(BETWEEN_MS)
    expect(page.locator("#session li.started")).to_be_visible()
    page.locator("body").press("p")  # or the next track counts as played while pictures are taken


def animation(page: Page, out: Path) -> None:
    """The session, then the list had the track been played."""
    film = Film(page)
    session(page, film)
    film.move(3500)
    page.locator("body").press("w")
    film.move(2000)
    page.locator("body").press("w")
    film.move(2500)
    film.save(out)


def still(page: Page, out: Path) -> None:
    """The phone layout after the skip."""
    session(page, Film(page))
    page.wait_for_timeout(2000)  # until nothing moves
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.save(out, quality=70, method=6)


def main() -> None:
    """Play a session and keep its pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", help="of a running service, as http://127.0.0.1:8000")
    parser.add_argument("out", type=Path, help="a .webp file")
    parser.add_argument("--phone", action="store_true", help="a still of the phone layout instead of the animation")
    chosen = parser.parse_args()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size, scale = (PHONE, 2) if chosen.phone else (SIZE, 1)
        page = browser.new_page(base_url=chosen.address, viewport=size, device_scale_factor=scale)
        (still if chosen.phone else animation)(page, chosen.out)
        browser.close()


if __name__ == "__main__":
    main()
