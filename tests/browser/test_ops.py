"""The operator's page in a real browser, before a real service: what it shows, swaps, and says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest

from segue.cli.rates import SnapshotHistory, rates_between
from service.http.keys import new_key, write_keys
from tests.browser.conftest import watched
from tests.browser.player_page import NO_TIME_LIMIT, keep_picture
from tests.live.redis_server import Server
from tests.test_live_figures import later, snapshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
StartService = Callable[..., Any]


@pytest.fixture
def measured(releases_dir: Path) -> Path:
    """Releases that say how good they were, and two that cannot be served: one at a glance, one when it is opened."""
    for name, hr10 in (("first", 0.4321), ("second", 0.5678)):
        manifest = json.loads((releases_dir / name / "manifest.json").read_text())
        validation = {"protocol": "full", "group": "all", "HR@10": hr10, "MRR@10": 0.25}
        manifest["evaluation"] = {"validation": validation, "best_epoch": 7}
        (releases_dir / name / "manifest.json").write_text(json.dumps(manifest))
    (releases_dir / "empty").mkdir()
    (releases_dir / "damaged").mkdir()
    for file in (releases_dir / "first").iterdir():
        (releases_dir / "damaged" / file.name).write_bytes(file.read_bytes())
    (releases_dir / "damaged" / "encoder.onnx").write_bytes(b"not what was released")
    return releases_dir


@pytest.fixture
def swappable(start_service: StartService, measured: Path) -> Iterator[httpx.Client]:
    """A service of `first` that can be swapped."""
    settings = {
        "release": measured / "first",
        "releases_dir": measured,
        "attribution_sample_rate": 1,
        "event_log_flush_s": 0.2,
    }
    with start_service(**settings).client() as client:
        yield client


def listen(client: httpx.Client, sessions: int) -> None:
    """Play and skip a little."""
    for number in range(sessions):
        body = {"events": [{"type": "play", "track_id": "g1-t00"}]}
        client.post(f"/sessions/s{number}/events", json=body, params={"recommend": 5})
    for number in range(sessions):
        events = [{"type": "play", "track_id": "g1-t01"}]
        events += [{"type": "skip", "track_id": "g1-t01"}] if number % 4 == 0 else []
        client.post(f"/sessions/s{number}/events", json={"events": events})


def serving(client: httpx.Client) -> str:
    folder: str = client.get("/releases/current").json()["folder"]
    return folder


def violations(page: "Page") -> list[str]:
    """What axe finds wrong, by WCAG 2.2 up to AA and its own best practices."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {node['html'][:150]}" for one in found for node in one["nodes"]]


def values(page: "Page", cells: str) -> list[float | None]:
    """The numbers behind what cells show."""
    texts = page.locator(cells).evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    return [float(text) if text else None for text in texts]


class Looks:
    """The looks of a page at its service. Somebody makes requests before each, so that no rate is zero."""

    def __init__(self, page: "Page", client: httpx.Client) -> None:
        self.answers: list[dict[str, Any]] = []
        self.held: list[Route] = []
        self._page, self._client = page, client
        self._holds = False
        page.add_init_script(NO_TIME_LIMIT)
        page.route("**/operations", self._answer)

    def _answer(self, route: "Route") -> None:
        if self._holds:
            self.held.append(route)
            return
        for _ in range(3):
            self._client.get("/tracks")
        answer = route.fetch()
        self.answers.append(answer.json())
        route.fulfill(response=answer)

    def _wait_until(self, condition: Callable[[], object]) -> None:
        for _ in range(240):
            if condition():
                return
            self._page.wait_for_timeout(250)
        raise AssertionError(self.answers[-1:])

    def pause_after_two(self) -> None:
        """Pause the page. The second of two more looks has seen all requests that were answered before.

        When the page looks again, it has shown the latest answer. It gets no further one before it is paused.
        """
        looks = len(self.answers) + 2
        self._wait_until(lambda: len(self.answers) >= looks and self.answers[-1]["event_log"]["last_file"])
        self._holds = True
        self._wait_until(lambda: self.held)
        self._page.get_by_role("button", name="Pause").click()
        playwright.expect(self._page.get_by_role("status").first).to_contain_text("Paused")
        self.held.pop().continue_()

    def resume(self) -> None:
        """Let the page look again."""
        self._holds = False
        self._page.get_by_role("button", name="Pause").click()


