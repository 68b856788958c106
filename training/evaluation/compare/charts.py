"""Charts of a comparison as Vega-Lite specifications, made with Altair.

A specification is used twice. It is rendered to SVG when the page is written, for readers without JavaScript, and
Vega-Embed adds menus and tooltips in the browser. Colours are variables of the page's style sheet, so charts follow
light mode, dark mode and print. Every chart comes with a table of its values.
"""

from collections.abc import Mapping
from typing import Any, Final

import altair as alt

from segue.ranking_metrics import METRICS, Estimate
from training import vega
from training.evaluation.compare.chart_parts import cell, family_of, system_fields, value_fields
from training.evaluation.compare.line_charts import breakdown_chart, hit_curves, training_time
from training.evaluation.compare.narrative import chosen
from training.evaluation.compare.results import GROUPS
from training.evaluation.compare.statistics import Difference
from training.evaluation.compare.tables import ComparisonData
from training.reports.charts import (
    ROW,
    Chart,
    colours,
    interval_rule,
    menu,
    points,
    shapes,
    specification,
    tooltip,
    with_interval,
)
from training.reports.tables import Table

BOTH: Final = "played and skipped"
_WIDTH: Final = 580


def charts(by_protocol: Mapping[str, ComparisonData]) -> list[Chart]:
    """All charts of one dataset and split. Without a menu for the ranking, a chart shows the one that sentences do."""
    measured = chosen(by_protocol)
    made = [
        systems_chart(by_protocol),
        feedback_chart(by_protocol),
        hit_curves(measured),
        *(breakdown_chart(measured, breakdown) for breakdown in measured.breakdowns),
        training_time(measured),
    ]
    return [chart for chart in made if chart is not None]


def systems_chart(by_protocol: Mapping[str, ComparisonData]) -> Chart:
    """Each system's value of a metric on played and on skipped targets, HR@10 at first."""
    measured = chosen(by_protocol)
    groups = [group for group in GROUPS if any(of == group for _, of, _ in measured.estimates)]
    shown = ["played", "skipped"] if len(groups) == len(GROUPS) else groups[:1]
    menus = [
        menu("metric", "Metric", ["HR@10", *(metric for metric in METRICS if metric not in ("HR@10", "MAP@10"))]),
        menu("targets", "Targets", [BOTH, *groups] if len(shown) > 1 else groups),
        menu("ranking", "Ranking", _rankings(by_protocol)),
        menu("model", "Model", ["every", *dict.fromkeys(map(family_of, measured.asked.systems))]),
        menu("feedback", "Feedback", ["with or without", "with", "without"]),
    ]
    description = f"HR@10 of every system on {' and '.join(shown)} targets, with 95 % intervals."
    ordered = sorted(measured.asked.systems, key=lambda s: -measured.estimates[s, shown[0], "HR@10"].value)
    return Chart(
        "systems",
        "Every system",
        "Played targets: higher is better. Skipped targets: lower is better. The wider a system's two marks are apart, "
        "the better it distinguishes them.",
        specification(_systems(by_protocol, shown).add_params(*menus), description),
        Table(
            "HR@10 by system",
            ["system", *(f"{group} targets" for group in shown)],
            [[system, *(cell(measured.estimates[system, group, "HR@10"]) for group in shown)] for system in ordered],
        ),
    )


def _systems(by_protocol: Mapping[str, ComparisonData], legend: list[str]) -> alt.LayerChart:
    shape = shapes("targets:N", {"all": "circle", "played": "circle", "skipped": "square"}, legend)
    layers: alt.LayerChart = (
        alt.layer(interval_rule("x"), points(shape=shape), data=alt.InlineData(values=_estimate_rows(by_protocol)))
        .transform_filter("datum.metric == metric && datum.ranking == ranking")
        .transform_filter(f"targets == '{BOTH}' ? datum.targets != 'all' : datum.targets == targets")
        .transform_filter("model == 'every' || datum.model == model")
        .transform_filter("feedback == 'with or without' || datum.feedback == feedback")
        .transform_calculate(
            interval=with_interval(".3f"),
            order=f"targets == '{BOTH}' && datum.targets == 'skipped' ? -1 : datum.value",
        )
        .transform_calculate(
            says="datum.system + ': ' + datum.metric + ' of ' + datum.targets + ' targets ' + datum.interval"
        )
        .encode(
            x=alt.X("value:Q", title="value with its 95 % interval"),
            y=alt.Y("system:N", title=None, sort=alt.EncodingSortField("order", op="max", order="descending")),
            yOffset=alt.YOffset("targets:N"),
            color=colours("targets:N", {"all": "played", "played": "played", "skipped": "skipped"}, legend),
            tooltip=tooltip("system", "metric", "targets", "ranking", interval="value [95 % interval]"),
        )
        .properties(width=_WIDTH, height={"step": ROW, "for": "position"})
    )
    return layers


