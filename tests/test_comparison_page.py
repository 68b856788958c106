"""The comparison as a page and in words: what it says is what was measured, and it needs nothing else."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("altair")
pytest.importorskip("jinja2")

from altair import SCHEMA_URL

from tests.comparison_results import gaining, result
from training import vega
from training.evaluation.compare import narrative as words
from training.evaluation.compare.chart_parts import has_feedback
from training.evaluation.compare.charts import charts, systems_chart
from training.evaluation.compare.line_charts import BEST, first_shown
from training.evaluation.compare.report import ReportSection, measure, write_report
from training.evaluation.compare.tables import ComparisonData


@pytest.fixture
def section(tmp_path: Path) -> ReportSection:
    (section,) = measure(gaining(tmp_path), 200)
    return section


def measured_of(folder: Path, systems: dict[str, list[int]], **changed: Any) -> ComparisonData:
    """What is measured of these ranks; every second target is skipped."""
    files = [result(folder / f"{name}.json", name, np.array(ranks), **changed) for name, ranks in systems.items()]
    (section,) = measure(files, 500)
    return words.chosen(section.by_protocol)


class Page(HTMLParser):
    """What a page asks a network for, its headings, and what lacks a name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.tags: list[str] = []
        self.pictures = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        facts = dict(attrs)
        self.outside += [str(facts[name]) for name in ("src", "href") if not str(facts.get(name, "#")).startswith("#")]
        if facts.get("role") == "img":
            assert facts["aria-label"]
            self.pictures += 1


# Names that look like addresses. Nothing is loaded from them.
NAMES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", SCHEMA_URL}


def specs_of(page: Path) -> dict[str, Any]:
    """The specifications that the page's script draws charts from."""
    found = re.search(r'id="charts">(.*?)</script>', page.read_text())
    assert found
    specs: dict[str, Any] = json.loads(found.group(1))
    return specs


def rows_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = spec["datasets"][spec["data"]["name"]]
    return rows


class TestPage:
    def test_it_needs_nothing_else_and_is_the_same_each_time(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], tmp_path / "a.html", tmp_path / "a.md", tmp_path / "a.json")
        write_report([section], tmp_path / "b.html")
        text = (tmp_path / "a.html").read_text()
        assert text == (tmp_path / "b.html").read_text()
        page = Page(text)
        assert page.outside == []
        assert "default-src &#39;none&#39;; style-src" in text
        own = text.replace(vega.javascript(), "")
        assert "url(" not in own
        assert set(re.findall(r"https?://[^\"'\s<]*", own)) <= NAMES
        assert page.pictures == 8  # seven charts and the hundred sessions
        assert page.tags.count("table") == page.tags.count("caption") == len(section.tables) + 7
        assert len(text) < 3_000_000
        assert not list(tmp_path.glob("*.unfinished"))

    def test_headings_go_down_by_one_level(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], tmp_path / "a.html")
        levels = [int(tag[1]) for tag in Page((tmp_path / "a.html").read_text()).tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_the_scripts_figures_are_those_of_the_report(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], tmp_path / "a.html", None, tmp_path / "a.json")
        rows = rows_of(specs_of(tmp_path / "a.html")["s0-systems"])
        shown = {
            (row["ranking"], row["system"], row["targets"], row["metric"]): (row["value"], row["low"], row["high"])
            for row in rows
        }
        count = 0
        for question in json.loads((tmp_path / "a.json").read_text())["questions"]:
            for system, of in question["systems"].items():
                for group, metrics in of["groups"].items():
                    for metric, estimate in metrics.items():
                        if metric != "MAP@10":  # equal to MRR@10
                            expected = [estimate["value"], estimate["low"], estimate["high"]]
                            found = shown[question["protocol"], system, group, metric]
                            assert list(found) == pytest.approx(expected, abs=1e-5)
                            count += 1
        assert count == len(rows)

    def test_the_json_has_what_the_charts_show(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], None, None, tmp_path / "a.json")
        question = json.loads((tmp_path / "a.json").read_text())["questions"][0]
        shown = {chart.name: chart for chart in charts(section.by_protocol)}
        for system, *cells in shown["list-length"].table.rows:
            curve = question["systems"][system]["hit_rate_at"]
            assert [f"{value:.3f}" for value in curve.values()] == cells
            assert curve["10"] == pytest.approx(question["systems"][system]["groups"]["all"]["HR@10"]["value"])
        for breakdown in question["breakdowns"]:
            assert sum(breakdown["sessions"]) == 400
            assert rows_of(shown[breakdown["by"].replace("_", "-")].spec)

    def test_a_name_cannot_break_out_of_the_page(self, tmp_path: Path) -> None:
        files = [result(tmp_path / "a.json", "</script><b>", np.array([1, 2, 30, 4] * 5))]
        write_report(measure(files, 100), tmp_path / "a.html")
        text = (tmp_path / "a.html").read_text()
        assert "<b>" not in text.replace(vega.javascript(), "")
        assert Page(text.replace(vega.javascript(), "")).tags.count("script") == 3


