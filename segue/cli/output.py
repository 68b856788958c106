"""What commands print: progress on stderr, results on stdout, as tables for people or JSON for programs.

On a terminal a table has lines, colours and bars. Elsewhere it is plain: a line of names, then a line for each row, in
fields parted by tabs, with `# ` before what is no row; `cut`, `awk` and spreadsheets read that.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

METRIC_COLUMNS = ("HR@1", "HR@10", "MRR@10")


def say(line: str) -> None:
    """One line about the work, on stderr."""
    click.echo(line, err=True)


def print_json(content: Any) -> None:
    """A result for programs."""
    click.echo(json.dumps(content, indent=2, default=str))


def print_table(table: Table) -> None:
    """A result for people; plain where the output is no terminal."""
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    for line in plain_lines(table):
        click.echo(line)


def plain_lines(table: Table) -> Iterator[str]:
    """A table as lines of fields parted by tabs. A column without a header is a picture, and left out."""
    yield from (f"# {_plain(table.title)}" for _ in range(table.title is not None))
    columns = [column for column in table.columns if column.header or not table.show_header]
    if table.show_header:
        yield "\t".join(_plain(column.header) for column in columns)
    for row in zip(*(column.cells for column in columns), strict=True):
        yield "\t".join(map(_plain, row))
    yield from (f"# {_plain(table.caption)}" for _ in range(table.caption is not None))


def _plain(cell: Any) -> str:
    """The text of a cell in one line; what rich takes for markup in plain text is taken so here, too."""
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return " ".join(text.split())


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, a line each."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(_fact(value)))  # a path or an option may hold what looks like markup
    return table


def _fact(value: Any) -> str:
    """A value as a person reads it; what is not set is left out of a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def evaluation_table(title: str, results: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """A line for every system and group of targets: means with 95 % bootstrap intervals."""
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    table.add_column("targets")
    table.add_column("sessions", justify="right")
    for metric in METRIC_COLUMNS:
        table.add_column(metric, justify="right", no_wrap=True)
    for group in ("all", "played", "skipped"):
        for system, result in results:
            measured = result["groups"][group]
            table.add_row(system, group, f"{measured['sessions']:,}", *(_cell(measured[m]) for m in METRIC_COLUMNS))
        table.add_section()
    table.caption = "value [95 % interval]; skipped targets: lower is better"
    return table


def _cell(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _bar(*columns: Any) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told (done, total)."""
    with _bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting_steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told (what is done now, steps done, steps in all)."""
    with _bar(MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


class TrainingProgress:
    """A bar over the sessions of an epoch with loss terms and speed, and a lasting line for every epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._progress = _bar(TextColumn("{task.fields[terms]}"), TextColumn("{task.speed:,.0f} sessions/s"))
        self._task: TaskID | None = None
        self._epoch_shown = -1

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._progress.stop()

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: Mapping[str, float]) -> None:
        """See training.fit.Reporter."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        if self._task is None or epoch != self._epoch_shown:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(f"epoch {epoch + 1}/{self._epochs}", total=sessions, terms=shown)
            self._epoch_shown = epoch
        self._progress.update(self._task, completed=sessions_done, terms=shown)

    def epoch(self, line: Mapping[str, float]) -> None:
        """See training.fit.Reporter."""
        self._progress.console.print(
            f"epoch {line['epoch']:.0f}/{self._epochs}  loss {line['loss']:.4f}  nll {line['nll']:.4f}  "
            f"nce {line['nce']:.4f}  validation HR@10 {line['HR@10']:.4f}  {line['sessions_per_s']:,.0f} sessions/s",
            highlight=False,
            soft_wrap=True,
        )
