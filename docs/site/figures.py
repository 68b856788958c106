"""Figures that a document shows, put in when the site is built, so that they are those of benchmarks/results.

A document asks by a comment on a line of its own, `<!-- results: synthetic table -->`: a folder of benchmarks/results,
and the part of its report.
"""

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from docs.site.reference import table
from segue.ranking_metrics import Estimate
from training.evaluation.compare import charts, narrative, tables
from training.evaluation.compare.results import EvaluationResults, Question, SystemResults
from training.evaluation.compare.statistics import Difference, Pair
from training.evaluation.compare.tables import ComparisonData

_ASKED: Final = re.compile(r"^<!-- results: (\w+) (\w+) -->$", re.MULTILINE)
_FIELDS: Final = ("source", "fingerprint", "split", "part", "protocol")
_PLOTS: Final[dict[str, Callable[[ComparisonData], charts.Plot | None]]] = {
    "systems": charts.systems_plot,
    "feedback": charts.feedback_plot,
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
        if wanted in _PLOTS:
            plot = _PLOTS[wanted](measured(results, name))
            assert plot is not None, (name, wanted)
            says = _says(plot)
            return f"![{plot.title}: {says}]({folder}{name}-{wanted}.svg)\n\n*{plot.title}.* {says} {plot.says}"
        return _TEXTS[wanted](measured(results, name))

    return _ASKED.sub(answer, markdown)


def pictures(results: Path) -> dict[str, str]:
    """Every picture that a document may ask for, as a file of its own."""
    css = resources.files("training.evaluation.compare").joinpath("page.css").read_text(encoding="utf-8")
    light = "".join(rule for rule in re.split(r"(?<=\n})\n|(?<=})\n", css) if not rule.lstrip().startswith("@"))
    found = {}
    for name in ("synthetic", "mssd"):
        for wanted, draw in _PLOTS.items():
            plot = draw(measured(results, name))
            if plot is not None:
                svg = plot.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
                found[f"{name}-{wanted}.svg"] = svg.replace(">", f"><style>{light}</style>", 1)
    return found


def _says(plot: charts.Plot) -> str:
    found = re.search(r'aria-label="([^"]*)"', plot.svg)
    assert found is not None
    return found.group(1)


def _answer(of: ComparisonData) -> str:
    return " ".join(narrative.answer(of))


def _table(of: ComparisonData) -> str:
    shown = (("played", "HR@10"), ("skipped", "HR@10"), ("played", "HR@1"), ("skipped", "MRR@10"))
    rows = [
        [system, *(_cell(of.estimates[system, group, metric]) for group, metric in shown)]
        for system in [*tables.SYSTEMS, *charts.BASELINES]
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
