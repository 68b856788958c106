"""Charts of a comparison as SVG: scales, axes, marks and plots. Every chart is complete without a script.

Colours are those of the page, so that charts follow light mode, dark mode and print. A mark is a group with a
`<title>`, which browsers show on hover. The page's script moves the marks of "systems" and "feedback" to other metrics
and groups, and hides rows. It reads the classes of the marks, their `data-` attributes and the page's data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import escape

from segue.arrays import Bool, Float64
from segue.ranking_metrics import Estimate, bootstrap, hit
from training.evaluation.compare import tables
from training.evaluation.compare.narrative import chosen
from training.evaluation.compare.statistics import Difference
from training.evaluation.compare.tables import ComparisonData

MARKS: Final = {
    "dot": '<circle r="4"/>',
    "square": '<rect x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    "up": '<path d="M0-5L5 4H-5Z"/>',
    "down": '<path d="M0 5L5-4H-5Z"/>',
}


@dataclass(frozen=True)
class Scale:
    """A range of values on a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies, rounded to a tenth of a pixel."""
        of: Callable[[float], float] = math.log10 if self.log else float
        share = (of(value) - of(self.low)) / (of(self.high) - of(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def data(self) -> str:
        """The scale as attributes, for the script that moves marks along it."""
        return f'data-low="{self.low:g}" data-high="{self.high:g}" data-start="{self.start:g}" data-end="{self.end:g}"'


def rounded_up(value: float, step: float = 0.1) -> float:
    """The next multiple of a step, at least one."""
    return round(max(math.ceil(value / step - 1e-9), 1) * step, 6)


def text(x: float, y: float, words: str, css: str = "") -> str:
    """Words at a place; `css` is a class."""
    return f'<text x="{x:g}" y="{y:g}"{_class(css)}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"{_class(css)}/>'


def x_axis(scale: Scale, ticks: Sequence[float], top: float, bottom: float, label: str) -> str:
    """Grid lines and figures below them, with a label."""
    drawn = [
        line(scale(t), top, scale(t), bottom, "grid") + text(scale(t), bottom + 16, f"{t:g}", "tick") for t in ticks
    ]
    return "".join(drawn) + text((scale.start + scale.end) / 2, bottom + 36, label, "label")


def y_axis(scale: Scale, ticks: Sequence[float], left: float, right: float) -> str:
    """Grid lines and figures left of them."""
    return "".join(
        line(left, scale(t), right, scale(t), "grid") + text(left - 6, scale(t) + 4, f"{t:g}", "name") for t in ticks
    )


def ticks(low: float, high: float) -> list[float]:
    """Round values between two others."""
    step = 10 ** math.floor(math.log10((high - low) / _TICKS))
    step *= next((m for m in (1, 2, 2.5, 5) if step * m * _TICKS >= high - low), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 9) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def mark(x: float, y: float, kind: str, says: str, css: str = "", interval: str = "") -> str:
    """A mark that says something, with its interval around it where it has one."""
    return (
        f'<g class="mark {css}" transform="translate({x:g} {y:g})">'
        f"<title>{escape(says)}</title>{interval}{MARKS[kind]}</g>"
    )


def along_x(scale: Scale, value: float, low: float, high: float) -> str:
    """The line of an interval, relative to its mark."""
    return f'<line x1="{scale(low) - scale(value):.1f}" x2="{scale(high) - scale(value):.1f}"/>'


def along_y(scale: Scale, value: float, low: float, high: float) -> str:
    """The same for a mark that moves up and down."""
    return f'<line y1="{scale(low) - scale(value):.1f}" y2="{scale(high) - scale(value):.1f}"/>'


def svg(width: float, height: float, says: str, inside: str) -> str:
    """A drawing with what it shows in words."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(says)}">{inside}</svg>'


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


