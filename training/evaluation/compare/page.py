"""The comparison as one HTML page that needs nothing else and asks nothing of a network: answers, plots, tables, words.

Without a script every table and plot is there. With it tables sort and filter, and plots change metric and group.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from segue.ranking_metrics import METRICS
from training.evaluation.compare import narrative as words
from training.evaluation.compare.charts import css_of, family_of, first_shown, has_feedback, plots
from training.evaluation.compare.drawing import MARKS
from training.evaluation.compare.results import GROUPS
from training.evaluation.compare.tables import Measured

if TYPE_CHECKING:
    from training.evaluation.compare.report import Section


def page(sections: "Sequence[Section]") -> str:
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
        described={system: words.described(system) for system in names},
        glossary=words.GLOSSARY,
        data=Markup(_json(data)),  # noqa: S704 (escaped by _json)
        style=Markup(style),  # noqa: S704 (a file of this package)
        script=Markup(script),  # noqa: S704 (a file of this package)
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}",
    )


def _shown(section: "Section", anchor: str) -> dict[str, Any]:
    measured = words.chosen(section.by_protocol)
    asked, group = measured.asked, words.wanted_group(measured)
    return {
        "anchor": anchor,
        "section": section,
        "systems": {s: (family_of(s), css_of(s), has_feedback(s)) for s in asked.systems},
        "plots": plots(section.by_protocol),
        "first_shown": first_shown(measured),
        "groups": [g for g in GROUPS if asked.members(g).any()],
        "tested": [(f"{group} {metric}", f"{metric}, {group} targets") for group, metric in _tested(measured)],
        "metrics": list(METRICS),
        "answer": words.answer(measured),
        "example": words.example(measured),
        "hits": round(100 * measured.estimates[words.best_system(measured), group, "HR@10"].value),
        "of_100": words.of_sessions(group, "100"),
        "sessions": len(asked.target_skipped),
        "skipped": 100 * float(asked.target_skipped.mean()),
        "data": {protocol: _data(of) for protocol, of in section.by_protocol.items()},
    }


def _tested(measured: Measured) -> list[tuple[str, str]]:
    """What differences of feedback were tested on, what the plot first shows at the head."""
    found = dict.fromkeys((d.group, d.metric) for d in measured.differences if d.pair.why == "feedback")
    return sorted(found, key=lambda tested: tested != ("played", "HR@10"))


def _data(measured: Measured) -> dict[str, Any]:
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
