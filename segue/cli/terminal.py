"""Terminal output: results on stdout, as tables or JSON; progress and messages on stderr.

On a terminal, a table has lines, colours and bars, and omits columns that do not fit. When piped, it is plain text: a
line of column names, then one line per row with tab-separated fields. Titles and notes start with `# `, so that `cut`,
`awk` and spreadsheets can read it. Long work shows a progress bar on a terminal, and one line per epoch elsewhere.

Ids, titles and file names come from outside. Control characters and bidirectional controls in them are shown as
escapes, because they would act on the terminal or reorder the line (https://www.unicode.org/reports/tr36/, 2014).
Direction marks (U+200E, U+200F) are part of ordinary titles and stay.
"""

import json
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import click
from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# Tabs and line breaks are not escaped: tables and messages turn them into spaces.
ACTIVE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""Return the text with escapes such as `\x9b` in place of control characters."""
    return ACTIVE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def example(*commands: str) -> str:
    """Return the epilog of a command's help: an example, which click does not rewrap."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


def say(line: str, *commands: str) -> None:
    """Print a message to stderr, and the commands that can follow. On a terminal, lines end between words."""
    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(escaped(" ".join([line, *([f"Next: {', or '.join(commands)}"] if commands else [])])), err=True)
        return
    lines = [textwrap.fill(escaped(line), console.width, break_long_words=False, break_on_hyphens=False)]
    for number, command in enumerate(commands):  # each in a line of its own, to be copied
        lines.append(f"{'  or' if number else 'Next'}: {escaped(command)}")
    sys.stderr.write("".join(f"{shown}\n" for shown in lines))  # a progress bar moves below it; click would bypass it


def print_json(content: Any) -> None:
    """Print a result as JSON to stdout."""
    click.echo(json.dumps(content, indent=2, default=str))


def print_table(table: Table | Callable[[int | None], Table]) -> None:
    """Print a table to stdout, as plain text if it is not a terminal.

    A function gets the width of the terminal in characters, None if stdout is not a terminal, and returns the table.
    """
    console = Console()
    if not isinstance(table, Table):
        table = table(console.width if console.is_terminal else None)
    if console.is_terminal:
        console.print(table)
        if table.caption:
            console.print()
        return
    for line in plain_lines(table):
        click.echo(line)


def first_that_fits(tables: Sequence[Callable[[], Table]], room: int | None) -> Table:
    """Return the first table that is at most `room` characters wide, else the last. None: no limit."""
    console = Console(width=10_000, height=100)  # without a height, rich takes 80 columns for a dumb terminal
    for made in tables[:-1]:
        table = made()
        if room is None or console.measure(table).maximum <= room:
            return table
    return tables[-1]()


def plain_lines(table: Table) -> Iterator[str]:
    """Yield a table as lines of tab-separated fields, without columns that have no header (bars)."""
    yield from (f"# {_plain(table.title)}" for _ in range(table.title is not None))
    columns = [column for column in table.columns if column.header or not table.show_header]
    if table.show_header:
        yield "\t".join(_plain(column.header) for column in columns)
    for row in zip(*(column.cells for column in columns), strict=True):
        yield "\t".join(map(_plain, row))
    yield from (f"# {_plain(table.caption)}" for _ in range(table.caption is not None))


def _plain(cell: Any) -> str:
    """Return the text of a cell in one line. Markup is interpreted as on a terminal."""
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return " ".join(text.split())


class _Table(Table):
    """A table that escapes control characters in its cells, and folds a word that is too long instead of cutting it."""

    def add_column(self, header: RenderableType = "", *args: Any, **options: Any) -> None:
        """Add a column. Cells that do not fit are continued in the next line."""
        super().add_column(header, *args, **{"overflow": "fold", **options})

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row with escaped cells."""
        super().add_row(*map(harmless, cells), **options)


def harmless(cell: Any) -> Any:
    """Return a cell with escapes in place of control characters and the same styles."""
    if isinstance(cell, str):
        return escaped(cell)
    if not isinstance(cell, Text) or not ACTIVE.search(cell.plain):
        return cell
    shown = cell.blank_copy()
    for place, character in enumerate(cell.plain):
        piece = cell[place]
        shown.append_text(Text(escaped(character), style=cell.style) if ACTIVE.match(character) else piece)
    return shown


def titled(title: str | None, caption: str | Text | None = None, *, header: bool = True) -> Table:
    """Return an empty table in the style of all commands: the title above, the caption below."""
    return _Table(
        title=None if title is None else Text(escaped(title), style="bold"),
        caption=harmless(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD if header else box.SIMPLE,
        show_header=header,
    )


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Return a table with a row for each name and value."""
    table = titled(title, header=False)
    for name, value in facts.items():
        table.add_row(name, Text(_fact(value)))  # a path or an option may look like markup
    return table


