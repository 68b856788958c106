"""A comparison as one HTML page, which needs no other file and no network.

Without JavaScript, the page shows every table and chart. With it, charts have menus and tooltips, and tables can be
sorted. The content security policy allows exactly the page's own style sheet and scripts, so Vega interprets the
expressions of its charts instead of compiling them.
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

from training import vega
from training.evaluation.compare import narrative
from training.evaluation.compare.chart_parts import family_of, has_feedback
from training.evaluation.compare.charts import charts, share_of_100

if TYPE_CHECKING:
    from training.evaluation.compare.report import ReportSection


def page(sections: "Sequence[ReportSection]") -> str:
    """Render the page. The same results give the same text."""
    environment = Environment(
        loader=PackageLoader("training.evaluation.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bold"] = _bold
    parts = [_part(section, f"s{number}") for number, section in enumerate(sections)]
    specs = {f"{part['anchor']}-{chart.name}": chart.spec for part in parts for chart in part["charts"]}
    style, script, library = _text("page.css"), _text("page.js"), vega.javascript()
    return environment.get_template("page.html.jinja").render(
        parts=parts,
        example_svg=Markup(share_of_100(parts[0]["hits"])),  # noqa: S704 (rendered by Vega)
        systems={system: narrative.describe_system(system) for part in parts for system in part["systems"]},
        glossary=narrative.GLOSSARY,
        charts=Markup(_json(specs)),  # noqa: S704 (escaped by _json)
        style=Markup(style),  # noqa: S704 (a file of this package)
        script=Markup(script),  # noqa: S704 (a file of this package)
        library=Markup(library),  # noqa: S704 (from a package, and without `</script`: see training.vega)
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)} {_source(library)}",
    )


def _part(section: "ReportSection", anchor: str) -> dict[str, Any]:
    measured = narrative.chosen(section.by_protocol)
    asked, group = measured.asked, narrative.wanted_group(measured)
    return {
        "anchor": anchor,
        "section": section,
        "systems": {system: (family_of(system), has_feedback(system)) for system in asked.systems},
        "charts": charts(section.by_protocol),
        "answer": narrative.answer(measured),
        "example": narrative.example(measured),
        "hits": round(100 * measured.estimates[narrative.best_system(measured), group, "HR@10"].value),
        "of_100": narrative.of_sessions(group, "100"),
        "sessions": len(asked.target_skipped),
        "skipped": 100 * float(asked.target_skipped.mean()),
    }


def _text(name: str) -> str:
    return "\n" + resources.files("training.evaluation.compare").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The source of a content security policy that allows this text only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the HTML element that contains it."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _bold(cell: str) -> Markup:
    """A cell's text; text between two ** is bold."""
    return Markup(re.sub(r"\*\*(.*?)\*\*", r"<strong>\1</strong>", str(escape(cell))))  # noqa: S704 (escaped before)
