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

from tests.comparison_results import gaining, measured_of, result
from training import vega
from training.evaluation.compare import narrative as words
from training.evaluation.compare.charts import (
    charts,
    feedback_chart,
    skip_measures_chart,
    systems_chart,
    versions_chart,
)
from training.evaluation.compare.line_charts import BEST, first_shown
from training.evaluation.compare.report import ReportSection, measure, write_report


@pytest.fixture
def section(tmp_path: Path) -> ReportSection:
    (section,) = measure(gaining(tmp_path), 200)
    return section


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

    def test_few_systems_all_have_a_line_and_of_many_the_first_of_each_model(self, tmp_path: Path) -> None:
        few = measured_of(tmp_path, {"sasrec": [1, 50] * 50, "sasrec+nce": [50, 50] * 50})
        assert first_shown(few) == ["sasrec", "sasrec+nce"]
        names = [f"{model}{loss}" for model in ("sasrec", "bert4rec", "wrmf") for loss in ("", "+nce")]
        names += ["sasrec+nce+played-only", "wrmf-bl", "wrmf-nr"]
        ranks = {name: [1 if at <= 2 * number else 50 for at in range(20)] for number, name in enumerate(names)}
        many = measured_of(tmp_path, ranks | {"markov": [1] * 20})
        shown = ["sasrec", "bert4rec", "bert4rec+nce", "wrmf", "sasrec+nce+played-only", "wrmf-nr", "markov"]
        assert first_shown(many) == shown  # with and without feedback
        curve = next(chart for chart in charts({"full": many}) if chart.name == "list-length")
        assert curve.spec["params"][0]["value"] == BEST
        drawn = ElementTree.fromstring(curve.svg())
        assert len(list(drawn.iter("{http://www.w3.org/2000/svg}title"))) == len(shown) * 8

    def test_the_gain_of_the_skip_loss_has_an_axis_of_its_own(self, tmp_path: Path) -> None:
        plain = [1, 1, 50, 1] * 100
        small, large = list(plain), [1] * 400
        small[2] = 1
        measured = measured_of(
            tmp_path, {"sasrec": plain, "sasrec+nce": small, "wrmf": plain, "wrmf-bl": large, "markov": plain}
        )
        loss, versions = feedback_chart({"full": measured}), versions_chart({"full": measured})
        assert loss is not None
        assert versions is not None
        assert {row["system"] for row in rows_of(loss.spec)} == {"sasrec+nce"}
        assert {row["system"] for row in rows_of(versions.spec)} == {"wrmf-bl"}
        assert max(number for number in numbers(loss.svg()) if number < 1) < 0.05
        assert max(numbers(versions.svg())) >= 0.5

    def test_the_axis_of_systems_fits_most_of_them_and_says_where_it_starts(self, tmp_path: Path) -> None:
        rates = {"sasrec": 60, "gru4rec": 62, "caser": 64, "bert4rec": 61, "markov": 63, "popularity": 2}
        ranks = {name: [1 if at % 100 < rate else 50 for at in range(400)] for name, rate in rates.items()}
        svg = systems_chart({"full": measured_of(tmp_path, ranks)}).svg()
        starts = re.search(r"The axis starts at (0\.\d+), not at 0", svg)
        assert starts
        assert 0.3 < float(starts.group(1)) < 0.6
        assert "popularity: HR@10 of played targets 0.020" in svg  # at the edge, with its value
        low = {name: [1 if at % 100 < rate // 10 else 50 for at in range(400)] for name, rate in rates.items()}
        assert (
            "The axis starts" not in systems_chart({"full": measured_of(tmp_path, {"caser": low["popularity"]})}).svg()
        )

    def test_the_first_eight_of_many_systems_are_drawn_at_first(self, tmp_path: Path) -> None:
        ranks = {f"own{number}": [1 if at % 20 <= number else 50 for at in range(60)] for number in range(10)}
        measured = measured_of(tmp_path, ranks)
        texts = [text for text in texts_of(systems_chart({"full": measured}).svg()) if text.startswith("own")]
        assert texts == measured.ranked[:8]
        assert len([t for t in texts_of(systems_chart({"full": measured}, every=True).svg()) if t in ranks]) == 10

    def test_skip_measures_are_drawn_and_explained_if_results_have_them(self, tmp_path: Path) -> None:
        def of(value: float) -> dict[str, float]:
            return {"value": value, "low": value - 0.01, "high": value + 0.01}

        changed = {
            "skip_measures": {
                "pairwise_auc": of(0.6),
                "responsiveness": {"after_skip": of(-0.02)},
                "caution_effect": {"effect": {"HR@1": of(0.0), "HR@10": of(0.05)}},
                "reasons": {},
            },
            "target_stratum": [0, 0, 1, 1] * 10,
            "target_group_members": {"pair_seen": [True, False] * 20},
        }
        measured = measured_of(tmp_path, {"sasrec": [1, 50] * 20, "sasrec+nce": [1, 1] * 20}, **changed)
        assert list(words.measures(measured)) == [
            *("Matched gap", "Matched effect", "Effect of caution"),
            *("AUC in a session", "After a skip", "Pair seen, pair unseen"),
        ]
        chart = skip_measures_chart(measured)
        assert chart is not None
        kinds = {(row["system"], row["tested"]): row["kind"] for row in rows_of(chart.spec)}
        assert kinds["sasrec", "AUC in a session"] == "better"
        assert kinds["sasrec", "effect of caution on HR@10"] == "better"
        assert kinds["sasrec", "effect of caution on HR@1"] == "no difference"
        assert kinds["sasrec", "after skip, pp"] == "better"  # below 0 is better
        assert kinds["sasrec", "matched gap of HR@10"] == "no difference"  # 0 is no reference
        assert kinds["sasrec+nce", "matched effect on HR@10"] == "worse"
        bare = measured_of(tmp_path, {"sasrec": [1, 50] * 20})
        assert (words.measures(bare), skip_measures_chart(bare)) == ({}, None)


def texts_of(svg: str) -> list[str]:
    """The texts of a chart, in order."""
    return [text.text or "" for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def numbers(svg: str) -> list[float]:
    """The numbers on the axes of a chart."""
    return [float(text.replace("\u2212", "-")) for text in texts_of(svg) if re.fullmatch("[\u2212\\d.]+", text)]
