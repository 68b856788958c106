"""`segue serve`, `segue recommend` and `segue openapi`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from segue.cli.data import FOLDER
from segue.cli.recommend import explained, items, next_tracks
from segue.cli.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from segue.sessions import Event


@click.command(short_help="Serve a release over HTTP.")
@click.argument("release", type=FOLDER)
@click.option("--redis-url", help="A Redis to keep sessions in; without it an embedded server is started.")
@click.option("--host", help="Address to listen on; others than loopback need API keys.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on, 0 for a free one.  [default: 8000]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that answer.")
def serve(release: Path, redis_url: str | None, host: str | None, port: int | None, workers: int) -> None:
    """Serve RELEASE over HTTP; the address is printed once requests are answered.

    Everything else is set by SEGUE_* variables (docs/operations.md).
    """
    from service.server import serve as run
    from service.settings import read_settings

    given = {"release": release, "redis_url": redis_url, "host": host, "port": port}
    run(read_settings(**{name: value for name, value in given.items() if value is not None}), workers)


class _InOrder(click.Command):
    """A command that remembers the order in which its options were given, across options."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Parse as usual, and keep the names of the options in their order."""
        _, _, order = self.make_parser(context).parse_args(list(arguments))
        context.meta["segue.order"] = [parameter.name for parameter in order]
        return super().parse_args(context, arguments)


def _in_order(context: click.Context, plays: tuple[str, ...], skips: tuple[str, ...]) -> "Iterator[Event]":
    from segue.sessions import play, skip

    made = {"plays": map(play, plays), "skips": map(skip, skips)}
    for name in context.meta["segue.order"]:
        if name in made:
            yield next(made[name])


@click.command(cls=_InOrder, short_help="Recommend once from the shell.")
@click.argument("release", type=FOLDER)
@click.option("--play", "plays", multiple=True, metavar="TRACK", help="A track that was played; may be repeated.")
@click.option("--skip", "skips", multiple=True, metavar="TRACK", help="A track that was skipped; may be repeated.")
@click.option("-k", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many tracks.")
@click.option(
    "--explain", is_flag=True, help="Say what pulls each track, what pushes it away, and its rank without skips."
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def recommend(
    context: click.Context,
    release: Path,
    plays: tuple[str, ...],
    skips: tuple[str, ...],
    k: int,
    explain: bool,
    as_json: bool,
) -> None:
    """Recommend once from the shell: --play and --skip in the order in which it happened."""
    from segue.sessions import plays_of
    from service.releases.explanation import explain_answer
    from service.releases.loaded import Question, load_release

    live = load_release(release)
    question = Question(plays_of(_in_order(context, plays, skips)), k)
    [answer] = live.answer([question])
    why = explain_answer(live, question, answer) if explain else None
    if unknown := live.unknown([play.track_id for play in question.plays]):
        say(f"passed over, as {live.name} does not hold them: {', '.join(unknown)}")
    if as_json:
        told = {"release": live.name, "source": answer.source, "items": items(answer)}
        print_json(told if why is None else told | {"explanation": explained(why)})
    else:
        print_table(next_tracks(answer, why, Console().width))


@click.command(short_help="Print the description of the HTTP interface.")
def openapi() -> None:
    """Print the description of the HTTP interface (openapi.yaml)."""
    from service.app import openapi_yaml

    click.echo(openapi_yaml(), nl=False)
