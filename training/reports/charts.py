"""Parts of charts: colours, marks, menus, tooltips, and a chart with the table of its values.

Charts are Vega-Lite specifications, made with Altair. A specification is used twice. It is rendered to SVG when the
page is written, for readers without JavaScript, and Vega-Embed makes it interactive in the browser. Colours are
variables of page.css, so charts follow light mode, dark mode and print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import altair as alt

from training import vega
from training.reports.tables import Table

ROW: Final = 26  # pixels from one row to the next
# Colours are variables of page.css.
CONFIG: Final[dict[str, Any]] = {
    "background": "transparent",
    "font": "sans-serif",
    "padding": {"left": 32, "top": 5, "right": 20, "bottom": 5},  # a browser's font may be wider than the measured one
    "view": {"stroke": None},
    "axisQuantitative": {"tickCount": 6},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--line)",
        "domainColor": "var(--quiet)",
        "tickColor": "var(--quiet)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 260,
    },
    "legend": {
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "orient": "top",
        "columns": 5,
        "columnPadding": 14,
    },
}


def with_interval(form: str) -> str:
    """A Vega expression: value and interval of a row as text, in a D3 number format."""
    value, low, high = (f"format(datum.{name}, '{form}')" for name in ("value", "low", "high"))
    return f"{value} + ' [' + {low} + ', ' + {high} + ']'"


def menu(name: str, label: str, options: Sequence[str]) -> alt.Parameter:
    """A variable of the chart that the reader sets with a menu; the first option is the default, and needs no menu."""
    if len(options) == 1:
        return alt.param(name=name, value=options[0])
    return alt.param(name=name, value=options[0], bind=alt.binding_select(options=list(options), name=f"{label} "))


def interval_rule(along: Literal["x", "y"]) -> alt.Chart:
    """Lines from `low` to `high`."""
    rule: alt.Chart = alt.Chart().mark_rule(strokeWidth=2, aria=False)
    drawn: alt.Chart = rule.encode(x="low:Q", x2="high:Q") if along == "x" else rule.encode(y="low:Q", y2="high:Q")
    return drawn


def points(**channels: Any) -> alt.Chart:
    """Points that are described by the field `says`."""
    drawn: alt.Chart = alt.Chart().mark_point(filled=True, size=70, opacity=1).encode(description="says:N", **channels)
    return drawn


def colours(field: str, variables: Mapping[str, str], legend: Sequence[str] | None = None) -> alt.Color:
    """The colour of each value of a field, as a variable of the page's style sheet. The legend may leave values out."""
    shown = alt.Legend(title=None, values=list(legend or variables))
    return alt.Color(field, legend=shown, scale=scale({name: f"var(--{of})" for name, of in variables.items()}))


def shapes(field: str, by_value: Mapping[str, str], legend: Sequence[str] | None = None) -> alt.Shape:
    """The shape of each value of a field."""
    return alt.Shape(field, legend=alt.Legend(title=None, values=list(legend or by_value)), scale=scale(by_value))


def scale(values: Mapping[str, Any]) -> alt.Scale:
    """A scale with one colour, shape or dash for each value."""
    return alt.Scale(domain=list(values), range=list(values.values()))


def tooltip(*fields: str, **titled: str) -> list[alt.Tooltip]:
    """The fields of a tooltip; keywords give a title."""
    return [
        *(alt.Tooltip(f"{name}:N") for name in fields),
        *(alt.Tooltip(f"{f}:N", title=t) for f, t in titled.items()),
    ]


def specification(chart: Any, description: str) -> dict[str, Any]:
    """The finished chart as Vega-Lite, checked against its schema."""
    made: dict[str, Any] = chart.properties(description=description).configure(**CONFIG).to_dict()
    return made


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, the sentences around it and a table of the values that it shows first."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    table: Table

    @property
    def description(self) -> str:
        """What the chart shows, for readers who do not see it."""
        return str(self.spec["description"])

    def svg(self, css: str = "") -> str:
        """The chart without menus; `css` is a style sheet to include."""
        return vega.svg(self.spec, css)
