"""Charts of a comparison with a line or a point for each system: by list length, group of sessions or training time.

The first functions are parts of all charts: the fields of a row of data, and what a system's name tells.
"""

from collections.abc import Mapping
from typing import Any, Final

import altair as alt
import numpy as np

from segue.ranking_metrics import Estimate
from training.evaluation.compare import tables
from training.evaluation.compare.statistics import LIST_LENGTHS, Breakdown
from training.evaluation.compare.tables import ComparisonData
from training.reports.charts import (
    Chart,
    colours,
    interval_rule,
    menu,
    points,
    scale,
    specification,
    tooltip,
    with_interval,
)
from training.reports.tables import Table

BASELINES: Final = ("ngram", "vmis-knn", "markov", "popularity")

BEST: Final = "best of each model, with and without feedback"
EVERY: Final = "every system"
# The title and the axis of each breakdown.
BREAKDOWN_TITLES: Final = {
    "session_length": ("Hit rate by session length", "plays before the target"),
    "session_skip_rate": ("Hit rate by skip rate", "share of skipped plays before the target"),
    "target_plays": ("Hit rate by popularity of the target", "plays of the target in the training data"),
}
_WIDTH: Final = 520
_HEIGHT: Final = 280
FEW: Final = 8  # up to this number, all systems have a line


def family_of(system: str) -> str:
    """The model that a system's name begins with, "other" for an unknown one."""
    return next((name for name in (*tables.FAMILIES, "hybrid", *BASELINES) if system.startswith(name)), "other")


def has_feedback(system: str) -> bool:
    """Whether the system was trained with skips as negative feedback."""
    return "+nce" in system or system.endswith(("-bl", "-nr"))


def system_fields(system: str) -> dict[str, str]:
    """The fields of a row that the name of a system tells."""
    return {"system": system, "model": family_of(system), "feedback": "with" if has_feedback(system) else "without"}


def value_fields(estimate: Estimate) -> dict[str, float]:
    """The fields of a row that hold an estimate."""
    return {"value": round(estimate.value, 5), "low": round(estimate.low, 5), "high": round(estimate.high, 5)}


def cell(estimate: Estimate, sign: str = "") -> str:
    """A value with its interval, as the tables of charts show it."""
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def hit_curves(measured: ComparisonData) -> Chart:
    """HR@k of every system for the k of LIST_LENGTHS."""
    curves = measured.hit_curves
    rows = [
        _line_row(measured, system) | {"k": k, "value": round(value, 5)}
        for system, values in curves.items()
        for k, value in zip(LIST_LENGTHS, values, strict=True)
    ]
    base = (
        _lines(measured, rows, "datum.system + ': HR@' + datum.k + ' ' + format(datum.value, '.3f')")
        .transform_calculate(interval="format(datum.value, '.3f')")
        .encode(
            x=alt.X(
                "k:Q",
                title="k, the length of the list",
                scale=alt.Scale(type="log", domain=[1, 100]),
                axis=alt.Axis(values=list(LIST_LENGTHS), format="d", tickCount=30),
            ),
            y=alt.Y("value:Q", title="HR@k", scale=alt.Scale(domain=[0, 1])),
            tooltip=tooltip("system", "k", interval="HR@k"),
        )
    )
    return Chart(
        "list-length",
        "Hit rate by list length",
        "The share of sessions whose target is among the first k tracks (HR@k, all targets).",
        specification(base, f"HR@k of all targets for k from 1 to 100, for {len(curves)} systems."),
        Table(
            "HR@k of all targets",
            ["system", *(f"k = {k}" for k in LIST_LENGTHS)],
            [[system, *(f"{value:.3f}" for value in values)] for system, values in curves.items()],
        ),
    )


def breakdown_chart(measured: ComparisonData, breakdown: Breakdown) -> Chart:
    """HR@10 of every system in each group of sessions."""
    title, label = BREAKDOWN_TITLES[breakdown.by]
    names = [f"{name}|({n:,})" for name, n in zip(breakdown.groups, breakdown.sessions, strict=True)]
    rows = [
        _line_row(measured, system) | {"group": name} | value_fields(estimate)
        for system, estimates in breakdown.hit_rates.items()
        for name, estimate in zip(names, estimates, strict=True)
    ]
    says = "datum.system + ': HR@10 ' + datum.interval + ', ' + split(datum.group, '|')[0]"
    offset = alt.XOffset("system:N")
    base = (
        _lines(measured, rows, f"{says} + ' {label}'", interval_rule("y").encode(xOffset=offset))
        .transform_calculate(interval=with_interval(".3f"))
        .encode(
            x=alt.X("group:O", sort=names, title=f"{label} (sessions)",
                    scale=alt.Scale(paddingInner=0.5, paddingOuter=0.2),
                    axis=alt.Axis(labelExpr="split(datum.label, '|')", labelAngle=0)),
            xOffset=offset,
            y=alt.Y("value:Q", title="HR@10"),
            tooltip=tooltip("system", "group", interval="HR@10 [95 % interval]"),
        )
    )  # fmt: skip
    description = f"HR@10 of all targets by {label}, with 95 % intervals."
    return Chart(
        breakdown.by.replace("_", "-"),
        title,
        description,
        specification(base, description),
        Table(
            f"HR@10 of all targets by {label}",
            ["system", *(name.replace("|", " ") for name in names)],
            [[system, *map(cell, estimates)] for system, estimates in breakdown.hit_rates.items()],
        ),
    )


