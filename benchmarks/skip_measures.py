"""What the measures of skip learning say about a re-ranker, and about the same re-ranker with shuffled knowledge.

    python -m benchmarks.skip_measures DATASET [--release RELEASE ...] [--store]

A play head predicts whether a candidate would be played, from the state of the session and from counts of the track.
The 40 best tracks are ranked again by log p_next + L log p_play. The base is the Markov chain on both splits, and each
RELEASE on the split that it was trained with. Prints, for each L, hit rates, the raw and the matched gap with real and
with permuted play probabilities, and the effect. With --store, writes results/skip_measures.json.

The counts of a training play come from the other folds of sessions. A count that contains a play's own outcome, or from
which it was subtracted, tells the outcome: trees learn it, and it is wrong for test plays.
"""

import argparse
import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from segue.arrays import Bool, Float64, Int
from segue.catalogue import PAD_ROW
from segue.ranking_metrics import Estimate
from segue.recommend import PopularityRanker, Recommender
from segue.release import open_release
from segue.window import Sessions
from training.data.dataset import Dataset, open_dataset
from training.data.splits import Split, examples, training_part
from training.evaluation.session_state import quantile_strata, session_features, train_skip_classifier
from training.evaluation.skip_measures import MEASURED, metric_values, pairwise_auc, permuted_control
from training.models.baselines.markov import MarkovRanker

HERE: Final = Path(__file__).parent
CANDIDATES: Final = 40
CAUTIONS: Final = (0.0, 1.0, 2.0, 4.0)
FOLDS: Final = 5
SEEDS: Final = (0, 1, 2)  # of the permutations
BATCH: Final = 256


@dataclass(frozen=True)
class Counts:
    """Plays and skips of tracks, of tracks after an outcome, and of pairs of consecutive tracks."""

    plays: Float64  # [rows]
    skips: Float64  # [rows]
    after: Float64  # [rows, 2 outcomes of the previous play, 2: plays and skips]
    pairs: Int  # [pairs] previous track * rows + track, ascending
    pair_counts: Float64  # [pairs, 2]

    @classmethod
    def of(cls, sessions: Sessions, rows: int) -> Self:
        """Count all plays that follow another play, and those that do not for `plays` and `skips`."""
        to = later_plays(sessions)
        skipped = sessions.skipped[to].astype(np.float64)
        keys, line = np.unique(sessions.rows[to - 1] * rows + sessions.rows[to], return_inverse=True)
        after = 2 * sessions.rows[to] + sessions.skipped[to - 1]
        both = (np.ones(len(to)), skipped)  # weights that count plays and skips
        counted: Float64 = np.stack([np.bincount(after, w, 2 * rows) for w in both], axis=1)
        paired: Float64 = np.stack([np.bincount(line, w, len(keys)) for w in both], axis=1)
        skips: Float64 = np.bincount(sessions.rows, sessions.skipped.astype(np.float64), rows).astype(np.float64)
        return cls(
            np.bincount(sessions.rows, minlength=rows).astype(np.float64),
            skips,
            counted.reshape(rows, 2, 2),
            keys,
            paired,
        )

    def features(self, previous: Int, previous_skipped: Bool, tracks: Int) -> Float64:
        """Describe tracks after a play; all arguments are [n]. [n, 5] float64."""
        rate = self.skips.sum() / max(self.plays.sum(), 1)
        own = (self.skips + 5 * rate) / (self.plays + 5)
        place = np.minimum(
            np.searchsorted(self.pairs, keys := previous * len(self.plays) + tracks), len(self.pairs) - 1
        )
        pair = self.pair_counts[place] * (self.pairs[place] == keys)[:, None]
        after = self.after[tracks, previous_skipped.astype(np.int64)]
        return np.column_stack(
            [
                np.log1p(self.plays[tracks]),
                own[tracks],
                pair[:, 0],
                (pair[:, 1] + 3 * own[tracks]) / (pair[:, 0] + 3),
                (after[:, 1] + 3 * rate) / (after[:, 0] + 3),
            ]
        )


def later_plays(sessions: Sessions) -> Int:
    """Return the positions of all plays except the first of each session."""
    later = np.ones(len(sessions.rows), dtype=np.bool_)
    later[sessions.offsets[:-1][sessions.lengths > 0]] = False
    return np.flatnonzero(later)


