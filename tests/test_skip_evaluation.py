"""Groups of targets and skip measures of an evaluation: sessions by hand, rankers whose reaction to a skip is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest

pytest.importorskip("sklearn")

from segue.arrays import Float32, Int
from segue.recommend import PopularityRanker, Ranked, Recommender
from segue.window import SessionViews, Windows
from tests.datasets import write_dataset
from tests.test_evaluate import baseline, dataset, offline
from training.data.dataset import Dataset
from training.data.splits import Split, training_part
from training.evaluation.evaluate import LocalRecommender, Question, evaluate
from training.evaluation.http_recommender import HttpRecommender
from training.evaluation.session_state import seen_pairs
from training.models.play_head import fit_play_head


def evaluated(path: Path, data: Dataset, split: Split = "last-play", ranker: Any = None) -> dict[str, Any]:
    """The evaluation of popularity, or of a ranker given, on a release of this dataset."""
    question = Question(data, baseline(path, data, split=split), split)
    if ranker is None:
        return evaluate(question, offline(question))
    recommender = Recommender(ranker, PopularityRanker(question.release.catalogue.plays), 20)
    return evaluate(question, LocalRecommender(recommender, question.to_release()))


class TestGroups:
    def test_by_hand(self, tmp_path: Path) -> None:
        # Training: ab, bca, a. The questions are abc -> a, bca-d -> d and ac -> b? with the pairs bc, ad and nothing.
        data = dataset(tmp_path / "d", {"s1": "abca-", "s2": "bca-d-d", "s3": "ac-b"})
        result = evaluated(tmp_path / "r", data)
        assert result["target_group_members"] == {
            "pair_seen": [True, False, False],  # bc in the second session; ad and ac in none
            "after_skip": [False, True, True],
            "repeat": [True, True, False],
        }
        groups = result["target_groups"]
        assert [groups[name]["sessions"] for name in ("pair_seen", "pair_unseen", "repeat", "new")] == [1, 2, 2, 1]
        assert [groups[name]["sessions"] for name in ("after_play", "after_skip")] == [1, 2]
        # Training plays: a 3, b 2, c 1, d 0. The targets a, d, b have the ranks 1, 4, 2.
        assert result["ranks"] == [1.0, 4.0, 2.0]
        assert groups["after_skip"]["MRR@10"]["value"] == pytest.approx((1 / 4 + 1 / 2) / 2)
        assert groups["pair_seen"]["HR@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert groups["reasons"] == {}

    def test_a_group_without_targets_has_no_figures(self, tmp_path: Path) -> None:
        result = evaluated(tmp_path / "r", dataset(tmp_path / "d", {"s1": "abcd"}))
        assert result["target_groups"]["repeat"] == {"sessions": 0, "HR@1": None, "HR@10": None, "MRR@10": None}

    def test_one_play_before_the_target_is_no_pair(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {f"s{i}": "ab" for i in range(40)})
        result = evaluated(tmp_path / "r", data, "new-sessions")
        assert set(result["target_group_members"]["pair_seen"]) == {None}
        assert (
            result["target_groups"]["pair_seen"]["sessions"] == result["target_groups"]["pair_unseen"]["sessions"] == 0
        )

    def test_a_pair_does_not_reach_from_one_session_to_the_next(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "ab", "s2": "ca"})
        a, b, c = (data.catalogue.row(name) for name in "abc")
        first, second = np.array([a, b, c, b]), np.array([b, c, a, a])
        seen = seen_pairs(SessionViews.of(data.sessions), first, second, data.catalogue.num_rows)
        assert seen.tolist() == [True, False, True, False]

    def test_for_a_release_of_another_dataset_pairs_are_left_out(self, tmp_path: Path) -> None:
        home = dataset(tmp_path / "home", {"s1": "aaaabc", "s2": "aabbbb"})
        away = dataset(tmp_path / "away", {"s1": "xxa", "s2": "xab", "s3": "abx"})
        question = Question(away, baseline(tmp_path / "r", home), "last-play")
        result = evaluate(question, offline(question))
        assert result["target_groups"]["reasons"] == {"pair_seen": "the release was trained on another dataset"}
        assert result["target_groups"]["pair_seen"]["sessions"] == 0
        assert result["target_groups"]["new"]["sessions"] == 3


def moods(count: int, seed: int = 0) -> dict[str, str]:
    """Sessions of listeners who skip three of four plays or one of four, of six tracks."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        skips = rng.random(8) < (0.75 if number % 2 else 0.25)
        found[f"s{number}"] = "".join(f"{'abcdef'[rng.integers(6)]}{'-' * skip}" for skip in skips.tolist())
    return found


