"""Metrics from ranks: by hand, the perfect case, the empty case, ties, and against a brute-force reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.ranking_metrics import (
    LIST_LENGTH,
    METRICS,
    NOT_FOUND,
    bootstrap,
    bootstrap_difference,
    mean_rank,
    rank_in_list,
)


def measured(*ranks: float) -> dict[str, float]:
    values = np.array(ranks, dtype=np.float64)
    return {name: float(metric(values).mean()) for name, metric in METRICS.items()}


class TestByHand:
    def test_three_sessions(self) -> None:
        got = measured(1, 4, 15)
        assert got["HR@1"] == pytest.approx(1 / 3)
        assert got["HR@5"] == pytest.approx(2 / 3)
        assert got["HR@10"] == pytest.approx(2 / 3)
        assert got["HR@20"] == 1.0
        assert got["MRR@10"] == got["MAP@10"] == pytest.approx((1 + 1 / 4) / 3)
        assert got["NDCG@10"] == pytest.approx((1 + 1 / math.log2(5)) / 3)

    def test_the_perfect_ranker_gets_one_everywhere(self) -> None:
        assert set(measured(1, 1, 1).values()) == {1.0}

    def test_a_target_that_was_not_found_earns_nothing(self) -> None:
        assert set(measured(NOT_FOUND).values()) == {0.0}

    def test_the_edge_of_a_cutoff_counts_and_half_a_rank_behind_does_not(self) -> None:
        assert measured(10)["HR@10"] == 1.0
        assert measured(10.5)["HR@10"] == 0.0

    def test_map_is_never_below_hit_rate_at_one(self) -> None:
        got = measured(1, 2, 3, 50)
        assert got["MAP@10"] >= got["HR@1"]


class TestTies:
    def test_a_constant_score_ranks_in_the_middle(self) -> None:
        # 4 tracks with one score: the target is 1st at best and 4th at worst.
        assert mean_rank(np.array([0]), np.array([3]))[0] == 2.5

    def test_a_list_gives_the_mean_rank_of_tied_tracks(self) -> None:
        rows, scores = np.array([7, 3, 9, 5]), np.array([9.0, 4.0, 4.0, 1.0], dtype=np.float32)
        assert rank_in_list(rows, scores, 7) == 1.0
        assert rank_in_list(rows, scores, 3) == rank_in_list(rows, scores, 9) == 2.5
        assert rank_in_list(rows, scores, 5) == 4.0
        assert rank_in_list(rows, scores, 8) == NOT_FOUND

    def test_a_tie_that_leaves_the_list_is_a_miss(self) -> None:
        rows, scores = np.arange(1, LIST_LENGTH + 1), np.ones(LIST_LENGTH, dtype=np.float32)
        assert rank_in_list(rows, scores, 1) == NOT_FOUND

    @given(st.lists(st.integers(0, 3), min_size=150, max_size=160), st.integers(0, 149), st.randoms())
    def test_the_list_is_enough_for_every_cutoff(self, levels: list[int], target: int, random: object) -> None:
        """Against the rank among all tracks, worked out by counting."""
        scores = np.array(levels, dtype=np.float32)
        true = 1 + (scores > scores[target]).sum() + ((scores == scores[target]).sum() - 1) / 2
        order = np.argsort(-scores, kind="stable")[:LIST_LENGTH]
        listed = rank_in_list(order, scores[order], target)
        for metric in METRICS.values():
            assert metric(np.array([listed]))[0] == metric(np.array([true]))[0]


class TestBootstrap:
    def test_no_session_has_no_estimate(self) -> None:
        rng = np.random.default_rng(0)
        assert bootstrap(np.array([]), rng) is None
        assert bootstrap_difference(np.array([]), np.array([1.0]), rng) is None

    def test_equal_sessions_leave_no_doubt(self) -> None:
        estimate = bootstrap(np.full(50, 0.25), np.random.default_rng(0))
        assert estimate is not None
        assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)

    def test_the_interval_agrees_with_drawing_every_session(self) -> None:
        values = np.random.default_rng(1).choice([0.0, 0.5, 1.0], size=300, p=[0.5, 0.2, 0.3])
        estimate = bootstrap(values, np.random.default_rng(2), resamples=4000)
        assert estimate is not None
        rng = np.random.default_rng(3)
        means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
        low, high = np.quantile(means, [0.025, 0.975])
        assert estimate.low == pytest.approx(low, abs=0.006)
        assert estimate.high == pytest.approx(high, abs=0.006)

    def test_it_covers_the_truth_about_nineteen_times_in_twenty(self) -> None:
        rng = np.random.default_rng(4)
        covered = 0
        for _ in range(200):
            estimate = bootstrap((rng.random(400) < 0.3).astype(np.float64), rng, resamples=400)
            assert estimate is not None
            covered += estimate.low <= 0.3 <= estimate.high
        assert 178 <= covered <= 199

    def test_a_difference_has_the_sign_of_first_minus_second(self) -> None:
        rng = np.random.default_rng(5)
        estimate = bootstrap_difference(
            (rng.random(500) < 0.6).astype(np.float64), (rng.random(500) < 0.4).astype(np.float64), rng
        )
        assert estimate is not None
        assert 0 < estimate.low < estimate.value < estimate.high < 0.35


def test_a_target_whose_score_is_no_number_is_not_found() -> None:
    """Nothing is greater than it, and not even itself is equal to it."""
    assert mean_rank(np.array([0, 0, 2]), np.array([-1, 0, 1])).tolist() == [NOT_FOUND, 1.0, 3.5]
