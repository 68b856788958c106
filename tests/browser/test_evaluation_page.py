"""The page of `segue compare --html` in a real browser, opened as a file, under its content security policy."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.browser.player_page import keep_picture
from tests.comparison_results import gaining

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytest.importorskip("altair")
pytest.importorskip("jinja2")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html and report.json: five systems, two protocols."""
    from training.evaluation.compare.report import measure, write_report

    folder = tmp_path_factory.mktemp("report")
    write_report(measure(gaining(folder), 2000), folder / "report.html", None, folder / "report.json")
    return folder


@pytest.fixture
def page(browser: "Browser", report: Path) -> "Iterator[Page]":
    yield from opened(browser, report, java_script_enabled=True)


def opened(
    browser: "Browser", report: Path, *, width: int = 1280, height: int = 900, folded: bool = False, **facts: Any
) -> "Iterator[Page]":
    """The page with all parts unfolded, unless `folded`. It may ask for nothing but itself, and print no message."""
    context = browser.new_context(viewport={"width": width, "height": height}, **facts)
    faults: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: faults.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((report / "report.html").as_uri())
    if facts.get("java_script_enabled", True):
        playwright.expect(page.locator(".vega-bind")).to_have_count(12)  # all charts have got their menus
        if not folded:
            page.evaluate("for (const details of document.querySelectorAll('details.fold')) details.open = true")
    yield page
    assert faults == [(report / "report.html").as_uri()]  # nothing was asked for but the page, and nothing complained
    context.close()


def estimate(report: Path, protocol: str, system: str, group: str, metric: str) -> dict[str, float]:
    questions = json.loads((report / "report.json").read_text())["questions"]
    (question,) = [question for question in questions if question["protocol"] == protocol]
    found: dict[str, float] = question["systems"][system]["groups"][group][metric]
    return found


def column(page: "Page", title: str, number: int) -> list[str]:
    cells = page.locator("table").filter(has_text=title).first.locator(f"tbody tr > :nth-child({number})")
    return cells.all_text_contents()


def test_a_table_sorts_by_any_column_in_both_orders(page: "Page") -> None:
    table = page.locator("table").filter(has_text="Every system").first
    header = table.get_by_role("columnheader", name="HR@1", exact=True)
    header.get_by_role("button").click()
    values = [float(text.split()[0]) for text in column(page, "Every system", 4)]
    assert values == sorted(values)
    assert len(set(values)) > 1
    header.get_by_role("button").press("Enter")
    assert [float(text.split()[0]) for text in column(page, "Every system", 4)] == sorted(values, reverse=True)
    playwright.expect(header).to_have_attribute("aria-sort", "descending")
    table.get_by_role("columnheader", name="system").get_by_role("button").click()
    assert column(page, "Every system", 1) == ["gru4rec", "gru4rec+nce", "markov", "sasrec", "sasrec+nce"]
    playwright.expect(header).not_to_have_attribute("aria-sort", "descending")


def marks(page: "Page", chart: str) -> "Locator":
    """The marks of a chart that have a value; each is described by its value and interval."""
    return page.locator(f"[data-chart={chart}] .mark-symbol.role-mark path")


def descriptions(page: "Page", chart: str) -> list[str]:
    return [mark.get_attribute("aria-label") or "" for mark in marks(page, chart).all()]


def test_systems_are_filtered_by_model_and_by_feedback(page: "Page") -> None:
    figure = page.locator("[data-chart=systems]")
    figure.get_by_role("combobox", name="Feedback").select_option("with")
    shown = page.locator("table").filter(has_text="Every system").first.locator("tbody tr:visible th")
    playwright.expect(shown).to_have_text(["gru4rec+nce", "sasrec+nce"])
    playwright.expect(marks(page, "systems")).to_have_count(2 * 2)
    figure.get_by_role("combobox", name="Systems").select_option("sasrec")
    playwright.expect(shown).to_have_text(["sasrec+nce"])
    playwright.expect(marks(page, "systems")).to_have_count(2)
    figure.get_by_role("combobox", name="Feedback").select_option("with or without")
    playwright.expect(shown).to_have_count(2)


