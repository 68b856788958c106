"""Small pictures of numbers for a terminal: bars and sparklines, as text."""

from collections.abc import Sequence
from typing import Final

from rich.text import Text

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int, style: str = "") -> Text:
    """A bar of `share` (0 to 1; what is beyond is cut) of `width` characters, to an eighth of one."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return Text(("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width), style=style, no_wrap=True)


def sparkline(values: Sequence[float | None], width: int, *, from_zero: bool = True) -> str:
    """The latest `width` values as columns; a gap where there is none.

    The highest column is the greatest value; the lowest is 0, or the least value unless `from_zero`.
    """
    shown = values[-width:]
    known = [value for value in shown if value is not None]
    low = 0.0 if from_zero or not known else min(known)
    span = max(known, default=0.0) - low
    steps = len(_HEIGHTS) - 1
    return "".join(
        " " if value is None else _HEIGHTS[round((value - low) / span * steps) if span else 0] for value in shown
    )


def shares(scores: Sequence[float]) -> list[float]:
    """How long bars of scores are: of the best one's where none is negative, else of the range, the least in sight."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if low >= 0:
        return [score / high if high else 0.0 for score in scores]
    return [0.05 + 0.95 * (score - low) / (high - low) if high > low else 1.0 for score in scores]
