"""`segue compare`: results side by side, with intervals and paired tests."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table as RichTable

from segue.cli.data import FOLDER
from segue.cli.terminal import print_json, print_table, say, titled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.evaluation.compare.report import Section
    from training.evaluation.compare.tables import Table


@click.command(short_help="Results side by side: intervals, paired tests, plots.")
@click.argument("results", type=FOLDER, nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--html", type=FOLDER, help="Write one page with tables and plots, which needs no network.")
@click.option("--markdown", type=FOLDER, help="Write the tables as Markdown.")
@click.option("--json", "json_file", type=FOLDER, help="Write estimates and tests to this file; - prints them.")
def compare(results: tuple[Path, ...], html: Path | None, markdown: Path | None, json_file: Path | None) -> None:
    """Compare the results that `segue evaluate --json` wrote, those of the same question with each other."""
    from training.evaluation.compare.report import as_json, measure, write_report

    sections = measure(results)
    to_stdout = str(json_file) == "-"
    write_report(sections, html, markdown, None if to_stdout else json_file)
    if to_stdout:
        print_json(as_json(sections))
    else:
        show(sections)


def show(sections: "Sequence[Section]") -> None:
    """The most telling tables of a comparison, and what came out in words."""
    for section in sections:
        for table in section.tables:
            if table.title.startswith("Every system"):
                print_table(_rich(table))
        for sentence in section.sentences:
            say(f"{section.split}: {sentence}")


def _rich(table: "Table") -> RichTable:
    shown = titled(table.title, table.note)
    for column in table.columns[:6]:
        shown.add_column(column, no_wrap=True)
    for row in table.rows:
        shown.add_row(*row[:6])
    return shown