def feedback_chart(by_protocol: Mapping[str, ComparisonData]) -> Chart | None:
    """The effect of feedback on a tested metric, HR@10 of played targets at first; None if nothing was compared."""
    rows = [
        _difference_row(difference, ranking)
        for ranking, measured in by_protocol.items()
        for difference in measured.differences
        if difference.pair.why == "feedback"
    ]
    if not rows:
        return None
    tested = sorted(dict.fromkeys(row["tested"] for row in rows), key=lambda name: name != "HR@10 of played targets")
    rankings = _rankings(by_protocol)
    menus = [menu("tested", "Metric", tested), menu("ranking", "Ranking", rankings)]
    description = f"Difference that feedback makes in {tested[0]}, with 95 % intervals."
    return Chart(
        "feedback",
        "Effect of skip feedback",
        "Each system with feedback minus the same system without it, on the same sessions. Triangles are significant "
        "after correction, circles are not.",
        specification(_feedback(rows).add_params(*menus), description),
        Table(
            f"Effect of skip feedback on {tested[0]}",
            ["system", "compared with", "difference", "result"],
            [
                [row["system"], row["against"], cell(Estimate(*(row[of] for of in ("value", "low", "high"))), "+"),
                 row["verdict"]]
                for row in rows
                if (row["tested"], row["ranking"]) == (tested[0], rankings[0])
            ],
        ),
    )  # fmt: skip


def _feedback(rows: list[dict[str, Any]]) -> alt.LayerChart:
    reach = max(max(abs(row["low"]), abs(row["high"])) for row in rows)
    zero = alt.Chart().mark_rule(aria=False)
    zero = zero.encode(x=alt.datum(0), y=alt.value(0), y2=alt.value("height"), color=alt.value("var(--ink)"))
    shape = shapes("kind:N", {"better": "triangle-up", "worse": "triangle-down", "no difference": "circle"})
    layers: alt.LayerChart = (
        alt.layer(zero, interval_rule("x"), points(shape=shape), data=alt.InlineData(values=rows))
        .transform_filter("datum.tested == tested && datum.ranking == ranking")
        .transform_calculate(interval=with_interval("+.3f"))
        .transform_calculate(
            says="datum.system + ': ' + datum.tested + ' ' + datum.interval + "
            "' compared with ' + datum.against + ', ' + datum.verdict"
        )
        .encode(
            x=alt.X("value:Q", title="difference with its 95 % interval", scale=alt.Scale(domain=[-reach, reach])),
            y=alt.Y("system:N", title=None, sort=list(dict.fromkeys(row["system"] for row in rows))),
            color=colours("kind:N", {"better": "better", "worse": "worse", "no difference": "quiet"}),
            tooltip=tooltip("system", "against", "tested", "ranking", "verdict", interval="difference [95 % interval]"),
        )
        .properties(width=_WIDTH, height={"step": ROW})
    )
    return layers


def share_of_100(hits: int) -> str:
    """An SVG of 100 circles of which `hits` are filled."""
    spec = (
        alt.Chart(alt.InlineData(values=[{"at": number} for number in range(100)]))
        .mark_circle(size=130, opacity=1, strokeWidth=1, aria=False)
        .transform_calculate(x="datum.at % 10", y="floor(datum.at / 10)")
        .encode(
            x=alt.X("x:O", axis=None),
            y=alt.Y("y:O", axis=None),
            color=alt.condition(f"datum.at < {hits}", alt.value("var(--played)"), alt.value("none")),
            stroke=alt.condition(f"datum.at < {hits}", alt.value("var(--played)"), alt.value("var(--quiet)")),
        )
        .properties(width=160, height=160)
    )
    return vega.svg(specification(spec, f"{hits} of 100 circles are filled"))


def _rankings(by_protocol: Mapping[str, ComparisonData]) -> list[str]:
    """The rankings of a menu, the one that sentences are about first."""
    return sorted(by_protocol, key=lambda ranking: by_protocol[ranking] is not chosen(by_protocol))


def _estimate_rows(by_protocol: Mapping[str, ComparisonData]) -> list[dict[str, Any]]:
    return [
        system_fields(system) | {"ranking": ranking, "targets": group, "metric": metric} | value_fields(estimate)
        for ranking, measured in by_protocol.items()
        for (system, group, metric), estimate in measured.estimates.items()
        if metric != "MAP@10"  # equal to MRR@10
    ]


def _difference_row(difference: Difference, ranking: str) -> dict[str, Any]:
    d, verdict = difference, difference.verdict()
    kind = verdict.partition(" ")[0] if d.significant else "no difference"
    names = {"system": d.pair.system, "against": d.pair.against, "tested": f"{d.metric} of {d.group} targets"}
    return names | {"ranking": ranking, "verdict": verdict, "kind": kind} | value_fields(d.estimate)
