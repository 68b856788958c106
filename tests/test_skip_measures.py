"""Measures of skip learning: by hand, empty and perfect cases, ties, and synthetic rules whose answer is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from segue.arrays import Bool, Float64, Int
from segue.ranking_metrics import NOT_FOUND, Estimate
from segue.window import Sessions, SessionViews
from training.evaluation.session_state import quantile_strata, session_features, train_skip_classifier
from training.evaluation.skip_measures import (
    bootstrap_gap,
    matched_gap,
    metric_values,
    pairwise_auc,
    percentiles,
    permuted,
    permuted_control,
    ranks_among,
    reranked,
)


def sessions(*texts: str) -> Sessions:
    """`ab-a` is a played, b skipped, a played. Track a has row 1."""
    plays = [
        (ord(track) - 96, text[i + 1 : i + 2] == "-") for text in texts for i, track in enumerate(text) if track != "-"
    ]
    lengths = [len(text.replace("-", "")) for text in texts]
    return Sessions(
        np.array([row for row, _ in plays], dtype=np.int64),
        np.array([skipped for _, skipped in plays], dtype=np.bool_),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def one_gap(hits: Sequence[float], skipped: list[int], strata: list[int]) -> float:
    values = np.array(hits, dtype=np.float64)[:, None]
    return float(matched_gap(values, np.array(skipped, dtype=np.bool_), np.array(strata, dtype=np.int64))[0])


def found(estimates: list[Estimate] | None, column: int = 0) -> Estimate:
    assert estimates is not None
    return estimates[column]


class TestSessionFeatures:
    def test_by_hand(self) -> None:
        # Six plays a, b (skipped), a, c (skipped), d (skipped), d; the question is after the first five and after all.
        given_sessions = sessions("b", "ab-ac-d-d")
        features = session_features(given_sessions, np.array([1, 1]), np.array([5, 6]))
        assert features[0].tolist() == [5, 1, 1, 0, 3 / 5, 3 / 5, 4 / 5]
        assert features[1].tolist() == [6, 0, 1, 1, 3 / 6, 3 / 5, 4 / 6]

    def test_a_feature_without_a_play_is_missing(self) -> None:
        features = session_features(sessions("b-", "ab"), np.array([0, 1, 1]), np.array([1, 0, 1]))
        assert features[0].tolist() == [1, 1, -1, -1, 1, 1, 1]
        assert features[1].tolist() == [0, -1, -1, -1, -1, -1, -1]
        assert features[2].tolist() == [1, 0, -1, -1, 0, 0, 1]  # the play before it is that of another session

    @given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=4))
    def test_tracks_count_only_by_being_distinct(self, texts: list[str]) -> None:
        given_sessions = sessions(*texts)
        lengths = given_sessions.lengths
        features = session_features(given_sessions, np.arange(len(texts)), lengths)
        assert features[:, 6].tolist() == pytest.approx([len(set(text)) / len(text) for text in texts])


class TestSkipClassifier:
    def test_it_learns_that_a_skip_follows_a_skip(self) -> None:
        rng = np.random.default_rng(0)
        states = rng.random((400, 12)) < 0.5
        states[:, 1:] = states[:, :1]
        texts = ["".join(f"{'abcdef'[rng.integers(6)]}{'-' * skip}" for skip in line) for line in states.tolist()]
        training = SessionViews.of(sessions(*texts))
        classifier = train_skip_classifier(training)
        assert classifier is not None
        asked = session_features(sessions("ab", "a-b-"), np.array([0, 1]), np.array([2, 2]))
        played, skipped = classifier.predict_proba(asked)[:, 1]
        assert played < 0.05
        assert skipped > 0.95
        again = train_skip_classifier(training)
        assert again is not None
        assert np.array_equal(again.predict_proba(asked), classifier.predict_proba(asked))

    def test_sessions_of_two_plays_are_enough(self) -> None:
        assert train_skip_classifier(SessionViews.of(sessions("ab", "ab-"))) is not None

    @pytest.mark.parametrize("texts", [("abc", "ab"), ("a-b-c-",), ("a", "b-"), ()])
    def test_one_outcome_or_no_play_after_another_gives_none(self, texts: tuple[str, ...]) -> None:
        assert train_skip_classifier(SessionViews.of(sessions(*texts))) is None


class TestStrata:
    def test_by_hand(self) -> None:
        assert quantile_strata(np.arange(10) / 10, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]

    def test_none_and_equal_probabilities(self) -> None:
        assert quantile_strata(np.array([])).tolist() == []
        assert len(set(quantile_strata(np.full(30, 0.5)).tolist())) == 1

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
    def test_ties_share_a_stratum_and_the_order_stays(self, levels: list[int]) -> None:
        strata = quantile_strata(np.array(levels) / 5)
        assert strata.min() >= 0
        assert strata.max() <= 9
        for a, first in zip(levels, strata, strict=True):
            for b, second in zip(levels, strata, strict=True):
                assert (first == second) if a == b else (first <= second if a < b else first >= second)


class TestMatchedGap:
    def test_by_hand(self) -> None:
        # Stratum 0: played 1, 0, 1 (2/3), skipped 0 (0), n = 1. Stratum 1: played 0, skipped 1, 0 (1/2), n = 1.
        # Stratum 2 has no skipped target. Gap: (1 * 2/3 + 1 * (0 - 1/2)) / 2 = 1/12.
        hits, skipped = [1, 0, 1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 1, 1, 0]
        assert one_gap(hits, skipped, [0, 0, 0, 0, 1, 1, 1, 2]) == pytest.approx(1 / 12)
        # Raw: played 1, 0, 1, 0, 1 = 3/5; skipped 0, 1, 0 = 1/3.
        assert one_gap(hits, skipped, [0] * 8) == pytest.approx(3 / 5 - 1 / 3)

    def test_the_perfect_ranker_has_1_and_the_worst_has_minus_1(self) -> None:
        skipped, strata = [0, 1, 0, 1, 1], [0, 0, 1, 1, 1]
        assert one_gap([1, 0, 1, 0, 0], skipped, strata) == 1.0
        assert one_gap([0, 1, 0, 1, 1], skipped, strata) == -1.0

    def test_equal_values_have_no_gap(self) -> None:
        assert one_gap([0.5] * 5, [0, 1, 0, 1, 1], [0, 0, 1, 1, 1]) == 0.0

    @pytest.mark.parametrize("skipped", [[0, 0, 0], [1, 1, 1], [0, 0, 1]])
    def test_without_a_stratum_of_both_outcomes_there_is_none(self, skipped: list[int]) -> None:
        assert np.isnan(one_gap([1, 0, 1], skipped, [0, 0, 1]))
        assert bootstrap_gap(np.ones((3, 1)), np.array(skipped, dtype=np.bool_), np.array([0, 0, 1])) is None
        assert bootstrap_gap(np.empty((0, 1)), np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.int64)) is None

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.booleans(), st.booleans()), min_size=2, max_size=40))
    def test_the_difference_of_two_gaps_is_the_gap_of_the_differences(
        self, lines: list[tuple[bool, int, bool, bool]]
    ) -> None:
        skipped, strata, first, second = (np.array(column) for column in zip(*lines, strict=True))
        a, b = first[:, None].astype(np.float64), second[:, None].astype(np.float64)
        change = matched_gap(a, skipped, strata) - matched_gap(b, skipped, strata)
        np.testing.assert_allclose(matched_gap(a - b, skipped, strata), change, atol=1e-12)

    def test_a_ranker_that_knows_only_the_state_has_a_raw_gap_and_no_matched_gap(self) -> None:
        """Given the state, its hits do not depend on the outcome."""
        rng = np.random.default_rng(0)
        state = rng.random(40_000)
        skipped, hits = rng.random(40_000) < state, (rng.random(40_000) < 0.8 - 0.6 * state).astype(np.float64)
        raw = found(bootstrap_gap(hits[:, None], skipped, np.zeros(40_000, dtype=np.int64)))
        matched = found(bootstrap_gap(hits[:, None], skipped, quantile_strata(state)))
        assert raw.low > 0.18  # in theory, 2 * 0.6 * variance of a uniform state / 0.5 = 0.2
        assert abs(matched.value) < 0.015


class TestBootstrapGap:
    def test_it_agrees_with_drawing_every_question(self) -> None:
        rng = np.random.default_rng(1)
        strata, skipped = rng.integers(0, 4, 300), rng.random(300) < 0.4
        values = rng.choice([0.0, 0.5, 1.0], (300, 2))
        estimates = bootstrap_gap(values, skipped, strata)
        gaps = []
        for _ in range(1500):
            drawn = rng.integers(0, 300, 300)
            gaps.append(matched_gap(values[drawn], skipped[drawn], strata[drawn]))
        low, high = np.quantile(gaps, [0.025, 0.975], axis=0)
        for column in (0, 1):
            estimate = found(estimates, column)
            assert estimate.value == matched_gap(values, skipped, strata)[column]
            assert estimate.low == pytest.approx(low[column], abs=0.02)
            assert estimate.high == pytest.approx(high[column], abs=0.02)

    def test_it_is_paired_and_the_same_each_time(self) -> None:
        rng = np.random.default_rng(2)
        strata, skipped = rng.integers(0, 4, 500), rng.random(500) < 0.5
        first = (rng.random((500, 1)) < 0.5).astype(np.float64)
        second = np.where(rng.random((500, 1)) < 0.05, 1 - first, first)
        alone, difference = (found(bootstrap_gap(values, skipped, strata)) for values in (first, first - second))
        assert difference.high - difference.low < (alone.high - alone.low) / 2
        assert found(bootstrap_gap(first - second, skipped, strata)) == difference
        assert found(bootstrap_gap(first - first, skipped, strata)) == Estimate(0, 0, 0)


class TestReranking:
    def test_by_hand(self) -> None:
        log_next, play = np.log([[0.5, 0.4, 0.1]]), np.array([[0.2, 0.5, 1.0]])
        np.testing.assert_allclose(np.exp(reranked(log_next, play, 1.0)), [[0.1, 0.2, 0.1]])
        np.testing.assert_allclose(np.exp(reranked(log_next, play, 2.0)), [[0.02, 0.1, 0.1]])
        assert np.array_equal(reranked(log_next, play, 0.0), log_next)
        assert np.isfinite(reranked(log_next, play * 0, 4.0)).all()

    def test_ranks_by_hand_with_a_tie_a_missing_target_and_padding(self) -> None:
        scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, -np.inf, -np.inf]])
        assert ranks_among(scores, np.array([0, 0, -1, 0])).tolist() == [1.0, 2.5, NOT_FOUND, 1.0]
        assert ranks_among(np.empty((0, 3)), np.empty(0, dtype=np.int64)).tolist() == []

    @given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 8))
    def test_a_permutation_stays_within_its_list_and_leaves_padding(self, seed: int, lists: int, width: int) -> None:
        rng = np.random.default_rng(seed)
        play, present = rng.random((lists, width)), rng.random((lists, width)) < 0.7
        shuffled = permuted(play, present, rng)
        assert np.array_equal(shuffled[~present], play[~present])
        for before, after, real in zip(play, shuffled, present, strict=True):
            assert sorted(before[real]) == sorted(after[real])

    def test_each_list_has_its_own_permutation_and_all_are_as_likely(self) -> None:
        play = np.tile([0.0, 1.0, 2.0], (6000, 1))
        shuffled = permuted(play, np.ones(play.shape, dtype=np.bool_), np.random.default_rng(0))
        _, counts = np.unique(shuffled, axis=0, return_counts=True)
        assert len(counts) == 6
        assert counts.min() > 880  # 1,000 each, standard deviation 29


def world(seed: int, count: int = 12_000) -> tuple[Float64, Float64, Float64, Int, Bool, Int]:
    """Sessions with a state, and tracks of which every second one is disliked: both decide whether a target is skipped.

    Returns log p_next, the true play probabilities, those of a head that knows nothing (noise that grows with the
    state), the target's column, the skip flags and the strata.
    """
    rng = np.random.default_rng(seed)
    state = rng.random(count)
    log_next = np.sort(rng.normal(size=(count, 20)))[:, ::-1].copy()
    disliked = rng.random((count, 20)) < 0.5
    play = np.clip(1 - state[:, None] * np.where(disliked, 1.0, 0.5), 0.02, 1.0)
    targets = np.minimum(rng.geometric(0.4, count) - 1, 19)
    rows = np.arange(count)
    skipped = rng.random(count) > play[rows, targets]
    noise = np.exp(-3 * state[:, None] * rng.random((count, 20)))
    return log_next, play, noise, targets, skipped, quantile_strata(state)


class TestPermutedControl:
    def test_a_head_that_knows_the_rule_has_an_effect(self) -> None:
        log_next, play, _, targets, skipped, strata = world(0)
        control = permuted_control(log_next, play, targets, (skipped, strata), 2.0)
        assert found(control.effect).low > 0.03
        assert found(control.matched[0]).value - found(control.matched[1]).value == pytest.approx(
            found(control.effect).value
        )

    def test_a_shuffled_head_widens_the_raw_gap_and_has_no_effect(self) -> None:
        """The trap: it scrambles lists in which skips are likely, which lowers the hits of skipped targets."""
        log_next, _, noise, targets, skipped, strata = world(1)
        control = permuted_control(log_next, noise, targets, (skipped, strata), 2.0)
        plain = metric_values(ranks_among(log_next, targets))
        before = found(bootstrap_gap(plain, skipped, np.zeros_like(strata)))
        assert found(control.raw[0]).low > before.high + 0.02
        moved = bootstrap_gap(metric_values(control.real) - plain, skipped, strata)
        assert abs(found(moved).value) < 0.02  # the matched gap hardly moves
        assert found(control.effect).low < 0 < found(control.effect).high

    def test_a_head_without_knowledge_of_tracks_changes_nothing(self) -> None:
        log_next, play, _, targets, skipped, strata = world(2, 500)
        flat = np.broadcast_to(play.mean(axis=1, keepdims=True), play.shape)
        control = permuted_control(log_next, flat, targets, (skipped, strata), 4.0)
        assert np.array_equal(control.real, ranks_among(log_next, targets))
        assert found(control.effect) == Estimate(0, 0, 0)

    def test_targets_of_one_outcome_have_no_effect(self) -> None:
        log_next, play, _, targets, skipped, strata = world(3, 50)
        control = permuted_control(log_next, play, targets, (np.zeros_like(skipped), strata), 1.0)
        assert control.raw == control.matched == (None, None)
        assert control.effect is None
        assert len(control.real) == 50


class TestPairwiseAuc:
    def test_by_hand_with_a_tie(self) -> None:
        # Played 3 and 1, skipped 2 and 1. Pairs: 3 > 2, 3 > 1, 1 < 2, 1 = 1: (1 + 1 + 0 + 1/2) / 4.
        assert pairwise_auc([3, 2, 1, 1], np.array([False, True, False, True])) == 2.5 / 4

    def test_perfect_worst_constant_and_empty(self) -> None:
        skipped = np.array([False, False, True])
        assert pairwise_auc([3, 2, 1], skipped) == 1.0
        assert pairwise_auc([1, 2, 3], skipped) == 0.0
        assert pairwise_auc([7, 7, 7], skipped) == 0.5
        assert pairwise_auc([1, 2, 3], np.zeros(3, dtype=np.bool_)) is None
        assert pairwise_auc([], np.empty(0, dtype=np.bool_)) is None

    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
    def test_against_all_pairs(self, lines: list[tuple[int, bool]]) -> None:
        pairs = [(a > b) + (a == b) / 2 for a, skips in lines if not skips for b, skipped in lines if skipped]
        scores, skipped = zip(*lines, strict=True)
        expected = sum(pairs) / len(pairs) if pairs else None
        assert pairwise_auc(scores, np.array(skipped)) == (pytest.approx(expected) if pairs else None)


def test_percentiles_by_hand_with_a_tie() -> None:
    sample = np.array([[1.0, 2.0, 2.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    assert percentiles(np.array([[2.0, 9.0, 0.0], [0.0, 1.0, -1.0]]), sample).tolist() == [[0.5, 1, 0], [0.5, 1, 0]]
    assert percentiles(np.empty((2, 0)), sample).shape == (2, 0)
