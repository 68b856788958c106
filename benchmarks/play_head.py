"""Judge the play head by measures that a re-ranker cannot improve by harm: matched gap, permuted control, AUC.

    python -m benchmarks.play_head DATASET RELEASE... --caution 0.5 --caution 1 --out FILE

All releases belong to one split of DATASET. A release without a play head gets one, fitted to its training part. Each
pair of release and caution has one row, and each release is permuted with its own seed. The command prints a table in
Markdown and writes all figures with 95 % intervals to FILE.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np

from segue.arrays import Bool, Float64, Int
from segue.play_head import SESSION_FEATURES, PlayHead, session_features
from segue.ranking_metrics import Estimate, bootstrap
from segue.recommend import Outcomes, Recommender
from segue.release import open_release
from segue.window import Windows, to_windows
from service.releases.loaded import recommender_of
from training.data.dataset import Dataset, open_dataset
from training.data.splits import Examples, Split, examples, training_part
from training.evaluation.session_state import quantile_strata, train_skip_classifier
from training.evaluation.session_state import session_features as state_features
from training.evaluation.skip_evaluation import caution_candidates
from training.evaluation.skip_measures import pairwise_auc, permuted_control
from training.models.play_head import FittedHead, fit_play_head

_BATCH = 256


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("releases", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--caution", "cautions", type=float, multiple=True, default=(0.5, 1.0, 2.0))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(dataset: Path, releases: tuple[Path, ...], cautions: tuple[float, ...], out: Path) -> None:
    """Measure releases with and without caution."""
    data = open_dataset(dataset)
    split = open_release(releases[0]).manifest.dataset.split
    training = training_part(data, split)
    window = open_release(releases[0]).manifest.window.length
    fitted = fit_play_head(training, data.catalogue.num_rows, window)
    assert fitted is not None
    result: dict[str, Any] = {"dataset": data.facts.fingerprint, "split": split}
    result["outcomes"] = outcomes(data, split, fitted, window)
    result["releases"] = []
    for seed, path in enumerate(releases):
        opened = recommender_of(open_release(path))
        recommender = opened if opened.head is not None else replace(opened, head=fitted.head)
        measured = {"release": path.name, "seed": seed} | measure(data, split, recommender, cautions, seed)
        result["releases"].append(measured)
        print(json.dumps(measured), flush=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def outcomes(data: Dataset, split: Split, fitted: FittedHead, window: int) -> dict[str, Any]:
    """AUC of the skip of test targets and, for new sessions, of all their plays: with and without the track."""
    asked = examples(data, split, "test")
    found = {"test targets": _auc_pair(_of_targets(asked, window), np.arange(len(asked.targets)), fitted)}
    if split == "new-sessions":
        whole = asked.inputs.whole
        ends = [
            np.arange(start + 1, end + 1) for start, end in zip(asked.inputs.starts, asked.inputs.ends, strict=True)
        ]
        of_play = np.repeat(np.arange(len(ends), dtype=np.int64), [len(line) for line in ends])
        at = np.concatenate(ends)
        starts = np.maximum(asked.inputs.starts[of_play], at - window)
        windows = to_windows(whole.cut(starts, at), window)
        found["all plays"] = _auc_pair((windows, whole.rows[at].astype(np.int64), whole.skipped[at]), of_play, fitted)
    return found


def _of_targets(asked: Examples, window: int) -> tuple[Windows, Int, Bool]:
    return to_windows(asked.inputs.gathered(), window), asked.targets, asked.target_skipped


def _auc_pair(plays: tuple[Windows, Int, Bool], groups: Int, fitted: FittedHead) -> dict[str, Any]:
    windows, rows, skipped = plays
    with_track = _log_played(fitted.head, windows, rows[:, None])[:, 0]
    alone = -session_features(windows) @ fitted.session_weights
    few = _weights_without_history(fitted.head)
    rng = np.random.default_rng(0)
    starts = np.concatenate([np.flatnonzero(np.diff(groups, prepend=-1)), [len(groups)]])
    drawn = []
    for _ in range(300):
        lines = rng.integers(0, len(starts) - 1, len(starts) - 1)
        which = np.concatenate([np.arange(starts[line], starts[line + 1]) for line in lines])
        drawn.append([cast("float", pairwise_auc(values[which], skipped[which])) for values in (with_track, alone)])
    values = np.array(drawn)
    observed = [
        pairwise_auc(one, skipped) for one in (with_track, alone, _log_played(few, windows, rows[:, None])[:, 0])
    ]
    difference = np.quantile(values[:, 0] - values[:, 1], [0.025, 0.975]).tolist()
    return {
        "plays": len(rows),
        "AUC": observed[0],
        "AUC of the session alone": observed[1],
        "AUC without the track's counts": observed[2],
        "difference": [cast("float", observed[0]) - cast("float", observed[1]), *difference],
    }


def _weights_without_history(head: PlayHead) -> PlayHead:
    """The same head without what its counts say about the track: only the session and earlier hearings are left."""
    layer = head.weights.layer.copy()
    layer[len(SESSION_FEATURES) : len(SESSION_FEATURES) + 6] = 0.0
    return PlayHead(head.counts, head.weights._replace(layer=layer))


def _log_played(head: Outcomes, windows: Windows, rows: Int) -> Float64:
    parts = [
        head.log_played(windows.select(slice(at, at + _BATCH)), rows[at : at + _BATCH])
        for at in range(0, len(rows), _BATCH)
    ]
    return np.concatenate(parts)


def measure(
    data: Dataset, split: Split, recommender: Recommender, cautions: tuple[float, ...], seed: int
) -> dict[str, Any]:
    """Hit rates, gaps, permuted control and pairwise AUC of a release for each caution."""
    assert recommender.head is not None
    asked = examples(data, split, "test")
    windows, targets, skipped = _of_targets(asked, recommender.window)
    log_next, rows = caution_candidates(recommender, windows)
    play = np.exp(_log_played(recommender.head, windows, rows))
    column = np.where((rows == targets[:, None]).any(axis=1), (rows == targets[:, None]).argmax(axis=1), -1)
    classifier = train_skip_classifier(training_part(data, split), seed)
    assert classifier is not None
    inputs = asked.inputs.gathered()
    state = state_features(inputs, np.arange(len(inputs), dtype=np.int64), inputs.lengths)
    strata = quantile_strata(classifier.predict_proba(state)[:, 1])
    found: dict[str, Any] = {"target among candidates": float((column >= 0).mean()), "cautions": []}
    base: dict[str, Float64] = {}
    for caution in (0.0, *cautions):
        control = permuted_control(log_next, play, column, (skipped, strata), caution, seed)
        line: dict[str, Any] = {"caution": caution}
        rng = np.random.default_rng(seed)
        values = {"session AUC": session_auc(data, split, recommender, caution)} if split == "new-sessions" else {}
        for k in (1, 10):
            hits = (control.real <= k).astype(np.float64)
            values |= {f"HR@{k}": hits, f"HR@{k} played": hits[~skipped], f"HR@{k} skipped": hits[skipped]}
        for name, one in values.items():
            base.setdefault(name, one)
            line[name] = _json(bootstrap(one, rng))
            line[f"{name} change"] = _json(bootstrap(one - base[name], rng))
        shuffled = (control.control <= 10).mean()
        line["HR@10 permuted"] = float(shuffled)
        for name, pair in (("raw gap", control.raw), ("matched gap", control.matched)):
            line[name], line[f"{name} permuted"] = ([_json(one) for one in each or ()] for each in pair)
        line["effect"] = [_json(one) for one in control.effect or ()]
        found["cautions"].append(line)
    return found


def session_auc(data: Dataset, split: Split, recommender: Recommender, caution: float) -> Float64:
    """AUC "played above skipped" of the tracks in the second half of each test session, given the first half.

    A track counts with the outcome of its first play there. [sessions with both outcomes] float64.
    """
    asked = examples(data, split, "test")
    values = []
    for at in range(0, len(asked.targets), 64):
        views = replace(
            asked.inputs, starts=asked.inputs.starts[at : at + 64], ends=asked.inputs.ends[at : at + 64] + 1
        )
        halves = views.starts + views.lengths // 2
        lists = []
        for start, half, end in zip(views.starts, halves, views.ends, strict=True):
            later, first = np.unique(views.whole.rows[half:end], return_index=True)
            new = ~np.isin(later, views.whole.rows[start:half])
            lists.append((later[new].astype(np.int64), views.whole.skipped[half:end][first[new]]))
        width = max(len(rows) for rows, _ in lists)
        rows = np.array([np.pad(rows, (0, width - len(rows))) for rows, _ in lists])
        scores = recommender.scores(views.whole.cut(views.starts, halves), rows, caution)
        for (known, skipped), line in zip(lists, scores, strict=True):
            auc = pairwise_auc(line[: len(known)], skipped)
            values += [] if auc is None else [auc]
    return np.array(values)


def _json(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {name: round(value, 5) for name, value in asdict(estimate).items()}


def table(result: dict[str, Any]) -> str:
    """The releases as a table in Markdown, a row for each caution."""
    names = ("HR@1", "HR@10", "HR@1 played", "HR@10 played", "session AUC")
    lines = [f"| release | caution | {' | '.join(names)} | HR@10 change | effect HR@1 | effect HR@10 |"]
    lines.append("|" + "---|" * (len(names) + 5))
    for release in result["releases"]:
        for line in release["cautions"]:
            cells = [f"{line[name]['value']:.3f}" if name in line else "-" for name in names]
            cells += [_interval(line["HR@10 change"]), _interval(line["effect"][0]), _interval(line["effect"][1])]
            lines.append(f"| {release['release']} | {line['caution']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


if __name__ == "__main__":
    main()
