"""The page of `segue describe --html`: it says what was counted, and it needs nothing else."""

import itertools
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("altair")
pytest.importorskip("jinja2")

from segue.cli import main
from tests.descriptions import week_of_listening, written
from tests.test_comparison_page import NAMES, Page, rows_of, specs_of
from training import vega
from training.data.describe import texts
from training.data.describe.description import Description
from training.data.describe.page import charts, page
from training.data.describe.statistics import describe
from training.data.log_facts import DataWarning, LogFacts, LogFile

EVERY_CHART = ["lengths", "time-sessions", "time-rate", "position", "previous", "files", "lorenz"]


@pytest.fixture
def week(tmp_path: Path) -> Description:
    return describe(week_of_listening(tmp_path / "week"))


class TestPage:
    def test_it_needs_nothing_else_and_is_the_same_each_time(self, week: Description) -> None:
        text = page(week)
        assert text == page(week)
        found = Page(text)
        assert found.outside == []
        assert "default-src &#39;none&#39;; style-src" in text
        own = text.replace(vega.javascript(), "")
        assert "url(" not in own
        assert set(re.findall(r"https?://[^\"'\s<]*", own)) <= NAMES
        assert found.pictures == len(EVERY_CHART)
        assert found.tags.count("table") == found.tags.count("caption") == len(EVERY_CHART) + 6

    def test_headings_go_down_by_one_level(self, week: Description) -> None:
        levels = [int(tag[1]) for tag in Page(page(week)).tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_it_has_every_warning_and_rule(self, week: Description) -> None:
        text = page(week)
        for warning in week.warnings:
            assert f"<dt>{warning.code}</dt>" in text
        assert week.log is not None
        for step in week.log.steps:
            assert f'<th scope="row">{step.step}</th>' in text
        assert "--max-malformed" in text

    def test_names_and_messages_cannot_break_out_of_the_page(self, tmp_path: Path) -> None:
        bad = "</script><b>"
        log = LogFacts(
            files=[LogFile(name=bad, plays=3, skips=1)], warnings=[DataWarning(code=bad, message=bad)], columns={}
        )
        sessions = [[(0, False), (1, True), (0, False)]] * 3
        dataset = written(tmp_path / bad.strip("</>"), sessions, tracks=[bad, "b"], log=log, options={bad: bad})
        text = page(describe(dataset)).replace(vega.javascript(), "")
        assert "<b>" not in text
        assert Page(text).tags.count("script") == 3

    def test_the_command_writes_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], week: Description) -> None:
        file = tmp_path / "new" / "page.html"
        assert main(["describe", week.path, "--html", str(file)]) == 0
        assert capsys.readouterr().err == f"Written: {file}\n"
        assert file.read_text(encoding="utf-8") == page(week)
        assert [path.name for path in file.parent.iterdir()] == ["page.html"]


class TestCharts:
    def test_the_scripts_figures_are_those_of_the_description(self, week: Description, tmp_path: Path) -> None:
        (tmp_path / "a.html").write_text(page(week))
        specs = specs_of(tmp_path / "a.html")
        assert sorted(specs) == sorted(f"d-{name}" for name in EVERY_CHART)
        for name, rates in (("position", texts.by_position(week)), ("previous", texts.by_previous(week))):
            shown = {row["group"]: row["value"] for row in rows_of(specs[f"d-{name}"])}
            assert shown == {group: pytest.approx(rate.skip_rate, abs=1e-5) for group, rate in rates}
        assert [row["sessions"] for row in rows_of(specs["d-time-sessions"])] == [
            period.sessions for period in week.times.periods
        ]
        assert sum(row["value"] for row in rows_of(specs["d-lengths"])) == pytest.approx(1, abs=1e-3)

    def test_without_a_script_a_mark_tells_its_value(self, week: Description) -> None:
        for chart in charts(week):
            drawn = ElementTree.fromstring(chart.svg())
            titles = [title.text or "" for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
            assert titles, chart.name
        assert titles[-1] == "100.0% of the tracks have 100.0% of the plays"

    def test_every_chart_has_a_table_of_its_values(self, week: Description) -> None:
        for chart in charts(week):
            assert chart.table.rows
            assert {len(row) for row in chart.table.rows} == {len(chart.table.columns)}

    @pytest.mark.parametrize("days", [0, 1, 100, 1_000, 3_000_000])
    def test_a_bar_of_time_ends_where_the_next_may_begin(self, tmp_path: Path, days: int) -> None:
        first = datetime(1, 1, 1, tzinfo=UTC)
        sessions = [[(0, False), (1, True), (0, False)]] * 2
        of = describe(written(tmp_path / "d", sessions, starts=[first, first + timedelta(days=days)]))
        chart = next(chart for chart in charts(of) if chart.name == "time-sessions")
        for row in rows_of(chart.spec):
            assert row["start"] < row["end"]
            assert datetime.fromisoformat(row["end"]).day == 1 or of.times.period in ("day", "week")
        ElementTree.fromstring(chart.svg())

    def test_a_dataset_without_times_files_and_known_outcomes_is_drawn(self, tmp_path: Path) -> None:
        of = describe(written(tmp_path / "d", [[(0, False)]], last_known=[False]))
        assert of.by_position[0].skip_rate is None
        assert [chart.name for chart in charts(of)] == ["lengths", "position", "previous", "lorenz"]
        assert Page(page(of)).pictures == 4

    def test_of_many_files_the_largest_are_drawn(self, tmp_path: Path) -> None:
        files = [LogFile(name=f"{number}.csv", plays=number, skips=0) for number in range(100)]
        of = describe(written(tmp_path / "d", [[(0, False), (1, True)]], log=LogFacts(files=files)))
        chart = next(chart for chart in charts(of) if chart.name == "files")
        names: list[Any] = [row["group"] for row in rows_of(chart.spec)]
        assert names == [f"{number}.csv" for number in range(99, 59, -1)]
        assert json.loads(of.model_dump_json())["by_file"][0]["name"] == "99.csv"
