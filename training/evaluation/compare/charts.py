"""Charts of a comparison as Vega-Lite specifications, made with Altair.

A specification is used twice. It is rendered to SVG when the page is written, for readers without JavaScript, and
Vega-Embed adds menus and tooltips in the browser. Colours are variables of the page's style sheet, so charts follow
light mode, dark mode and print. Every chart comes with a table of its values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import altair as alt
import numpy as np

from segue.ranking_metrics import METRICS, Estimate
from training import vega
from training.evaluation.compare.line_charts import (
    EVERY,
    FEW,
    breakdown_chart,
    cell,
    family_of,
    hit_curves,
    system_fields,
    training_time,
    value_fields,
)
from training.evaluation.compare.narrative import chosen
from training.evaluation.compare.results import GROUPS
from training.evaluation.compare.statistics import Difference, Pair
from training.evaluation.compare.tables import RESPONSES, SHOWN, ComparisonData, caution_effect, mean_estimate
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
FIRST: Final = "the first eight"
_WIDTH: Final = 580


def charts(by_protocol: Mapping[str, ComparisonData]) -> list[Chart]:
    """All charts of one dataset and split. Without a menu for the ranking, a chart shows the one that sentences do."""
    measured = chosen(by_protocol)
    made = [
        systems_chart(by_protocol),
        feedback_chart(by_protocol),
        versions_chart(by_protocol),
        skip_measures_chart(measured),
        hit_curves(measured),
        *(breakdown_chart(measured, breakdown) for breakdown in measured.breakdowns),
        training_time(measured),
    ]
    return [chart for chart in made if chart is not None]


def systems_chart(by_protocol: Mapping[str, ComparisonData], *, every: bool = False) -> Chart:
    """Each system's value of a metric on played and on skipped targets, HR@10 at first.

    It shows the first eight systems at first, or all with `every`.
    """
    measured = chosen(by_protocol)
    groups = [group for group in GROUPS if any(of == group for _, of, _ in measured.estimates)]
    shown = ["played", "skipped"] if len(groups) == len(GROUPS) else groups[:1]
    models = [EVERY, *dict.fromkeys(map(family_of, measured.asked.systems))]
    many = len(measured.asked.systems) > FEW and not every
    menus = [
        menu("metric", "Metric", ["HR@10", *(metric for metric in METRICS if metric not in ("HR@10", "MAP@10"))]),
        menu("targets", "Targets", [BOTH, *groups] if len(shown) > 1 else groups),
        menu("ranking", "Ranking", _rankings(by_protocol)),
        menu("model", "Systems", [FIRST, *models] if many else models),
        menu("feedback", "Feedback", ["with or without", "with", "without"]),
    ]
    count = f"the first {FEW} of {len(measured.asked.systems)} systems" if many else "every system"
    description = f"HR@10 of {count} on {' and '.join(shown)} targets, with 95 % intervals."
    return Chart(
        "systems",
        "The first eight systems" if many else "Every system",
        f"Played: higher is better. Skipped: lower is better.{_below(by_protocol)}",
        specification(_systems(by_protocol, shown).add_params(*menus), description),
        Table(
            "HR@10 by system",
            ["system", *(f"{group} targets" for group in shown)],
            [
                [system, *(cell(measured.estimates[system, group, "HR@10"]) for group in shown)]
                for system in measured.ranked
            ],
        ),
    )


def _below(by_protocol: Mapping[str, ComparisonData]) -> str:
    """A sentence about values below the axis, if there are any."""
    rows = _estimate_rows(by_protocol)
    return " A triangle is a value below the axis." if any(row["value"] < row["start"] for row in rows) else ""


def _systems(by_protocol: Mapping[str, ComparisonData], legend: list[str]) -> alt.LayerChart:
    # The form of a mark: the targets, or that the value is below the axis.
    below = {f"{group} below": "triangle-left" for group in GROUPS}
    shape = shapes("form:N", {"all": "circle", "played": "circle", "skipped": "square"} | below, legend)
    colour = {group: "skipped" if group.startswith("skipped") else "played" for group in (*GROUPS, *below)}
    number = alt.Chart().mark_text(align="left", dx=8, aria=False).encode(text="number:N", x="at:Q")
    start = "domain('x')[0]"
    says_start = f"{start} > 0 ? 'The axis starts at ' + format({start}, '.2f') + ', not at 0' : ''"
    layers: alt.LayerChart = (
        alt.layer(
            interval_rule("x"),
            points(shape=shape).encode(x="at:Q"),
            number,
            data=alt.InlineData(values=_estimate_rows(by_protocol)),
        )
        .transform_filter("datum.metric == metric && datum.ranking == ranking")
        .transform_filter(f"targets == '{BOTH}' ? datum.targets != 'all' : datum.targets == targets")
        .transform_filter(f"model == '{EVERY}' || (model == '{FIRST}' ? datum.place <= {FEW} : datum.model == model)")
        .transform_filter("feedback == 'with or without' || datum.feedback == feedback")
        .transform_calculate(
            interval=with_interval(".3f"),
            order=f"targets == '{BOTH}' && datum.targets == 'skipped' ? -1 : datum.value",
        )
        .transform_calculate(
            says="datum.system + ': ' + datum.metric + ' of ' + datum.targets + ' targets ' + datum.interval",
            at="max(datum.value, datum.start)",
            low="max(datum.low, datum.start)",
            high="max(datum.high, datum.start)",
            form="datum.targets + (datum.value < datum.start ? ' below' : '')",
            number="datum.value < datum.start ? format(datum.value, '.3f') : ''",
        )
        .encode(
            x=alt.X("at:Q", title="value with its 95 % interval", scale=alt.Scale(zero=False)),
            y=alt.Y("system:N", title=None, sort=alt.EncodingSortField("order", op="max", order="descending")),
            yOffset=alt.YOffset("targets:N"),
            color=colours("form:N", colour, legend),
            tooltip=tooltip("system", "metric", "targets", "ranking", interval="value [95 % interval]"),
        )
        .properties(
            width=_WIDTH,
            height={"step": ROW, "for": "position"},
            title=alt.TitleParams(
                text=alt.expr(says_start), orient="bottom", fontSize=11, fontWeight="normal", color="var(--quiet)"
            ),
        )
    )
    return layers


def feedback_chart(by_protocol: Mapping[str, ComparisonData]) -> Chart | None:
    """The gain of the skip loss on a tested metric, HR@10 of played targets at first; None if it was not tested."""
    return _gains(by_protocol, "feedback", "Gain of the skip loss (+nce)", lambda pair: pair.system.endswith("+nce"))


def versions_chart(by_protocol: Mapping[str, ComparisonData]) -> Chart | None:
    """The gain of other kinds of feedback than the skip loss, as `feedback_chart` has it. Its axis is another."""
    title = "Gain of skips in matrix factorisation (-bl, -nr)"
    return _gains(by_protocol, "versions", title, lambda pair: not pair.system.endswith("+nce"))


def _gains(
    by_protocol: Mapping[str, ComparisonData], name: str, title: str, wanted: Callable[[Pair], bool]
) -> Chart | None:
    rows = [
        _difference_row(difference, ranking)
        for ranking, measured in by_protocol.items()
        for difference in measured.differences
        if difference.pair.why == "feedback" and wanted(difference.pair)
    ]
    if not rows:
        return None
    tested = sorted(dict.fromkeys(row["tested"] for row in rows), key=lambda name: name != "HR@10 of played targets")
    rankings = _rankings(by_protocol)
    menus = [menu("tested", "Metric", tested), menu("ranking", "Ranking", rankings)]
    description = f"Difference that skip feedback makes in {tested[0]}, with 95 % intervals."
    return Chart(
        name,
        title,
        "Each system with skip feedback minus the same system without it, on the same sessions. Triangles are "
        "significant after correction, circles are not.",
        specification(_forest(rows, "difference", "against", "verdict").add_params(*menus), description),
        Table(
            f"{title}: {tested[0]}",
            ["system", "compared with", "difference", "result"],
            [
                [row["system"], row["against"], cell(Estimate(*(row[of] for of in ("value", "low", "high"))), "+"),
                 row["verdict"]]
                for row in rows
                if (row["tested"], row["ranking"]) == (tested[0], rankings[0])
            ],
        ),
    )  # fmt: skip


def skip_measures_chart(measured: ComparisonData) -> Chart | None:
    """The skip measures of every system, the matched gap of HR@10 at first; None if no result has them."""
    found = {system: _skip_measures(measured, system) for system in measured.ranked}
    ranking = measured.asked.question.protocol
    rows = [_measure_row(system, measure, ranking) for system, of in found.items() for measure in of]
    if not rows:
        return None
    tested = sorted(dict.fromkeys(row["tested"] for row in rows), key=lambda name: not name.endswith("effect on HR@10"))
    menus = [menu("tested", "Measure", tested), menu("ranking", "Ranking", [ranking])]
    description = f"The {tested[0]} of every system, with 95 % intervals."
    return Chart(
        "skip-measures",
        "What each system knows about skips",
        "A triangle is an interval that does not contain the line: it points up if the system is better, and down if "
        "it is worse. For the matched gap the line is no reference: compare systems by their matched effects.",
        specification(_forest(rows, "value").add_params(*menus), description),
        Table(
            f"{tested[0].capitalize()}",
            ["system", tested[0]],
            [[row["system"], row["interval"]] for row in rows if row["tested"] == tested[0]],
        ),
    )


@dataclass(frozen=True)
class _SkipMeasure:
    """A measure of what a system knows about skips."""

    name: str
    estimate: Estimate
    chance: float = 0.0  # the value of a system that knows nothing about skips
    good: Literal["above", "below", "unknown"] = "above"  # the side of that value on which better systems are
    note: str = ""  # what the value is compared with


def _skip_measures(measured: ComparisonData, system: str) -> list[_SkipMeasure]:
    """The skip measures of a system that its results have."""
    gaps, seeds = measured.gaps.get(system), measured.asked.systems[system].skip_measures
    found = []
    for metric in SHOWN[:2]:
        if gaps is not None and metric in gaps.matched:
            found.append(_SkipMeasure(f"matched gap of {metric}", gaps.matched[metric], good="unknown"))
        if gaps is not None and metric in gaps.difference:
            note = f" compared with {gaps.against}"
            found.append(_SkipMeasure(f"matched effect on {metric}", gaps.difference[metric], note=note))
    for metric in SHOWN[:2]:
        effect = caution_effect(measured.asked.systems[system], metric)
        if effect is not None:
            found.append(_SkipMeasure(f"effect of caution on {metric}", effect))
    auc = mean_estimate([of.get("pairwise_auc") for of in seeds])
    if auc is not None:
        found.append(_SkipMeasure("AUC in a session", auc, chance=0.5))
    for key in RESPONSES:
        moved = mean_estimate([(of.get("responsiveness") or {}).get(key) for of in seeds], 100)
        if moved is not None:
            name = f"{key.replace('_', ' ').replace('skip minus play', 'skip - play')}, pp"
            found.append(_SkipMeasure(name, moved, good="below"))
    return found


def _forest(rows: list[dict[str, Any]], label: str, *more: str) -> alt.LayerChart:
    """Values with intervals and a line at `zero`, for the chosen `tested` and `ranking`. The axis fits what is shown.

    It reaches equally far to both sides of the line, and at least 0.01 far. `more`: further fields of the tooltip.
    """
    reach: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (row["tested"], row["ranking"])
        reach[key] = max(reach.get(key, 0.01), *(abs(row[side] - row["zero"]) for side in ("low", "high")))
    for row in rows:
        far = reach[row["tested"], row["ranking"]]
        row |= {"left": round(row["zero"] - far, 5), "right": round(row["zero"] + far, 5)}
    zero = alt.Chart().mark_rule(aria=False).encode(x="zero:Q", y=alt.value(0), y2=alt.value("height"))
    zero = zero.encode(color=alt.value("var(--ink)"))
    sides = alt.Chart().mark_rule(aria=False, opacity=0).encode(x="left:Q", x2="right:Q")
    shape = shapes("kind:N", {"better": "triangle-up", "worse": "triangle-down", "no difference": "circle"})
    layers: alt.LayerChart = (
        alt.layer(sides, zero, interval_rule("x"), points(shape=shape), data=alt.InlineData(values=rows))
        .transform_filter("datum.tested == tested && datum.ranking == ranking")
        .transform_calculate(says="datum.system + ': ' + datum.tested + ' ' + datum.interval + datum.note")
        .encode(
            x=alt.X("value:Q", title=f"{label} with its 95 % interval", scale=alt.Scale(zero=False)),
            y=alt.Y("system:N", title=None, sort=list(dict.fromkeys(row["system"] for row in rows))),
            color=colours("kind:N", {"better": "better", "worse": "worse", "no difference": "quiet"}),
            tooltip=tooltip("system", "tested", "ranking", *more, interval=f"{label} [95 % interval]"),
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
    place = {system: number for number, system in enumerate(chosen(by_protocol).ranked, 1)}
    return [
        system_fields(system)
        | {"place": place.get(system, len(place)), "ranking": ranking, "targets": group, "metric": metric}
        | {"start": _axis_start(measured, metric)}
        | value_fields(estimate)
        for ranking, measured in by_protocol.items()
        for (system, group, metric), estimate in measured.estimates.items()
        if metric != "MAP@10"  # equal to MRR@10
    ]


def _axis_start(measured: ComparisonData, metric: str) -> float:
    """The value below which a system is drawn at the edge: 1.5 interquartile ranges below the first quartile."""
    groups = {group for _, group, _ in measured.estimates}
    found = []
    for group in groups - {"all"} or groups:
        values = [e.value for (_, of, name), e in measured.estimates.items() if (of, name) == (group, metric)]
        low, high = np.quantile(values, [0.25, 0.75])
        found.append(low - 1.5 * (high - low))
    return max(0.0, round(float(min(found)), 3))


def _difference_row(difference: Difference, ranking: str) -> dict[str, Any]:
    d, verdict = difference, difference.verdict()
    kind = verdict.partition(" ")[0] if d.significant else "no difference"
    names = {"system": d.pair.system, "against": d.pair.against, "tested": f"{d.metric} of {d.group} targets"}
    facts = {"ranking": ranking, "verdict": verdict, "kind": kind, "zero": 0.0}
    texts = {"interval": cell(d.estimate, "+"), "note": f" compared with {d.pair.against}, {verdict}"}
    return names | facts | texts | value_fields(d.estimate)


def _measure_row(system: str, measure: _SkipMeasure, ranking: str) -> dict[str, Any]:
    estimate, name, zero = measure.estimate, measure.name, measure.chance
    side = "above" if estimate.low > zero else "below" if estimate.high < zero else "unknown"
    kind = "no difference" if "unknown" in (side, measure.good) else "better" if side == measure.good else "worse"
    return (
        {"system": system, "tested": name, "ranking": ranking, "kind": kind, "zero": zero}
        | {"interval": cell(estimate, "" if zero else "+"), "note": measure.note}
        | value_fields(estimate)
    )
