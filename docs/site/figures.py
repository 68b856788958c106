"""Figures that a document shows, put in when the site is built, so that they are those of benchmarks/results.

A document asks by a comment on a line of its own, `<!-- results: synthetic table -->`: a folder of benchmarks/results,
and the part of its report.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.skip_table import table_of
from docs.site.reference import table
from segue.ranking_metrics import Estimate
from training.evaluation.compare import charts, narrative, tables
from training.evaluation.compare.line_charts import BASELINES
from training.evaluation.compare.results import EvaluationResults, Question, SystemResults
from training.evaluation.compare.statistics import HYBRIDS, Difference, Pair
from training.evaluation.compare.tables import ComparisonData
from training.reports.charts import Chart

_ASKED: Final = re.compile(r"^<!-- results: (\w+) (\w+) -->$", re.MULTILINE)
_FIELDS: Final = ("source", "fingerprint", "split", "part", "protocol")
_HYBRIDS: Final = [f"{name}{loss}" for name in HYBRIDS for loss in ("", "+nce")]
_CHARTS: Final[dict[str, Callable[[dict[str, ComparisonData]], Chart | None]]] = {
    "systems": partial(charts.systems_chart, every=True),
    "feedback": charts.feedback_chart,
    "versions": charts.versions_chart,
}


def measured(results: Path, name: str) -> ComparisonData:
    """The first question of a report: estimates and differences, without the ranks that they come from."""
    report = json.loads((results / name / "report.json").read_text(encoding="utf-8"))
    question = report["questions"][0]
    assert (question["split"], question["protocol"]) == ("last-play", "full"), name
    nothing = np.zeros(0)
    asked = EvaluationResults(
        Question(*(question[name] for name in _FIELDS)),
        nothing.astype(bool),
        nothing.astype(int),
        nothing.astype(int),
        nothing,
        systems={system: SystemResults() for system in question["systems"]},
    )
    estimates = {
        (system, group, metric): Estimate(**estimate)
        for system, of in question["systems"].items()
        for group, metrics in of["groups"].items()
        for metric, estimate in metrics.items()
    }
    return ComparisonData(asked, estimates, [_difference(difference) for difference in question["differences"]])


def _difference(content: dict[str, Any]) -> Difference:
    facts = {name: content[name] for name in ("group", "metric", "before", "p", "p_corrected")}
    return Difference(pair=Pair(**content["pair"]), estimate=Estimate(**content["estimate"]), **facts)


def filled(markdown: str, results: Path, folder: str = "") -> str:
    """The document with what it asks for. Pictures are in `folder`, seen from the document. Raises KeyError."""

    def answer(asked: re.Match[str]) -> str:
        name, wanted = asked.groups()
        if wanted == "skips":
            return table_of(results / name / "skip_table.json")
        if wanted in _CHARTS:
            chart = _CHARTS[wanted]({"full": measured(results, name)})
            assert chart is not None, (name, wanted)
            picture = f"![{chart.title}: {chart.description}]({folder}{name}-{wanted}.svg)"
            return f"{picture}\n\n*{chart.title}.* {chart.description} {chart.caption}"
        return _TEXTS[wanted](measured(results, name))

    return _ASKED.sub(answer, markdown)


def pictures(results: Path) -> dict[str, str]:
    """Every picture that a document may ask for, as an SVG file in light mode."""
    css = resources.files("training.reports").joinpath("page.css").read_text(encoding="utf-8")
    colours = css[: css.index("}") + 1]  # the first rule of the page defines the colours of light mode
    found = {}
    for name in ("synthetic", "mssd"):
        for wanted, draw in _CHARTS.items():
            chart = draw({"full": measured(results, name)})
            if chart is not None:
                found[f"{name}-{wanted}.svg"] = chart.svg(colours)
    return found


def _answer(of: ComparisonData) -> str:
    return " ".join(narrative.answer(of))


def _table(of: ComparisonData) -> str:
    shown = (("played", "HR@10"), ("skipped", "HR@10"), ("played", "HR@1"), ("skipped", "MRR@10"))
    rows = [
        [system, *(_cell(of.estimates[system, group, metric]) for group, metric in shown)]
        for system in [*tables.SYSTEMS, *_HYBRIDS, *BASELINES]
        if system in of.asked.systems
    ]
    return table(("system", *(f"{metric}, {group}" for group, metric in shown)), rows)


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _open(of: ComparisonData) -> str:
    rows = [
        [d.pair.why, d.metric, d.group, f"{d.estimate.value:+.4f}", f"{d.p_corrected:.4f}", d.verdict()]
        for d in of.differences
        if d.pair.why not in ("feedback", "chain")
    ]
    return table(("question", "figure", "targets", "difference", "p, corrected", "answer"), rows)


_TEXTS: Final[dict[str, Callable[[ComparisonData], str]]] = {"answer": _answer, "table": _table, "open": _open}
