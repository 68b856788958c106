"""HTML pages of one file that need no network.

A package has a template `page.html.jinja` that extends `report.html.jinja`. Without JavaScript, the page shows every
table and chart. With it, charts have menus and tooltips, and tables can be sorted. The content security policy allows
exactly the page's own style sheet and scripts, so Vega interprets the expressions of its charts instead of compiling
them.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from training import vega


def html_page(package: str, charts: Mapping[str, Mapping[str, Any]], **facts: Any) -> str:
    """Render the template `page.html.jinja` of a package with these facts. The same facts give the same text.

    `charts` are Vega-Lite specifications by the id of their figure.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("training.reports", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bold"] = _bold
    style, script, library = text_of("page.css"), text_of("page.js"), vega.javascript()
    return environment.get_template("page.html.jinja").render(
        charts=Markup(_json(charts)),  # noqa: S704 (escaped by _json)
        style=Markup(style),  # noqa: S704 (a file of this package)
        script=Markup(script),  # noqa: S704 (a file of this package)
        library=Markup(library),  # noqa: S704 (from a package, and without `</script`: see training.vega)
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)} {_source(library)}",
        **facts,
    )


def write_text(path: Path, text: str) -> None:
    """Write a file. It replaces an earlier file only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def text_of(name: str) -> str:
    """Return the style sheet or the script of all pages."""
    return "\n" + resources.files("training.reports").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The source of a content security policy that allows this text only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the HTML element that contains it."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _bold(cell: str) -> Markup:
    """A cell's text; text between two ** is bold."""
    return Markup(re.sub(r"\*\*(.*?)\*\*", r"<strong>\1</strong>", str(escape(cell))))  # noqa: S704 (escaped before)
