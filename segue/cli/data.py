"""`segue prepare` and `segue simulate`: create datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.table import Table

from segue.cli.terminal import counting_steps, example, facts_table, print_json, print_table, say, titled
from segue.errors import BadOption

if TYPE_CHECKING:
    from training.data.dataset import Dataset
    from training.prepare.pipeline import Engine, PrepareReport

FOLDER = click.Path(path_type=Path)
SPLIT = click.Choice(["last-play", "new-sessions"])


def _not_a_file(_context: click.Context, _parameter: click.Parameter, kind: str) -> str:
    """Return the kind. Raise BadOption if a file was given in its place."""
    from training.prepare.options import LogKind

    if kind not in get_args(LogKind) and (Path(kind).suffix or Path(kind).exists() or kind == "-"):
        raise BadOption(
            f"{kind} is not a kind of log: name the kind first, as in `segue prepare events {kind} --out DATASET`"
        )
    return kind


@click.command(
    short_help="Convert listening logs to a dataset.",
    epilog=example("segue prepare events logs/*.csv.gz --out data/mine"),
)
@click.argument("kind", metavar="KIND", callback=_not_a_file)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="Folder to write the dataset to.")
@click.option("--overwrite", is_flag=True, help="Replace an existing dataset.")
@click.option(
    "--title",
    metavar="TEXT",
    help="Title of the dataset in pages and tables, such as 'Spotify sessions'.  [default: the name of the kind]",
)
@click.option(
    "--idle-gap",
    "idle_gap_s",
    type=float,
    metavar="S",
    help="Start a new session after S seconds of inactivity.  [default: 1200]",
)
@click.option(
    "--skip-within",
    "skip_within_s",
    type=float,
    metavar="S",
    help="Count a play as skipped if the next one starts within S seconds.  [default: 30]",
)
@click.option("--min-session-plays", type=int, metavar="N", help="Drop sessions with fewer than N plays.  [default: 5]")
@click.option(
    "--max-session-plays", type=int, metavar="N", help="Split sessions with more than N plays.  [default: 20]"
)
@click.option("--min-track-plays", type=int, metavar="N", help="Drop tracks with fewer than N plays.  [default: 0]")
@click.option(
    "--balance-skips/--all-sessions",
    "sample_half_skips",
    default=None,
    help="Sample sessions so that half of them contain a skip.  [default: only for lfm1k]",
)
@click.option("--max-sessions", type=int, metavar="N", help="Randomly sample at most N sessions.  [default: all]")
@click.option(
    "--skip-flag",
    type=click.Choice(["skip_1", "skip_2", "skip_3"]),
    help="mssd only: the column that marks a skip.  [default: skip_2]",
)
@click.option(
    "--played-ratio",
    "played_ratio_pct",
    type=int,
    metavar="PCT",
    help="yambda only: plays heard for less than PCT percent count as skips.  [default: 50]",
)
@click.option(
    "--columns",
    multiple=True,
    metavar="NAME=COLUMN,...",
    help="events only: names of columns, such as track_id=trackId,timestamp=played_at. May be repeated.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="events only: read only lines in which COLUMN has this VALUE. May be repeated: values of one column are "
    "alternatives.",
)
@click.option(
    "--where-not",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="events only: leave out lines in which COLUMN has this VALUE. May be repeated.",
)
@click.option(
    "--timestamp-is",
    type=click.Choice(["start", "end"]),
    help="Whether a timestamp is the start or the end of a play. An end needs ms_played.  [default: start]",
)
@click.option(
    "--time-format", metavar="FORMAT", help="Form of the times, such as '%m/%d/%Y %H:%M'.  [default: told from the log]"
)
@click.option(
    "--time-zone", metavar="ZONE", help="Time zone of times without one, such as Europe/Berlin.  [default: UTC]"
)
@click.option("--encoding", metavar="NAME", help="Encoding of text files, such as latin-1.  [default: utf-8]")
@click.option(
    "--max-malformed",
    "max_malformed_pct",
    type=float,
    metavar="PCT",
    help="Refuse a log with more than PCT percent malformed lines.  [default: 5]",
)
@click.option(
    "--no-skips", is_flag=True, default=None, help="The log holds no skip signal: count every play as played."
)
@click.option(
    "--skip-after",
    "skip_after_s",
    type=float,
    metavar="S",
    help="Infer no skip if the next play starts less than S seconds later.  [default: 0]",
)
@click.option(
    "--skip-below-seconds",
    "skip_below_s",
    type=float,
    metavar="S",
    help="Count a play as skipped if it was heard for less than S seconds (ms_played).",
)
@click.option(
    "--skip-below-ratio",
    "skip_below_ratio_pct",
    type=float,
    metavar="PCT",
    help="Count a play as skipped if less than PCT percent of the track were heard (ms_played, duration_ms).",
)
@click.option(
    "--merge-within",
    "merge_within_s",
    type=float,
    metavar="S",
    help="Merge plays of a track that the same listener starts again within S seconds.  [default: 0]",
)
@click.option(
    "--tracks",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="File of titles, artists and attributes such as genre, by track_id (.csv, .jsonl, .parquet), or "
    "added-tracks.json of a service. Repeat it for several files; later ones take precedence.",
)
@click.option("--include-private", is_flag=True, default=None, help="spotify only: keep plays of private sessions.")
@click.option("--seed", type=int, metavar="N", help="Random seed for session sampling.  [default: 0]")
@click.option(
    "--engine",
    type=click.Choice(["polars", "disk", "ray"]),
    default="polars",
    show_default=True,
    help="polars: in memory. disk: for logs larger than memory. ray: distributed on Ray.",
)
@click.option("--ray-address", metavar="HOST:PORT", help="Address of a Ray cluster.  [default: Ray on this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prepare(
    kind: str,
    sources: tuple[str, ...],
    out: Path,
    overwrite: bool,
    engine: str,
    ray_address: str | None,
    as_json: bool,
    tracks: tuple[Path, ...],
    **given: Any,
) -> None:
    """Convert listening logs to a dataset that you can train on.

    KIND says what the log is. Exports of your own history: spotify, spotify-account, lastfm, listenbrainz, apple-music,
    rockbox. Published datasets: mssd, lfm1k, lfm2b, yambda. Everything else: events.

    SOURCE is a file, a folder, a glob pattern or - for standard input. Files may be compressed (.gz, .bz2, .zst) or
    in an archive (.zip, .tar).

    The kind `events` reads CSV, TSV, JSON, JSON Lines and Parquet files with a row for each play. Required columns are
    track_id, user_id or session_id, and timestamp, which is the START of the play. A log with session_id may have
    position instead. Skips come from skipped, end_reason, or ms_played and duration_ms with --skip-below-seconds or
    --skip-below-ratio. Otherwise, they are inferred from time. title and artist are optional.
    """
    from training.prepare.pipeline import prepare as prepare_logs
    from training.prepare.pipeline import prepare_options

    options = prepare_options(**{name: value for name, value in given.items() if value not in (None, ())})
    with counting_steps() as on_progress:
        report = prepare_logs(
            kind,  # type: ignore[arg-type]  # prepare_logs rejects other kinds
            sources,
            out,
            options,
            overwrite=overwrite,
            progress=on_progress,
            engine=_engine(engine, ray_address),
            tracks=tracks,
        )
    for note in report.not_read:
        say(f"Not read: {note}")
    _show_malformed(report)
    if as_json:
        print_json(_report_json(report))
        return
    title = f"{kind}: {_count(report.lines, 'line')} in {_count(report.files, 'file')}"
    print_table(steps_table(title, report))
    print_table(log_table(report))
    _show_notes(report)
    _print_dataset(report.dataset)


@click.command(
    short_help="Generate a dataset of synthetic sessions.",
    epilog=example("segue simulate --tracks 2000 --sessions 6000 --out data/simulated"),
)
@click.option(
    "--tracks",
    type=int,
    default=2000,
    show_default=True,
    metavar="N",
    help="Number of tracks, from 1,000 to 10,000,000.",
)
@click.option(
    "--sessions",
    type=int,
    default=10_000,
    show_default=True,
    metavar="N",
    help="Number of sessions, up to 10,000,000.",
)
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="Folder to write the dataset to.")
@click.option("--overwrite", is_flag=True, help="Replace an existing dataset.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of the sessions.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary of the dataset as JSON.")
def simulate(tracks: int, sessions: int, out: Path, overwrite: bool, seed: int, as_json: bool) -> None:
    """Generate a dataset of synthetic sessions, to try Segue without listening logs.

    Each simulated listener follows a playlist, likes one genre and skips most tracks of the others. Titles and artists
    are invented. training/data/synthetic.py describes the model.
    """
    from training.data.synthetic import simulate as simulate_dataset

    dataset = simulate_dataset(tracks, sessions, out, seed, overwrite=overwrite)
    if as_json:
        print_json({"path": str(dataset.path), **dataset.facts.model_dump(mode="json")})
    else:
        _print_dataset(dataset)


def _engine(name: str, ray_address: str | None) -> "Engine | None":
    if name == "ray":
        from training.prepare.ray_engine import ray_engine

        return ray_engine(ray_address)
    if ray_address is not None:
        raise BadOption(f"--ray-address {ray_address} has no effect without --engine ray: add --engine ray, or omit it")
    if name == "disk":
        from training.prepare.disk_engine import disk_engine

        return disk_engine()
    return None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def steps_table(title: str, report: "PrepareReport") -> Table:
    """Return a row for each step: the option that governs it, how many plays it removed, and what remains."""
    table = titled(title)
    table.add_column("step", no_wrap=True)
    for name in ("removed", "remaining plays", "remaining sessions"):
        table.add_column(name, justify="right")
    for step in report.steps:
        sessions = "-" if step.sessions is None else f"{step.sessions:,}"
        name = step.step if step.option is None else f"{step.step} ({step.option})"
        table.add_row(name, f"{step.removed:,}", f"{step.plays:,}", sessions)
    return table


def log_table(report: "PrepareReport") -> Table:
    """Return what was read of the log: its columns, and where the outcomes of the plays come from."""
    log, shown = report.log, dict[str, str]()
    if log.columns:
        shown["columns"] = ", ".join(
            column if column == role else f"{role}: {column}" for role, column in log.columns.items()
        )
    if log.unused_columns:
        shown["columns not used"] = ", ".join(log.unused_columns)
    if log.sessions_given:
        shown["sessions"] = "given by the log"
    sources = log.skipped_by.model_dump().items()
    skips = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in sources if number)
    shown["skips from"] = skips or "none"
    if log.unknown_outcomes:
        shown["unknown outcomes"] = f"{log.unknown_outcomes:,} of {_count(report.dataset.facts.counts.plays, 'play')}"
    return facts_table("log", shown)


def _show_notes(report: "PrepareReport") -> None:
    for note in report.log.notes:
        say(f"Note: {note}.")
    for warning in report.log.warnings:
        say(f"Warning: {warning.message}.")


def _show_malformed(report: "PrepareReport") -> None:
    if report.malformed:
        say(f"{report.malformed:,} of {_count(report.lines, 'line')} could not be read and were ignored. Examples:")
        for line in report.malformed_examples:
            say(f"  {line}")


def _report_json(report: "PrepareReport") -> dict[str, Any]:
    return {
        "kind": report.kind,
        "files": report.files,
        "lines": report.lines,
        "malformed": report.malformed,
        "malformed_reasons": report.malformed_reasons,
        "malformed_examples": [str(line) for line in report.malformed_examples],
        "not_read": list(report.not_read),
        "steps": [step.model_dump() for step in report.steps],
        "path": str(report.dataset.path),
        **report.dataset.facts.model_dump(mode="json"),
    }


def _print_dataset(dataset: "Dataset") -> None:
    facts = dataset.facts
    shown = {"folder": dataset.path, **facts.counts.model_dump(), "skip rate": f"{facts.skip_rate:.1%}"}
    print_table(facts_table(f"dataset {facts.fingerprint[:12]}", shown))
    say(f"Dataset written to {dataset.path}.", f"segue train {dataset.path} --out releases/{dataset.path.name}")
