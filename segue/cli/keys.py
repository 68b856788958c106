"""`segue keys`: manage the API keys file of a service."""

from pathlib import Path

import click
from rich.table import Table

from segue.cli.terminal import example, print_json, print_table, say

_FILE = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="SEGUE_API_KEYS",
    required=True,
    metavar="FILE",
    help="The keys file. You can set SEGUE_API_KEYS instead.",
)


@click.group(short_help="Create, list and revoke API keys.")
def keys() -> None:
    """Create, list and revoke the API keys of a service.

    Running services apply a change of the file within a second.
    """


@keys.command(
    short_help="Create an API key.",
    epilog=example("segue keys new player --scope client --scope read --file keys.toml"),
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["client", "read", "metrics", "admin"]),
    multiple=True,
    required=True,
    help="Permission of the key. Repeatable. client: report events, search tracks and get recommendations. read: read "
    "sessions, the map and the live release. metrics: read /metrics. admin: everything.",
)
@_FILE
def new(name: str, scopes: tuple[str, ...], file: Path) -> None:
    """Create an API key called NAME and print it.

    The key is shown only once. The file stores its SHA-256 hash.
    """
    from segue.errors import BadOption
    from service.http.keys import SCOPES, new_key, read_keys, write_keys

    kept = read_keys(file) if file.exists() else []
    if name in {key.name for key in kept}:
        raise BadOption(f"{file} already has a key named {name!r}: choose another name, or revoke that key first")
    text, key = new_key(name, [scope for scope in SCOPES if scope in scopes])
    write_keys(file, [*kept, key])
    click.echo(text)
    say(f"Key {name} added to {file}. Copy it now: it is not shown again. Send it as `Authorization: Bearer KEY`.")


@keys.command("list", short_help="List the API keys.")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_keys(file: Path, as_json: bool) -> None:
    """List the keys with their scopes. The keys themselves are not stored, only their hashes."""
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


@keys.command(short_help="Revoke an API key.")
@click.argument("name")
@_FILE
def revoke(name: str, file: Path) -> None:
    """Remove the key called NAME from the file. Running services reject it within a second."""
    from segue.errors import BadOption
    from service.http.keys import read_keys, write_keys

    kept = read_keys(file)
    left = [key for key in kept if key.name != name]
    if len(left) == len(kept):
        raise BadOption(f"{file} has no key named {name!r}: run `segue keys list --file {file}` to see its keys")
    write_keys(file, left)
    say(f"Revoked {name}. Running services reject it within a second.")
