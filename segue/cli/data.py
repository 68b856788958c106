"""`segue prepare` and `segue simulate`: where datasets come from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segue.cli.terminal import counting_steps, facts_table, print_json, print_table, say
from segue.errors import BadOption

if TYPE_CHECKING:
    from training.data.dataset import Dataset
    from training.prepare.pipeline import Engine, PrepareReport

FOLDER = click.Path(path_type=Path)
SPLIT = click.Choice(["last-play", "new-sessions"])


@click.command(short_help="Listening logs to a dataset.")
@click.argument("kind", metavar="{mssd|lfm1k|lfm2b|yambda|events}")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--out", type=FOLDER, required=True, help="The dataset folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing dataset.")
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
@click.option("--min-session-plays", type=int, help="Drop sessions with fewer plays.  [default: 5]")
@click.option("--max-session-plays", type=int, help="Split sessions with more plays.  [default: 20]")
@click.option("--min-track-plays", type=int, help="Drop tracks with fewer plays.  [default: 0]")
@click.option(
    "--balance-skips/--all-sessions",
    "sample_half_skips",
    default=None,
    help="Sample sessions so that half of them contain a skip.  [default: only for lfm1k]",
)
@click.option("--max-sessions", type=int, help="Randomly sample at most N sessions.", metavar="N")
@click.option(
    "--skip-flag",
    type=click.Choice(["skip_1", "skip_2", "skip_3"]),
    help="MSSD only: the column that marks a skip.  [default: skip_2]",
)
@click.option(
    "--played-ratio",
    "played_ratio_pct",
    type=int,
    metavar="PCT",
    help="Yambda only: plays heard for less than PCT percent count as skips.  [default: 50]",
)
@click.option("--seed", type=int, help="Random seed for session sampling.  [default: 0]")
@click.option(
    "--engine",
    type=click.Choice(["polars", "disk", "ray"]),
    default="polars",
    show_default=True,
    help="polars: in memory. disk: for logs larger than memory. ray: distributed on Ray.",
)
@click.option("--ray-address", metavar="ADDRESS", help="host:port of a Ray cluster.  [default: Ray on this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prepare(
    kind: str,
    sources: tuple[str, ...],
    out: Path,
    overwrite: bool,
    engine: str,
    ray_address: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a dataset of listening logs: files, folders or globs, plain or .gz, .bz2, .zst.

    `events` is the format for your own data: CSV or Parquet with track_id, and either session_id, skipped and
    position or timestamp, or user_id and timestamp; title and artist where you have them.
    """
    from training.prepare.pipeline import prepare as prepare_logs
    from training.prepare.pipeline import prepare_options

    options = prepare_options(**{name: value for name, value in given.items() if value is not None})
    with counting_steps() as tell:
        report = prepare_logs(
            kind,  # type: ignore[arg-type]  # it refuses other kinds itself
            sources,
            out,
            options,
            overwrite=overwrite,
            progress=tell,
            engine=_engine(engine, ray_address),
        )
    _show_malformed(report)
    if as_json:
        print_json(_report_json(report))
        return
    steps = {step.rule: f"{step.plays:,} plays" + _in_sessions(step.sessions) for step in report.steps}
    print_table(facts_table(f"{kind}: {report.lines:,} lines of {report.files:,} files", steps))
    _print_dataset(report.dataset)


@click.command(short_help="Planted sessions to a dataset.")
@click.option("--tracks", type=int, default=2000, show_default=True, help="1,000 to 10,000,000.")
@click.option("--sessions", type=int, default=10_000, show_default=True)
@click.option("--out", type=FOLDER, required=True, help="The dataset folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing dataset.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the dataset's facts as JSON.")
def simulate(tracks: int, sessions: int, out: Path, overwrite: bool, seed: int, as_json: bool) -> None:
    """Generate a dataset of synthetic sessions, whose listeners skip tracks outside their taste.

    The rule behind the sessions is described in training/data/synthetic.py; titles and artists are invented.
    """
    from training.data.synthetic import simulate as plant

    dataset = plant(tracks, sessions, out, seed, overwrite=overwrite)
    if as_json:
        print_json({"path": str(dataset.path), **dataset.facts.model_dump(mode="json")})
    else:
        _print_dataset(dataset)


def _engine(name: str, ray_address: str | None) -> "Engine | None":
    if name == "ray":
        from training.prepare.ray_engine import ray_engine

        return ray_engine(ray_address)
    if ray_address is not None:
        raise BadOption(f"--ray-address {ray_address} has no effect without --engine ray: add that, or leave it out")
    if name == "disk":
        from training.prepare.disk_engine import disk_engine

        return disk_engine()
    return None


def _in_sessions(sessions: int | None) -> str:
    return "" if sessions is None else f" in {sessions:,} sessions"


def _show_malformed(report: "PrepareReport") -> None:
    if report.malformed:
        say(f"{report.malformed:,} of {report.lines:,} lines were malformed and left out; the first ones:")
        for line in report.malformed_examples:
            say(f"  {line.file}: {line.reason}: {line.text}")


def _report_json(report: "PrepareReport") -> dict[str, Any]:
    return {
        "kind": report.kind,
        "files": report.files,
        "lines": report.lines,
        "malformed": report.malformed,
        "malformed_reasons": report.malformed_reasons,
        "steps": [step._asdict() for step in report.steps],
        "path": str(report.dataset.path),
        **report.dataset.facts.model_dump(mode="json"),
    }


def _print_dataset(dataset: "Dataset") -> None:
    facts = dataset.facts
    shown = {"folder": dataset.path, **facts.counts.model_dump(), "skip rate": f"{facts.skip_rate:.1%}"}
    print_table(facts_table(f"dataset {facts.fingerprint[:12]}", shown))
