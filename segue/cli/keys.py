"""`segue keys`: the file of API keys that a service reads."""

from pathlib import Path

import click
from rich.table import Table

from segue.cli.terminal import print_json, print_table, say

_FILE = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="SEGUE_API_KEYS",
    required=True,
    help="The keys file; SEGUE_API_KEYS where it is not given.",
)


@click.group(short_help="Make, list and revoke API keys.")
def keys() -> None:
    """Make, list and revoke the API keys of a service. Running services follow the file within a second."""


@keys.command(short_help="Make a key.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["client", "read", "metrics", "admin"]),
    multiple=True,
    required=True,
    help="What the key may do; may be repeated. `admin` includes the others.",
)
@_FILE
def new(name: str, scopes: tuple[str, ...], file: Path) -> None:
    """Make a key called NAME and print it: it is shown this once, the file holds its hash."""
    from segue.errors import BadOption
    from service.http.keys import SCOPES, new_key, read_keys, write_keys

    kept = read_keys(file) if file.exists() else []
    if name in {key.name for key in kept}:
        raise BadOption(f"{file} holds a key named {name!r}: choose another name, or revoke that one first")
    text, key = new_key(name, [scope for scope in SCOPES if scope in scopes])
    write_keys(file, [*kept, key])
    click.echo(text)


@keys.command("list", short_help="List the keys.")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_keys(file: Path, as_json: bool) -> None:
    """List the keys by name, with their scopes. The keys themselves are in no file."""
    from service.http.keys import read_keys

    kept = read_keys(file)
    if as_json:
        facts = [{"name": k.name, "scopes": sorted(k.scopes), "created": k.created, "sha256": k.sha256} for k in kept]
        print_json({"keys": facts})
        return
    table = Table("name", "scopes", "created", "sha256")
    for key in kept:
        table.add_row(key.name, ", ".join(sorted(key.scopes)), str(key.created or ""), f"{key.sha256[:12]}…")
    print_table(table)


@keys.command(short_help="Revoke a key.")
@click.argument("name")
@_FILE
def revoke(name: str, file: Path) -> None:
    """Take the key called NAME out of the file: services refuse it within a second."""
    from segue.errors import BadOption
    from service.http.keys import read_keys, write_keys

    kept = read_keys(file)
    left = [key for key in kept if key.name != name]
    if len(left) == len(kept):
        raise BadOption(f"{file} holds no key named {name!r}: `segue keys list` names those that it holds")
    write_keys(file, left)
    say(f"revoked {name}")
