"""The state of a listening session: how likely the next play is a skip, whatever its track.

A skip mostly depends on the state of the listener. The matched gap (training.evaluation.skip_measures) compares targets
of sessions in the same state, so the state must not contain anything about tracks.
"""

from typing import Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from segue.arrays import Bool, Float64, Int
from segue.window import Sessions, SessionViews

STRATA: Final = 10
MAX_POSITIONS: Final = 200_000  # training examples of the classifier


def session_features(sessions: Sessions, which: Int, lengths: Int) -> Float64:
    """Describe the first `lengths[i]` plays of session `which[i]` without their tracks. [n, 7] float64.

    The features are: the number of plays; the outcomes of the last, second-to-last and third-to-last play (1 for a
    skip); the share of skips; the share of skips of the last five plays; the share of distinct tracks. A feature
    without a play is -1. `which` and `lengths` are [n] int64.
    """
    of_play = np.repeat(np.arange(len(sessions), dtype=np.int64), sessions.lengths)
    order = np.lexsort((sessions.rows, of_play))  # stable: of a repeated track, the first play comes first
    first = np.ones(len(order), dtype=np.bool_)
    same = (np.diff(sessions.rows[order]) == 0) & (np.diff(of_play[order]) == 0)
    first[order[1:][same]] = False
    skips, distinct = (np.concatenate([[0], np.cumsum(flags)]) for flags in (sessions.skipped, first))
    starts = sessions.offsets[which]
    ends = starts + lengths
    outcomes = np.append(sessions.skipped, False).astype(np.float64)
    last = [np.where(ends - back >= starts, outcomes[np.maximum(ends - back, 0)], -1.0) for back in (1, 2, 3)]
    recent = np.maximum(starts, ends - 5)
    some = np.maximum(lengths, 1)
    rates = [(skips[ends] - skips[starts]) / some, (skips[ends] - skips[recent]) / np.maximum(ends - recent, 1)]
    varied = (distinct[ends] - distinct[starts]) / some
    whole = [np.where(lengths > 0, values, -1.0) for values in (*rates, varied)]
    return np.column_stack([lengths.astype(np.float64), *last, *whole])


def train_skip_classifier(training: SessionViews, seed: int = 0) -> HistGradientBoostingClassifier | None:
    """Train the classifier that predicts the skip of a play from `session_features` of the plays before it.

    It learns from all plays of the training part that follow another play, or from those of a random sample of
    sessions with about MAX_POSITIONS of them. The same training part and seed give the same classifier. Returns None
    if these plays are all played or all skipped, or if there are none.
    """
    positions = np.maximum(training.lengths - 1, 0)
    chosen = np.random.default_rng(seed).permutation(len(training))
    chosen = np.sort(chosen[: np.searchsorted(np.cumsum(positions[chosen]), MAX_POSITIONS) + 1])
    sessions = training.select(chosen)
    which = np.repeat(np.arange(len(sessions), dtype=np.int64), positions[chosen])
    place = np.arange(len(sessions.rows), dtype=np.int64) - np.repeat(sessions.offsets[:-1], sessions.lengths)
    follows = place > 0
    if len(np.unique(sessions.skipped[follows])) < 2:
        return None
    classifier = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.1, max_leaf_nodes=15, early_stopping=False, random_state=seed
    )
    classifier.fit(session_features(sessions, which, place[follows]), sessions.skipped[follows])
    return classifier


def quantile_strata(probabilities: Float64, wanted: int = STRATA) -> Int:
    """Group questions by predicted probability into at most `wanted` strata of similar size. [n] int64 from 0.

    Equal probabilities are in the same stratum, so strata can have different sizes or be empty.
    """
    if not len(probabilities):
        return np.empty(0, dtype=np.int64)
    edges = np.quantile(probabilities, np.linspace(0, 1, wanted + 1)[1:-1])
    return np.searchsorted(edges, probabilities, side="right").astype(np.int64)


def seen_pairs(training: SessionViews, first: Int, second: Int, num_rows: int) -> Bool:
    """Return whether `second[i]` directly follows `first[i]` in a session of the training part. [n] bool.

    `first` and `second` are [n] int64 rows below `num_rows`.
    """
    wanted = first * num_rows + second
    seen = np.zeros(len(wanted), dtype=np.bool_)
    for block in training.blocks():
        follows = np.ones(len(block.rows), dtype=np.bool_)
        follows[block.offsets[:-1][block.lengths > 0]] = False
        to = np.flatnonzero(follows)
        seen |= np.isin(wanted, block.rows[to - 1] * num_rows + block.rows[to])
    return seen
