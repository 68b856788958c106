"""What commands print: results on stdout, as tables for people or JSON for programs; words about the work on stderr.

On a terminal a table has lines, colours and bars. Elsewhere it is plain: a line of names, then a line for each row, in
fields parted by tabs, with `# ` before what is no row; `cut`, `awk` and spreadsheets read that.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segue.terminal_text import ACTIVE, escaped


def say(line: str) -> None:
    """One line about the work, on stderr."""
    click.echo(escaped(line), err=True)


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


class _Table(Table):
    """A table whose cells cannot act on the terminal, whatever a title or an id holds."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row, as rich.table.Table does."""
        super().add_row(*map(harmless, cells), **options)


def harmless(cell: Any) -> Any:
    """Text with escapes in place of characters that act on a terminal; its styles stay."""
    if isinstance(cell, str):
        return escaped(cell)
    if not isinstance(cell, Text) or not ACTIVE.search(cell.plain):
        return cell
    shown = cell.blank_copy()
    for place, character in enumerate(cell.plain):
        piece = cell[place]
        shown.append_text(Text(escaped(character), style=cell.style) if ACTIVE.match(character) else piece)
    return shown


def titled(title: str, caption: str | Text | None = None, *, header: bool = True) -> Table:
    """A table as all commands show theirs: few lines, the title above, what is to be said of it below."""
    return _Table(
        title=Text(escaped(title), style="bold"),
        caption=harmless(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD if header else box.SIMPLE,
        show_header=header,
    )


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, a line each."""
    table = titled(title, header=False)
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