def test_a_pause_outlives_the_look_that_is_under_way(browser: "Browser", swappable: httpx.Client) -> None:
    """The look fails after the pause, or after the page looks again."""
    with watched(browser, str(swappable.base_url), "/ops") as page:
        held: list[Route] = []
        status, button = page.get_by_role("status").first, page.get_by_role("button", name="Pause")
        playwright.expect(status).to_contain_text("Live")
        page.evaluate(NO_TIME_LIMIT)
        page.route("**/operations", lambda route: held.append(route))  # noqa: PLW0108 (Playwright sets an attribute)

        def wait_for(looks: int) -> None:
            for _ in range(1_200):
                if len(held) >= looks:
                    return
                page.wait_for_timeout(50)
            raise AssertionError(f"the page looked {len(held)} times")

        wait_for(1)
        button.click()
        playwright.expect(status).to_contain_text("Paused")
        with page.expect_event("requestfailed"):
            held[0].abort()
        page.wait_for_timeout(300)
        playwright.expect(status).to_contain_text("Paused")
        button.click()
        wait_for(2)
        for _ in range(2):  # pause, and look again
            button.click()
        wait_for(3)
        with page.expect_event("requestfailed"):
            held[1].abort()
        held[2].continue_()
        playwright.expect(status).to_contain_text("Live")
        wait_for(4)
        page.wait_for_timeout(2_500)
        assert len(held) == 4  # one look at a time


def test_what_it_shows_is_what_the_service_answers(browser: "Browser", swappable: httpx.Client) -> None:
    with watched(browser, str(swappable.base_url), "/health/live") as page:  # a page that asks for nothing
        looks = Looks(page, swappable)
        page.goto("/ops")
        playwright.expect(page.get_by_role("status").first).to_contain_text("Live")
        listen(swappable, 40)
        swappable.get("/recommendations")  # a 422
        playwright.expect(page.locator("#routes tr", has_text="POST /sessions")).to_be_visible()
        looks.pause_after_two()
        page.wait_for_timeout(2500)
        assert looks.held == []
        history = SnapshotHistory()
        for one in looks.answers:
            history.add(one)
        wanted, skips = history.rates_between(10), history.rates_between(300)
        latest = looks.answers[-1]
        total = wanted["total"]
        assert total["per_s"] > 0
        assert values(page, "#now dd") == pytest.approx([
            total["per_s"], total["p50_ms"], total["p90_ms"], total["p99_ms"], total["errors_per_s"],
            wanted["shed_per_s"], wanted["events_per_s"], wanted["sessions_per_s"], 40,
        ])  # fmt: skip
        names = page.locator("#routes th").all_text_contents()
        assert set(names) == {"all listener requests", *(one["name"] for one in wanted["routes"])}
        for line in (*wanted["routes"], total):
            name = "all listener requests" if line is total else line["name"]
            place = names.index(name)
            ever = rates_between(None, latest)
            [since] = [one["answered"] for one in (*ever["routes"], ever["total"]) if one["name"] == line["name"]]
            assert values(page, f"#routes tr:nth-child({place + 1}) td") == pytest.approx([
                line["per_s"], line["p50_ms"], line["p90_ms"], line["p99_ms"], line["refused_per_s"],
                line["errors_per_s"], since,
            ])  # fmt: skip
        [credited] = skips["releases"]
        assert (credited["plays"], credited["skip_rate"], latest["releases"][0]["lists"]) == (40, 0.25, 40)
        assert page.locator("#outcomes th").all_text_contents() == [latest["release"]["name"]]
        assert values(page, "#outcomes td.number")[1:] == [40, 40, 0.75, 0.25, 0.25]
        skipped = "25.0 % (10 of 40), 14\N{EN DASH}40 %"
        assert page.locator("#outcomes td").all_text_contents()[2:] == ["40", "40", "75.0 %", skipped, skipped]
        assert "append-only file" in page.locator("#redis").inner_text()
        assert latest["event_log"]["last_file"]["name"] in page.locator("#log").inner_text()
        playwright.expect(page.locator("#lists")).to_contain_text("off")
        facts = page.locator("#facts").inner_text()
        assert "0.4321 (all targets, full ranking)" in facts
        assert "NaN" not in page.locator("body").inner_text()
        strip = page.locator("#strip li").all_inner_texts()
        assert strip[:2] == ["Service up", "Redis up"]
        assert strip[3:] == ["Release first", "Experiment none"]
        tops = page.locator("#now dd").evaluate_all(
            "all => all.slice(0, 3).map((one) => one.getBoundingClientRect().top)"
        )
        assert len(set(tops)) == 1  # the values of tiles in a row stand at one height
        assert latest["release"]["name"] in facts
        charts = page.locator(".drawing svg").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
        assert [chart.split(".")[0] for chart in charts] == [
            "Requests per second",
            "Latency in ms",
            "Skip rate of recommended tracks",
        ]
        assert charts[2].endswith(f"{latest['release']['name']}: now 25 %, maximum 25 %")
        assert all(
            page.locator(f"#{chart}-chart path").first.get_attribute("d") for chart in ("rate", "latency", "skip")
        )
        looks.resume()
        playwright.expect(page.get_by_role("status").first).to_contain_text("Live")


