"""Plots of a comparison as SVG: text stays text, ink has the page's colour, the same figures give the same bytes."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segue.arrays import Bool, Float64
from segue.ranking_metrics import Estimate, bootstrap, hit
from training.comparison import paper
from training.comparison.results import Answered
from training.comparison.tables import Measured

_INK: Final = "#0a0b0c"  # replaced by the page's own colour
_BASELINES: Final = ("vmis-knn", "markov", "popularity")
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), _INK
    ),
}


@dataclass(frozen=True)
class Plot:
    """A picture and what it shows, in words."""

    title: str
    svg: str
    says: str


def plots(by_protocol: Mapping[str, Measured]) -> list[Plot]:
    """Every plot of one dataset and split. What has one protocol only is of the full ranking where there is one."""
    measured = by_protocol.get("full") or next(iter(by_protocol.values()))
    made = [
        _gains(by_protocol),
        _curves(measured),
        _played_and_skipped(measured),
        _by_bins(measured, "session_length", "plays before the target", "By session length"),
        _by_bins(measured, "session_skip_rate", "share of those plays that were skipped", "By skip rate"),
        _by_bins(measured, "target_plays", "plays of the target in the training part", "By the target's popularity"),
        _cost(measured),
    ]
    return [plot for plot in made if plot is not None]


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; the SVG is in the list afterwards."""
    drawn: list[str] = []
    with mpl.rc_context(_STYLE | {"svg.hashsalt": "segue"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), drawn
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    drawn.append(re.sub(r'<g id="[^"]*">', "<g>", svg))


def _gains(by_protocol: Mapping[str, Measured]) -> Plot | None:
    lines = {
        protocol: [
            (d.pair.system, d.gain_percent)
            for d in measured.differences
            if d.pair.why == "feedback" and (d.group, d.metric) == ("all", "HR@10") and d.gain_percent is not None
        ]
        for protocol, measured in by_protocol.items()
    }
    systems = list(dict.fromkeys(system for found in lines.values() for system, _ in found))
    if not systems:
        return None
    with _axes(7, 0.9 + 0.34 * len(systems)) as (axes, drawn):
        for shift, (protocol, found) in enumerate(lines.items()):
            _dots(axes, [(systems.index(s) + 0.2 * shift, gain) for s, gain in found if gain], protocol, shift)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(systems)), systems)
        axes.invert_yaxis()
        axes.set_xlabel("gain in HR@10 over the version without feedback, per cent")
        axes.legend(title="ranking")
    return Plot("Gain from feedback", drawn[0], "Gain in HR@10 of each version with feedback, with 95 % intervals.")


def _dots(axes: Axes, places: Sequence[tuple[float, Estimate]], label: str, shift: int) -> None:
    values = np.array([(at, e.value, e.value - e.low, e.high - e.value) for at, e in places]).T
    axes.errorbar(values[1], values[0], xerr=values[2:], fmt="os"[shift % 2], label=label, capsize=2, markersize=4)


def _of_each_family(measured: Measured) -> list[str]:
    """The best version of every family by HR@10, and the baselines: as many lines as an eye can tell apart."""
    found = []
    for versions in paper.FAMILIES.values():
        present = [system for system in versions if system in measured.asked.systems]
        if present:
            found.append(max(present, key=lambda s: measured.estimates[s, "all", "HR@10"].value))
    return [*found, *(system for system in _BASELINES if system in measured.asked.systems)] or list(
        measured.asked.systems
    )


def _hits_up_to(answered: Answered, last: int) -> Float64:
    return np.array([np.mean([hit(ranks, k).mean() for ranks in answered.ranks.values()]) for k in range(1, last + 1)])


