"""Reports of a comparison: JSON for programs, Markdown for documents, and one HTML page.

The page needs no other file and no network. Without a script, every table and chart is there; with it, tables sort and
filter, and charts switch metric and group.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from segue.ranking_metrics import METRICS
from training.evaluation.compare import narrative
from training.evaluation.compare.charts import MARKS, css_of, family_of, first_shown, has_feedback, plots
from training.evaluation.compare.results import GROUPS, read_results
from training.evaluation.compare.statistics import NEURAL, PERMUTATIONS, differences, estimates
from training.evaluation.compare.tables import (
    ComparisonData,
    Table,
    dataset_of,
    differences_table,
    not_better_than_markov,
    open_questions,
    protocols_table,
    systems_table,
    table_1,
    table_2,
)


def page(sections: "Sequence[ReportSection]") -> str:
    """The page. The same results give the same text."""
    environment = Environment(
        loader=PackageLoader("training.evaluation.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bold": _bold, "list_twice": lambda value: (value, value)}
    shown = [_shown(section, f"s{i}") for i, section in enumerate(sections)]
    names = {system: of for part in shown for system, of in part["systems"].items()}
    data = {
        "sections": {part["anchor"]: part["data"] for part in shown},
        "systems": {s: {"family": family, "fed": "fed" if fed else "plain"} for s, (family, _, fed) in names.items()},
        "marks": MARKS,
    }
    style, script = _text("page.css"), _text("page.js")
    return environment.get_template("page.html.jinja").render(
        shown=shown,
        described={system: narrative.describe_system(system) for system in names},
        glossary=narrative.GLOSSARY,
        data=Markup(_json(data)),  # noqa: S704 (escaped by _json)
        style=Markup(style),  # noqa: S704 (a file of this package)
        script=Markup(script),  # noqa: S704 (a file of this package)
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}",
    )


def _shown(section: "ReportSection", anchor: str) -> dict[str, Any]:
    measured = narrative.chosen(section.by_protocol)
    asked, group = measured.asked, narrative.wanted_group(measured)
    return {
        "anchor": anchor,
        "section": section,
        "systems": {s: (family_of(s), css_of(s), has_feedback(s)) for s in asked.systems},
        "plots": plots(section.by_protocol),
        "first_shown": first_shown(measured),
        "groups": [g for g in GROUPS if asked.members(g).any()],
        "tested": [(f"{group} {metric}", f"{metric}, {group} targets") for group, metric in _tested(measured)],
        "metrics": list(METRICS),
        "answer": narrative.answer(measured),
        "example": narrative.example(measured),
        "hits": round(100 * measured.estimates[narrative.best_system(measured), group, "HR@10"].value),
        "of_100": narrative.of_sessions(group, "100"),
        "sessions": len(asked.target_skipped),
        "skipped": 100 * float(asked.target_skipped.mean()),
        "data": {protocol: _data(of) for protocol, of in section.by_protocol.items()},
    }


def _tested(measured: ComparisonData) -> list[tuple[str, str]]:
    """What differences of feedback were tested on, what the plot first shows at the head."""
    found = dict.fromkeys((d.group, d.metric) for d in measured.differences if d.pair.why == "feedback")
    return sorted(found, key=lambda tested: tested != ("played", "HR@10"))


def _data(measured: ComparisonData) -> dict[str, Any]:
    """What the script moves marks to: every estimate, and the differences that feedback makes."""
    systems: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (system, group, metric), e in measured.estimates.items():
        values = [round(v, 5) for v in (e.value, e.low, e.high)]
        systems.setdefault(system, {}).setdefault(group, {})[metric] = values
    feedback: dict[str, dict[str, Any]] = {}
    for d in measured.differences:
        if d.pair.why == "feedback":
            values = [round(v, 5) for v in (d.estimate.value, d.estimate.low, d.estimate.high)]
            feedback.setdefault(f"{d.group} {d.metric}", {})[d.pair.system] = [*values, d.pair.against, d.verdict()]
    return {"systems": systems, "feedback": feedback}


def _text(name: str) -> str:
    return "\n" + resources.files("training.evaluation.compare").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """What lets a content policy take this text alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _bold(cell: str) -> Markup:
    """A cell's text, what stands between two ** in bold."""
    return Markup(re.sub(r"\*\*(.*?)\*\*", r"<strong>\1</strong>", str(escape(cell))))  # noqa: S704 (escaped before)