def heard_before(sessions: Sessions) -> Float64:
    """Return how often the track of each play occurred before in its session, the last outcome and the distance."""
    of_play = np.repeat(np.arange(len(sessions), dtype=np.int64), sessions.lengths)
    order = np.lexsort((sessions.rows, of_play))
    again = np.zeros(len(order), dtype=np.bool_)
    again[1:] = (np.diff(sessions.rows[order]) == 0) & (np.diff(of_play[order]) == 0)
    position = np.arange(len(order))
    times = position - np.maximum.accumulate(np.where(again, 0, position))
    before = np.roll(order, 1)
    found = np.empty((len(order), 3))
    found[order] = np.column_stack(
        [times, np.where(again, sessions.skipped[before], -1.0), np.where(again, order - before, -1.0)]
    )
    return found


def heard_candidates(sessions: Sessions, candidates: Int) -> Float64:
    """The same for candidates as the next track. [questions, candidates] int64 -> [questions, candidates, 3]."""
    found = np.empty((*candidates.shape, 3))
    for i, (start, end) in enumerate(zip(sessions.offsets[:-1], sessions.offsets[1:], strict=True)):
        same = sessions.rows[start:end][::-1, None] == candidates[i]  # latest play first
        latest, some = same.argmax(axis=0), same.any(axis=0)
        found[i, :, 0] = same.sum(axis=0)
        found[i, :, 1] = np.where(some, sessions.skipped[start:end][::-1][latest], -1.0)
        found[i, :, 2] = np.where(some, latest + 1, -1.0)
    return found


def train_head(training: Sessions, rows: int) -> HistGradientBoostingClassifier:
    """Train the play head on all training plays that follow another play, with counts of the other folds."""
    to = later_plays(training)
    of_play = np.repeat(np.arange(len(training), dtype=np.int64), training.lengths)
    fold = np.random.default_rng(0).permutation(len(training)) % FOLDS
    counted = np.empty((len(to), 5))
    for number in range(FOLDS):
        counts = Counts.of(training.select(np.flatnonzero(fold != number)), rows)
        mine = fold[of_play[to]] == number
        at = to[mine]
        counted[mine] = counts.features(training.rows[at - 1], training.skipped[at - 1], training.rows[at])
    state = session_features(training, of_play[to], to - training.offsets[of_play[to]])
    head = HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.06,
        max_leaf_nodes=15,
        l2_regularization=5.0,
        early_stopping=False,
        random_state=0,
    )
    return head.fit(np.column_stack([state, counted, heard_before(training)[to]]), ~training.skipped[to])


def play_probabilities(head: Any, counts: Counts, inputs: Sessions, candidates: Int) -> Float64:
    """Return the probability that each candidate would be played next. [questions, candidates] float64."""
    state = session_features(inputs, np.arange(len(inputs), dtype=np.int64), inputs.lengths)
    width = candidates.shape[1]
    last = np.repeat(inputs.offsets[1:] - 1, width)
    counted = counts.features(inputs.rows[last], inputs.skipped[last], candidates.ravel())
    heard = heard_candidates(inputs, candidates).reshape(-1, 3)
    played: Float64 = head.predict_proba(np.column_stack([np.repeat(state, width, axis=0), counted, heard]))[:, 1]
    return played.reshape(candidates.shape)


def base_lists(recommender: Recommender, inputs: Sessions, *, logits: bool) -> tuple[Int, Float64]:
    """Return the rows and log p_next, up to a constant of the list, of the best candidates of each question."""
    rows = np.full((len(inputs), CANDIDATES), PAD_ROW, dtype=np.int64)
    scores = np.full(rows.shape, -np.inf)
    for start in range(0, len(inputs), BATCH):
        for i, found in enumerate(recommender.recommend(inputs.select(slice(start, start + BATCH)), CANDIDATES), start):
            rows[i, : len(found.rows)] = found.rows
            scores[i, : len(found.rows)] = found.scores if logits else np.log(np.maximum(found.scores, 1e-12))
    return rows, scores