class TestGaps:
    def test_of_both_outcomes_are_measured(self, tmp_path: Path) -> None:
        result = evaluated(tmp_path / "r", dataset(tmp_path / "d", moods(300)))
        measured = result["skip_measures"]
        assert 0.6 < measured["skip_classifier_auc"] < 0.8
        played, skipped = (result["groups"][group]["HR@1"]["value"] for group in ("played", "skipped"))
        assert measured["raw_gap"]["HR@1"]["value"] == pytest.approx(played - skipped)
        assert measured["raw_gap"]["HR@10"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # six tracks: a hit each
        assert set(measured["matched_gap"]) == {"HR@1", "HR@10", "MRR@10"}
        assert set(result["target_stratum"]) <= set(range(10))
        again = evaluated(tmp_path / "again", dataset(tmp_path / "d2", moods(300)))
        assert again["skip_measures"] == measured

    @pytest.mark.parametrize("text", ["abca", "a-b-c-a-"])
    def test_of_one_outcome_are_not_and_say_so(self, text: str, tmp_path: Path) -> None:
        result = evaluated(tmp_path / "r", dataset(tmp_path / "d", {"s1": text, "s2": text}))
        measured = result["skip_measures"]
        assert measured["raw_gap"] is measured["matched_gap"] is measured["skip_classifier_auc"] is None
        assert measured["reasons"]["matched_gap"] == "the targets are all played or all skipped"
        assert result["target_stratum"] == [None, None]

    def test_targets_of_unknown_outcome_are_left_out(self, tmp_path: Path) -> None:
        sessions = moods(100)
        known = evaluated(tmp_path / "r", dataset(tmp_path / "d", sessions))
        some = sessions | {f"u{number}": "abcda?" for number in range(5)}
        result = evaluated(tmp_path / "r2", dataset(tmp_path / "d2", some))
        assert result["target_stratum"][-5:] == [None] * 5
        assert None not in result["target_stratum"][:-5]
        assert len(result["target_stratum"]) == len(known["target_stratum"]) + 5
        none = dataset(tmp_path / "d3", {"s1": "abca?", "s2": "abba?"}, options={"no_skips": True})
        measured = evaluated(tmp_path / "r3", none)
        assert measured["skip_measures"]["reasons"]["raw_gap"] == "the outcome of the targets is unknown"
        assert measured["target_groups"]["reasons"] == {"after_skip": "the log has no outcomes"}

    def test_without_a_skip_in_training_there_is_no_matched_gap(self, tmp_path: Path) -> None:
        result = evaluated(tmp_path / "r", dataset(tmp_path / "d", {"s1": "abca-", "s2": "abcb"}))
        assert result["skip_measures"]["raw_gap"] is not None
        assert result["skip_measures"]["matched_gap"] is None
        assert "training part" in result["skip_measures"]["reasons"]["matched_gap"]


class Scores:
    """The score of a track is a number. For some tracks, something is added after a skip or after a play."""

    def __init__(
        self,
        data: Dataset,
        numbers: dict[str, float],
        moved: str = "",
        after_skip: float = 0.0,
        after_play: float = 0.0,
    ) -> None:
        names = data.catalogue.track_ids
        self.numbers = np.array([0.0, *(numbers.get(name, 0.0) for name in names)], dtype=np.float32)
        self.moved = np.array([False, *(name in moved for name in names)])
        self.after_skip, self.after_play = after_skip, after_play

    def rank(self, windows: Windows, k: int) -> Ranked:
        rows = np.tile(np.arange(1, len(self.numbers)), (len(windows), 1))
        scores = self.scores(windows, rows)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranked(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def scores(self, windows: Windows, rows: Int) -> Float32:
        added = np.where(windows.skipped[:, -1:], self.after_skip, self.after_play) * self.moved[rows]
        scores: Float32 = (self.numbers[rows] + added).astype(np.float32)
        return scores


class TestSessionAuc:
    def data(self, path: Path) -> Dataset:
        return dataset(path, {f"s{i}": "efab-cd-d-be" for i in range(60)})

    def test_by_hand(self, tmp_path: Path) -> None:
        # Nine plays, of which e, f, a, b are the first half. c, d- and d- come after them; b and e are in both halves.
        data = self.data(tmp_path / "d")
        for c, d, expected in ((2.0, 1.0, 1.0), (1.0, 2.0, 0.0), (1.0, 1.0, 0.5)):
            ranker = Scores(data, {"c": c, "d": d, "e": 5.0})
            result = evaluated(tmp_path / f"r{expected}", data, "new-sessions", ranker)
            measured = result["skip_measures"]["pairwise_auc"]
            assert (measured["value"], measured["low"], measured["high"]) == (expected,) * 3
            assert measured["sessions"] == len(result["ranks"])

    def test_the_first_play_after_the_half_tells_the_outcome(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {f"s{i}": "abd-cdc-" for i in range(60)})  # after ab and d-: c, d, c-
        measured = evaluated(tmp_path / "r", data, "new-sessions")["skip_measures"]
        assert measured["pairwise_auc"] is None  # c counts as played, d is in the first half
        data = dataset(tmp_path / "d2", {f"s{i}": "abd-cd-cd" for i in range(60)})  # after abd-: c, d-, c, d
        assert evaluated(tmp_path / "r2", data, "new-sessions")["skip_measures"]["pairwise_auc"] is None
        data = dataset(tmp_path / "d3", {f"s{i}": "abcd-cd" for i in range(60)})  # after abc: d-, c, d
        assert evaluated(tmp_path / "r3", data, "new-sessions")["skip_measures"]["pairwise_auc"] is None
        data = dataset(tmp_path / "d4", {f"s{i}": "abacd-d" for i in range(60)})  # after aba: c, d-, d
        ranker = Scores(data, {"d": 1.0})
        measured = evaluated(tmp_path / "r4", data, "new-sessions", ranker)["skip_measures"]
        assert measured["pairwise_auc"]["value"] == 0.0

    def test_sessions_without_both_outcomes_do_not_count(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {f"s{i}": "abcd" for i in range(60)})
        measured = evaluated(tmp_path / "r", data, "new-sessions")["skip_measures"]
        assert measured["pairwise_auc"] is None
        assert measured["reasons"]["pairwise_auc"].startswith("no session has a played and a skipped track")

    def test_plays_that_were_trained_on_are_not_asked_for(self, tmp_path: Path) -> None:
        measured = evaluated(tmp_path / "r", self.data(tmp_path / "d"))["skip_measures"]
        assert measured["pairwise_auc"] is None
        assert "use the split new-sessions" in measured["reasons"]["pairwise_auc"]


class TestResponsiveness:
    SESSIONS: Final = {f"s{number}": "acegaceg" for number in range(8)} | {"t1": "hb", "t2": "hd", "t3": "hf"}

    @pytest.mark.parametrize(
        ("others", "after_skip", "change"),
        [
            # Of eight tracks, b, d and f tie. Below them are a, c, e, g or none: (4 + 1.5) / 8 or 1.5 / 8.
            (20.0, -50.0, -0.5),
            (1.0, 50.0, 0.5),
            (20.0, 0.0, 0.0),
        ],
    )
    def test_without_artists_similar_tracks_are_those_of_the_same_sessions(
        self, others: float, after_skip: float, change: float, tmp_path: Path
    ) -> None:
        """Each session has a, c, e and g, so h is recommended. In training, h occurs with b, d and f."""
        data = dataset(tmp_path / "d", self.SESSIONS)
        numbers = dict.fromkeys("aceg", 10.0) | dict.fromkeys("bdf", others) | {"h": 100.0}
        ranker = Scores(data, numbers, "bdfh", after_skip)
        result = evaluated(tmp_path / "r", data, ranker=ranker)["skip_measures"]["responsiveness"]
        same = {"value": change, "low": change, "high": change}
        none = {"value": 0.0, "low": 0.0, "high": 0.0}
        assert result == {
            "sessions": 8,
            "similar": "same sessions",
            "after_skip": same,
            "after_play": none,
            "skip_minus_play": same,
        }

    def test_with_artists_similar_tracks_are_those_of_the_same_artist(self, tmp_path: Path) -> None:
        """The artist of h is that of a and c. They gain on b, d and f: (0 + 2) / 8 becomes (3 + 2) / 8."""
        plays = [(name, track) for name, text in self.SESSIONS.items() for track in text]
        frame = pl.DataFrame(plays, schema=["session_id", "track_id"], orient="row").with_columns(
            skipped=pl.lit(value=False), artist=pl.when(pl.col("track_id").is_in(["a", "c", "h"])).then(pl.lit("One"))
        )
        data = write_dataset(tmp_path / "d", frame, "by hand")
        numbers = dict.fromkeys("aceg", 10.0) | dict.fromkeys("bdf", 20.0) | {"h": 100.0}
        ranker = Scores(data, numbers, "bdfh", -50.0)
        result = evaluated(tmp_path / "r", data, ranker=ranker)["skip_measures"]["responsiveness"]
        assert result["similar"] == "same artist"
        assert result["after_skip"]["value"] == pytest.approx(3 / 8)
        assert result["after_play"]["value"] == 0.0

    def test_a_play_counts_too(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {name: text.replace("g", "g-") for name, text in self.SESSIONS.items()})
        numbers = dict.fromkeys("aceg", 10.0) | dict.fromkeys("bdf", 20.0) | {"h": 100.0}
        result = evaluated(tmp_path / "r", data, ranker=Scores(data, numbers, "bdfh", after_skip=-50.0))
        # The last play of each input, e, was played. Without a skip nothing changes.
        assert result["skip_measures"]["responsiveness"]["after_play"]["value"] == 0.0
        result = evaluated(tmp_path / "r2", data, ranker=Scores(data, numbers, "bdfh", -50.0, -50.0))
        assert result["skip_measures"]["responsiveness"]["skip_minus_play"]["value"] == 0.0

    def test_a_catalogue_of_one_track_has_no_similar_track(self, tmp_path: Path) -> None:
        measured = evaluated(tmp_path / "r", dataset(tmp_path / "d", {"s1": "aaaa"}))["skip_measures"]
        assert measured["responsiveness"] is None
        assert measured["reasons"]["responsiveness"] == "no recommended track has a similar track"


def test_the_effect_of_caution_is_its_matched_gap_minus_that_of_its_permuted_control(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", moods(120))
    release = baseline(tmp_path / "r", data, "markov")
    fitted = fit_play_head(training_part(data, "last-play"), data.catalogue.num_rows, 20)
    assert fitted is not None
    measured = {}
    for caution in (0.0, 2.0):
        question = Question(data, release, "last-play", caution=caution)
        recommender = replace(offline(question).recommender, head=fitted.head)
        answers = LocalRecommender(recommender, question.to_release())
        measured[caution] = evaluate(question, answers)["skip_measures"]
    assert measured[0.0]["caution_effect"] is None
    found = measured[2.0]["caution_effect"]
    for metric in ("HR@1", "HR@10"):
        gap = measured[2.0]["matched_gap"][metric]["value"]  # of the lists as they are answered
        effect, real, permuted = (found[name][metric] for name in ("effect", "matched_gap", "matched_gap_permuted"))
        assert real["value"] == pytest.approx(gap)
        assert effect["value"] == pytest.approx(gap - permuted["value"])
        assert effect["low"] <= effect["value"] <= effect["high"]
    assert any(found["matched_gap"][m] != found["matched_gap_permuted"][m] for m in ("HR@1", "HR@10"))


def test_a_service_has_the_measures_of_ranks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path / "d", moods(60))
    question = Question(data, baseline(tmp_path / "r", data), "last-play")
    local = offline(question)
    service = HttpRecommender("http://127.0.0.1:9", data.catalogue, question.release)
    monkeypatch.setattr(service, "lists", local.lists)
    with service:
        result = evaluate(question, service)
    expected = evaluate(question, local)
    assert result["target_groups"] == expected["target_groups"]
    assert result["skip_measures"]["matched_gap"] == expected["skip_measures"]["matched_gap"]
    assert result["skip_measures"]["pairwise_auc"] is result["skip_measures"]["responsiveness"] is None
    assert result["skip_measures"]["reasons"]["responsiveness"].startswith("a service returns lists")


def test_sampled_tracks_give_gaps_of_their_ranks_only(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", moods(60))
    question = Question(data, baseline(tmp_path / "r", data), "last-play", protocol="sampled")
    measured = evaluate(question, offline(question))["skip_measures"]
    assert measured["matched_gap"] is not None
    assert measured["responsiveness"] is None
    assert measured["reasons"]["responsiveness"].endswith("use the protocol full")
