"""`segue serve`, `segue recommend`, `segue openapi` and `segue keys`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.table import Table
from rich.text import Text

from segue.cli.data import FOLDER
from segue.cli.evaluate import CAUTION, REPEAT
from segue.cli.recommend import explained, items, next_tracks
from segue.cli.terminal import counting, example, print_json, print_table, say, titled
from segue.errors import BadOption

if TYPE_CHECKING:
    from segue.sessions import Event
    from service.http.keys import Key
    from service.releases.loaded import Question


@click.command(short_help="Serve a release over HTTP.", epilog=example("segue serve releases/mine --port 8000"))
@click.argument("release", type=FOLDER)
@click.option(
    "--redis-url",
    metavar="URL",
    help="Redis that stores the sessions, as redis://HOST:PORT.  [default: start an embedded Redis]",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Address to listen on. Addresses other than loopback require API keys.  [default: 127.0.0.1]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on; 0 selects a free one.  [default: 8000]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of worker processes.",
)
def serve(release: Path, redis_url: str | None, host: str | None, port: int | None, workers: int) -> None:
    """Serve the release in the folder RELEASE over HTTP.

    The command prints its address when it is ready. The player is at /, the operations page at /ops and the API
    documentation at /docs. All other settings are SEGUE_* environment variables (docs/operate/settings.md). Options
    take precedence over them.
    """
    from service.server import serve as run
    from service.settings import read_settings

    given = {"release": release, "redis_url": redis_url, "host": host, "port": port}
    run(read_settings(**{name: value for name, value in given.items() if value is not None}), workers)


class _InOrder(click.Command):
    """A command that records the order of its options, across different options."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Parse as usual, and store the names of the options in their order."""
        _, _, order = self.make_parser(context).parse_args(list(arguments))
        context.meta["segue.order"] = [parameter.name for parameter in order]
        return super().parse_args(context, arguments)


def _in_order(context: click.Context, plays: tuple[str, ...], skips: tuple[str, ...]) -> "Iterator[Event]":
    """Yield the plays and skips in the order of the options. Raises BadOption for what is no track id."""
    from pydantic import ValidationError

    from segue.sessions import play, skip

    given = {"plays": iter(plays), "skips": iter(skips)}
    for name in context.meta["segue.order"]:
        if name not in given:
            continue
        track_id = next(given[name])
        try:
            yield play(track_id) if name == "plays" else skip(track_id)
        except ValidationError:
            option = "--play" if name == "plays" else "--skip"
            raise BadOption(
                f"{option} {ascii(track_id)[:80]} is no track id: expected 1 to 256 characters, no control characters"
            ) from None


@click.command(
    cls=_InOrder,
    short_help="Recommend next tracks for one session or a file of sessions, without a service.",
    epilog=example(
        "segue recommend releases/mine --play track-1 --skip track-2 -k 10",
        "segue recommend releases/mine --sessions s.parquet --out lists.parquet",
    ),
)
@click.argument("release", type=FOLDER)
@click.option("--play", "plays", multiple=True, metavar="TRACK", help="Id of a played track. Repeatable.")
@click.option("--skip", "skips", multiple=True, metavar="TRACK", help="Id of a skipped track. Repeatable.")
@click.option(
    "-k",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    metavar="N",
    help="Number of tracks to recommend, 1 to 1,000.",
)
@REPEAT
@CAUTION
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Apply the policy in a TOML file. The other options take precedence, and both filters must hold.",
)
@click.option(
    "--filter",
    "only",
    metavar="FILTER",
    help="Only tracks with these attributes, such as genre:rock|pop,explicit:false.",
)
@click.option(
    "--max-per-artist", type=click.IntRange(1), metavar="N", help="At most N tracks of an artist, if there are others."
)
@click.option(
    "--artist-gap",
    type=click.IntRange(0, 20),
    metavar="N",
    help="At least N tracks of other artists between two of an artist.  [default: 0]",
)
@click.option(
    "--station-track", "station_tracks", multiple=True, metavar="TRACK", help="Seed of a station. Repeatable."
)
@click.option(
    "--station-artist",
    "station_artists",
    multiple=True,
    metavar="ARTIST",
    help="Artist as a seed, by name or artist_id. Repeatable.",
)
@click.option(
    "--station-weight",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    metavar="W",
    help="Weight of the seeds, 0 to 1.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Show which play raises and which lowers each track most, and its rank without skips.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the recommendations as JSON.")