def measure(dataset: Dataset, split: Split, name: str, recommender: Recommender, *, logits: bool) -> dict[str, Any]:
    """Measure the head on the test targets of a split, for each weight and permutation."""
    training, asked = training_part(dataset, split), examples(dataset, split, "test")
    inputs, skipped = asked.inputs.gathered(), asked.target_skipped
    whole, rows = training.gathered(), dataset.catalogue.num_rows
    classifier = train_skip_classifier(training)
    assert classifier is not None, "the training part has played and skipped tracks"
    features = session_features(inputs, np.arange(len(inputs), dtype=np.int64), inputs.lengths)
    state = classifier.predict_proba(features)[:, 1]
    head, counts = train_head(whole, rows), Counts.of(whole, rows)
    candidates, log_next = base_lists(recommender, inputs, logits=logits)
    play = play_probabilities(head, counts, inputs, candidates)
    of_target = play_probabilities(head, counts, inputs, asked.targets[:, None])[:, 0]
    hits = candidates == asked.targets[:, None]
    targets = np.where(hits.any(axis=1), hits.argmax(axis=1), -1)
    lines = []
    for caution in CAUTIONS:
        controls = [
            permuted_control(log_next, play, targets, (skipped, quantile_strata(state)), caution, seed)
            for seed in SEEDS
        ]
        values = metric_values(controls[0].real)
        lines.append(
            {
                "caution": caution,
                "all": dict(zip(MEASURED, values.mean(axis=0).tolist(), strict=True)),
                "played": dict(zip(MEASURED, values[~skipped].mean(axis=0).tolist(), strict=True)),
                "raw_gap": _pair(controls[0].raw),
                "matched_gap": _pair(controls[0].matched),
                "effect": _named(controls[0].effect),
                "effect_of_each_permutation": [
                    {m: e.value for m, e in zip(MEASURED, of.effect or [], strict=True)} for of in controls
                ],
            }
        )
    auc = {"session": pairwise_auc(-state, skipped), "session and track": pairwise_auc(of_target, skipped)}
    return {"base": name, "split": split, "targets": len(skipped), "skip_auc": auc, "lines": lines}


def _named(estimates: list[Estimate] | None) -> dict[str, Any]:
    assert estimates is not None, "played and skipped targets are in the same strata"
    return {metric: asdict(estimate) for metric, estimate in zip(MEASURED, estimates, strict=True)}


def _pair(estimates: tuple[list[Estimate] | None, list[Estimate] | None]) -> dict[str, Any]:
    return {"real": _named(estimates[0]), "permuted": _named(estimates[1])}


def table(measured: dict[str, Any]) -> str:
    """One line for each weight: hit rates, both gaps (real / permuted), and the effect with its interval."""
    lines = [
        f"{measured['base']}, {measured['split']}, {measured['targets']:,} targets; AUC of the skip: "
        + ", ".join(f"{name} {value:.3f}" for name, value in measured["skip_auc"].items()),
        "| L | HR@1, HR@10 | played | raw HR@1 real / permuted | raw HR@10 | matched HR@1 | matched HR@10 "
        "| effect HR@1 | effect HR@10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in measured["lines"]:
        cells = [f"{line['caution']:g}"]
        cells += [f"{line[of]['HR@1']:.3f}, {line[of]['HR@10']:.3f}" for of in ("all", "played")]
        for gap in ("raw_gap", "matched_gap"):
            cells += [
                " / ".join(f"{line[gap][of][metric]['value']:+.3f}" for of in ("real", "permuted"))
                for metric in ("HR@1", "HR@10")
            ]
        effects = [line["effect"][metric] for metric in ("HR@1", "HR@10")]
        cells += [f"{e['value']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]" for e in effects]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--release", type=Path, action="append", default=[])
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.dataset)
    systems: list[tuple[Split, str, Recommender, bool]] = []
    splits: tuple[Split, ...] = ("last-play", "new-sessions")
    for split in splits:
        part, rows = training_part(dataset, split).gathered(), dataset.catalogue.num_rows
        plays = np.bincount(part.rows, minlength=rows).astype(np.int64)
        chain = MarkovRanker.fit(part, rows, plays)
        systems.append((split, "markov", Recommender(chain, PopularityRanker(plays), 20), False))
    for path in arguments.release:
        from segue.cli.train import open_recommender

        release = open_release(path)
        if release.manifest.dataset.fingerprint != dataset.facts.fingerprint:
            parser.error(f"{path} was trained on another dataset")
        found = open_recommender(release, exact=True)
        systems.append((release.manifest.dataset.split, release.manifest.model, found, release.has_encoder))
    results = []
    for split, name, recommender, logits in systems:
        results.append(measure(dataset, split, name, recommender, logits=logits))
        print(table(results[-1]), end="\n\n", flush=True)
    if arguments.store:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        kept = {"commit": commit.stdout.strip(), "fingerprint": dataset.facts.fingerprint, "results": results}
        (HERE / "results" / "skip_measures.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