def test_its_arithmetic_is_that_of_segue_top(browser: "Browser", running: httpx.Client) -> None:
    before = snapshot()
    after = later(before, 4.0)
    pairs: list[tuple[Any, Any]] = [
        (before, after),
        (None, after),
        (snapshot(instance="another start"), after),
        (after, before),
        (before, before),
    ]
    with watched(browser, str(running.base_url), "/ops") as page:
        compute = """async (pairs) => {
            const { figures } = await import("/web/ops-figures.js");
            return pairs.map(([before, after]) => figures(before, after));
        }"""
        found = page.evaluate(compute, pairs)
        for (one, other), same in zip(pairs, found, strict=True):
            assert flat(same) == pytest.approx(flat(rates_between(one, other)))
        history = SnapshotHistory()
        looks = [snapshot(at=at, instance=by) for at, by in ((1000, "a"), (1001, "b"), (1006, "a"), (1014, "a"))]
        for look in looks:
            history.add(look)
        kept = page.evaluate(
            """async (looks) => {
            const { History } = await import("/web/ops-figures.js");
            const history = new History();
            looks.forEach((look) => history.add(look));
            return history.figures(10);
        }""",
            looks,
        )
        assert kept["seconds"] == 8
        assert flat(kept) == pytest.approx(flat(history.rates_between(10)))
        rounded = page.evaluate("""async () => {
            const { roundUp } = await import("/web/ops-charts.js");
            return [0, 0.3, 1, 1.01, 3, 50, 51, 700].map(roundUp);
        }""")
        assert rounded == pytest.approx([1, 0.5, 1, 2, 5, 50, 100, 1000])
        intervals = page.evaluate("""async () => {
            const { wilson } = await import("/web/ops-figures.js");
            return [[5, 13], [0, 10], [10, 10], [385, 1000], [0, 0]].map(([hits, trials]) => wilson(hits, trials));
        }""")
        # statsmodels' proportion_confint(..., method="wilson")
        wanted = [[0.1771, 0.6448], [0, 0.2775], [0.7225, 1], [0.3554, 0.4155], [0, 1]]
        assert flat(intervals) == pytest.approx(flat(wanted), abs=1e-4)


def flat(found: Any, path: str = "") -> dict[str, Any]:
    """Figures as numbers and texts by where they are."""
    if isinstance(found, dict | list):
        items = found.items() if isinstance(found, dict) else enumerate(found)
        return {name: one for key, value in items for name, one in flat(value, f"{path}.{key}").items()}
    return {path: found}


def test_releases_are_swapped_and_rolled_back_by_keyboard(browser: "Browser", swappable: httpx.Client) -> None:
    with watched(browser, str(swappable.base_url), "/ops") as page:
        rows = page.locator("#folder tr")
        playwright.expect(rows).to_have_count(4)
        assert "0.5678" in page.locator("#folder tr", has_text="Swap to second").inner_text()
        playwright.expect(page.locator("#roll-back")).to_be_hidden()
        second = swappable.get("/releases").json()["items"]
        [name] = [one["name"] for one in second if one["folder"] == "second"]

        page.get_by_role("button", name="Swap to second").focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Swap to second?")
        playwright.expect(dialog).to_contain_text(f"second ({name})")
        page.keyboard.press("Escape")
        playwright.expect(dialog).to_be_hidden()
        playwright.expect(page.get_by_role("button", name="Swap to second")).to_be_focused()
        assert serving(swappable) == "first"

        page.keyboard.press("Enter")
        page.keyboard.press("Tab")  # from Cancel, which is first so that nothing happens by accident
        playwright.expect(dialog.get_by_role("button", name="Swap to second")).to_be_focused()
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#outcome")).to_contain_text(f"second ({name}) is live.", timeout=20_000)
        playwright.expect(page.locator("#outcome")).to_be_focused()
        assert serving(swappable) == "second"
        playwright.expect(page.locator("#served")).to_contain_text("Live release: second")
        playwright.expect(page.locator("#facts")).to_contain_text("0.5678")

        page.keyboard.press("Tab")
        playwright.expect(page.get_by_role("button", name="Roll back to first")).to_be_focused()
        page.keyboard.press("Space")
        playwright.expect(page.get_by_role("dialog", name="Roll back to first?")).to_contain_text("instead of second")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        playwright.expect(page.locator("#outcome")).to_contain_text("first (", timeout=20_000)
        playwright.expect(page.locator("#outcome")).to_contain_text("is live.")
        assert serving(swappable) == "first"
        playwright.expect(page.get_by_role("button", name="Roll back to second")).to_be_visible()


