"""The comparison as one HTML page that needs nothing else: tables, plots and what differs from the paper."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from training.comparison.plots import plots

if TYPE_CHECKING:
    from training.comparison.report import Section


def page(sections: "Sequence[Section]") -> str:
    """The page. The same results give the same text."""
    environment = Environment(
        loader=PackageLoader("training.comparison", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["bold"] = _bold
    shown = [
        {"section": section, "plots": plots(section.by_protocol), "anchor": f"s{i}"}
        for i, section in enumerate(sections)
    ]
    return environment.get_template("page.html.jinja").render(shown=shown)


def _bold(cell: str) -> Markup:
    """A cell's text, what stands between two ** in bold."""
    return Markup(re.sub(r"\*\*(.*?)\*\*", r"<strong>\1</strong>", str(escape(cell))))  # noqa: S704 (escaped before)