@click.option(
    "--sessions",
    type=FOLDER,
    metavar="FILE",
    help="Recommend for all sessions of a Parquet file, or of a folder of Parquet files such as the event log. "
    "Columns: session_id, position (or timestamp), track_id, skipped.",
)
@click.option(
    "--out",
    type=FOLDER,
    metavar="FILE",
    help="Parquet file for the recommendations of --sessions. Columns: session_id, rank, track_id, score, source.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
@click.pass_context
def recommend(
    context: click.Context,
    release: Path,
    plays: tuple[str, ...],
    skips: tuple[str, ...],
    k: int,
    repeat: str,
    caution: float | None,
    policy_file: Path | None,
    only: str | None,
    max_per_artist: int | None,
    artist_gap: int | None,
    station_tracks: tuple[str, ...],
    station_artists: tuple[str, ...],
    station_weight: float,
    explain: bool,
    as_json: bool,
    sessions: Path | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Recommend next tracks from the release in the folder RELEASE.

    Give the session as --play and --skip options, oldest first. If it contains no known track, the most
    played tracks are recommended. For many sessions, give --sessions and --out.
    """
    if sessions is not None or out is not None:
        if sessions is None or out is None:
            raise click.UsageError("--sessions and --out are used together: give both")
        if plays or skips or explain or as_json or station_tracks or station_artists:
            raise click.UsageError(
                "--play, --skip, --station-track, --station-artist, --explain and --json are for one session: "
                "omit them with --sessions"
            )
    given = context.get_parameter_source("repeat") is not ParameterSource.DEFAULT
    question = _question(policy_file, k, repeat if given else None, caution, only, max_per_artist, artist_gap)
    if sessions is not None and out is not None:
        shaped = {"filter": only, "max_per_artist": max_per_artist, "artist_gap": artist_gap}
        policy = None if policy_file is None else policy_file.read_text(encoding="utf-8")
        options = {name: str(value) for name, value in (shaped | {"policy": policy}).items() if value is not None}
        _recommend_sessions(release, sessions, out, question, options, overwrite=overwrite)
        return
    from segue.sessions import Station, plays_of
    from service.releases.explanation import explain_answer
    from service.releases.loaded import load_release

    session = plays_of(_in_order(context, plays, skips))
    live = load_release(release)
    live.check(question)
    unknown_seeds: list[str] = []
    pull = None
    if station_tracks or station_artists:
        pull, unknown_seeds = live.seeds.known_pull(Station(station_tracks, station_artists, station_weight))
        pull = pull if station_weight else None
    question = replace(question, plays=session, station=pull)
    [answer] = live.answer([question])
    why = explain_answer(live, question, answer) if explain else None
    if unknown := [*live.unknown([play.track_id for play in question.plays]), *unknown_seeds]:
        say(f"Ignored (not in the catalogue of {live.name}): {', '.join(unknown)}")
    if as_json:
        content = {"release": live.name, "source": answer.source, "items": items(answer)}
        print_json(content if why is None else content | {"explanation": explained(why)})
    else:
        print_table(partial(next_tracks, answer, why))


def _question(
    policy_file: Path | None,
    k: int,
    repeat: str | None,
    caution: float | None,
    only: str | None,
    max_per_artist: int | None,
    artist_gap: int | None,
) -> "Question":
    """Return a question without plays. Options that are given take precedence over those of the policy."""
    from segue.filters import Every, read_filter
    from segue.policy import Policy, read_policy
    from segue.sessions import ALLOW_REPEATS, repeat_policy
    from service.releases.loaded import Question

    policy = Policy() if policy_file is None else read_policy(policy_file)
    wanted = None if only is None else read_filter(only)
    if policy.filter is not None:
        wanted = policy.filter if wanted is None else Every((policy.filter, wanted))
    return Question(
        (),
        k,
        repeat=(policy.repeat or ALLOW_REPEATS) if repeat is None else repeat_policy(repeat),
        caution=policy.caution if caution is None else caution,
        filter=wanted,
        spacing=policy.spacing(max_per_artist, artist_gap),
        policy=policy if policy.has_steps else None,
        seed=0,  # the same command writes the same lists
    )


def _recommend_sessions(
    release: Path, sessions: Path, out: Path, question: "Question", options: Mapping[str, str], *, overwrite: bool
) -> None:
    from segue.cli.recommend_sessions import SessionsJob, recommend_sessions
    from service.releases.loaded import load_release

    job = SessionsJob(sessions, out, question, options, overwrite)
    live = load_release(release)
    live.check(question)
    with counting("recommending") as report:
        count = recommend_sessions(live, job, report)
    say(f"Wrote the recommendations of {live.name} for {count:,} sessions to {out}")


@click.command(
    short_help="Print the OpenAPI description of the HTTP API.", epilog=example("segue openapi > openapi.yaml")
)
def openapi() -> None:
    """Print the OpenAPI description of the HTTP API as YAML."""
    from service.app import openapi_yaml

    click.echo(openapi_yaml(), nl=False)


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
    print_table(partial(_keys_table, kept))


def _keys_table(kept: "Sequence[Key]", room: int | None = None) -> Table:
    table = titled(None)
    for name in ("name", "scopes", "created", "sha256" if room is None else "sha256, first 12"):
        table.add_column(name, no_wrap=name != "scopes")
    for key in kept:
        cut = key.sha256[:12] + ("…" if room is None else "")
        table.add_row(Text(key.name), ", ".join(sorted(key.scopes)), str(key.created or ""), cut)
    return table


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