def test_a_swap_that_ends_the_experiment_asks_first(
    browser: "Browser", start_service: StartService, measured: Path
) -> None:
    settings = {"release": measured / "first", "releases_dir": measured, "experiment": "second:0.5"}
    service = start_service(**settings)
    with service.client() as client, watched(browser, str(client.base_url), "/ops") as page:
        strip, dialog = page.locator("#strip"), page.get_by_role("dialog")
        playwright.expect(strip).to_contain_text("Experiment second, 50 %")
        playwright.expect(page.locator("#served")).to_contain_text("A/B test: 50.0 % of the sessions get second (")
        page.get_by_role("button", name="Swap to second").click()
        playwright.expect(dialog).to_contain_text("An A/B test is running: second is its second release")
        playwright.expect(dialog).to_contain_text("compared first with second (50.0 % of the sessions) since")
        yes = dialog.get_by_role("button", name="Swap to second")
        playwright.expect(yes).to_be_disabled()
        assert violations(page) == []
        ending = dialog.get_by_label("End the A/B test")
        ending.check()
        dialog.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Swap to second").click()  # it asks each time
        playwright.expect(ending).not_to_be_checked()
        page.keyboard.press("Space")
        playwright.expect(ending).to_be_checked()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#outcome")).to_contain_text("is live", timeout=20_000)
        playwright.expect(strip).to_contain_text("Experiment second, ended")
        playwright.expect(page.locator("#served")).to_contain_text("ended on")
        playwright.expect(page.locator("#served")).to_contain_text("a swap to second ended it")
        assert client.get("/operations").json()["experiment"]["state"] == "ended"
        page.get_by_role("button", name="Roll back to first").click()
        playwright.expect(ending).to_be_hidden()  # nothing is left to end
        dialog.get_by_role("button", name="Roll back to first").click()
        playwright.expect(page.get_by_role("button", name="Roll back to second")).to_be_visible(timeout=20_000)
        assert serving(client) == "first"


def test_a_void_experiment_is_red_and_says_since_when(
    browser: "Browser", start_service: StartService, measured: Path
) -> None:
    (measured / "current").write_text("second\n")
    settings = {"release": measured / "first", "releases_dir": measured, "experiment": "second:0.5"}
    with watched(browser, start_service(**settings).address(), "/ops") as page:
        playwright.expect(page.locator("#strip li.bad")).to_contain_text("Experiment second, 50 %: VOID since")
        playwright.expect(page.locator("#served")).to_contain_text("The A/B test is void since")
        playwright.expect(page.locator("#served")).to_contain_text("both arms are sasrec-")
        page.get_by_role("button", name="Swap to first").click()
        playwright.expect(page.get_by_label("End the A/B test")).to_be_hidden()  # the swap voids nothing


def test_a_damaged_release_is_refused_in_words_and_nothing_changes(browser: "Browser", swappable: httpx.Client) -> None:
    with watched(browser, str(swappable.base_url), "/ops") as page:
        playwright.expect(page.locator("#folder tr", has_text="empty")).to_contain_text("holds no manifest.json")
        assert page.locator("#folder tr", has_text="empty").get_by_role("button").count() == 0
        page.get_by_role("button", name="Swap to damaged").click()
        page.get_by_role("dialog").get_by_role("button", name="Swap to damaged").click()
        refusal = page.locator("#refusal")
        playwright.expect(refusal).to_contain_text("was rejected. Invalid input:", timeout=20_000)
        playwright.expect(refusal).to_contain_text("encoder.onnx has 21 bytes")
        playwright.expect(refusal).to_contain_text("The previous release stays live.")
        playwright.expect(refusal).to_be_focused()
        playwright.expect(page.get_by_role("button", name="Swap to damaged")).to_be_enabled()
        assert serving(swappable) == "first"