BASELINES: Final = ("vmis-knn", "markov", "popularity")
CURVE: Final = (1, 2, 3, 5, 10, 20, 50, 100)
_WIDTH: Final = 760.0
_NAMES: Final = 215.0  # where the names of rows end
_ROW: Final = 24.0
_TICKS: Final = 6  # about so many on an axis
_BINS: Final = 5
_APART: Final = 4.5  # pixels that a row's two marks are above and below its middle


@dataclass(frozen=True)
class Plot:
    """A picture and what it shows, in words; `kind` says what the page offers beside it."""

    kind: str
    title: str
    svg: str
    says: str


def plots(by_protocol: Mapping[str, ComparisonData]) -> list[Plot]:
    """Every plot of one dataset and split. What has one protocol only is of the full ranking where there is one."""
    measured = chosen(by_protocol)
    made = [
        systems_plot(measured),
        feedback_plot(measured),
        _curves(measured),
        _by_bins(measured, "session_length", "plays before the target", "By session length"),
        _by_bins(measured, "session_skip_rate", "share of those plays that were skipped", "By skip rate"),
        _by_bins(measured, "target_plays", "plays of the target in the training part", "By the target's popularity"),
        _cost(measured),
    ]
    return [plot for plot in made if plot is not None]


def family_of(system: str) -> str:
    """The family whose colour a system has: its model, the version left out."""
    found = [name for name in (*tables.FAMILIES, *BASELINES) if system.startswith(name)]
    return found[0] if found else "other"


def has_feedback(system: str) -> bool:
    """Whether a system learns from what was skipped."""
    return "+nce" in system or system.endswith(("-bl", "-nr"))


def css_of(system: str) -> str:
    """The classes of everything that is drawn of a system."""
    return f"f-{family_of(system)} {'fed' if has_feedback(system) else 'plain'}"


def estimate_says(system: str, metric: str, group: str, estimate: Estimate) -> str:
    """A mark's words. The page's script makes the same."""
    return f"{system}: {metric} of {group} targets {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def difference_says(difference: Difference) -> str:
    """A mark's words. The page's script makes the same."""
    d, e = difference, difference.estimate
    return (
        f"{d.pair.system}: {d.metric} of {d.group} targets {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}] "
        f"against {d.pair.against}, {d.verdict()}"
    )


def _row(system: str, number: int, name: str, inside: str) -> str:
    at = 14 + _ROW * number
    return (
        f'<g class="row {css_of(system)}" data-system="{escape(system)}" transform="translate(0 {at:g})">'
        f"{text(_NAMES - 12, 4, name, 'name')}{inside}</g>"
    )


def systems_plot(measured: ComparisonData) -> Plot:
    """Every system's HR@10 of played and of skipped targets."""
    estimates = measured.estimates
    groups = ["played", "skipped"]
    if not all((system, group, "HR@10") in estimates for system in measured.asked.systems for group in groups):
        groups = ["all"]
    ordered = sorted(measured.asked.systems, key=lambda s: -estimates[s, groups[0], "HR@10"].value)
    scale = Scale(0, rounded_up(max(e.high for e in estimates.values())), _NAMES, _WIDTH - 20)
    bottom = _ROW * len(ordered) + 6
    rows = []
    for number, system in enumerate(ordered):
        marks = ""
        for group, kind, aside in zip(groups, ("dot", "square"), (-_APART, _APART), strict=False):
            e, y = estimates[system, group, "HR@10"], aside if len(groups) > 1 else 0
            says, interval = estimate_says(system, "HR@10", group, e), along_x(scale, e.value, e.low, e.high)
            marks += mark(scale(e.value), y, kind, says, f"{kind} g-{group}", interval)
        rows.append(_row(system, number, system, marks))
    says = "HR@10 of every system, with 95 % intervals. Circles: targets that were played; squares: that were skipped."
    drawn = x_axis(scale, ticks(0, scale.high), 4, bottom, "HR@10") + "".join(rows)
    return Plot(
        "systems",
        "Every system",
        svg(_WIDTH, bottom + 44, says, f"<g {scale.data()}>{drawn}</g>"),
        "A system that makes use of skips has the two apart, the skipped targets to the left.",
    )