@dataclass(frozen=True)
class ReportSection:
    """What is shown of one dataset and split: a heading, sentences, and tables in order."""

    source: str
    split: str
    part: str
    by_protocol: Mapping[str, ComparisonData]
    sentences: Sequence[str]
    tables: Sequence[Table]

    @property
    def heading(self) -> str:
        """What stands above it."""
        whole = "sessions that training never saw" if self.split == "new-sessions" else "last play of each session"
        return f"{self.source}: {whole} ({self.split} split, {self.part} targets)"


def measure(paths: Sequence[Path], permutations: int = PERMUTATIONS) -> list[ReportSection]:
    """Read results and compute everything that is shown. Raises InputError."""
    compared = read_results(paths)
    sections = []
    for key, questions in groupby(compared, key=lambda q: (q.source, q.fingerprint, q.part, q.split)):
        by_protocol = {
            question.protocol: ComparisonData(
                compared[question],
                estimates(compared[question], list(METRICS)),
                differences(compared[question], permutations),
            )
            for question in questions
        }
        sections.append(_section(key[0], key[3], key[2], by_protocol))
    return sections


def _section(source: str, split: str, part: str, by_protocol: Mapping[str, ComparisonData]) -> ReportSection:
    beside = dataset_of(source)
    tables: list[Table | None] = [table_1(by_protocol, beside), table_2(by_protocol, beside)]
    for measured in by_protocol.values():
        tables += [
            systems_table(measured),
            differences_table(measured, "feedback", "With feedback against without"),
            differences_table(measured, "chain", "Neural systems against the Markov chain"),
            open_questions(measured),
        ]
    tables.append(protocols_table(by_protocol))
    kept = [table for table in tables if table is not None and table.rows and len(table.columns) > 2]
    return ReportSection(source, split, part, by_protocol, sentences(by_protocol), kept)


def sentences(by_protocol: Mapping[str, ComparisonData]) -> list[str]:
    """What came out, in words made from the figures of the full ranking (of the first protocol without it)."""
    measured = narrative.chosen(by_protocol)
    found = list(narrative.answer(measured))
    for metric in ("HR@1", "HR@10"):
        behind = not_better_than_markov(measured, metric)
        if "markov" in measured.asked.systems and any(name.startswith(NEURAL) for name in measured.asked.systems):
            found.append(f"Neural systems that do not beat the Markov chain's {metric}: {', '.join(behind) or 'none'}.")
    return found


def as_markdown(sections: Sequence[ReportSection]) -> str:
    """All tables with what came out in words."""
    parts = []
    for section in sections:
        parts += [f"## {section.heading}", "", " ".join(section.sentences), ""]
        parts += [table.markdown() for table in section.tables]
    return "\n".join(parts)


def as_json(sections: Sequence[ReportSection]) -> dict[str, Any]:
    """Every estimate and difference, without the ranks that they come from."""
    return {
        "questions": [
            {
                **measured.asked.question._asdict(),
                "sessions": {group: int(measured.asked.members(group).sum()) for group in ("all", "played", "skipped")},
                "systems": {system: _system_json(measured, system) for system in measured.asked.systems},
                "differences": [
                    asdict(difference) | {"verdict": difference.verdict()} for difference in measured.differences
                ],
            }
            for section in sections
            for measured in section.by_protocol.values()
        ]
    }


def _system_json(measured: ComparisonData, system: str) -> dict[str, Any]:
    answered = measured.asked.systems[system]
    groups: dict[str, dict[str, Any]] = {}
    for (name, group, metric), estimate in measured.estimates.items():
        if name == system:
            groups.setdefault(group, {})[metric] = asdict(estimate)
    return {"seeds": sorted(answered.ranks), "groups": groups, "training": answered.training}


def write_report(
    sections: Sequence[ReportSection],
    html: Path | None = None,
    markdown: Path | None = None,
    as_json_file: Path | None = None,
) -> None:
    """Write what is asked for, each file whole or not at all."""
    if html is not None:
        _write(html, page(sections))
    if markdown is not None:
        _write(markdown, as_markdown(sections))
    if as_json_file is not None:
        _write(as_json_file, json.dumps(as_json(sections), indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)