def training_time(measured: ComparisonData) -> Chart | None:
    """HR@10 of every system against its seconds of training; None if no system was timed."""
    seconds = _mean_seconds(measured)
    if not seconds:
        return None
    rows = [
        _line_row(measured, system)
        | {"seconds": round(s, 3), "label": round(label, 5)}
        | value_fields(measured.estimates[system, "all", "HR@10"])
        for (system, s), label in zip(seconds.items(), _label_heights(measured, seconds), strict=True)
    ]  # fmt: skip
    decades = [10.0**power for power in range(-2, 9)]
    says = "datum.system + ': HR@10 ' + datum.interval + ' after ' + format(datum.seconds, ',.1f') + ' s of training'"
    named = (
        alt.Chart()
        .mark_text(align="left", dx=8, fontSize=11, aria=False)
        .encode(text="system:N", y="label:Q", color=alt.value("var(--ink)"))
    )
    base = (
        _lines(measured, rows, says, named, line=False)
        .transform_calculate(interval=with_interval(".3f"))
        .encode(
            x=alt.X(
                "seconds:Q",
                title="seconds of training",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(values=decades, format="~g"),
            ),
            y=alt.Y("value:Q", title="HR@10"),
            tooltip=tooltip("system", "seconds", interval="HR@10 [95 % interval]"),
        )
    )
    description = "HR@10 of all targets against the seconds of training."
    return Chart(
        "training-time",
        "Hit rate and training time",
        f"{description} The mean over seeds.",
        specification(base, description),
        Table(
            "HR@10 of all targets and seconds of training",
            ["system", "seconds", "HR@10"],
            [[s, f"{took:,.1f}", cell(measured.estimates[s, "all", "HR@10"])] for s, took in seconds.items()],
        ),
    )


def _mean_seconds(measured: ComparisonData) -> dict[str, float]:
    """The mean training time of each timed system over its seeds, at least 0.01 s for the logarithmic axis."""
    return {
        system: max(float(np.mean(of)), 0.01)
        for system, answered in measured.asked.systems.items()
        if (of := [facts["seconds"] for facts in answered.training if "seconds" in facts])
    }


def _label_heights(measured: ComparisonData, seconds: Mapping[str, float]) -> list[float]:
    """The height of each system's name on the axis of HR@10: its value, or less if another name is there."""
    high = max(measured.estimates[system, "all", "HR@10"].value for system in seconds) or 1.0
    decades = max(np.log10(max(seconds.values())) - np.log10(min(seconds.values())), 1.0)
    heights: list[float] = []
    taken: list[tuple[float, float]] = []
    for system, took in seconds.items():
        x, y = float(np.log10(took) / decades), measured.estimates[system, "all", "HR@10"].value / high
        if system in first_shown(measured):
            while any(abs(x - other_x) < 0.25 and abs(y - other_y) < 0.045 for other_x, other_y in taken):
                y -= 0.01
            taken.append((x, y))
        heights.append(y * high)
    return heights


def first_shown(measured: ComparisonData) -> list[str]:
    """The systems whose lines are shown at first: all if they are few.

    Else the first of each model with feedback and the first of each model without it.
    """
    systems = list(measured.asked.systems)
    if len(systems) <= FEW:
        return systems
    first: dict[tuple[str, bool], str] = {}
    for system in measured.ranked:
        first.setdefault((family_of(system), has_feedback(system)), system)
    return [system for system in systems if system in first.values()]


def _lines(
    measured: ComparisonData, rows: list[dict[str, Any]], says: str, *more: alt.Chart, line: bool = True
) -> alt.LayerChart:
    """Lines of the chosen systems: the colour is the model, a dashed line is a system without feedback."""
    models = list(dict.fromkeys(map(family_of, measured.asked.systems)))
    few = len(measured.asked.systems) <= FEW
    chosen_lines = menu("lines", "Systems", [EVERY, *models] if few else [BEST, EVERY, *models])
    path = alt.Chart().mark_line(strokeWidth=1.8, aria=False).encode(strokeDash=alt.StrokeDash(
        "feedback:N",
        legend=alt.Legend(title=None, labelExpr="datum.label + ' feedback'"),
        scale=scale({"with": [1, 0], "without": [6, 3]}),
    ))  # fmt: skip
    layers = [*([path] if line else []), *more, points()]
    return (
        alt.layer(*layers, data=alt.InlineData(values=rows))
        .transform_filter(f"lines == '{EVERY}' || (lines == '{BEST}' ? datum.shown : datum.model == lines)")
        .transform_calculate(says=says)
        .encode(color=colours("model:N", {model: model for model in models}), detail="system:N")
        .properties(width=_WIDTH, height=_HEIGHT)
        .add_params(chosen_lines)
    )


def _line_row(measured: ComparisonData, system: str) -> dict[str, Any]:
    return system_fields(system) | {"shown": system in first_shown(measured)}
