"""The comparison as a page and in words: what it says is what was measured, and it needs nothing else."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")

from tests.comparison_results import gaining, result
from training.evaluation.compare import narrative as words
from training.evaluation.compare.charts import Scale, has_feedback, rounded_up, ticks
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


class TestPage:
    def test_it_needs_nothing_else_and_is_the_same_each_time(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], tmp_path / "a.html", tmp_path / "a.md", tmp_path / "a.json")
        write_report([section], tmp_path / "b.html")
        text = (tmp_path / "a.html").read_text()
        assert text == (tmp_path / "b.html").read_text()
        page = Page(text)
        assert page.outside == []
        assert "url(" not in text
        assert "http://" not in text
        assert "https://" not in text
        assert page.pictures == 8  # seven plots and the hundred sessions
        assert page.tags.count("table") == page.tags.count("caption") == len(section.tables)
        assert len(text) < 1_000_000
        assert not list(tmp_path.glob("*.unfinished"))

    def test_headings_go_down_by_one_level(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], tmp_path / "a.html")
        levels = [int(tag[1]) for tag in Page((tmp_path / "a.html").read_text()).tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_the_scripts_figures_are_those_of_the_report(self, section: ReportSection, tmp_path: Path) -> None:
        write_report([section], tmp_path / "a.html", None, tmp_path / "a.json")
        found = re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text())
        assert found
        protocols = json.loads(found.group(1))["sections"]["s0"]
        questions = json.loads((tmp_path / "a.json").read_text())["questions"]
        assert set(protocols) == {question["protocol"] for question in questions}
        for question in questions:
            systems = protocols[question["protocol"]]["systems"]
            for system, of in question["systems"].items():
                for group, metrics in of["groups"].items():
                    for metric, estimate in metrics.items():
                        if metric != "MAP@10":  # which is MRR@10
                            expected = [estimate["value"], estimate["low"], estimate["high"]]
                            assert systems[system][group][metric] == pytest.approx(expected, abs=1e-5)

    def test_a_name_cannot_break_out_of_the_page(self, tmp_path: Path) -> None:
        files = [result(tmp_path / "a.json", "</script><b>", np.array([1, 2, 30, 4] * 5))]
        write_report(measure(files, 100), tmp_path / "a.html")
        text = (tmp_path / "a.html").read_text()
        assert "<b>" not in text
        assert Page(text).tags.count("script") == 2


class TestWords:
    def test_the_best_is_that_of_played_targets_and_whose_interval_overlaps_is_named(self, tmp_path: Path) -> None:
        played = [1, 50, 1, 50, 1, 50, 50, 50] * 20  # 60 of 80 played targets in the first ten, no skipped one
        skipped = [50, 1, 50, 1, 50, 1, 50, 1] * 20  # the other way round
        measured = measured_of(tmp_path, {"sasrec": skipped, "gru4rec": played, "caser": [*played[::-1][1:], 50]})
        assert words.best_system(measured) == "gru4rec"
        first, _ = words.answer(measured)
        assert first.startswith("The best is gru4rec: 75 of 100 sessions whose next track was played have it among")
        assert "HR@10 0.750" in first
        assert first.endswith("the interval of caser overlaps with it.")

    def test_what_feedback_gains_and_costs_is_counted(self, tmp_path: Path) -> None:
        # Played and skipped targets alternate. With feedback every played target is at 5, every skipped one beyond.
        without = [1, 1, 50, 1] * 50
        measured = measured_of(tmp_path, {"sasrec": without, "sasrec+nce": [5, 50] * 100})
        _, second = words.answer(measured)
        assert second == (
            "Of 1 version with feedback all find more of what is played next (sasrec+nce: HR@10 1.000 "
            "instead of 0.500); all rank what is skipped next lower; the price is the first place, HR@1 of played "
            "targets: sasrec+nce 0.000 instead of 0.500."
        )

    def test_no_gain_is_said(self, tmp_path: Path) -> None:
        measured = measured_of(tmp_path, {"sasrec": [1, 50] * 50, "sasrec+nce": [1, 50] * 50})
        _, second = words.answer(measured)
        assert second.startswith("Of 1 version with feedback none find more of what is played next; none rank what")
        assert "no interval of their hits at the first place" in second

    def test_without_two_versions_nothing_is_said_of_feedback(self, tmp_path: Path) -> None:
        _, second = words.answer(measured_of(tmp_path, {"sasrec": [1, 50] * 50}))
        assert second.startswith("No system came both with feedback and without")

    def test_the_example_is_a_session_of_the_data(self, tmp_path: Path) -> None:
        # Session 3 is the first whose target was played (every second one is skipped) and stood between 2 and 10.
        changed = {"session_length": [12] * 8, "session_skip_rate": [0.25] * 8}
        measured = measured_of(tmp_path, {"sasrec": [1, 4, 7, 1, 50, 1, 2, 1]}, **changed)
        shown, counted = words.example(measured)
        assert shown.startswith("Take session 3 of 8. The system sasrec was shown its 12 plays before the target, 3 of")
        assert "which the listener played, stood at place 7 of that order: a hit at 10, a miss at 1." in shown
        assert counted.endswith("HR@10 = 3 / 4 = 0.750.")

    def test_every_system_is_described(self) -> None:
        from training.evaluation.compare import tables as paper

        for system in [*paper.SYSTEMS, "vmis-knn", "markov", "popularity", "sasrec+nce+published-pairing"]:
            said = words.describe_system(system)
            assert "a system of yours" not in said
            assert (";" in said.removeprefix(words.MODELS.get(system, ""))) == has_feedback(
                system
            ) or system in words.MODELS


class TestDrawing:
    def test_scales_by_hand(self) -> None:
        assert Scale(0, 1, 100, 300)(0.25) == 150
        assert Scale(1, 100, 0, 200, log=True)(10) == 100

    def test_ticks_are_round_and_within(self) -> None:
        assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
        assert ticks(-0.1, 0.1) == [-0.1, -0.05, 0, 0.05, 0.1]

    def test_a_range_is_rounded_up(self) -> None:
        assert [rounded_up(value) for value in (0.0, 0.1, 0.11, 0.6999)] == [0.1, 0.1, 0.2, 0.7]