def test_a_mark_tells_its_value_and_stands_where_the_axis_has_it(page: "Page", report: Path) -> None:
    figure = page.locator("[data-chart=systems]")
    figure.get_by_role("combobox", name="Metric").select_option("MRR@10")
    figure.get_by_role("combobox", name="Targets").select_option("skipped")
    figure.get_by_role("combobox", name="Ranking").select_option("sampled")
    playwright.expect(marks(page, "systems")).to_have_count(5)
    values = {}
    for name in ("gru4rec", "gru4rec+nce", "markov", "sasrec", "sasrec+nce"):
        found = estimate(report, "sampled", name, "skipped", "MRR@10")
        says = f"{name}: MRR@10 of skipped targets {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        mark = figure.get_by_label(says, exact=True)
        x, y = re.findall(r"translate\(([\d.]+),([\d.]+)\)", mark.get_attribute("transform") or "")[0]
        values[name] = (found["value"], float(x), float(y))
    (lowest, lowest_x, _), (low, low_x, _), *_, (high, high_x, _) = sorted(values.values())
    assert low < high
    for value, x, _ in values.values():
        if value != lowest:
            assert x == pytest.approx(low_x + (value - low) / (high - low) * (high_x - low_x), abs=0.06)
    assert lowest_x <= low_x  # where the axis has it, or at its edge if it is far below the others
    by_height = [value for value, _, _ in sorted(values.values(), key=lambda found: found[2])]
    assert by_height == sorted(by_height, reverse=True)


def test_a_tooltip_has_the_interval(page: "Page", report: Path) -> None:
    found = estimate(report, "full", "gru4rec+nce", "played", "HR@10")
    page.get_by_label("gru4rec+nce: HR@10 of played targets").first.hover()
    tooltip = page.locator("#vg-tooltip-element")
    playwright.expect(tooltip).to_be_visible()
    playwright.expect(tooltip).to_contain_text(f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")


def test_the_script_shows_what_the_page_showed_without_it(page: "Page", browser: "Browser", report: Path) -> None:
    for bare in opened(browser, report, java_script_enabled=False):
        for chart in ("systems", "feedback", "list-length", "session-length", "training-time"):
            before = bare.locator(f"[data-chart={chart}] .chart title").all_text_contents()
            assert before
            assert descriptions(page, chart) == before


def test_differences_are_shown_with_their_verdict(page: "Page", report: Path) -> None:
    page.locator("[data-chart=feedback]").get_by_role("combobox", name="Metric").select_option("HR@10 of all targets")
    differences = json.loads((report / "report.json").read_text())["questions"][0]["differences"]
    (found,) = [
        d
        for d in differences
        if (d["pair"]["system"], d["pair"]["why"], d["group"], d["metric"])
        == ("gru4rec+nce", "feedback", "all", "HR@10")
    ]
    mark = marks(page, "feedback").and_(page.get_by_label("gru4rec+nce: HR@10 of all targets"))
    playwright.expect(mark).to_have_count(1)
    says = mark.get_attribute("aria-label") or ""
    assert f"{found['estimate']['value']:+.3f}" in says
    assert says.endswith(found["verdict"])
    assert mark.get_attribute("fill") == "var(--better)"


def test_lines_are_chosen_by_model(page: "Page") -> None:
    playwright.expect(marks(page, "list-length")).to_have_count(5 * 8)
    page.locator("[data-chart=list-length]").get_by_role("combobox", name="Systems").select_option("gru4rec")
    playwright.expect(marks(page, "list-length")).to_have_count(2 * 8)
    assert {says.partition(":")[0] for says in descriptions(page, "list-length")} == {"gru4rec", "gru4rec+nce"}


def test_the_keyboard_reaches_menus_and_the_table_of_a_chart(page: "Page") -> None:
    figure = page.locator("[data-chart=systems]")
    figure.get_by_role("combobox", name="Metric").focus()
    page.keyboard.press("ArrowDown")
    playwright.expect(marks(page, "systems").first).not_to_have_attribute("aria-label", re.compile("HR@10"))
    summary = figure.get_by_text("Values of this chart as a table")
    summary.focus()
    page.keyboard.press("Enter")
    playwright.expect(figure.get_by_role("cell").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing(browser: "Browser", report: Path, scheme: "Literal['light', 'dark']", width: int) -> None:
    for page in opened(browser, report, width=width, color_scheme=scheme, bypass_csp=True):  # axe is put into the page
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        keep_picture(page, f"{width} {scheme}", of="evaluation")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844), (320, 640)])
def test_the_first_screen_has_the_answer_and_nothing_is_wider_than_it(
    browser: "Browser", report: Path, width: int, height: int
) -> None:
    for page in opened(browser, report, width=width, height=height, folded=True):
        keep_picture(page, f"{width} folded", of="evaluation")
        answer = page.locator(".answer").first.bounding_box()
        assert answer is not None
        assert page.locator("details.fold[open]").count() == 0
        if width >= 390:
            assert answer["y"] + answer["height"] < height
            assert page.evaluate("document.documentElement.scrollHeight") <= 1.5 * height
        for _ in ("folded", "unfolded"):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")


