"""Transition counts and their mixture, against a second implementation in plain Python (tests/reference_ngram.py)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.catalogue import PAD_ROW
from segue.errors import BadRelease
from segue.filters import Allowed
from segue.hybrid import (
    ALL_PARTS,
    FEATURES,
    FILES,
    HIDDEN,
    NETWORK_FILES,
    REPEAT_FEATURES,
    TRACK_FEATURES,
    HybridRanker,
    Mixture,
    Network,
)
from segue.ngram import FILES as COUNT_FILES
from segue.ngram import ORDERS, PAIRS, PARTS, CountTables, NgramCounts
from segue.recommend import Ranked
from segue.window import Sessions, SessionViews, Windows
from tests import reference_ngram as reference
from training.models.mixture import Targets, every_position, fit_mixture, prior_mixture, repeat_share
from training.models.ngram import add_counts, count_transitions

UNCAPPED = 10_000


def sessions_of(lists: list[list[int]]) -> Sessions:
    rows = np.array([row for one in lists for row in one], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return Sessions(rows, np.zeros(len(rows), dtype=np.bool_), offsets)


def arrays_of(tables: CountTables) -> list[Any]:
    return [np.asarray(array) for array in tables]


def plays_of(lists: list[list[int]], num_rows: int) -> Any:
    return np.bincount(sessions_of(lists).rows, minlength=num_rows)


def window_of(*lists: list[int], length: int = 6) -> Windows:
    tracks = np.array([[PAD_ROW] * (length - len(one[-length:])) + one[-length:] for one in lists], dtype=np.int64)
    return Windows(tracks, np.zeros(tracks.shape, dtype=np.bool_))


def skips_of(window: Windows, skipped: list[bool]) -> Windows:
    """The window with these outcomes of its latest plays, where it has plays."""
    line = ([False] * window.tracks.shape[1] + skipped)[-window.tracks.shape[1] :]
    return Windows(window.tracks, np.array([line]) & (window.tracks != PAD_ROW))


def counts_of(lists: list[list[int]], num_rows: int, cap: int = UNCAPPED) -> NgramCounts:
    return NgramCounts(count_transitions(sessions_of(lists), num_rows, cap), plays_of(lists, num_rows))


def everything(num_rows: int, batch: int = 1) -> Any:
    return np.tile(np.arange(1, num_rows, dtype=np.int64), (batch, 1))


def by_track(counts: NgramCounts, window: Windows, num_rows: int) -> dict[str, list[float]]:
    found = counts.lookup(window, everything(num_rows))
    return {part: found.parts[i, found.given[0]].tolist() for i, part in enumerate(PARTS)}


class Fixed:
    """An encoder's ranker with given scores for every window."""

    def __init__(self, scores: list[float]) -> None:
        self.by_row = np.array([-np.inf, *scores], dtype=np.float32)

    def within(self, allowed: Allowed) -> "Fixed":
        """Return the same ranker that ranks only allowed tracks."""
        mask = allowed.contains(np.arange(len(self.by_row)))
        return Fixed(np.where(mask, self.by_row, -np.inf)[1:].tolist())

    def rank(self, windows: Windows, k: int) -> Ranked:
        order = np.argsort(-self.by_row[1:], kind="stable")[:k] + 1
        rows = np.tile(order, (len(windows), 1))
        return Ranked(rows, self.by_row[rows])

    def scores(self, windows: Windows, rows: Any) -> Any:
        return self.by_row[rows]


