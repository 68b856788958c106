"""`segue demo`: the whole workflow on synthetic data, then the player."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from segue.cli.data import FOLDER
from segue.cli.evaluate import print_evaluations
from segue.cli.terminal import TrainingProgress, counting, say
from segue.cli.train import answers_of, build_index
from segue.errors import BadOption

if TYPE_CHECKING:
    from training.data.dataset import Dataset

# Names of release folders, as training.registry.system_name gives them: beta; None keeps the recipe's.
SYSTEMS: Final = {"hybrid+nce": None, "hybrid": 0.0}
_DESCRIBED: Final = {"hybrid+nce": "a hybrid with the skip loss", "hybrid": "a hybrid without the skip loss"}


@click.command(short_help="Try Segue: train on synthetic data and open the player.")
@click.option("--folder", type=FOLDER, default=Path("demo"), show_default=True, help="Folder for all files.")
@click.option(
    "--tracks",
    type=click.IntRange(1000),
    default=2000,
    show_default=True,
    metavar="N",
    help="Number of synthetic tracks, at least 1,000.",
)
@click.option(
    "--sessions",
    type=click.IntRange(100),
    default=6000,
    show_default=True,
    metavar="N",
    help="Number of synthetic sessions, at least 100.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="PORT",
    help="Port of the player; 0 selects a free one.",
)
@click.option("--browser/--no-browser", default=True, help="Open the player in a browser.  [default: browser]")
@click.option("--serve/--no-serve", default=True, help="Start the service after the evaluation.  [default: serve]")
def demo(folder: Path, tracks: int, sessions: int, port: int, browser: bool, serve: bool) -> None:
    """Simulate sessions, train a hybrid with and without the skip loss, evaluate both, and open the player.

    A hybrid ranks by transition counts and SASRec together.

    The first start takes a few minutes. Completed steps are reused, so the next start takes seconds.
    """
    started = time.monotonic()
    if serve:
        _check_port_free(port)
    world = folder / f"{tracks}-tracks-{sessions}-sessions"
    dataset = _dataset(world / "dataset", tracks, sessions)
    releases = world / "releases"
    results = [_system(dataset, releases / name, beta) for name, beta in SYSTEMS.items()]
    print_evaluations(results[0][0], [(result["system"], result) for _, result in results])
    if difference := _difference([result for _, result in results]):
        say(difference)
    if serve:
        say(f"The releases are in {releases}. Starting the service.")
        _serve(releases, folder / "data", port, browser=browser, announce=partial(_announce, started))
    else:
        say(f"Completed in {_in_words(time.monotonic() - started)}. The releases are in {releases}.")


def _difference(results: Sequence[Mapping[str, Any]]) -> str:
    """Return what the skip loss changed in HR@10, or an empty text if a group is empty. `results`: of SYSTEMS."""
    by_group = {group: [result["groups"][group]["HR@10"] for result in results] for group in ("played", "skipped")}
    if None in (*by_group["played"], *by_group["skipped"]):
        return ""
    played, skipped = (f"{a['value']:.3f} instead of {b['value']:.3f}" for a, b in by_group.values())
    return (
        f"With the skip loss, HR@10 is {played} on played targets (higher is better), and {skipped} on skipped targets "
        "(lower is better). The rows `all` mix the two."
    )


def _check_port_free(port: int) -> None:
    """Raise BadOption before the training if the port is in use."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise BadOption(f"port {port} {reason}: choose another --port, or 0 for a free one") from error


def _dataset(folder: Path, tracks: int, sessions: int) -> "Dataset":
    from training.data.dataset import open_dataset
    from training.data.synthetic import simulate

    if (folder / "dataset.json").is_file():
        return open_dataset(folder)
    say(f"Simulating {sessions:,} sessions over {tracks:,} tracks")
    return simulate(tracks, sessions, folder)


def _system(dataset: "Dataset", out: Path, beta: float | None) -> tuple[Any, dict[str, Any]]:
    """Train, index and evaluate one system, or reuse its release. Returns the question and the result."""
    from segue.release import open_release
    from training.evaluation.evaluate import Question, evaluate
    from training.options import SasRecOptions, read_options
    from training.run import TrainingJob, train

    if not _is_system(out):
        phase = f"Training {list(SYSTEMS).index(out.name) + 1} of {len(SYSTEMS)}"
        say(f"{phase}: {_DESCRIBED[out.name]}")
        options = read_options(SasRecOptions, "demo", [], "hybrid", beta=beta)
        with TrainingProgress(options.epochs, phase=phase) as progress:
            release = train(TrainingJob("hybrid", options, dataset, "last-play", out, overwrite=True), progress)
        build_index(release)
    question = Question(dataset, open_release(out), "last-play")
    kept = dataset.path.with_name(f"{out.name}.evaluation.json")
    if kept.is_file():
        result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if result["release"] == question.release.name:
            return question, result
    with counting("evaluating") as advance:
        result = evaluate(question, answers_of(question), advance)
    kept.write_text(json.dumps(result), encoding="utf-8")
    return question, result


def _is_system(release: Path) -> bool:
    """Whether there is a release, of the system that its folder is named after."""
    from segue.release import MANIFEST, read_manifest
    from training.registry import system_name

    if not (release / MANIFEST).is_file():
        return False
    manifest = read_manifest(release)
    return system_name(manifest.model, manifest.options) == release.name


def _announce(started: float, address: str) -> None:
    """Print what to open, what to try and how to stop; the address alone if stdout is not a terminal.

    `started` is the time of the start by time.monotonic().
    """
    if not sys.stdout.isatty():
        click.echo(address)
        return
    click.echo(
        f"Ready in {_in_words(time.monotonic() - started)}.\n"
        f"  Player      {address}\n"
        "              Play three tracks, skip one, and watch the list change.\n"
        f"  Operations  {address}/ops\n"
        "  Stop        Press Ctrl-C. The same command starts it again in seconds."
    )


def _in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _serve(releases: Path, data: Path, port: int, *, browser: bool, announce: Callable[[str], None]) -> None:
    """Serve one system. The other is live with a share of 0, so that the player can compare the two."""
    from service.server import serve as run
    from service.settings import read_settings

    current, other = _current_and_other(releases)
    given: dict[str, Any] = {"release": releases / current, "releases_dir": releases, "experiment": f"{other}:0"}
    if "SEGUE_LOG_LEVEL" not in os.environ:
        given["log_level"] = "warning"  # the start is not worth lines of JSON before what to open
    run(read_settings(**given, data_dir=data, port=port), 1, open_player=browser, announce=announce)


def _current_and_other(releases: Path) -> tuple[str, str]:
    """The folder names of the system to serve and of the other one. A swap on the page `/ops` outlasts the service."""
    from service.releases.folder import ReleasesFolder

    first, second = SYSTEMS
    pointer = ReleasesFolder(releases).look()
    return (second, first) if pointer is not None and pointer.name == second else (first, second)