def feedback_plot(measured: ComparisonData) -> Plot | None:
    """What feedback changed in HR@10 of played targets; None where no system came with it and without."""
    every = [d for d in measured.differences if d.pair.why == "feedback"]
    shown = [d for d in every if (d.group, d.metric) == ("played", "HR@10")]
    if not shown:
        return None
    reach = rounded_up(max(max(abs(d.estimate.low), abs(d.estimate.high)) for d in every), 0.05)
    scale, bottom = Scale(-reach, reach, _NAMES, _WIDTH - 20), _ROW * len(shown) + 6
    rows = []
    for number, d in enumerate(shown):
        kind = "dot" if not d.significant else "up" if d.estimate.value > 0 else "down"
        verdict = d.verdict().partition(" ")[0]
        e = d.estimate
        drawn = mark(
            scale(e.value), 0, kind, difference_says(d), f"v-{verdict}", along_x(scale, e.value, e.low, e.high)
        )
        rows.append(_row(d.pair.system, number, d.pair.system, drawn))
    axis = x_axis(scale, ticks(-reach, reach), 4, bottom, "HR@10 of played targets, difference")
    zero = line(scale(0), 4, scale(0), bottom, "zero")
    says = "What feedback changed in HR@10 of played targets: each version with feedback less the one without."
    return Plot(
        "feedback",
        "What feedback changed",
        svg(_WIDTH, bottom + 44, says, f"<g {scale.data()}>{axis}{zero}{''.join(rows)}</g>"),
        "Each version with feedback less the same system without, on the same sessions, with 95 % intervals. "
        "Triangles: the corrected test finds a difference; circles: it finds none.",
    )


def first_shown(measured: ComparisonData) -> list[str]:
    """The best version of every family by HR@10, and the baselines: as many lines as an eye can tell apart."""
    found = []
    for versions in tables.FAMILIES.values():
        present = [system for system in versions if system in measured.asked.systems]
        if present:
            found.append(max(present, key=lambda s: measured.estimates[s, "all", "HR@10"].value))
    return [*found, *(system for system in BASELINES if system in measured.asked.systems)] or list(
        measured.asked.systems
    )


def _lines(measured: ComparisonData, drawn: Callable[[str, int], str]) -> str:
    """What is drawn of each system, all but the first shown ones hidden."""
    shown = first_shown(measured)
    parts = []
    for number, system in enumerate(measured.asked.systems):
        hidden = "" if system in shown else " off"
        parts.append(
            f'<g class="line {css_of(system)}{hidden}" data-system="{escape(system)}">{drawn(system, number)}</g>'
        )
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return f'<path d="M{"L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def _curves(measured: ComparisonData) -> Plot:
    across, up = Scale(1, 100, 50, _WIDTH - 20, log=True), Scale(0, 1, 300, 10)

    def drawn(system: str, _: int) -> str:
        ranks = measured.asked.systems[system].ranks.values()
        values = [float(np.mean([hit(of, k).mean() for of in ranks])) for k in CURVE]
        points = [(across(k), up(value)) for k, value in zip(CURVE, values, strict=True)]
        marks = [
            mark(*point, "dot", f"{system}: HR@{k} of all targets {value:.3f}")
            for point, k, value in zip(points, CURVE, values, strict=True)
        ]
        return _path(points) + "".join(marks)

    axes = x_axis(across, CURVE, 10, 300, "k, the length of the list") + y_axis(up, ticks(0, 1), 50, _WIDTH - 20)
    says = f"HR@k of all targets for k from 1 to 100, of {len(measured.asked.systems)} systems."
    return Plot(
        "lines",
        "Hit rate by length of the list",
        svg(_WIDTH, 344, says, axes + _lines(measured, drawn)),
        "The share of sessions whose target was among the first k (HR@k, all targets).",
    )