class TestByHand:
    LISTS = [[1, 2, 3], [1, 2, 3], [1, 2, 4], [2, 3]]  # noqa: RUF012

    def test_the_back_off_of_a_known_pair(self) -> None:
        found = by_track(counts_of(self.LISTS, 6), window_of([1, 2]), 6)
        plays = np.array([3, 4, 3, 1, 0]) + 0.01
        popular = plays / plays.sum()
        one = [d / 4 + 0.5 * 2 / 4 * p for d, p in zip([0, 0, 2.5, 0.5, 0], popular, strict=True)]
        two = [d / 3 + 0.5 * 2 / 3 * p for d, p in zip([0, 0, 1.5, 0.5, 0], one, strict=True)]
        np.testing.assert_allclose(found["ngram"], two)

    def test_an_unknown_track_leaves_popularity_alone(self) -> None:
        counts = counts_of(self.LISTS, 6)
        found = by_track(counts, window_of([5]), 6)
        for part in ("ngram", "follow", "near", "liked", "popular"):
            np.testing.assert_allclose(found[part], counts.popularity[1:])

    def test_the_cache_and_the_own_transitions(self) -> None:
        found = by_track(counts_of(self.LISTS, 6), window_of([1, 2, 1, 3, 1]), 6)
        weights = 0.8 ** np.arange(4, -1, -1)
        expected = np.array([weights[0] + weights[2] + weights[4], weights[1], weights[3], 0, 0]) / weights.sum()
        np.testing.assert_allclose(found["recent"], expected)
        np.testing.assert_allclose(found["own"], [0, 0.5, 0.5, 0, 0])

    def test_pairs_count_up_to_eight_places_away_and_in_both_directions_for_near(self) -> None:
        tables = counts_of([[1, 3, 3, 3, 3, 3, 3, 3, 2], [4, 3, 3, 3, 3, 3, 3, 3, 3, 5]], 6).tables

        first, first_pair = int(tables.starts[PAIRS]), int(tables.offsets[tables.starts[PAIRS]])

        def stored(track: int) -> dict[int, tuple[float, float]]:
            span = range(int(tables.offsets[first + track]), int(tables.offsets[first + track + 1]))
            counts = ((float(tables.counts[i]), float(tables.follow[i - first_pair])) for i in span)
            return dict(zip((int(tables.tracks[i]) for i in span), counts, strict=True))

        np.testing.assert_allclose(stored(1)[2], (1, 0.7**7))
        assert stored(2)[1] == (1, 0)
        assert 5 not in stored(4)

    def test_an_empty_window_gives_popularity(self) -> None:
        counts = counts_of(self.LISTS, 6)
        found = by_track(counts, window_of([]), 6)
        np.testing.assert_allclose(found["ngram"], counts.popularity[1:])
        assert sum(found["recent"]) == 0

    def test_a_catalogue_without_plays(self) -> None:
        found = by_track(
            NgramCounts(count_transitions(sessions_of([]), 4, 8), np.zeros(4, np.int64)), window_of([1]), 4
        )
        np.testing.assert_allclose(found["ngram"], [1 / 3, 1 / 3, 1 / 3])


NUM_ROWS = 7
session_lists = st.lists(st.lists(st.integers(1, NUM_ROWS - 1), min_size=1, max_size=14), min_size=1, max_size=12)
windows = st.lists(st.integers(1, NUM_ROWS - 1), min_size=1, max_size=12)


