"""Tables of `segue evaluate` (metrics with intervals, hit rates as bars), and the command `segue compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
from rich.table import Table
from rich.text import Text

from segue.cli.data import FOLDER
from segue.cli.terminal import bar, print_json, print_table, say, titled

if TYPE_CHECKING:
    from training.evaluation.compare.report import ReportSection
    from training.evaluation.compare.tables import Table as ComparisonTable

Results: TypeAlias = Sequence[
    tuple[str, Mapping[str, Any]]
]  # systems, and what `segue evaluate --output` writes of each

METRIC_COLUMNS: Final = ("HR@1", "HR@10", "MRR@10")
HIT_RATES: Final = ("HR@1", "HR@5", "HR@10", "HR@20")
_STYLES: Final = {"played": "green", "skipped": "yellow"}
_WIDTH: Final = 24


def evaluation_table(title: str, results: Results) -> Table:
    """A line for every system and group of targets: means with 95 % bootstrap intervals."""
    table = titled(title, "value [95 % interval]; skipped targets: lower is better")
    table.add_column("system")
    table.add_column("targets")
    table.add_column("sessions", justify="right")
    for metric in METRIC_COLUMNS:
        table.add_column(metric, justify="right", no_wrap=True)
    for group in ("all", "played", "skipped"):
        for system, result in results:
            measured = result["groups"][group]
            cells = [_estimate(measured[metric]) for metric in METRIC_COLUMNS]
            style = _STYLES.get(group, "")
            table.add_row(Text(system), Text(group, style=style), f"{measured['sessions']:,}", *cells)
        if len(results) > 1:
            table.add_section()
    return table


def hit_rates(results: Results) -> Table:
    """How many targets are among the first k: those that were played, which should be, and those that were skipped."""
    table = titled("targets among the first k", "played: long bars are good; skipped: short")
    table.add_column("k")
    table.add_column("system")
    for group in _STYLES:
        table.add_column(group, justify="right")
        table.add_column("", no_wrap=True)
    for metric in HIT_RATES:
        for system, result in results:
            cells: list[str | Text] = [metric.partition("@")[2], Text(system)]
            for group, style in _STYLES.items():
                estimate = result["groups"][group][metric]
                cells.append(_value(estimate))
                cells.append(bar(estimate["value"], _WIDTH, style) if estimate is not None else Text())
            table.add_row(*cells)
        if len(results) > 1:
            table.add_section()
    return table


def beyond_hits(results: Results) -> Table:
    """How far skipped targets rank below played ones, and how much of the catalogue is in anybody's first 20."""
    table = titled("beyond hits")
    table.add_column("system")
    for name in ("MRR@10 played - skipped", "catalogue in first 20", "targets unseen in training"):
        table.add_column(name, justify="right", no_wrap=True)
    for system, result in results:
        coverage = result.get("catalogue_coverage@20")
        table.add_row(
            Text(system),
            _estimate(result["skip_down_ranking"]["MRR@10 played - skipped"]),
            f"{coverage:.1%}" if coverage is not None else "-",
            f"{result['unseen_targets']:.1%}",
        )
    return table


def _estimate(estimate: Mapping[str, float] | None) -> Text:
    if estimate is None:
        return Text("-")
    interval = f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return Text.assemble((_value(estimate), "bold"), (interval, "dim"))


def _value(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.3f}"


@click.command(short_help="Results side by side: intervals, paired tests, charts.")
@click.argument("results", type=FOLDER, nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--html", type=FOLDER, help="Write one HTML page with tables and charts; it needs no network.")
@click.option("--markdown", type=FOLDER, help="Write the tables as Markdown.")
@click.option("--json", "to_stdout", is_flag=True, help="Print estimates and tests as JSON.")
@click.option("--output", type=FOLDER, metavar="FILE", help="Write estimates and tests to FILE as JSON.")
def compare(
    results: tuple[Path, ...], html: Path | None, markdown: Path | None, to_stdout: bool, output: Path | None
) -> None:
    """Compare results that `segue evaluate --output` wrote. Only results of the same question are compared."""
    from training.evaluation.compare.report import as_json, measure, write_report

    sections = measure(results)
    write_report(sections, html, markdown, output)
    if to_stdout:
        print_json(as_json(sections))
    else:
        show(sections)


def show(sections: "Sequence[ReportSection]") -> None:
    """The most telling tables of a comparison, and what came out in words."""
    for section in sections:
        for table in section.tables:
            if table.title.startswith("Every system"):
                print_table(_rich(table))
        for sentence in section.sentences:
            say(f"{section.split}: {sentence}")


def _rich(table: "ComparisonTable") -> Table:
    shown = titled(table.title, table.note)
    for column in table.columns[:6]:
        shown.add_column(column, no_wrap=True)
    for row in table.rows:
        shown.add_row(*row[:6])
    return shown