def _curves(measured: Measured) -> Plot:
    with _axes(7, 3.6) as (axes, drawn):
        for i, system in enumerate(_of_each_family(measured)):
            style: dict[str, Any] = {"linestyle": "--"} if system in _BASELINES else {}
            axes.plot(
                range(1, 101), _hits_up_to(measured.asked.systems[system], 100), label=system, color=f"C{i}", **style
            )
        axes.set_xscale("log")
        axes.set_xticks([1, 5, 10, 20, 50, 100], ["1", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_xlabel("k")
        axes.set_ylabel("HR@k, all targets")
        axes.legend(ncols=2)
    return Plot(
        "Hit rate by length of the list", drawn[0], "HR@k for k from 1 to 100, the best version of each family."
    )


def _played_and_skipped(measured: Measured) -> Plot | None:
    systems = [s for s in (*paper.SYSTEMS, *_BASELINES) if s in measured.asked.systems]
    if any((s, g, "HR@10") not in measured.estimates for s in systems for g in ("played", "skipped")):
        return None
    with _axes(7, 0.9 + 0.26 * len(systems)) as (axes, drawn):
        for shift, group in enumerate(("played", "skipped")):
            estimates = [(i + 0.2 * shift, measured.estimates[s, group, "HR@10"]) for i, s in enumerate(systems)]
            _dots(axes, estimates, group, shift)
        axes.set_yticks(range(len(systems)), systems)
        axes.invert_yaxis()
        axes.set_xlabel("HR@10")
        axes.legend(title="targets that were")
    return Plot(
        "Targets that were played and targets that were skipped",
        drawn[0],
        "HR@10 of played and of skipped targets, with 95 % intervals. A system that knows skips has them apart, the "
        "skipped to the left.",
    )


def _by_bins(measured: Measured, of: str, label: str, title: str) -> Plot | None:
    values = np.asarray(getattr(measured.asked, of), dtype=np.float64)
    bins = _bins(values)
    if len(bins) < 2:
        return None
    with _axes(7, 3.2) as (axes, drawn):
        for i, system in enumerate(_of_each_family(measured)):
            hits = measured.asked.systems[system].values("HR@10")
            rng = np.random.default_rng(0)
            found = [estimate for _, inside in bins if (estimate := bootstrap(hits[inside], rng)) is not None]
            centre, low, high = np.array([(e.value, e.value - e.low, e.high - e.value) for e in found]).T
            places = np.arange(len(bins)) + (i - 4) * 0.05
            axes.errorbar(
                places, centre, yerr=[low, high], fmt="o-", label=system, color=f"C{i}", markersize=3, linewidth=1
            )
        axes.set_xticks(range(len(bins)), [f"{name}\n({inside.sum():,})" for name, inside in bins])
        axes.set_xlabel(f"{label} (sessions)")
        axes.set_ylabel("HR@10, all targets")
        axes.get_figure().legend(loc="outside lower center", ncols=5, fontsize=7)  # type: ignore[union-attr]
    return Plot(title, drawn[0], f"HR@10 by {label}, in groups of about as many sessions, with 95 % intervals.")


def _bins(values: Float64, wanted: int = 5) -> list[tuple[str, Bool]]:
    """At most `wanted` groups of neighbouring values, about as large as each other; their names and members."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, wanted + 1)[1:-1]))
    group = np.searchsorted(edges, values, side="left")
    found = []
    for number in np.unique(group):
        inside = group == number
        low, high = values[inside].min(), values[inside].max()
        found.append((_number(low) if low == high else f"{_number(low)} to {_number(high)}", inside))
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.2f}"


def _cost(measured: Measured) -> Plot | None:
    points = [
        (float(np.mean(seconds)), measured.estimates[system, "all", "HR@10"].value, system)
        for system, answered in measured.asked.systems.items()
        if system in _of_each_family(measured)
        and (seconds := [of["seconds"] for of in answered.training if "seconds" in of])
    ]
    if not points:
        return None
    with _axes(7, 3.6) as (axes, drawn):
        for took_s, value, system in points:
            axes.plot(max(took_s, 0.01), value, "o", color="C0", markersize=4)
            axes.annotate(system, (max(took_s, 0.01), value), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("HR@10, all targets")
    return Plot(
        "Training time",
        drawn[0],
        "HR@10 of the best version of each family against the seconds that its training took.",
    )