class TestProperties:
    @given(session_lists, windows, st.lists(st.booleans(), min_size=6, max_size=6))
    def test_every_part_is_that_of_the_reference(
        self, lists: list[list[int]], window: list[int], skipped: list[bool]
    ) -> None:
        asked = skips_of(window_of(window), skipped)
        found = by_track(counts_of(lists, NUM_ROWS), asked, NUM_ROWS)
        expected = reference.parts(lists, NUM_ROWS, window[-6:], asked.skipped[0, -len(window) :].tolist())
        for part in PARTS:
            np.testing.assert_allclose(found[part], expected[part], rtol=1e-5, atol=1e-7, err_msg=part)

    @given(session_lists, windows, st.integers(1, 3))
    def test_every_part_sums_to_one_whatever_is_stored(
        self, lists: list[list[int]], window: list[int], cap: int
    ) -> None:
        found = by_track(counts_of(lists, NUM_ROWS, cap), window_of(window), NUM_ROWS)
        for part in PARTS:
            expected = 0 if part == "own" and not any(found["own"]) else 1
            assert sum(found[part]) == pytest.approx(expected, abs=1e-6), part
            assert min(found[part]) >= 0, part

    @given(session_lists, windows, st.booleans(), st.integers(0, 2**31))
    def test_the_mixture_sums_to_one(self, lists: list[list[int]], window: list[int], mixed: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mixture = Mixture(*(rng.normal(0, 1, part.shape) for part in prior_mixture(0.2)))
        encoder = Fixed(rng.normal(0, 1, NUM_ROWS - 1).tolist()) if mixed else None
        ranker = HybridRanker(counts_of(lists, NUM_ROWS), mixture, np.arange(1, NUM_ROWS), encoder)
        parts = ranker.part_scores(window_of(window), everything(NUM_ROWS))
        assert parts.min() >= 0
        assert parts.sum() == pytest.approx(1, abs=1e-6)
        if encoder is None:
            assert (parts[ALL_PARTS.index("encoder")] == 0).all()

    @given(session_lists, windows, st.integers(1, NUM_ROWS), st.integers(0, 2**31))
    def test_a_network_only_shares_out_the_mass_of_the_most_probable_tracks(
        self, lists: list[list[int]], window: list[int], corrected: int, seed: int
    ) -> None:
        encoder = Fixed([float(row % 3) for row in range(1, NUM_ROWS)])
        plain = HybridRanker(counts_of(lists, NUM_ROWS), prior_mixture(0.3), np.arange(1, NUM_ROWS), encoder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segue.hybrid.RESCORED", corrected)
            network = network_of(seed)
            parts = replace(plain, network=network).part_scores(window_of(window), everything(NUM_ROWS))
        before = plain.scores(window_of(window), everything(NUM_ROWS))[0]
        after = parts.sum(axis=0)[0]
        assert parts.min() >= 0
        assert after.sum() == pytest.approx(1, abs=1e-6)
        others = np.argsort(-before, kind="stable")[corrected:]
        np.testing.assert_allclose(after[others], before[others], rtol=1e-6)

    @given(session_lists, windows, st.integers(1, NUM_ROWS + 2), st.booleans(), st.integers(0, NUM_ROWS))
    def test_the_ranking_is_the_order_of_the_scores(
        self, lists: list[list[int]], window: list[int], k: int, mixed: bool, corrected: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segue.hybrid.RESCORED", corrected)
            self.check_order(lists, window, k, mixed, network_of(corrected) if corrected else None)

    def check_order(
        self, lists: list[list[int]], window: list[int], k: int, mixed: bool, network: Network | None
    ) -> None:
        encoder = Fixed([float(row % 3) for row in range(1, NUM_ROWS)]) if mixed else None
        plays = plays_of(lists, NUM_ROWS)
        by_plays = np.argsort(-plays[1:], kind="stable") + 1
        ranker = HybridRanker(counts_of(lists, NUM_ROWS, 2), prior_mixture(0.3), by_plays, encoder, network)
        ranked = ranker.rank(window_of(window), k)
        scores = ranker.scores(window_of(window), everything(NUM_ROWS))[0]
        order = sorted(range(1, NUM_ROWS), key=lambda row: (-scores[row - 1], row))[:k]
        assert ranked.rows[0].tolist() == order
        np.testing.assert_array_equal(ranked.scores[0], scores[np.array(order) - 1])

    @given(session_lists, st.lists(windows, min_size=2, max_size=4), st.booleans())
    def test_an_answer_does_not_depend_on_its_batch(
        self, lists: list[list[int]], asked: list[list[int]], corrected: bool
    ) -> None:
        network = network_of(1) if corrected else None
        ranker = HybridRanker(counts_of(lists, NUM_ROWS), prior_mixture(0.2), np.arange(1, NUM_ROWS), network=network)
        together = ranker.rank(window_of(*asked), 4)
        for i, window in enumerate(asked):
            alone = ranker.rank(window_of(window), 4)
            np.testing.assert_array_equal(alone.rows[0], together.rows[i])
            np.testing.assert_array_equal(alone.scores[0], together.scores[i])

    @given(session_lists, session_lists, st.permutations(range(1, NUM_ROWS)))
    def test_counts_of_two_logs_add_up(self, first: list[list[int]], second: list[list[int]], order: list[int]) -> None:
        rows = np.array([0, *order], dtype=np.int64)
        moved = [[order[row - 1] for row in one] for one in first]
        added = add_counts(
            count_transitions(sessions_of(first), NUM_ROWS, UNCAPPED),
            rows,
            count_transitions(sessions_of(second), NUM_ROWS, UNCAPPED),
            NUM_ROWS,
            UNCAPPED,
        )
        together = count_transitions(sessions_of(moved + second), NUM_ROWS, UNCAPPED)
        for name, one, other in zip(COUNT_FILES, arrays_of(added), arrays_of(together), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)


def network_of(seed: int) -> Network:
    rng = np.random.default_rng(seed)
    shapes = (len(TRACK_FEATURES), HIDDEN), (REPEAT_FEATURES, HIDDEN), (HIDDEN,)
    return Network(*(rng.normal(0, 0.3, shape) for shape in shapes))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_list_and_scores_in_one_pass_are_those_of_two(seed: int | None) -> None:
    rng = np.random.default_rng(0)
    lists = rng.integers(1, 60, (30, 8)).tolist()
    network = None if seed is None else network_of(seed)
    encoder = Fixed(rng.normal(size=59).tolist())
    ranker = HybridRanker(counts_of(lists, 60), prior_mixture(0.05), np.arange(1, 60), encoder, network)
    windows = window_of(*lists[:7])
    rows = rng.integers(1, 60, (7, 9))
    for one in (ranker, ranker.within(Allowed(rng.random(59) < 0.6)), ranker.within(Allowed(np.zeros(59, np.bool_)))):
        found, scores = one.rank_and_score(windows, 12, rows)
        expected = one.rank(windows, 12)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
        np.testing.assert_allclose(scores, one.scores(windows, rows), rtol=1e-5)


class TestNetwork:
    """The most probable track of the mixture is followed by the next one in the log, except after a skip."""

    def ranker_and_targets(self, count: int) -> tuple[HybridRanker, Targets]:
        rng = np.random.default_rng(0)
        lists = [[int(first), int(first) % 8 + 1] for first in rng.integers(1, 9, 400)]
        ranker = HybridRanker(counts_of(lists, 20), prior_mixture(0.05), np.arange(1, 20), Fixed([0.0] * 19))
        first = rng.integers(1, 9, count)
        windows = window_of(*([int(row)] for row in first))
        windows.skipped[:, -1] = rng.random(count) < 0.5
        # The mixture has no part that speaks against a track, a product with the network has.
        rows = np.where(windows.skipped[:, -1], 8 + first, first % 8 + 1)
        return ranker, Targets(windows, rows, windows.skipped[:, -1])

    def test_it_learns_what_a_mixture_cannot_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rescoring = pytest.importorskip("training.models.rescoring")
        ranker, targets = self.ranker_and_targets(1_500)
        ranker = replace(ranker, mixture=fit_mixture(ranker, targets))
        monkeypatch.setattr(rescoring, "LEARNING_RATE", 1e-2)
        learned = replace(ranker, network=rescoring.fit_network(ranker, targets))

        def likelihood(one: HybridRanker) -> float:
            return float(np.log(one.scores(targets.windows, targets.rows[:, None])).mean())

        assert likelihood(learned) > likelihood(ranker) + 0.1

    def test_learned_on_played_targets_it_prefers_them_to_skipped_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rescoring = pytest.importorskip("training.models.rescoring")
        ranker, targets = self.ranker_and_targets(2_500)
        monkeypatch.setattr(rescoring, "LEARNING_RATE", 1e-2)
        on_all = replace(ranker, network=rescoring.fit_network(ranker, targets))
        on_played = replace(ranker, network=rescoring.fit_network(ranker, targets.played()))

        def likelihood(one: HybridRanker, which: Any) -> float:
            windows = targets.windows.select(np.flatnonzero(which))
            return float(np.log(one.scores(windows, targets.rows[which, None])).mean())

        played, skipped = ~targets.skipped, targets.skipped
        assert likelihood(on_played, played) > likelihood(ranker, played)
        assert likelihood(on_played, skipped) < likelihood(on_all, skipped) - 0.1

    def test_few_targets_give_none(self) -> None:
        rescoring = pytest.importorskip("training.models.rescoring")
        ranker, targets = self.ranker_and_targets(rescoring.MIN_TARGETS - 1)
        assert rescoring.fit_network(ranker, targets) is None
        none = Targets(targets.windows.select(slice(0)), targets.rows[:0], targets.skipped[:0])
        assert rescoring.fit_network(ranker, none) is None

    @pytest.mark.parametrize("name", NETWORK_FILES)
    def test_weights_of_another_shape_or_with_nan_are_refused(self, name: str) -> None:
        network = network_of(0)
        np.testing.assert_array_equal(Network.of_arrays(network.arrays(), "r").windows, network.windows)
        kept = network.arrays()[name]
        for damaged in (kept[:-1], kept * np.nan, kept.astype(np.float32)):
            with pytest.raises(BadRelease, match="expected finite float64"):
                Network.of_arrays(network.arrays() | {name: damaged}, "r")


class TestCounting:
    def test_sessions_do_not_run_into_each_other(self) -> None:
        tables = count_transitions(sessions_of([[1, 2], [3, 4]]), 6, UNCAPPED)
        pairs = set()
        for row in range(6):
            pairs |= {(row, int(track)) for track in tables.tracks[tables.offsets[row] : tables.offsets[row + 1]]}
        assert pairs == {(1, 2), (3, 4)}
        assert [int(b - a) for a, b in zip(tables.starts, tables.starts[1:], strict=False)] == [6, 0, 0, 0, 6]

    def test_plays_outside_the_catalogue_are_ignored(self) -> None:
        with_unknown = count_transitions(sessions_of([[1, PAD_ROW, 2]]), 4, UNCAPPED)
        without = count_transitions(sessions_of([[1, 2]]), 4, UNCAPPED)
        for one, other in zip(arrays_of(with_unknown), arrays_of(without), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_the_cap_keeps_the_largest_counts_and_the_total(self) -> None:
        lists = [[1, 2]] * 3 + [[1, 3]] * 2 + [[1, 4]]
        tables = count_transitions(sessions_of(lists), 6, 2)
        span = slice(int(tables.offsets[1]), int(tables.offsets[2]))
        assert tables.tracks[span].tolist() == [2, 3]
        assert tables.counts[span].tolist() == [3, 2]
        assert tables.totals[1] == 6

    def test_blocks_of_plays_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(1)
        lists = [rng.integers(1, 9, rng.integers(1, 20)).tolist() for _ in range(30)]
        whole = count_transitions(sessions_of(lists), 9, UNCAPPED)
        monkeypatch.setattr("training.models.ngram._PAIRS_AT_ONCE", 80)
        for one, other in zip(
            arrays_of(count_transitions(sessions_of(lists), 9, UNCAPPED)), arrays_of(whole), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6)


class TestMixture:
    def test_a_learned_gate_is_better_than_the_prior_on_its_targets(self) -> None:
        rng = np.random.default_rng(0)
        lists = [[int(start), *(int(start + i) % 8 + 1 for i in range(6))] for start in rng.integers(1, 9, 200)]
        views = SessionViews.of(sessions_of(lists))
        counts = counts_of(lists, 9)
        ranker = HybridRanker(counts, prior_mixture(repeat_share(sessions_of(lists), 6)), np.arange(1, 9))
        targets = every_position(views, np.ones(len(views), dtype=np.int64), np.zeros(len(views), np.bool_), 6)
        learned = replace(ranker, mixture=fit_mixture(ranker, targets))

        def likelihood(one: HybridRanker) -> float:
            return float(np.log(one.scores(targets.windows, targets.rows[:, None])).mean())

        assert likelihood(learned) > likelihood(ranker) + 0.01

    def test_repeats_are_foreseen_from_the_window(self) -> None:
        # After two plays of a track in a row the session goes back to its first track; other sessions never repeat.
        rng = np.random.default_rng(3)
        lists = []
        for _ in range(300):
            tracks = rng.permutation(np.arange(1, 30))[:5].tolist()
            lists.append([*tracks[:3], tracks[2], tracks[0]] if rng.random() < 0.5 else tracks)
        windows = window_of(*(one[:4] for one in lists))
        targets = Targets(windows, np.array([one[4] for one in lists]), np.zeros(len(lists), np.bool_))
        counts = counts_of(lists[:50], 30)
        ranker = HybridRanker(counts, prior_mixture(0.2), np.arange(1, 30))
        learned = replace(ranker, mixture=fit_mixture(ranker, targets))
        scores = learned.scores(windows, windows.tracks).sum(axis=1)
        again = np.array([one[3] == one[2] for one in lists])
        assert scores[again].min() > 0.9
        assert scores[~again].max() < 0.3

    def test_without_targets_it_is_the_prior(self) -> None:
        prior = prior_mixture(0.25)
        ranker = HybridRanker(counts_of([[1, 2]], 4), prior, np.arange(1, 4))
        none = Targets(window_of(length=6), np.empty(0, np.int64), np.empty(0, np.bool_))
        empty = Targets(Windows(np.zeros((0, 6), np.int64), np.zeros((0, 6), np.bool_)), none.rows, none.skipped)
        assert fit_mixture(ranker, empty) is prior
        unknown = Targets(window_of([1], [1]), np.zeros(2, np.int64), np.zeros(2, np.bool_))
        assert fit_mixture(ranker, unknown) is prior

    def test_the_share_of_repeats(self) -> None:
        assert repeat_share(sessions_of([[1, 2, 1, 3], [4]]), 20) == pytest.approx(1 / 3)
        assert repeat_share(sessions_of([[1, 2, 3, 1]]), 2) == 0
        assert repeat_share(sessions_of([]), 20) == 0

    def test_every_position_is_the_window_before_each_play(self) -> None:
        rows, offsets = np.array([1, 2, 3]), np.array([0, 2, 3])
        views = SessionViews.of(Sessions(rows, np.array([False, True, False]), offsets))
        found = every_position(views, np.array([5, 6]), np.array([False, True]), 4)
        assert found.rows.tolist() == [2, 5, 6]
        assert found.skipped.tolist() == [True, False, True]
        assert found.windows.tracks.tolist() == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 0, 0, 3]]
        assert found.played().rows.tolist() == [5]
        assert found.played().windows.tracks.tolist() == [[0, 0, 1, 2]]
        none = np.empty(0, np.bool_)
        nothing = every_position(SessionViews.of(sessions_of([])), np.empty(0, np.int64), none, 4)
        assert len(nothing.rows) == 0
        assert len(nothing.played().rows) == 0


class TestDamage:
    def arrays(self) -> dict[str, Any]:
        return counts_of([[1, 2, 3, 2], [2, 3]], 5).arrays()

    def test_arrays_survive_a_round_trip(self) -> None:
        again = NgramCounts.of_arrays(self.arrays(), plays_of([[1, 2, 3, 2], [2, 3]], 5))
        for one, other in zip(arrays_of(again.tables), self.arrays().values(), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("name", COUNT_FILES)
    @pytest.mark.parametrize("damage", ["shorter", "longer", "type", "shape"])
    def test_arrays_that_do_not_fit_are_refused(self, name: str, damage: str) -> None:
        arrays = self.arrays()
        kept = arrays[name]
        arrays[name] = {
            "shorter": kept[:-1],
            "longer": np.append(kept, kept[-1:]),
            "type": kept.astype(np.float64 if kept.dtype != np.float64 else np.float32),
            "shape": kept[None],
        }[damage]
        with pytest.raises(BadRelease, match=r"counts|expected"):
            NgramCounts.of_arrays(arrays, np.ones(5, np.int64), "r")

    def test_a_row_outside_the_catalogue_is_refused(self) -> None:
        for row in (-1, 0, 5):
            arrays = self.arrays()
            arrays["ngram_tracks.npy"] = np.full_like(arrays["ngram_tracks.npy"], row)
            with pytest.raises(BadRelease, match="do not fit"):
                NgramCounts.of_arrays(arrays, np.ones(5, np.int64), "r")

    @pytest.mark.parametrize("name", FILES)
    def test_a_mixture_of_another_shape_or_with_nan_is_refused(self, name: str) -> None:
        kept = prior_mixture(0.2).arrays()[name]
        for damaged in (kept[:-1], kept * np.nan, kept.astype(np.float32)):
            arrays = prior_mixture(0.2).arrays() | {name: damaged}
            with pytest.raises(BadRelease, match="expected finite float64"):
                Mixture.of_arrays(arrays, "r")


def test_the_tables_are_numbered_after_the_orders() -> None:
    assert PAIRS == ORDERS
    assert len(FEATURES) == len(set(FEATURES))
    assert Path(__file__).with_name("reference_ngram.py").is_file()


class TestReleases:
    """Counts in releases: added by fine-tuning, mixed with an encoder that is there already, and explained."""

    SMALL = ("dimension=8", "heads=2", "epochs=1", "negatives=20", "window=6")

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        pytest.importorskip("torch")
        folder = tmp_path_factory.mktemp("counts")
        cls.run("simulate", "--tracks", 1000, "--sessions", 300, "--out", folder / "data")
        cls.run("train", folder / "data", "--model", "ngram", "--set=window=6", "--out", folder / "ngram")
        options = [f"--set={option}" for option in cls.SMALL]
        cls.run("train", folder / "data", "--model", "sasrec", *options, "--out", folder / "sasrec")
        return folder

    @staticmethod
    def run(*arguments: object) -> None:
        from segue.cli import main

        assert main([str(word) for word in arguments]) == 0

    def test_fine_tuning_adds_the_counts_of_the_new_log(self, folder: Path) -> None:
        from segue.release import open_release

        self.run("train", folder / "data", "--init-from", folder / "ngram", "--out", folder / "twice")
        once, twice = (open_release(folder / name).count_tables for name in ("ngram", "twice"))
        np.testing.assert_array_equal(once.keys, twice.keys)
        np.testing.assert_allclose(2 * once.totals, twice.totals)
        np.testing.assert_allclose(2 * once.follow_totals, twice.follow_totals, rtol=1e-5)

    def test_a_hybrid_of_a_trained_encoder_keeps_its_embeddings(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from segue.release import open_release

        monkeypatch.setattr("training.models.rescoring.MIN_TARGETS", 20)
        mixed = ["--model", "hybrid", "--init-from", folder / "sasrec", "--set", "epochs=0", "--set", "rescoring=next"]
        self.run("train", folder / "data", *mixed, "--out", folder / "hybrid")
        encoder, hybrid = (open_release(folder / name) for name in ("sasrec", "hybrid"))
        np.testing.assert_array_equal(encoder.item_embeddings, hybrid.item_embeddings)
        assert hybrid.mixed_with(None, hybrid.catalogue).network is not None
        counted = open_release(folder / "ngram").count_tables
        for one, other in zip(arrays_of(counted), arrays_of(hybrid.count_tables), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("name", ["ngram", "hybrid"])
    def test_parts_and_contributions_add_up_to_the_score(self, folder: Path, name: str) -> None:
        from segue.sessions import Outcome, Play
        from service.releases.explanation import explain_answer
        from service.releases.loaded import Question, load_release

        live = load_release(folder / name)
        ids = [live.catalogue.track_id(row) for row in (5, 9, 5, 40)]
        plays = [Play(track, outcome) for track, outcome in zip(ids, [*Outcome, *Outcome], strict=True)]
        question = Question(plays, 8)
        [answer] = live.answer([question])
        explained = explain_answer(live, question, answer)
        assert explained.parts is not None
        assert set(explained.parts[0]) == set(ALL_PARTS if name == "hybrid" else PARTS)
        np.testing.assert_allclose([sum(parts.values()) for parts in explained.parts], answer.scores, rtol=1e-5)
        np.testing.assert_allclose(explained.contributions.sum(axis=1), answer.scores, rtol=1e-4, atol=1e-7)