class TestWords:
    def test_the_best_is_that_of_played_targets_and_whose_interval_overlaps_is_named(self, tmp_path: Path) -> None:
        played = [1, 50, 1, 50, 1, 50, 50, 50] * 20  # 60 of 80 played targets in the first ten, no skipped one
        skipped = [50, 1, 50, 1, 50, 1, 50, 1] * 20  # the other way round
        measured = measured_of(tmp_path, {"sasrec": skipped, "gru4rec": played, "caser": [*played[::-1][1:], 50]})
        assert words.best_system(measured) == "gru4rec"
        first, _ = words.answer(measured)
        assert first.startswith(
            "gru4rec has the highest hit rate: in 75 of 100 sessions whose next track was played, the next"
        )
        assert "HR@10 0.750" in first
        assert first.endswith("There is no clear winner: the interval of caser overlaps with it.")

    def test_what_feedback_gains_and_costs_is_counted(self, tmp_path: Path) -> None:
        # Played and skipped targets alternate. With feedback every played target is at 5, every skipped one beyond.
        without = [1, 1, 50, 1] * 50
        measured = measured_of(tmp_path, {"sasrec": without, "sasrec+nce": [5, 50] * 100})
        _, second = words.answer(measured)
        assert second == (
            "Effect of skip feedback: HR@10 on played targets is higher for the one system (sasrec+nce: 1.000 "
            "instead of 0.500). Skipped targets are ranked lower by the one system. The cost is a lower HR@1 on played "
            "targets: sasrec+nce 0.000 instead of 0.500."
        )

    def test_no_gain_is_said(self, tmp_path: Path) -> None:
        measured = measured_of(tmp_path, {"sasrec": [1, 50] * 50, "sasrec+nce": [1, 50] * 50})
        _, second = words.answer(measured)
        assert second == (
            "Effect of skip feedback: HR@10 on played targets is higher for no system. Skipped targets are ranked "
            "lower by no system. No system has a clearly lower HR@1 on played targets."
        )

    def test_without_two_versions_nothing_is_said_of_feedback(self, tmp_path: Path) -> None:
        _, second = words.answer(measured_of(tmp_path, {"sasrec": [1, 50] * 50}))
        assert second.startswith("The effect of skip feedback is unknown")

    def test_the_example_is_a_session_of_the_data(self, tmp_path: Path) -> None:
        # Session 3 is the first whose target was played (every second one is skipped) and stood between 2 and 10.
        changed = {"session_length": [12] * 8, "session_skip_rate": [0.25] * 8}
        measured = measured_of(tmp_path, {"sasrec": [1, 4, 7, 1, 50, 1, 2, 1]}, **changed)
        shown, counted = words.example(measured)
        assert shown.startswith(
            "Take session 3 of 8. The system sasrec saw its 12 plays before the target, 3 of them skipped"
        )
        assert "which the listener played, has rank 7: a hit at 10, a miss at 1." in shown
        assert counted.endswith("HR@10 = 3 / 4 = 0.750.")

    def test_every_system_is_described(self) -> None:
        from training.evaluation.compare import tables as paper

        for system in [*paper.SYSTEMS, "ngram", "hybrid", "hybrid-caser+nce", "markov", "sasrec+nce+published-pairing"]:
            said = words.describe_system(system)
            assert "a system of your own" not in said
            assert (";" in said.removeprefix(words.MODELS.get(system, ""))) == has_feedback(
                system
            ) or system in words.MODELS


class TestCharts:
    def test_without_a_browser_a_mark_tells_its_value_and_interval(self, section: ReportSection) -> None:
        drawn = ElementTree.fromstring(systems_chart(section.by_protocol).svg())
        titles = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
        measured = words.chosen(section.by_protocol)
        assert len(titles) == 2 * len(measured.asked.systems)
        e = measured.estimates["gru4rec+nce", "played", "HR@10"]
        expected = f"gru4rec+nce: HR@10 of played targets {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"
        assert expected in titles

    def test_systems_without_a_hit_or_a_skip_are_drawn(self, tmp_path: Path) -> None:
        files = [
            result(tmp_path / f"{name}.json", name, np.full(20, 500.0), target_skipped=[False] * 20)
            for name in ("sasrec", "sasrec+nce")
        ]
        (section,) = measure(files, 100)
        for chart in charts(section.by_protocol):
            ElementTree.fromstring(chart.svg())
        write_report([section], tmp_path / "a.html")

    def test_a_name_is_text_in_a_chart(self, tmp_path: Path) -> None:
        measured = measured_of(tmp_path, {"a<b>&'\"": [1, 2, 30, 4] * 5})
        drawn = ElementTree.fromstring(systems_chart({"full": measured}).svg())
        assert "a<b>&'\"" in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]

    def test_few_systems_all_have_a_line_and_of_many_the_best_of_each_model(self, tmp_path: Path) -> None:
        few = measured_of(tmp_path, {"sasrec": [1, 50] * 50, "sasrec+nce": [50, 50] * 50})
        assert first_shown(few) == ["sasrec", "sasrec+nce"]
        names = [f"{model}{loss}" for model in ("sasrec", "bert4rec", "gru4rec", "caser") for loss in ("", "+nce")]
        ranks = {name: [1 if at <= number else 50 for at in range(20)] for number, name in enumerate(names)}
        many = measured_of(tmp_path, ranks | {"markov": [1] * 20})
        assert first_shown(many) == ["sasrec+nce", "bert4rec+nce", "gru4rec+nce", "caser+nce", "markov"]
        curve = next(chart for chart in charts({"full": many}) if chart.name == "list-length")
        assert curve.spec["params"][0]["value"] == BEST
        drawn = ElementTree.fromstring(curve.svg())
        assert len(list(drawn.iter("{http://www.w3.org/2000/svg}title"))) == 5 * 8
