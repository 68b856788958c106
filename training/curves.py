"""The curves of a training as one SVG file that any browser shows, light or dark: losses, and validation."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from training.evaluation.compare.drawing import Scale, mark, text, ticks, x_axis, y_axis

_LOSSES: Final = ("loss", "nll", "nce")
_SCORES: Final = ("HR@10", "MRR@10")
_COLOURS: Final = ("#0f766e", "#c2410c", "#6d28d9")
_STYLE: Final = """
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; background: Canvas }
text { fill: CanvasText } .name { text-anchor: end } .tick, .label { text-anchor: middle }
.title { font-weight: 600 } .grid { stroke: CanvasText; stroke-opacity: .15 }
polyline { fill: none; stroke-width: 2 }
"""
_WIDTH: Final = 760.0
_TOP, _BOTTOM = 40.0, 260.0
_PANELS: Final = ((50.0, 320.0), (430.0, 690.0))  # left and right edge of each

Line = Mapping[str, float]


def curves(history: Sequence[Line]) -> str:
    """The file for one or more lines of `training.trainer.Reporter.epoch`; what is not finite is left out."""
    panels = (
        ("Loss by epoch", _LOSSES, _PANELS[0], False),
        ("Validation by epoch", _SCORES, _PANELS[1], True),
    )
    drawn = "".join(_panel(history, title, names, edges, from_zero=zero) for title, names, edges, zero in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} 310" role="img" '
        f'aria-label="Loss and validation over {len(history)} epochs"><style>{_STYLE}</style>{drawn}</svg>\n'
    )


def _panel(
    history: Sequence[Line], title: str, names: Sequence[str], edges: tuple[float, float], *, from_zero: bool
) -> str:
    left, right = edges
    points = {name: [(line["epoch"], line[name]) for line in history if math.isfinite(line[name])] for name in names}
    values = [value for series in points.values() for _, value in series] or [0.0]
    low, high = min(0.0, *values) if from_zero else min(values), max(values)
    high = high if high > low else low + 1.0
    epochs = [line["epoch"] for line in history]
    last = max(epochs) if max(epochs) > min(epochs) else min(epochs) + 1
    x, y = Scale(min(epochs), last, left, right), Scale(low, high, _BOTTOM, _TOP)
    whole = [tick for tick in ticks(min(epochs), last) if tick == int(tick)]
    axes = x_axis(x, whole, _TOP, _BOTTOM, "epoch") + y_axis(y, ticks(low, high), left, right)
    lines = "".join(
        _line(name, points[name], x, y, colour) for name, colour in zip(names, _COLOURS, strict=False) if points[name]
    )
    return text(left, 20, title, "title") + axes + lines


def _line(name: str, points: Sequence[tuple[float, float]], x: Scale, y: Scale, colour: str) -> str:
    path = " ".join(f"{x(epoch):g},{y(value):g}" for epoch, value in points)
    marks = "".join(mark(x(epoch), y(value), "dot", f"{name} {value:.4f}, epoch {epoch:g}") for epoch, value in points)
    named = text(x.end + 8, y(points[-1][1]) + 4, name)
    return f'<g fill="{colour}" stroke="{colour}"><polyline points="{path}"/></g><g fill="{colour}">{marks}{named}</g>'
