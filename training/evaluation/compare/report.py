"""Reports of a comparison: JSON for programs, Markdown for documents, and one HTML page that needs no network.

training.reports.html describes such pages.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from segue.ranking_metrics import METRICS
from training.data.dataset import source_title
from training.evaluation.compare import narrative
from training.evaluation.compare.charts import charts, share_of_100
from training.evaluation.compare.line_charts import family_of, has_feedback
from training.evaluation.compare.results import read_results
from training.evaluation.compare.statistics import (
    LIST_LENGTHS,
    NEURAL,
    PERMUTATIONS,
    breakdowns,
    differences,
    estimates,
    group_estimates,
    hit_curves,
    lead,
    skip_gaps,
)
from training.evaluation.compare.tables import (
    ComparisonData,
    dataset_of,
    differences_table,
    groups_table,
    not_better_than_markov,
    open_questions,
    protocols_table,
    skips_table,
    systems_table,
    table_1,
    table_2,
)
from training.reports.html import html_page, write_text
from training.reports.tables import Table


@dataclass(frozen=True)
class ReportSection:
    """The report of one dataset and split: a heading, sentences and tables."""

    source: str
    split: str
    part: str
    by_protocol: Mapping[str, ComparisonData]
    sentences: Sequence[str]
    tables: Sequence[Table]

    @property
    def setting(self) -> str:
        """The split, and the policy for repeated tracks unless it is the default."""
        return f"{self.split}{narrative.chosen(self.by_protocol).asked.question.policy}"

    @property
    def heading(self) -> str:
        """The title of the section, in words."""
        asked = narrative.chosen(self.by_protocol).asked
        known = " of known outcome" if asked.question.targets == "known" else ""
        whole = f"last play{known} of each session"
        if self.split == "new-sessions":
            whole = "sessions that training never saw" + (f", last play{known}" if known else "")
        part = "" if self.part == "test" else f", {self.part} targets"
        return f"{asked.title or source_title(self.source)}: {whole}{part}{asked.question.policy}"


def measure(paths: Sequence[Path], permutations: int = PERMUTATIONS) -> list[ReportSection]:
    """Read result files and compute all statistics. Raises InputError."""
    compared = read_results(paths)
    sections = []
    for key, questions in groupby(compared, key=lambda q: q._replace(protocol="")):
        by_protocol = {
            question.protocol: ComparisonData(
                compared[question],
                estimates(compared[question], list(METRICS)),
                differences(compared[question], permutations),
                hit_curves(compared[question]),
                breakdowns(compared[question]),
                group_estimates(compared[question]),
                skip_gaps(compared[question]),
                lead(compared[question], permutations),
            )
            for question in questions
        }
        sections.append(_section(key.source, key.split, key.part, by_protocol))
    return sections


def _section(source: str, split: str, part: str, by_protocol: Mapping[str, ComparisonData]) -> ReportSection:
    beside = dataset_of(source)
    tables: list[Table | None] = [table_1(by_protocol, beside), table_2(by_protocol, beside)]
    for measured in by_protocol.values():
        tables += [
            systems_table(measured),
            groups_table(measured) if measured.groups else None,
            skips_table(measured) if measured.gaps else None,
            differences_table(measured, "feedback", "With feedback against without"),
            differences_table(measured, "chain", "Neural systems, hybrids and ngram against the Markov chain"),
            open_questions(measured),
        ]
    tables.append(protocols_table(by_protocol))
    kept = [table for table in tables if table is not None and table.rows and len(table.columns) > 2]
    return ReportSection(source, split, part, by_protocol, sentences(by_protocol), kept)


def sentences(by_protocol: Mapping[str, ComparisonData]) -> list[str]:
    """The findings in words, from the full ranking if it was measured, else from the first protocol."""
    measured = narrative.chosen(by_protocol)
    found = [*narrative.answer(measured), *measured.asked.notes]
    for metric in ("HR@1", "HR@10"):
        behind = not_better_than_markov(measured, metric)
        if "markov" in measured.asked.systems and any(name.startswith(NEURAL) for name in measured.asked.systems):
            found.append(f"Neural systems that do not beat the Markov chain's {metric}: {', '.join(behind) or 'none'}.")
    return found


def as_markdown(sections: Sequence[ReportSection]) -> str:
    """The findings and all tables."""
    parts = []
    for section in sections:
        parts += [f"## {section.heading}", "", " ".join(section.sentences), ""]
        parts += [table.markdown() for table in section.tables]
    return "\n".join(parts)


def as_json(sections: Sequence[ReportSection]) -> dict[str, Any]:
    """Every estimate and difference that the page shows. The ranks of the sessions are left out."""
    return {
        "questions": [
            {
                **measured.asked.question._asdict(),
                "title": measured.asked.title,
                "lead": None if measured.lead is None else asdict(measured.lead),
                "notes": measured.asked.notes,
                "sessions": {group: int(measured.asked.members(group).sum()) for group in ("all", "played", "skipped")},
                "systems": {system: _system_json(measured, system) for system in measured.asked.systems},
                "differences": [
                    asdict(difference) | {"verdict": difference.verdict()} for difference in measured.differences
                ],
                "breakdowns": [asdict(breakdown) for breakdown in measured.breakdowns],
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
    curve = dict(zip(map(str, LIST_LENGTHS), measured.hit_curves.get(system, ()), strict=False))
    by_group: dict[str, dict[str, Any]] = {}
    for (name, group, metric), estimate in measured.groups.items():
        if name == system:
            by_group.setdefault(group, {})[metric] = asdict(estimate)
    gaps = measured.gaps.get(system)
    return {
        "seeds": sorted(answered.ranks),
        "groups": groups,
        "training": answered.training,
        "hit_rate_at": curve,
        "target_groups": by_group,
        "gaps": None if gaps is None else asdict(gaps),
        "skip_measures": answered.skip_measures,
    }


def write_report(
    sections: Sequence[ReportSection],
    html: Path | None = None,
    markdown: Path | None = None,
    as_json_file: Path | None = None,
) -> None:
    """Write the requested files. Each replaces an earlier file only when it is complete."""
    if html is not None:
        write_text(html, page(sections))
    if markdown is not None:
        write_text(markdown, as_markdown(sections))
    if as_json_file is not None:
        write_text(as_json_file, json.dumps(as_json(sections), indent=1) + "\n")


# The folded parts of a section of the page: heading, and the charts and tables of which it needs one.
_CONTENTS: Final[dict[str, tuple[str, set[str] | None]]] = {
    "all": ("Every system", None),
    "gain": ("Gain of skip feedback", {"feedback", "versions"}),
    "skips": ("Skip measures and groups of targets", {"skip-measures", "Skip measures", "Groups of targets"}),
    "groups": ("By list length, session and training time", None),
    "tests": ("Significance tests and the paper's tables", None),
}


def page(sections: Sequence[ReportSection]) -> str:
    """Render the page. The same results give the same text."""
    parts = [_part(section, f"s{number}") for number, section in enumerate(sections)]
    return html_page(
        "training.evaluation.compare",
        {f"{part['anchor']}-{chart.name}": chart.spec for part in parts for chart in part["charts"]},
        parts=parts,
        example_svg=Markup(share_of_100(parts[0]["hits"])),  # noqa: S704 (rendered by Vega)
        systems={system: narrative.describe_system(system) for part in parts for system in part["systems"]},
        glossary=narrative.GLOSSARY,
    )


def _part(section: ReportSection, anchor: str) -> dict[str, Any]:
    measured = narrative.chosen(section.by_protocol)
    asked, drawn = measured.asked, charts(section.by_protocol)
    found = {chart.name for chart in drawn} | {table.title.split(",")[0] for table in section.tables}
    return {
        "anchor": anchor,
        "section": section,
        "systems": {system: (family_of(system), has_feedback(system)) for system in asked.systems},
        "charts": drawn,
        "contents": {name: heading for name, (heading, of) in _CONTENTS.items() if of is None or of & found},
        "measures": narrative.measures(measured),
        "answer": narrative.answer(measured),
        "example": narrative.example(measured),
        "hits": round(100 * measured.hit_rate(narrative.best_system(measured)).value),
        "of_100": narrative.of_sessions(measured.wanted_group, "100"),
        "sessions": len(asked.target_skipped),
        "skipped": 100 * float(asked.members("skipped").mean()),
    }
