"""The play head: features worked out by hand, out-of-fold counts, a known answer, and ranking with caution."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.catalogue import PAD_ROW
from segue.errors import BadOption, BadRelease, InputError
from segue.hybrid import HybridRanker
from segue.ngram import NgramCounts
from segue.play_head import (
    FEATURES,
    FILES,
    SESSION_FEATURES,
    TRACK_FEATURES,
    OutcomeCounts,
    PlayHead,
    Weights,
    linear_weights,
    session_features,
)
from segue.ranking_metrics import LIST_LENGTH
from segue.recommend import CautiousRanker, EncoderRanker, PopularityRanker, Ranked, Recommender
from segue.release import Release, open_release
from segue.sessions import ALLOW_REPEATS, NEVER_REPEAT, Outcome, Play, RepeatPolicy
from segue.window import Sessions, SessionViews, Windows, to_sessions
from service.releases.explanation import contributions, explain_answer
from service.releases.loaded import Question, load_release, recommender_of
from tests.datasets import write_dataset
from training.data.dataset import Dataset
from training.data.splits import examples, training_part
from training.data.synthetic import simulate, simulate_sessions
from training.evaluation.evaluate import LocalRecommender, evaluate
from training.evaluation.evaluate import Question as EvaluationQuestion
from training.models.mixture import prior_mixture
from training.models.ngram import count_transitions
from training.models.play_head import (
    FOLDS,
    count_outcomes,
    fit_network,
    fit_play_head,
    fit_weights,
    held_out,
    measure,
    stored,
    training_examples,
    without,
)
from training.options import NgramOptions
from training.run import TrainingJob, train

Plays = list[tuple[int, bool]]


def sessions_of(*lists: Plays) -> Sessions:
    flat = [play for one in lists for play in one]
    return Sessions(
        np.array([row for row, _ in flat], dtype=np.int64),
        np.array([skip for _, skip in flat], dtype=np.bool_),
        np.cumsum([0, *map(len, lists)], dtype=np.int64),
    )


def window_of(*lists: Plays, length: int = 6) -> Windows:
    shown = [[(PAD_ROW, False)] * (length - len(one)) + one for one in lists]
    tracks = np.array([[row for row, _ in one] for one in shown], dtype=np.int64)
    return Windows(tracks, np.array([[skip for _, skip in one] for one in shown], dtype=np.bool_))


def counts_of(*lists: Plays, num_rows: int = 4) -> OutcomeCounts:
    sessions = sessions_of(*lists)
    return count_outcomes(sessions, num_rows, np.ones(len(sessions), dtype=np.bool_))


def logit(rate: float) -> float:
    return float(np.log(rate / (1 - rate)))


LISTS: tuple[Plays, ...] = ([(1, False), (2, True), (1, False)], [(1, False), (2, False)], [(2, True)])


class TestByHand:
    def test_tracks_are_counted_by_the_outcome_before(self) -> None:
        counts = counts_of(*LISTS)
        assert counts.tracks[1].tolist() == [[2, 0], [0, 0], [1, 0]]
        assert counts.tracks[2].tolist() == [[1, 1], [2, 1], [0, 0]]
        assert counts.tracks[3].sum() == counts.tracks[PAD_ROW].sum() == 0

    def test_pairs_are_counted_by_the_outcome_of_the_earlier_track(self) -> None:
        counts = counts_of(*LISTS)
        by_pair = dict(zip(counts.pairs.tolist(), counts.pair_counts.tolist(), strict=True))
        assert by_pair == {
            1 * 4 + 1: [[1, 0], [0, 0]],
            1 * 4 + 2: [[2, 1], [0, 0]],
            2 * 4 + 1: [[0, 0], [1, 0]],
        }
        assert stored(counts).pairs.tolist() == [1 * 4 + 2]  # the others occur once

    def test_pairs_reach_twenty_places(self) -> None:
        one: Plays = [(1, False), *[(3, False)] * 19, (2, True), (2, True)]
        counts = counts_of(one)
        by_pair = dict(zip(counts.pairs.tolist(), counts.pair_counts.tolist(), strict=True))
        assert by_pair[1 * 4 + 2] == [[1, 1], [0, 0]]

    def test_features_of_a_track(self) -> None:
        head = PlayHead(stored(counts_of(*LISTS)), linear_weights(np.zeros(len(FEATURES))))
        session: Plays = [(2, True), (3, False), (1, False)]
        found = dict(
            zip(TRACK_FEATURES, head.track_features(window_of(session), np.array([[2]]))[0, 0].tolist(), strict=True)
        )
        base = logit((2 + 1) / (6 + 2))  # 6 plays, 2 skips, and one of each outcome
        track = logit((2 + 5 * 3 / 8) / (3 + 5))
        assert found["track"] == pytest.approx(track - base)
        after_played = logit((1 + 1) / (2 + 2))  # over all tracks: 2 plays after a play, 1 skip
        expected = track + after_played - base
        rate = 1 / (1 + np.exp(-expected))
        assert found["track after the last outcome"] == pytest.approx(logit((1 + 5 * rate) / (2 + 5)) - expected)
        assert found["track if the last was skipped"] == 0
        expected = track + logit((1 + 1) / (2 + 2)) - base  # stored pairs with a played earlier track: 2 plays, 1 skip
        rate = 1 / (1 + np.exp(-expected))
        pair = logit((1 + 5 * rate) / (2 + 5)) - expected
        assert found["pair with the last track"] == pytest.approx(pair)
        assert found["sum over the window"] == pytest.approx(pair)
        assert found["mean over the window"] == pytest.approx(pair / 3)
        assert (found["heard"], found["heard and the last skipped"], found["skipped when last heard"]) == (1, 0, 1)
        assert found["log of the places since last heard"] == pytest.approx(np.log(3))
        assert found["log of the plays of the track"] == pytest.approx(np.log(4))

    def test_features_of_a_session(self) -> None:
        session: Plays = [(1, True), (2, False), (1, True)]
        found = dict(zip(SESSION_FEATURES, session_features(window_of(session, []))[0].tolist(), strict=True))
        assert found["log of the plays"] == pytest.approx(np.log(4))
        assert [found[f"{name} skipped"] for name in ("last", "second to last", "third to last")] == [1, 0, 1]
        assert found["share skipped"] == found["share skipped of the last five"] == pytest.approx(2 / 3)
        assert found["share of distinct tracks"] == pytest.approx(2 / 3)
        assert session_features(window_of([]))[0].tolist() == [1, 1, *[0] * (len(SESSION_FEATURES) - 2)]

    def test_hidden_units_add_to_the_logit(self) -> None:
        weights = Weights(np.zeros((len(FEATURES), 9)), np.arange(8.0))
        weights.layer[0] = [0.5, *[0] * 7, 2]
        head = PlayHead(counts_of(*LISTS), weights)
        played = np.exp(head.log_played(window_of([(1, False)]), np.array([[2]])))
        np.testing.assert_allclose(played, 1 / (1 + np.exp(0.5 + 7 * np.tanh(2))))

    def test_the_weights_are_those_of_a_skip(self) -> None:
        weights = np.zeros(len(FEATURES))
        weights[0] = logit(0.25)
        head = PlayHead(counts_of(*LISTS), linear_weights(weights))
        np.testing.assert_allclose(np.exp(head.log_played(window_of([(1, False)]), np.array([[1, 2, 3]]))), 0.75)


plays = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6)


@given(st.lists(plays, min_size=2, max_size=8), st.integers(0, 7))
def test_counts_without_a_part_are_those_of_the_other_sessions(lists: list[Plays], which: int) -> None:
    which %= len(lists)
    others = counts_of(*(one for i, one in enumerate(lists) if i != which), num_rows=6)
    found = without(counts_of(*lists, num_rows=6), counts_of(lists[which], num_rows=6))
    np.testing.assert_array_equal(found.tracks, others.tracks)
    for one, other in zip(stored(found), stored(others), strict=True):
        np.testing.assert_array_equal(one, other)


class TestOutOfFold:
    def lists(self) -> list[Plays]:
        rng = np.random.default_rng(0)
        return [[(int(row), bool(rng.random() < 0.5)) for row in rng.integers(1, 20, 8)] for _ in range(60)]

    def features(self, lists: list[Plays]) -> Any:
        return training_examples(sessions_of(*lists), 20, 8, np.random.default_rng(0))

    def test_features_do_not_depend_on_later_outcomes_of_their_own_fold(self) -> None:
        lists = self.lists()
        before = self.features(lists)
        for session in range(0, 60, FOLDS):  # the first fold
            row, skipped = lists[session][-1]
            lists[session][-1] = (row, not skipped)
        after = self.features(lists)
        own = 60 // FOLDS * 7  # plays of the first fold that follow another
        np.testing.assert_array_equal(after.features[:own], before.features[:own])
        assert (after.skipped[:own] != before.skipped[:own]).sum() == 60 // FOLDS
        assert (after.features[own:] != before.features[own:]).any()

    def test_all_later_plays_are_examples_and_all_plays_are_counted(self) -> None:
        found = self.features(self.lists())
        assert found.features.shape == (60 * 7, len(FEATURES))
        assert found.counts.tracks[..., 0].sum() == 60 * 8


class TestKnownAnswer:
    def sessions(self, count: int, seed: int) -> list[Plays]:
        """Listeners of tracks 1 to 9 skip 10 to 18, and the other way round."""
        rng = np.random.default_rng(seed)
        tastes = rng.integers(0, 2, count)
        return [[(int(row), bool((row > 9) != taste)) for row in rng.integers(1, 19, 10)] for taste in tastes]

    def test_the_head_learns_the_taste_from_the_session(self) -> None:
        fitted = fit_play_head(SessionViews.of(sessions_of(*self.sessions(300, 0))), 19, 10)
        assert fitted is not None
        played = fitted.head.log_played(
            window_of([(1, False), (12, True)], [(1, True), (12, False)]), np.array([[2, 15]] * 2)
        )
        assert np.exp(played[0, 0]) > 0.9
        assert np.exp(played[0, 1]) < 0.1
        assert np.exp(played[1, 0]) < 0.1
        assert np.exp(played[1, 1]) > 0.9

    def test_without_two_outcomes_there_is_no_head(self) -> None:
        lists = [[(row, False) for row, _ in one] for one in self.sessions(20, 0)]
        assert fit_play_head(SessionViews.of(sessions_of(*lists)), 19, 10) is None
        assert fit_play_head(SessionViews.of(sessions_of()), 19, 10) is None

    def test_hidden_units_learn_what_a_linear_model_cannot(self) -> None:
        rng = np.random.default_rng(2)
        features = np.column_stack([np.ones(4_000), rng.normal(size=4_000), 3 + rng.normal(size=4_000)])
        skipped = (features[:, 1] > 0) != (features[:, 2] > 3)
        network = fit_network(features, skipped, rng)
        assert ((network.logits(features @ network.layer) > 0) == skipped).mean() > 0.95
        assert ((features @ fit_weights(features, skipped) > 0) == skipped).mean() < 0.6

    def test_the_weights_maximise_the_likelihood(self) -> None:
        rng = np.random.default_rng(1)
        features = np.column_stack([np.ones(20_000), rng.normal(size=20_000), np.zeros(20_000)])
        skipped = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 + 2 * features[:, 1])))
        np.testing.assert_allclose(fit_weights(features, skipped), [0.5, 2, 0], atol=0.1)


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("damage", ["shorter", "type", "shape"])
    def test_arrays_that_do_not_fit_are_refused(self, name: str, damage: str) -> None:
        arrays: dict[str, Any] = PlayHead(counts_of(*LISTS), linear_weights(np.zeros(len(FEATURES)))).arrays()
        kept = arrays[name]
        arrays[name] = {"shorter": kept[:-1], "type": kept.astype(np.float32), "shape": kept[None]}[damage]
        with pytest.raises(BadRelease, match="expected"):
            PlayHead.of_arrays(arrays, 4, "r")

    def test_unordered_pairs_and_nan_are_refused(self) -> None:
        for name in ("play_head_pairs.npy", "play_head_weights.npy", "play_head_output.npy"):
            arrays: dict[str, Any] = PlayHead(counts_of(*LISTS), linear_weights(np.zeros(len(FEATURES)))).arrays()
            arrays[name] = np.full_like(arrays[name], 1 if name.endswith("pairs.npy") else np.nan)
            with pytest.raises(BadRelease, match="damaged"):
                PlayHead.of_arrays(arrays, 4, "r")


class Scores:
    """An encoder and an index in which the score of row r is scores[r] for each window."""

    def __init__(self, scores: list[float]) -> None:
        self.by_row = np.array([-np.inf, *scores], dtype=np.float32)

    def encode(self, windows: Windows) -> Any:
        return np.ones((len(windows), 1), dtype=np.float32)

    def search(self, queries: Any, k: int, allowed: Any = None) -> Ranked:
        order = np.argsort(-self.by_row[1:], kind="stable")[:k] + 1
        rows = np.tile(order, (len(queries), 1))
        return Ranked(rows, self.by_row[rows])


class TestRanking:
    SCORES = [2.0, 1.5, 1.0]  # noqa: RUF012

    def recommender(self, head: PlayHead | None) -> Recommender:
        encoder = Scores(self.SCORES)
        ranker = EncoderRanker(encoder, encoder, encoder, np.array([[0], *[[one] for one in self.SCORES]], np.float32))
        return Recommender(ranker, PopularityRanker(np.array([0, 3, 2, 1])), 6, head)

    @property
    def head(self) -> PlayHead:
        """Track 1 is skipped, whoever listens."""
        weights = np.zeros(len(FEATURES))
        weights[FEATURES.index("track")] = 1.0
        return PlayHead(counts_of(*[[(1, True), (2, False), (3, False)]] * 20), linear_weights(weights))

    def test_caution_moves_a_track_down_that_is_skipped(self) -> None:
        asked = sessions_of([(3, False)])
        [found] = self.recommender(self.head).recommend(asked, 3, caution=1.0)
        assert found.rows.tolist() == [2, 3, 1]
        log_next = np.array(self.SCORES) - np.log(np.exp(self.SCORES).sum())
        log_played = self.head.log_played(window_of([(3, False)]), np.array([[1, 2, 3]]))[0]
        np.testing.assert_allclose(found.scores, (log_next + log_played)[[1, 2, 0]], rtol=1e-6)

    def test_without_caution_order_and_scores_are_the_rankers(self) -> None:
        asked = sessions_of([(3, False)], [])
        for recommender in (self.recommender(self.head), self.recommender(None)):
            [found, popular] = recommender.recommend(asked, 3, caution=0.0)
            assert found.rows.tolist() == popular.rows.tolist() == [1, 2, 3]
            assert found.scores.tolist() == self.SCORES

    def test_each_session_has_its_own_caution_and_exclusions(self) -> None:
        asked = sessions_of(*[[(3, False)]] * 3, [])
        repeat = [ALLOW_REPEATS, NEVER_REPEAT, ALLOW_REPEATS, ALLOW_REPEATS]
        found = self.recommender(self.head).recommend(asked, 2, repeat=repeat, caution=[1, 1, 0, 1])
        assert [one.rows.tolist() for one in found] == [[2, 3], [2, 1], [1, 2], [1, 2]]
        assert [one.source for one in found] == ["model", "model", "model", "popularity"]

    def test_scores_of_given_tracks_are_those_of_the_list(self) -> None:
        recommender, asked = self.recommender(self.head), sessions_of([(3, False)], [])
        [found, _] = recommender.recommend(asked, 3, caution=2.0)
        scores = recommender.scores(asked, np.array([found.rows] * 2), caution=2.0)
        np.testing.assert_allclose(scores[0], found.scores, rtol=1e-6)
        assert scores[1].tolist() == [2, 1, 3]  # plays

    def test_caution_needs_a_head_and_a_range(self) -> None:
        asked = sessions_of([(3, False)])
        with pytest.raises(InputError, match=r"caution is 1, but the release has no play head"):
            self.recommender(None).recommend(asked, 3, caution=1.0)
        for wrong in (-0.1, 10.5, float("nan")):
            with pytest.raises(InputError, match="expected 0 to 10"):
                self.recommender(self.head).recommend(asked, 3, caution=wrong)

    def test_counts_are_ranked_by_the_log_of_their_probability(self) -> None:
        lists = sessions_of([(1, True), (2, False), (3, False)], [(1, True), (2, False), (1, True)])
        plays = np.bincount(lists.rows, minlength=4)
        ranker = HybridRanker(
            NgramCounts(count_transitions(lists, 4, 64), plays), prior_mixture(0.2), np.array([1, 2, 3])
        )
        window, rows = window_of([(1, True), (2, False)]), np.array([[1, 2, 3]])
        cautious = CautiousRanker(ranker, self.head, 0.5)
        expected = np.log(ranker.scores(window, rows)) + 0.5 * self.head.log_played(window, rows)
        np.testing.assert_allclose(cautious.scores(window, rows), expected, rtol=1e-5)
        ranked = cautious.rank(window, 2)
        assert ranked.rows.tolist() == [(np.argsort(-expected[0])[:2] + 1).tolist()]

    def test_contributions_and_baseline_add_up(self) -> None:
        ranker = self.recommender(self.head).ranker_with(1.5)
        window, rows = window_of([(2, False), (1, True), (3, False)]), np.array([1, 2, 3])
        baseline = np.array([-1.0, -2.0, -3.0])
        found = contributions(ranker, window, rows, baseline=baseline)
        np.testing.assert_allclose(found.sum(axis=1) + baseline, ranker.scores(window, rows[None])[0], rtol=1e-5)


class Silent:
    """A reporter that ignores all progress."""

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None: ...

    def epoch(self, line: dict[str, float]) -> None: ...


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate(1000, 1500, tmp_path_factory.mktemp("head") / "dataset")


@pytest.fixture(scope="module")
def release(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Release:
    out = tmp_path_factory.mktemp("head") / "release"
    return train(TrainingJob("ngram", NgramOptions(caution=1.5), dataset, "new-sessions", out), Silent())


class TestRelease:
    def test_its_head_predicts_skips_by_the_track(self, release: Release, dataset: Dataset) -> None:
        told = release.manifest.evaluation["play_head"]
        assert told["validation_plays"] == len(examples(dataset, "new-sessions", "validation").targets)
        assert told["AUC"] > told["AUC of the session alone"] + 0.1
        assert told["log-likelihood"] > told["log-likelihood of the session alone"]
        assert release.play_head is not None
        part = training_part(dataset, "new-sessions")
        assert release.play_head.counts.tracks.sum(axis=(0, 1)).tolist() == [
            part.lengths.sum(),
            part.gathered().skipped.sum(),
        ]
        fitted = fit_play_head(part, dataset.catalogue.num_rows, 20)
        assert fitted is not None
        assert measure(fitted, held_out(examples(dataset, "new-sessions", "validation"), 20)) == told

    def test_served_lists_are_those_of_offline_evaluation(self, release: Release, dataset: Dataset) -> None:
        live, offline = load_release(release.path), recommender_of(open_release(release.path))
        ids = dataset.catalogue.track_id
        plays = [Play(ids(row), Outcome.SKIPPED if row % 2 else Outcome.PLAYED) for row in (5, 6, 7, 8)]
        asked = to_sessions([plays], release.catalogue)
        for caution, meant in ((None, 1.5), (0.0, 0.0), (3.0, 3.0)):
            served = live.recommend(plays, 20, caution=caution)
            [found] = offline.recommend(asked, 20, caution=meant)
            assert served.rows == found.rows.tolist()
            np.testing.assert_allclose(served.scores, found.scores, rtol=1e-6)

    @pytest.mark.parametrize("repeat", [ALLOW_REPEATS, NEVER_REPEAT])
    def test_a_short_list_is_the_start_of_the_one_that_is_evaluated(
        self, release: Release, dataset: Dataset, repeat: RepeatPolicy
    ) -> None:
        asked = examples(dataset, "new-sessions", "test").inputs.gathered()
        for caution in (0.5, 10.0):
            lists = [
                recommender_of(release, exact=True).recommend(asked, k, repeat=repeat, caution=caution)
                for k in (5, 20, LIST_LENGTH)
            ]
            for shortest, short, evaluated in zip(*lists, strict=True):
                assert shortest.rows.tolist() == evaluated.rows[:5].tolist()
                assert short.rows.tolist() == evaluated.rows[:20].tolist()

    def test_an_explanation_adds_up_with_caution(self, release: Release, dataset: Dataset) -> None:
        live, ids = load_release(release.path), dataset.catalogue.track_id
        question = Question([Play(ids(3)), Play(ids(4), Outcome.SKIPPED), Play(ids(9))], 10, caution=2.0)
        [answer] = live.answer([question])
        why = explain_answer(live, question, answer)
        assert why.baseline is not None
        assert why.parts is not None
        np.testing.assert_allclose(why.contributions.sum(axis=1) + why.baseline, answer.scores, rtol=1e-4)
        assert [sorted(parts) for parts in why.parts] == [["next", "played"]] * 10
        np.testing.assert_allclose([sum(parts.values()) for parts in why.parts], answer.scores, rtol=1e-5)
        assert all(parts["played"] < 0 for parts in why.parts)

    def test_evaluation_records_the_caution(self, release: Release, dataset: Dataset) -> None:
        local = recommender_of(release, exact=True)
        results = []
        for caution in (0.0, None):
            question = EvaluationQuestion(dataset, release, "new-sessions", caution=caution)
            results.append(evaluate(question, LocalRecommender(local, question.to_release())))
        assert [result["caution"] for result in results] == [0.0, 1.5]
        assert [result["system"] for result in results] == ["ngram", "ngram+caution 1.5"]
        differences = [result["skip_down_ranking"]["MRR@10 played - skipped"]["value"] for result in results]
        assert differences[1] > differences[0] + 0.05

    def test_the_sampled_protocol_ranks_by_the_same_scores(self, release: Release, dataset: Dataset) -> None:
        local, ranks = recommender_of(release), []
        for caution in (0.0, 2.0):
            question = EvaluationQuestion(dataset, release, "new-sessions", protocol="sampled", caution=caution)
            ranks.append(evaluate(question, LocalRecommender(local, question.to_release()))["ranks"])
        assert ranks[0] != ranks[1]


class TestLogsWithoutSkips:
    def played(self, path: Path) -> Dataset:
        plays = simulate_sessions(1000, 60).plays.select("session_id", "track_id")
        return write_dataset(path, plays.with_columns(skipped=pl.lit(value=False)), "tests")

    def test_they_give_no_head(self, tmp_path: Path) -> None:
        data = self.played(tmp_path / "data")
        release = train(TrainingJob("ngram", NgramOptions(), data, "last-play", tmp_path / "r"), Silent())
        assert release.play_head is None
        assert "play_head" not in release.manifest.evaluation
        live = load_release(release.path)
        assert len(live.recommend([Play(data.catalogue.track_id(1))], 5).tracks) == 5
        with pytest.raises(InputError, match="no play head"):
            live.recommend([Play(data.catalogue.track_id(1))], 5, caution=1.0)

    def test_they_cannot_have_a_default_caution(self, tmp_path: Path) -> None:
        data = self.played(tmp_path / "data")
        with pytest.raises(BadOption, match="has no skips to predict"):
            train(TrainingJob("ngram", NgramOptions(caution=1), data, "last-play", tmp_path / "r"), Silent())