def _fact(value: Any) -> str:
    """Format a value. Entries of a mapping that are None are omitted."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int, style: str = "") -> Text:
    """Return a bar for `share` (clipped to 0 to 1) of `width` characters, exact to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return Text(("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width), style=style, no_wrap=True)


def sparkline(values: Sequence[float | None], width: int, *, from_zero: bool = True) -> str:
    """Return the last `width` values as a row of columns. None leaves a gap.

    The highest column is the maximum. The lowest is 0, or the minimum if `from_zero` is false.
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
    """Return the length of each score's bar: relative to the highest score, or to the range if a score is negative."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if low >= 0:
        return [score / high if high else 0.0 for score in scores]
    return [0.05 + 0.95 * (score - low) / (high - low) if high > low else 1.0 for score in scores]


_BAR_WIDTH: Final = 24
_POINTS: Final = 20  # epochs in the sparkline
_WITHOUT_POINTS: Final = 74  # characters of an epoch's line besides the sparkline and the terms
_ROOM_FOR_TERMS: Final = 120  # characters of a terminal that shows the terms of the loss


def _bar(console: Console, *columns: Any) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_WIDTH),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _counting_bar() -> Progress:
    return _bar(Console(stderr=True), MofNCompleteColumn(), TimeRemainingColumn())


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar. Yields a function of (done, total)."""
    with _counting_bar() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar over steps. Yields a function of (description, steps done, total steps)."""
    with _counting_bar() as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


class _Details(ProgressColumn):
    """The loss, its terms, sessions per second and the time left: as many of them as fit, the time left always."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        loss, terms, left = (task.fields[name] for name in ("loss", "terms", "left"))
        speed = f"{task.speed:,.0f} sessions/s" if task.speed is not None else ""
        room = self._console.width - len(task.description) - _BAR_WIDTH - len("  ")
        choices = ((loss, terms, speed, left), (loss, speed, left), (loss, left), (left,))
        texts = ["  ".join(filter(None, parts)) for parts in choices]
        return Text(next((text for text in texts if len(text) <= room), texts[-1]), no_wrap=True)


class TrainingProgress:
    """A progress bar over the sessions of an epoch, and one line for each completed epoch."""

    def __init__(
        self,
        epochs: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        phase: str = "",
    ) -> None:
        """`console` defaults to stderr; `clock` returns seconds; `phase` is shown first, such as `1 of 2`."""
        self._epochs = epochs
        self._console = console or Console(stderr=True)
        self._progress = _bar(self._console, _Details(self._console))
        self._phase = f"{phase}, " if phase else ""
        self._task: TaskID | None = None
        self._epoch_shown = -1
        self._clock = clock
        self._began = clock()  # start of the epoch
        self._epoch_s: float | None = None  # mean duration of the epochs of this run, including validation
        self._epochs_done = 0
        self._scores: list[float | None] = []

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._progress.stop()

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: Mapping[str, float]) -> None:
        """Update the bar (training.trainer.Reporter)."""
        loss = f"loss {terms['loss']:.3f}" if "loss" in terms else ""
        parts = {name: value for name, value in terms.items() if name != "loss"} if terms.get("nce") else {}
        named = "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
        shown: dict[str, Any] = {"loss": loss, "terms": named}
        if self._task is None or epoch != self._epoch_shown:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(
                f"{self._phase}epoch {epoch + 1}/{self._epochs}", total=sessions, left="", **shown
            )
            self._epoch_shown = epoch
        left = self._left(epoch, sessions_done / max(sessions, 1))
        self._progress.update(self._task, completed=sessions_done, left=left, **shown)

    def epoch(self, line: Mapping[str, float]) -> None:
        """Print the line of an epoch (training.trainer.Reporter)."""
        now = self._clock()
        self._epochs_done += 1
        self._epoch_s = ((self._epoch_s or 0.0) * (self._epochs_done - 1) + now - self._began) / self._epochs_done
        self._began = now
        self._scores.append(line["HR@10"])
        shown = (
            self._line(line)
            if self._console.is_terminal
            else Text(
                f"epoch {line['epoch']:.0f}/{self._epochs}  loss {line['loss']:.4f}{_terms(line)}  "
                f"validation HR@10 {line['HR@10']:.4f}  {line['sessions_per_s']:,.0f} sessions/s"
            )
        )
        self._console.print(shown, soft_wrap=True)
        if self._task is not None and line["epoch"] == self._epochs:
            finishing: dict[str, Any] = {"loss": "", "terms": "", "left": ""}
            self._progress.update(
                self._task, description=f"{self._phase}finishing the release", total=None, **finishing
            )

    def _line(self, line: Mapping[str, float]) -> Text:
        """Return the line of an epoch for a terminal, with the best epoch highlighted and a sparkline of validation."""
        best = line["HR@10"] >= max(score for score in self._scores if score is not None)
        digits = len(str(self._epochs))
        points = min(_POINTS, self._epochs, max(self._console.width - _WITHOUT_POINTS, 0))
        return Text.assemble(
            (f"epoch {line['epoch']:>{digits}.0f}/{self._epochs}", "bold"),
            ("  loss ", "dim"),
            f"{line['loss']:.4f}",
            (_terms(line) if self._console.width >= _ROOM_FOR_TERMS else "", "dim"),
            ("  validation HR@10 ", "dim"),
            (f"{line['HR@10']:.4f}{' best' if best else '     '}", "bold green" if best else ""),
            (f"  {sparkline(self._scores, points, from_zero=False).ljust(points)}" if points else "", "green"),
            (f"  {line['sessions_per_s']:,.0f} sessions/s", "dim"),
        )

    def _left(self, epoch: int, share: float) -> str:
        """Return the longest remaining time, as training may stop early; '' while it is unknown."""
        spent = self._clock() - self._began
        if self._epoch_s is not None:
            rest = max(self._epoch_s - spent, 0.0) + self._epoch_s * (self._epochs - epoch - 1)
        elif share > 0 and self._epochs > 1:
            rest = spent / share * (self._epochs - epoch) - spent
        else:
            return ""
        return f"at most {duration(rest)} left"


def _terms(line: Mapping[str, float]) -> str:
    """Return the terms of the loss; without InfoNCE there is only one, the loss itself."""
    return f"  nll {line['nll']:.4f}  nce {line['nce']:.4f}" if line["nce"] else ""


def duration(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