def test_it_asks_for_a_key_of_an_operator(browser: "Browser", start_service: StartService, tmp_path: Path) -> None:
    admin, kept = new_key("operator", ["admin"])
    weak, kept_weak = new_key("prometheus", ["metrics"])
    write_keys(tmp_path / "keys.toml", [kept, kept_weak])
    address = start_service(api_keys=tmp_path / "keys.toml").address()
    with watched(browser, address, "/ops") as page:
        key = page.get_by_label("API key with the scope admin")
        for wrong, told in (("", "needs a key"), ("segue_wrong", "unknown or revoked"), (weak, "needs admin")):
            if wrong:
                key.fill(wrong)
                key.press("Enter")
            playwright.expect(page.get_by_role("alert")).to_contain_text(told)
            playwright.expect(page.locator("#live")).to_be_hidden()
            playwright.expect(key).to_be_focused()
        assert violations(page) == []
        key.fill(admin)
        page.get_by_role("button", name="Use this key").click()
        playwright.expect(page.get_by_role("heading", name="Requests by route")).to_be_visible()
        playwright.expect(page.get_by_role("alert")).to_be_hidden()
        assert admin not in page.content()
        page.reload()
        playwright.expect(page.get_by_role("heading", name="Requests by route")).to_be_visible()
        assert page.evaluate("[Object.keys(localStorage), Object.keys(sessionStorage)]") == [[], ["segue.admin-key"]]
        page.evaluate("sessionStorage.clear()")
        playwright.expect(key).to_be_visible()


@pytest.mark.slow
def test_a_service_that_goes_is_said_and_waited_for(
    browser: "Browser", start_service: StartService, tmp_path: Path
) -> None:
    with Server(tmp_path / "redis") as server:
        settings = {"redis_url": server.url, "durability": "memory", "releases_dir": None, "event_log": "false"}
        given = {name: value for name, value in settings.items() if value is not None}
        service = start_service(**given)
        address = service.address()
        with watched(browser, address, "/ops") as page:
            playwright.expect(page.locator("#no-swap")).to_be_visible()
            playwright.expect(page.locator("#log")).to_contain_text("off")
            with server.frozen():
                playwright.expect(page.locator("#redis")).to_contain_text("it did not respond within 1 s")
                playwright.expect(page.locator("#redis dd.bad").first).to_have_text("unreachable")
                playwright.expect(page.locator("#strip li.bad", has_text="Redis AWAY")).to_be_visible()
            playwright.expect(page.locator("#redis")).not_to_contain_text("does not answer")
            service.stop()
            playwright.expect(page.get_by_role("alert")).to_have_text("The service does not answer. Retrying…")
            playwright.expect(page.get_by_role("status").first).to_have_text("No response")
            playwright.expect(page.locator("#strip li.bad", has_text="Service NO ANSWER")).to_be_visible()
            start_service(**given, port=address.rpartition(":")[2]).address()
            playwright.expect(page.get_by_role("alert")).to_be_hidden()
            playwright.expect(page.get_by_role("status").first).to_contain_text("Live")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (320, "light"),
        (1200, "dark"),
        pytest.param(320, "dark", marks=pytest.mark.slow),
        pytest.param(1200, "light", marks=pytest.mark.slow),
    ],
)
def test_it_is_accessible_on_any_screen(
    browser: "Browser", swappable: httpx.Client, scheme: "Literal['light', 'dark']", width: int
) -> None:
    options: dict[str, Any] = {"viewport": {"width": width, "height": 700}, "color_scheme": scheme}
    with watched(browser, str(swappable.base_url), "/ops", **options) as page:
        playwright.expect(page.get_by_role("button", name="Swap to second")).to_be_visible()
        listen(swappable, 8)
        playwright.expect(page.locator("#outcomes tr")).to_have_count(1)
        page.wait_for_timeout(2200)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        keep_picture(page, f"{width} {scheme}", of="ops")
        page.get_by_role("button", name="Swap to damaged").click()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_role("dialog").get_by_role("button", name="Swap to damaged").click()
        playwright.expect(page.locator("#refusal")).to_be_visible(timeout=20_000)
        playwright.expect(page.get_by_role("button", name="Swap to damaged")).to_be_enabled()
        assert violations(page) == []
