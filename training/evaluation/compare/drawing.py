"""SVG by hand: scales, axes and marks whose colours are the page's, so that they follow light, dark and print.

A mark is a group with a `<title>`, which browsers show on hovering and the page's script reads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import escape

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


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round values between two others."""
    step = 10 ** math.floor(math.log10((high - low) / wanted))
    step *= next((m for m in (1, 2, 2.5, 5) if step * m * wanted >= high - low), 10)
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


def svg(width: float, height: float, says: str, inside: str, css: str = "") -> str:
    """A drawing with what it shows in words."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(says)}"{_class(css)}>{inside}</svg>'


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""