def _by_bins(measured: ComparisonData, of: str, label: str, title: str) -> Plot | None:
    bins = _bins(np.asarray(getattr(measured.asked, of), dtype=np.float64))
    if len(bins) < 2:
        return None
    rng, count = np.random.default_rng(0), len(measured.asked.systems)
    found: dict[str, list[Estimate]] = {}
    for system, answered in measured.asked.systems.items():
        hits = answered.values("HR@10")
        found[system] = [e for _, inside in bins if (e := bootstrap(hits[inside], rng)) is not None]
    up = Scale(0, rounded_up(max(e.high for line_of in found.values() for e in line_of)), 300, 10)
    step = (_WIDTH - 70) / len(bins)

    def drawn(system: str, number: int) -> str:
        aside = (number - (count - 1) / 2) * min(step / 2 / count, 8)  # so that intervals do not hide each other
        points = [(round(50 + step * (i + 0.5) + aside, 1), up(e.value)) for i, e in enumerate(found[system])]
        marks = [
            mark(*point, "dot", f"{system}: HR@10 {e.value:.3f} [{e.low:.3f}, {e.high:.3f}], {name} {label}", "",
                 along_y(up, e.value, e.low, e.high))
            for point, e, (name, _) in zip(points, found[system], bins, strict=True)
        ]  # fmt: skip
        return _path(points) + "".join(marks)

    names = "".join(
        text(50 + step * (i + 0.5), 316, name, "tick") + text(50 + step * (i + 0.5), 330, f"({inside.sum():,})", "tick")
        for i, (name, inside) in enumerate(bins)
    )
    axes = y_axis(up, ticks(0, up.high), 50, _WIDTH - 20) + names
    axes += text(_WIDTH / 2, 352, f"{label} (sessions)", "label")
    says = f"HR@10 of all targets by {label}, in groups of about as many sessions, with 95 % intervals."
    return Plot("lines", title, svg(_WIDTH, 360, says, axes + _lines(measured, drawn)), says)


def _bins(values: Float64) -> list[tuple[str, Bool]]:
    """At most _BINS groups of neighbouring values, about as large as each other; their names and members."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    group = np.searchsorted(edges, values, side="left")
    found = []
    for number in np.unique(group):
        inside = group == number
        low, high = values[inside].min(), values[inside].max()
        found.append((_number(low) if low == high else f"{_number(low)} to {_number(high)}", inside))
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.2f}"


def _cost(measured: ComparisonData) -> Plot | None:
    took = {
        system: max(float(np.mean(seconds)), 0.01)
        for system, answered in measured.asked.systems.items()
        if (seconds := [of["seconds"] for of in answered.training if "seconds" in of])
    }
    if not took:
        return None
    powers = [10.0**n for n in range(int(np.floor(np.log10(min(took.values())))), 9)]
    powers = powers[: 1 + next(i for i, power in enumerate(powers) if i and power >= max(took.values()))]
    value = {system: measured.estimates[system, "all", "HR@10"].value for system in took}
    first = first_shown(measured)
    across = Scale(powers[0], powers[-1], 50, _WIDTH - 110, log=True)
    up = Scale(0, rounded_up(max(value.values())), 300, 10)

    labels: list[tuple[float, float]] = []  # where names stand, none on another

    def drawn(system: str, _: int) -> str:
        if system not in took:
            return ""
        at = across(took[system]), up(value[system])
        beside = at[1] + 4
        if system in first:
            while any(abs(at[0] - x) < 90 and abs(beside - y) < 11 for x, y in labels):
                beside += 11
            labels.append((at[0], beside))
        says = f"{system}: HR@10 of all targets {value[system]:.3f} after {took[system]:,.1f} s of training"
        return mark(*at, "dot", says) + text(at[0] + 7, beside, system, "beside")

    axes = x_axis(across, powers, 10, 300, "seconds of training") + y_axis(up, ticks(0, up.high), 50, _WIDTH - 110)
    says = "HR@10 of all targets against the seconds that a training took."
    return Plot("lines", "Training time", svg(_WIDTH, 344, says, axes + _lines(measured, drawn)), says)
