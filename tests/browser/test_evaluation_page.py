"""The page of `segue compare --html` in a real browser, opened as a file: nothing goes out, it sorts and tells."""

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
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
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


def opened(browser: "Browser", report: Path, **facts: Any) -> "Iterator[Page]":
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **facts)
    faults: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: faults.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((report / "report.html").as_uri())
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
    values = [float(text.split()[0]) for text in column(page, "Every system", 3)]
    assert values == sorted(values)
    assert len(set(values)) > 1
    header.get_by_role("button").press("Enter")
    assert [float(text.split()[0]) for text in column(page, "Every system", 3)] == sorted(values, reverse=True)
    playwright.expect(header).to_have_attribute("aria-sort", "descending")
    table.get_by_role("columnheader", name="system").get_by_role("button").click()
    assert column(page, "Every system", 1) == ["gru4rec", "gru4rec+nce", "markov", "sasrec", "sasrec+nce"]
    playwright.expect(header).not_to_have_attribute("aria-sort", "descending")


def test_systems_are_filtered_by_model_and_by_feedback(page: "Page") -> None:
    page.get_by_label("Feedback").first.select_option(label="with")
    shown = page.locator("table").filter(has_text="Every system").first.locator("tbody tr:visible th")
    playwright.expect(shown).to_have_text(["gru4rec+nce", "sasrec+nce"])
    playwright.expect(page.locator("[data-kind=systems] .row:visible")).to_have_count(2)
    page.get_by_label("Model").first.select_option("sasrec")
    playwright.expect(shown).to_have_text(["sasrec+nce"])
    page.get_by_label("Feedback").first.select_option("")
    playwright.expect(shown).to_have_count(2)


def test_a_mark_says_its_figure_and_lies_where_the_axis_has_it(page: "Page", report: Path) -> None:
    plot = page.locator("[data-kind=systems]")
    mark = plot.locator("[data-system='gru4rec+nce'] .mark").first
    mark.locator("circle").hover()
    found = estimate(report, "full", "gru4rec+nce", "played", "HR@10")
    says = f"HR@10 of played targets {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    playwright.expect(page.locator("#tip")).to_have_text(f"gru4rec+nce: {says}")

    plot.get_by_role("combobox", name="Figure").select_option("MRR@10")
    plot.get_by_role("combobox", name="Targets").select_option("skipped")
    plot.get_by_role("combobox", name="Ranking").select_option("sampled")
    found = estimate(report, "sampled", "gru4rec+nce", "skipped", "MRR@10")
    says = f"MRR@10 of skipped targets {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    playwright.expect(mark).to_have_attribute("data-says", f"gru4rec+nce: {says}")
    place = float(re.findall(r"translate\(([\d.]+)", mark.get_attribute("transform") or "")[0])
    low, high, start, end = (
        float(plot.locator("[data-low]").get_attribute(f"data-{name}") or "")
        for name in ("low", "high", "start", "end")
    )
    assert place == pytest.approx(start + (found["value"] - low) / (high - low) * (end - start), abs=0.06)
    names = [row.get_attribute("data-system") or "" for row in plot.locator(".row").all()]
    heights = [row.bounding_box() or {"y": 0} for row in plot.locator(".row").all()]
    by_height = [name for _, name in sorted(zip([box["y"] for box in heights], names, strict=True))]
    values = [estimate(report, "sampled", name, "skipped", "MRR@10")["value"] for name in by_height]
    assert values == sorted(values, reverse=True)


def test_the_script_says_what_the_page_said_without_it(page: "Page", browser: "Browser", report: Path) -> None:
    for bare in opened(browser, report, java_script_enabled=False):
        before = bare.locator("[data-kind] .row .mark > title").all_text_contents()
    for kind, choice in (("systems", "Targets"), ("feedback", "Figure")):
        select = page.locator(f"[data-kind={kind}]").get_by_role("combobox", name=choice)
        first = select.input_value()
        select.select_option(index=1)
        select.select_option(first)
    marks = page.locator("[data-kind] .row .mark").all()
    assert [mark.get_attribute("data-says") for mark in marks] == before


def test_differences_are_shown_with_their_verdict(page: "Page", report: Path) -> None:
    plot = page.locator("[data-kind=feedback]")
    plot.get_by_role("combobox", name="Figure").select_option("all HR@10")
    mark = plot.locator("[data-system='gru4rec+nce'] .mark")
    differences = json.loads((report / "report.json").read_text())["questions"][0]["differences"]
    (found,) = [
        d
        for d in differences
        if (d["pair"]["system"], d["pair"]["why"], d["group"], d["metric"])
        == ("gru4rec+nce", "feedback", "all", "HR@10")
    ]
    says = mark.get_attribute("data-says") or ""
    assert f"{found['estimate']['value']:+.3f}" in says
    assert says.endswith(found["verdict"])
    assert "v-better" in (mark.get_attribute("class") or "")


def test_lines_are_shown_and_hidden(page: "Page") -> None:
    line = page.locator("[data-kind=lines] .line[data-system='sasrec']").first
    box = page.get_by_role("checkbox", name="sasrec", exact=True)
    for _ in range(2):
        box.set_checked(not box.is_checked())
        assert line.is_visible() == box.is_checked()


def test_the_keyboard_reads_a_plot(page: "Page") -> None:
    chart = page.get_by_role("group", name="Every system, a plot")
    chart.focus()
    page.keyboard.press("ArrowDown")
    first = page.locator("[data-kind=systems] .read").text_content()
    page.keyboard.press("ArrowDown")
    second = page.locator("[data-kind=systems] .read").text_content()
    assert first
    assert second
    assert first != second
    playwright.expect(page.locator("#tip")).to_have_text(second)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#tip")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_nothing(browser: "Browser", report: Path, scheme: "Literal['light', 'dark']", width: int) -> None:
    for page in opened(browser, report, color_scheme=scheme, bypass_csp=True):  # axe is put into the page
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        keep_picture(page, f"{width} {scheme}", of="evaluation")


def test_without_a_script_tables_and_plots_stay(browser: "Browser", report: Path) -> None:
    for page in opened(browser, report, java_script_enabled=False):
        playwright.expect(page.locator("svg[role=img]").first).to_be_visible()
        assert page.locator("svg[role=img]").count() == 8
        assert page.locator("table").filter(has_text="Every system").first.is_visible()
        assert page.locator("form:visible").count() == 0


def test_it_prints(page: "Page") -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 24, 29)"  # ink, whatever the screen has
    assert page.locator("form:visible").count() == 0
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 3