def test_on_a_phone_a_chart_is_as_wide_as_the_page_and_the_best_system_is_first(
    browser: "Browser", report: Path
) -> None:
    for page in opened(browser, report, width=390, height=844):
        shown = page.evaluate(
            """[...document.querySelectorAll(".chart svg")].map((svg) => {
                const { width, left, right } = svg.getBoundingClientRect();
                return [width / svg.viewBox.baseVal.width, left, right];
            })"""
        )
        assert len(shown) == 7
        for scale, left, right in shown:
            assert scale > 0.97  # texts are hardly scaled down
            assert left >= 0
            assert right <= 390
        names = page.locator("[data-chart=systems] .role-axis-label text").all_text_contents()
        systems = [name for name in names if not name[0].isdigit()]
        table = page.locator("[data-chart=systems] table tbody th").all_text_contents()
        assert systems == table


def test_a_link_of_the_contents_opens_the_folded_part(browser: "Browser", report: Path) -> None:
    for page in opened(browser, report, folded=True):
        table = page.get_by_role("table", name=re.compile("^With feedback against without")).first
        playwright.expect(table).not_to_be_visible()
        page.get_by_role("navigation").get_by_role("link", name="Gain of skip feedback").click()
        playwright.expect(table).to_be_visible()


def test_without_a_script_tables_and_charts_stay(browser: "Browser", report: Path) -> None:
    for page in opened(browser, report, java_script_enabled=False):
        playwright.expect(page.locator("svg[role=img]").first).to_be_visible()
        assert page.locator("svg[role=img]").count() == 8
        page.get_by_role("heading", name="All results").click()
        page.get_by_role("heading", name="Every system", level=3).last.click()
        assert page.locator("table").filter(has_text="Every system").first.is_visible()
        assert page.locator("select:visible").count() == 0
        page.get_by_role("heading", name="By list length").click()
        page.locator("[data-chart=list-length] summary:visible").click()
        playwright.expect(page.get_by_role("table", name="HR@k of all targets")).to_be_visible()


@pytest.mark.parametrize("script", [True, False])
def test_it_prints_all_folded_parts(browser: "Browser", report: Path, script: bool) -> None:
    for page in opened(browser, report, folded=True, java_script_enabled=script):
        page.emulate_media(media="print", color_scheme="dark")
        ink = "getComputedStyle(document.body).color"
        assert page.evaluate(ink) == "rgb(22, 24, 29)"  # whatever the screen has
        assert page.locator("select:visible").count() == 0
        hidden = page.evaluate(
            """[...document.querySelectorAll("main :is(h2, h3, p, dt, dd, table, .chart svg, figcaption)")]
            .filter((element) => !element.checkVisibility({ visibilityProperty: true }))
            .map((element) => element.textContent.slice(0, 60))"""
        )
        assert hidden == []
        wide = page.evaluate(
            "[...document.querySelectorAll('.chart svg')].map((svg) => svg.getBoundingClientRect().width)"
        )
        assert min(wide) > 100
        printed = page.pdf(prefer_css_page_size=True)
        assert printed.startswith(b"%PDF-")
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 6
        assert page.locator("details.fold[open]").count() == 0  # folded again


def test_of_up_to_eight_systems_all_are_shown(page: "Page") -> None:
    shown = {says.partition(":")[0] for says in descriptions(page, "systems")}
    assert shown == {says.partition(":")[0] for says in descriptions(page, "list-length")}
    assert shown == {"gru4rec", "gru4rec+nce", "markov", "sasrec", "sasrec+nce"}


def test_it_is_one_small_file(report: Path) -> None:
    assert (report / "report.html").stat().st_size < 3_000_000
