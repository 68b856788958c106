"""Hit rates with every play of unseen sessions as a target, as in next-item evaluation of sessions.

    python -m benchmarks.every_play DATASET RELEASE... --out FILE

Releases are named SYSTEM-SEED and were trained with `--split new-sessions`. Each play of a test session but the first
is a target. It is ranked among all tracks after the plays before it, heard tracks allowed (next-item evaluation, as in
Hidasi et al., 2016, and Ludewig and Jannach, 2018). Hit rates are means over all targets and seeds. Intervals are 95 %,
by bootstrap over sessions, because plays of one session are not independent. The command prints tables in Markdown and
writes [value, low, high] to FILE.
"""

import json
from pathlib import Path
from typing import Final, NamedTuple

import click
import numpy as np

from segue.arrays import Float64, Int
from segue.release import open_release
from segue.window import Windows, to_windows
from service.releases.loaded import recommender_of
from training.data.dataset import Dataset, open_dataset
from training.data.splits import examples

METRICS: Final = ("HR@1", "HR@10", "MRR@10")
_LIST: Final = 10
_BATCH: Final = 256
_DRAWS: Final = 2_000


class Questions(NamedTuple):
    """Every play of the test sessions but the first, and the window before it."""

    windows: Windows
    targets: Int  # [questions] int64
    sessions: Int  # [questions] int64, number of the session


def questions(dataset: Dataset, window: int) -> Questions:
    """Return the questions of the test sessions of the split new-sessions."""
    asked = examples(dataset, "new-sessions", "test")
    tracks, skipped, targets, sessions = [], [], [], []
    for number, target in enumerate(asked.targets.tolist()):
        one = asked.inputs.select(slice(number, number + 1))
        plays = np.append(one.rows, target)
        ends = np.arange(1, len(plays), dtype=np.int64)
        before = to_windows(one.cut(np.zeros_like(ends), ends), window)
        tracks.append(before.tracks)
        skipped.append(before.skipped)
        targets.append(plays[1:].astype(np.int64))
        sessions.append(np.full(len(ends), number, dtype=np.int64))
    windows = Windows(np.concatenate(tracks), np.concatenate(skipped))
    return Questions(windows, np.concatenate(targets), np.concatenate(sessions))


def scored(release: Path, asked: Questions) -> Float64:
    """Return the metrics of each question. [questions, METRICS] float64."""
    recommender = recommender_of(open_release(release), exact=True)
    ranks = []
    for start in range(0, len(asked.targets), _BATCH):
        some = np.arange(start, min(start + _BATCH, len(asked.targets)), dtype=np.int64)
        rows = recommender.ranker.rank(asked.windows.select(some), _LIST).rows
        hits = rows == asked.targets[some][:, None]
        ranks.append(np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf))
    rank = np.concatenate(ranks)
    return np.stack([rank <= 1, rank <= _LIST, 1.0 / rank], axis=1).astype(np.float64)


def interval(values: Float64, sessions: Int) -> list[float]:
    """Return mean and 95 % interval of `values` [questions], by bootstrap over sessions."""
    count = int(sessions.max()) + 1
    sums = np.bincount(sessions, weights=values, minlength=count)
    sizes = np.bincount(sessions, minlength=count)
    drawn = np.random.default_rng(0).integers(0, count, (_DRAWS, count))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return [float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def table(title: str, lines: dict[str, dict[str, list[float]]], sign: str = "") -> str:
    """Return a table in Markdown, one line for each system or pair of systems."""
    rows = [f"| {title} | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
    for name, found in lines.items():
        cells = [f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]" for mean, low, high in found.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path, exists=True))
@click.argument("releases", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(dataset: Path, releases: tuple[Path, ...], out: Path) -> None:
    """Evaluate releases on every play of the unseen sessions."""
    opened = open_dataset(dataset)
    asked = questions(opened, open_release(releases[0]).manifest.window.length)
    by_system: dict[str, list[Float64]] = {}
    for release in releases:
        by_system.setdefault(release.name.rsplit("-", 1)[0], []).append(scored(release, asked))
    means = {system: np.mean(found, axis=0) for system, found in by_system.items()}
    first = next(iter(means))
    results = {system: _intervals(values, asked) for system, values in means.items()}
    pairs = {
        f"{system} - {first}": _intervals(means[system] - means[first], asked) for system in means if system != first
    }
    seeds = {system: len(found) for system, found in by_system.items()}
    facts = {"targets": len(asked.targets), "sessions": int(asked.sessions.max()) + 1, "seeds": seeds}
    out.write_text(json.dumps({**facts, "systems": results, "differences": pairs}, indent=1) + "\n", encoding="utf-8")
    print(table("system", results), table("difference", pairs, "+"), sep="\n\n")


def _intervals(values: Float64, asked: Questions) -> dict[str, list[float]]:
    return {name: interval(values[:, place], asked.sessions) for place, name in enumerate(METRICS)}


if __name__ == "__main__":
    main()
