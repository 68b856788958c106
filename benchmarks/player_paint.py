"""How fast the player is in a browser: first paint, click to updated list, page weight, frames while the map moves.

    python benchmarks/player_paint.py build/bench/release-600000-auto --store

Starts a service of the release with an embedded Redis, and a headless Chromium without a graphics card, on loopback. A
click's time ends with the frame that shows the list which follows from it. Clicks on a next track and skips take one
request. The map is moved as a mouse would, in each frame, while all of
its points are in view. Weights are bytes as they are sent. Prints JSON; --store puts it into results/player.json, by
tracks.

    git worktree add ../before COMMIT
    python benchmarks/player_paint.py build/bench/release-600000-auto --before ../before

Measures the page of an earlier commit with that commit's own script, by turns with this one, since a page says in its
own way when the list is shown. Prints all pairs and the median of their ratios; below 1 is a gain.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

RESULTS = Path(__file__).parent / "results" / "player.json"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOADS, CLICKS, MOVED_S = 10, 30, 5

FIRST_PAINT = """() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null"""
WEIGHTS = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map((entry) => [new URL(entry.name).pathname, entry.encodedBodySize])"""
# A click is over with the frame after the one in which the list was shown.
CLICK = """(selector) => new Promise((resolve) => {
    const watch = new MutationObserver(() => {
      watch.disconnect();
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began)));
    });
    watch.observe(document.querySelector("#next"), { attributeFilter: ["data-shown"] });
    const began = performance.now();
    document.querySelector(selector).click();
  })"""
MOVE = """(seconds) => new Promise((resolve) => {
    const map = document.querySelector("#map");
    const { left, top, width, height } = map.getBoundingClientRect();
    const send = (kind, x, y) => map.dispatchEvent(new PointerEvent(kind,
      { pointerId: 1, pointerType: "mouse", clientX: left + x, clientY: top + y, bubbles: true }));
    map.setPointerCapture = () => {}; // there is no such pointer
    send("pointerdown", width / 2, height / 2);
    const frames = [];
    let last = null;
    const began = performance.now();
    const step = (now) => {
      if (last !== null) frames.push(now - last);
      last = now;
      const angle = (now - began) / 300;
      send("pointermove", width / 2 + 60 * Math.cos(angle), height / 2 + 60 * Math.sin(angle));
      if (now - began < 1000 * seconds) requestAnimationFrame(step);
      else { send("pointerup", width / 2, height / 2); resolve(frames); }
    };
    requestAnimationFrame(step);
  })"""


@contextlib.contextmanager
def served(release: Path, folder: Path) -> Iterator[str]:
    """The address of a service of the release."""
    environment = os.environ | {"SEGUE_DATA_DIR": str(folder / "data"), "SEGUE_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "segue", "serve", str(release), "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+$", line.strip())))
        finally:
            process.terminate()
            process.stdout.read()


@contextlib.contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """The player of a listener who has never been here, once list and map are there."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=address)
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector("#next > li")
    page.wait_for_selector("#found .play")
    page.wait_for_selector("#map[data-points]")
    yield page
    context.close()


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest of some milliseconds."""
    cut = statistics.quantiles(values, n=20, method="inclusive")[-1]
    return {"median": round(statistics.median(values), 1), "p95": round(cut, 1), "most": round(max(values), 1)}


def clicks(page: Page) -> dict[str, Any]:
    """Clicks on the first of the next tracks and skips, by turns."""
    kinds: dict[str, list[float]] = {"play": [], "skip": []}
    page.evaluate(CLICK, "#found .play")
    for number in range(CLICKS):
        page.wait_for_timeout(600)  # a listener takes longer; reasons and map follow meanwhile
        kind = ("play", "skip")[number % 2]
        kinds[kind].append(page.evaluate(CLICK, {"play": "#next .play", "skip": "#skip"}[kind]))
    return {kind: spread(values) for kind, values in kinds.items()} | {"all": spread(kinds["play"] + kinds["skip"])}


def frames(page: Page) -> dict[str, Any]:
    """Times from frame to frame while the map is moved."""
    page.locator("#map").scroll_into_view_if_needed()
    times: list[float] = page.evaluate(MOVE, MOVED_S)
    late = sum(time > 25 for time in times) / len(times)
    return spread(times) | {"frames": len(times), "share_later_than_25_ms": round(late, 3)}


def measure(release: Path) -> dict[str, Any]:
    """All figures of one release."""
    from segue.release import open_release

    facts = open_release(release)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(release, Path(folder)) as address,
        sync_playwright() as started,
    ):
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        paints: list[float] = []
        for _ in range(LOADS):
            with opened(browser, address) as page:
                paints.append(page.evaluate(FIRST_PAINT))
        with opened(browser, address) as page:
            weights = page.evaluate(WEIGHTS)
            points = int(page.locator("#map").get_attribute("data-points") or 0)
            clicked, moved = clicks(page), frames(page)
        version = browser.version
        browser.close()
    of_page = {path: size for path, size in weights if path == "/" or path.startswith("/web/")}
    return {
        "release": facts.name,
        "tracks": facts.manifest.tracks,
        "points": points,
        "first_contentful_paint_ms": spread(paints),
        "click_to_list_ms": clicked,
        "map_frame_ms": moved,
        "page_bytes": sum(of_page.values()),
        "page_files": len(of_page),
        "map_bytes": sum(size for path, size in weights if path == "/map"),
        "browser": f"Chromium {version}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }


def commit(tree: Path = Path(__file__).parent) -> str:
    """The short name of its commit."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def of_tree(tree: Path, release: Path) -> dict[str, float]:
    """Medians of the page of a source tree, by its own script."""
    script = [sys.executable, "benchmarks/player_paint.py", str(release.resolve())]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(script, cwd=tree, env=environment, check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    return {
        "first_contentful_paint_ms": found["first_contentful_paint_ms"]["median"],
        "click_to_list_ms": found["click_to_list_ms"]["all"]["median"],
        "map_frame_ms": found["map_frame_ms"]["median"],
        "page_bytes": found["page_bytes"],
        "page_files": found["page_files"],
    }


def compare(release: Path, before: Path, pairs: int) -> dict[str, Any]:
    """The pages of two trees by turns, and the ratios of each pair."""
    trees = {"before": before.resolve(), "after": Path(__file__).resolve().parents[1]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(pairs):
        for name, tree in list(trees.items())[:: -1 if number % 2 else 1]:
            found[name].append(of_tree(tree, release))
            print(f"{number + 1} of {pairs}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    ratios = {
        figure: [round(new[figure] / old[figure], 3) for old, new in zip(*found.values(), strict=True)]
        for figure in ("first_contentful_paint_ms", "click_to_list_ms", "map_frame_ms")
    }
    medians = {figure: statistics.median(values) for figure, values in ratios.items()}
    return found | {"ratios": ratios, "median_ratios": medians, "commits": {n: commit(t) for n, t in trees.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, help="a release folder, indexed")
    parser.add_argument("--store", action="store_true", help="keep the result in benchmarks/results/player.json")
    parser.add_argument("--before", type=Path, help="source tree of an earlier commit, to compare with")
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium is installed")
    if given.before:
        compared = compare(given.release, given.before, given.pairs)
        print(json.dumps(compared, indent=2))
        if given.store:
            kept = json.loads(RESULTS.read_text())
            kept["before_after"] = compared
            RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
        return
    result = measure(given.release) | {"commit": commit()}
    print(json.dumps(result, indent=2))
    if given.store:
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        kept[str(result["tracks"])] = result
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
