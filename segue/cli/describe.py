"""`segue describe`: the figures of a dataset and its warnings, as tables, JSON or an HTML page."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.table import Table
from rich.text import Text

from segue.cli.data import FOLDER
from segue.cli.terminal import bar, example, facts_table, first_that_fits, print_json, print_table, say, titled

if TYPE_CHECKING:
    from training.data.describe.description import Description, Rate

FILES_SHOWN: Final = 10
_BAR_WIDTHS: Final = (40, 32, 24, 16, 8)  # the widest that the terminal has room for


@click.command(
    short_help="Show the figures of a dataset, and warnings about it.",
    epilog=example("segue describe data/mine", "segue describe data/mine --html mine.html"),
)
@click.argument("dataset", type=FOLDER)
@click.option("--html", type=FOLDER, metavar="FILE", help="Write figures and plots to FILE as one offline HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def describe(dataset: Path, html: Path | None, as_json: bool) -> None:
    """Show what to know about a dataset before you train on it.

    Size, time span, session lengths, skip rates by position, by previous outcome and by file, repeated tracks,
    popularity, where the outcomes of plays come from, and warnings.
    """
    from training.data.dataset import open_dataset
    from training.data.describe.statistics import describe as described

    found = described(open_dataset(dataset))
    if html is not None:
        from training.data.describe.page import page
        from training.reports.html import write_text

        write_text(html, page(found))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(found)
    if html is not None:
        say(f"Written: {html}")
    elif not as_json:
        say("For plots, add --html FILE.")


def show(of: "Description") -> None:
    """Print the tables of a description, the warnings last."""
    from training.data.describe import texts

    print_table(facts_table(f"dataset {of.fingerprint[:12]}", texts.overview(of)))
    lengths = texts.length_cells(of)
    most = max(share for _, share in lengths)
    rows = [(cells, share / most) for cells, share in lengths]
    _print_bars("Session lengths", ("plays", "sessions", "share"), rows, "green")
    _print_rates("Skip rate by position in the session", "position", texts.by_position(of))
    _print_rates("Skip rate by outcome of the previous play", "previous play", texts.by_previous(of))
    if of.by_file is not None:
        more = len(of.by_file) - FILES_SHOWN
        files = [(file.name, file) for file in of.by_file[:FILES_SHOWN]]
        _print_rates("Skip rate by file", "file", files, f"{more:,} more files: see --json." if more > 0 else None)
    print_table(facts_table("Popularity", texts.popularity(of)))
    if of.log is not None:
        print_table(facts_table("Log", texts.reading(of.log)))
        if of.log.steps:
            print_table(_steps_table(texts.STEP_COLUMNS, texts.step_cells(of.log)))
    warnings = {warning.code: texts.sentence(warning.message) for warning in of.warnings}
    print_table(_warnings_table(warnings) if warnings else facts_table("Warnings", {"none": texts.NO_WARNINGS}))


def _print_rates(title: str, column: str, rates: "Sequence[tuple[str, Rate]]", note: str | None = None) -> None:
    """Print a row for each rate with a bar; a full bar is a skip rate of 100 %."""
    from training.data.describe.texts import rate_cells

    rows = [(rate_cells(name, rate), rate.skip_rate or 0.0) for name, rate in rates]
    _print_bars(title, (column, "plays", "skips", "skip rate"), rows, "yellow", note)


def _print_bars(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Sequence[str], float]],
    style: str,
    note: str | None = None,
) -> None:
    """Print rows of cells, each with a bar of this length (0 to 1), as wide as the terminal has room for."""

    def table(width: int) -> Table:
        made = titled(title, note)
        for number, name in enumerate(columns):
            made.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
        made.add_column("", no_wrap=True)
        for cells, length in rows:
            made.add_row(Text(cells[0]), *cells[1:], bar(length, width, style))
        return made

    print_table(partial(first_that_fits, [partial(table, width) for width in _BAR_WIDTHS]))


def _steps_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = titled("Rules of preparation")
    for name in columns:
        table.add_column(name, justify="left" if name in ("step", "option") else "right", no_wrap=name == "option")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def _warnings_table(warnings: Mapping[str, str]) -> Table:
    table = titled("Warnings", "docs/how-to/check-your-log.md explains each warning.")
    table.add_column("warning", no_wrap=True, style="yellow")
    table.add_column("what was found, what to do")
    for code, message in warnings.items():
        table.add_row(Text(code), Text(message))
    return table
