"""Evaluation: splits, both protocols, groups, other datasets; against numbers by hand and theory."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("httpx")

from segue.arrays import Float32, Int
from segue.errors import BadOption, InputError
from segue.recommend import PopularityRanker, Ranked, Recommender
from segue.release import DatasetFacts, Release, ReleaseMetadata, WindowFacts, write_release
from segue.sessions import repeat_policy
from segue.window import Sessions, SessionViews, Windows
from tests.datasets import write_dataset
from training.data.dataset import Dataset
from training.data.splits import Examples, Part, Targets, examples, training_part
from training.evaluation.evaluate import LocalRecommender, Question, evaluate, sample_candidates
from training.evaluation.http_recommender import HttpRecommender
from training.models.baselines.markov import MarkovRanker


def dataset(path: Path, sessions: dict[str, str], **facts: Any) -> Dataset:
    """Sessions as text: `s1: "ab-c?"` reads a played, b skipped, c with an unknown outcome."""
    known = [not text.endswith("?") for text in sessions.values()]
    sessions = {session: text.removesuffix("?") for session, text in sessions.items()}
    lines = [
        {"session_id": session, "track_id": track, "skipped": text[i + 1 : i + 2] == "-"}
        for session, text in sessions.items()
        for i, track in enumerate(text)
        if track != "-"
    ]
    return write_dataset(path, pl.DataFrame(lines), "by hand", last_known=known, **facts)


def texts(data: Dataset, views: SessionViews) -> list[str]:
    """The tracks of each session, without skips."""
    part = views.gathered()
    names = ["", *data.catalogue.track_ids]
    return ["".join(names[row] for row in part.rows[a:b]) for a, b in pairwise(part.offsets.tolist())]


def baseline(path: Path, data: Dataset, model: str = "popularity", split: Any = "last-play") -> Release:
    part = training_part(data, split).gathered()
    plays = np.bincount(part.rows, minlength=data.catalogue.num_rows)
    arrays = MarkovRanker.fit(part, data.catalogue.num_rows, plays).arrays() if model == "markov" else {}
    draft = ReleaseMetadata(
        model=model,
        options={},
        loss=None,
        window=WindowFacts(length=20),
        dimension=None,
        dataset=DatasetFacts(fingerprint=data.facts.fingerprint, source="by hand", split=split),
        source_commit=None,
        evaluation={},
    )
    return write_release(path, draft, data.catalogue.with_counts(plays, plays * 0), arrays)


def offline(question: Question) -> LocalRecommender:
    release = question.release
    popularity = PopularityRanker(release.catalogue.plays)
    if release.manifest.model == "markov":
        chain = MarkovRanker.of_release(release)
        return LocalRecommender(Recommender(chain, popularity, 20), question.to_release())
    return LocalRecommender(Recommender(popularity, popularity, 20), question.to_release())


def value(result: dict[str, Any], group: str, metric: str) -> float:
    return float(result["groups"][group][metric]["value"])


class TestSplits:
    def test_last_play_by_hand(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "ab-cd-", "s2": "ba"})
        name = data.catalogue.track_id
        assert [name(row) for row in training_part(data, "last-play").gathered().rows] == ["a", "b", "b", "a"]
        validation, test = (examples(data, "last-play", part) for part in ("validation", "test"))
        assert [name(row) for row in validation.inputs.gathered().rows] == ["a", "b"]
        assert [name(row) for row in validation.targets] == ["c"]
        assert validation.target_skipped.tolist() == [False]
        assert [name(row) for row in test.inputs.gathered().rows] == ["a", "b", "c"]
        assert [name(row) for row in test.targets] == ["d"]
        assert test.target_skipped.tolist() == [True]
        assert test.sessions.tolist() == [0]

    @pytest.mark.parametrize(
        ("targets", "trained", "validation", "test"),
        [
            # Held out are the last two plays. Of `bc?` too little is left, and the unknown c is not trained on.
            ("last", ["ab", "ab", "b"], [("ab", "c-"), ("ab", "c")], [("abc", "d?"), ("abc", "d")]),
            ("known", ["a", "ab", "b"], [("a", "b"), ("ab", "c")], [("ab", "c-"), ("abc", "d")]),
        ],
    )
    def test_last_plays_of_unknown_outcome_by_hand(
        self,
        targets: Targets,
        trained: list[str],
        validation: list[tuple[str, str]],
        test: list[tuple[str, str]],
        tmp_path: Path,
    ) -> None:
        data = dataset(tmp_path / "d", {"s1": "abc-d?", "s2": "abcd", "s3": "bc?", "s4": "c?"})
        assert texts(data, training_part(data, "last-play", targets)) == trained
        expected_of: dict[Part, list[tuple[str, str]]] = {"validation": validation, "test": test}
        for part, expected in expected_of.items():
            asked = examples(data, "last-play", part, targets)
            assert asked.target_known is not None
            shown = zip(asked.targets, asked.target_skipped, asked.target_known, strict=True)
            marked = [
                data.catalogue.track_id(row) + ("?" if not known else "-" if skips else "")
                for row, skips, known in shown
            ]
            assert list(zip(texts(data, asked.inputs), marked, strict=True)) == expected

    def test_new_sessions_without_their_last_play_if_its_outcome_is_unknown(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {f"s{i}": "abc-d?" for i in range(600)})
        assert set(texts(data, training_part(data, "new-sessions"))) == {"abc"}
        last, known = (examples(data, "new-sessions", "test", targets) for targets in ("last", "known"))
        assert last.sessions.tolist() == known.sessions.tolist()
        assert set(texts(data, last.inputs)) == {"abc"}
        assert set(texts(data, known.inputs)) == {"ab"}
        assert last.target_known is not None
        assert not last.target_known.any()
        assert known.target_known is not None
        assert known.target_known.all()
        assert known.target_skipped.all()

    def test_new_sessions_are_never_trained_on_and_fall_into_parts_by_their_id(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {f"s{i}": "abc" for i in range(600)})
        trained = len(training_part(data, "new-sessions"))
        parts = [set(examples(data, "new-sessions", part).sessions.tolist()) for part in ("validation", "test")]
        assert trained + len(parts[0]) + len(parts[1]) == 600
        assert not parts[0] & parts[1]
        assert len(parts[0]) == pytest.approx(60, abs=25)
        assert len(parts[1]) == pytest.approx(120, abs=35)
        again = dataset(tmp_path / "grown", {f"s{i}": "abc" for i in range(700)})
        grown = set(examples(again, "new-sessions", "test").sessions.tolist())
        assert parts[1] == {number for number in grown if number < 600}


class TestFull:
    def test_popularity_by_hand(self, tmp_path: Path) -> None:
        # Training holds a 3 times, b twice, c once; the targets are c (skipped), a, and d, which training never saw.
        data = dataset(tmp_path / "d", {"s1": "aacc-", "s2": "abba", "s3": "bbd"})
        question = Question(data, baseline(tmp_path / "r", data), "last-play")
        result = evaluate(question, offline(question))
        trained = question.release.catalogue.plays.tolist()
        by_plays = dict(zip(question.release.catalogue.track_ids, trained[1:], strict=True))
        assert by_plays == {"a": 3, "b": 2, "c": 0, "d": 0}
        # Ranks: c and d tie at 3 and 4 (3.5), a is first.
        assert result["ranks"] == [3.5, 1.0, 3.5]
        assert value(result, "all", "HR@1") == pytest.approx(1 / 3)
        assert value(result, "all", "MRR@10") == pytest.approx((1 + 2 / 3.5) / 3)
        assert value(result, "played", "MRR@10") == pytest.approx((1 + 1 / 3.5) / 2)
        assert value(result, "skipped", "MRR@10") == pytest.approx(1 / 3.5)
        difference = result["skip_down_ranking"]["MRR@10 played - skipped"]["value"]
        assert difference == pytest.approx((1 + 1 / 3.5) / 2 - 1 / 3.5)
        assert result["unseen_targets"] == pytest.approx(2 / 3)
        assert result["catalogue_coverage@20"] == 1.0
        assert [result["groups"][group]["sessions"] for group in ("all", "played", "skipped")] == [3, 2, 1]

    def test_a_group_without_sessions_has_no_figures(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "abc"})
        question = Question(data, baseline(tmp_path / "r", data), "last-play")
        result = evaluate(question, offline(question))
        assert result["groups"]["skipped"]["HR@10"] is None
        assert result["skip_down_ranking"]["MRR@10 played - skipped"] is None

    def test_the_chain_knows_what_came_next(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "abcab", "s2": "ababab", "s3": "cabcca"})
        question = Question(data, baseline(tmp_path / "r", data, "markov"), "last-play")
        # Trained on abc, abab, cabc. Targets: b after a (3 of 3 went on to b), b after a, a after c (1 of 1).
        assert evaluate(question, offline(question))["ranks"] == [1.0, 1.0, 1.0]

    def test_another_dataset_is_mapped_by_track_id_and_a_foreign_target_is_a_miss(self, tmp_path: Path) -> None:
        home = dataset(tmp_path / "home", {"s1": "aaaabc", "s2": "aabbbb"})
        away = dataset(tmp_path / "away", {"s1": "xxa", "s2": "xab", "s3": "abx"})
        assert home.catalogue.row("a") != away.catalogue.row("a")
        question = Question(away, baseline(tmp_path / "r", home), "last-play")
        result = evaluate(question, offline(question))
        assert question.release.catalogue.plays.tolist() == [0, 6, 2, 0]
        assert result["ranks"] == [1.0, 2.0, None]
        assert result["unseen_targets"] == pytest.approx(1 / 3)

    def test_what_was_trained_on_is_not_asked_for(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {f"s{i}": "abc" for i in range(50)})
        question = Question(data, baseline(tmp_path / "r", data), "new-sessions")
        with pytest.raises(InputError, match="was trained with the split last-play"):
            evaluate(question, offline(question))


class TestUnknownOutcomes:
    SESSIONS: Final = {"s1": "abc-a?", "s2": "abba?", "s3": "bbcd-"}

    def test_a_target_of_unknown_outcome_is_neither_played_nor_skipped(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", self.SESSIONS)
        question = Question(data, baseline(tmp_path / "r", data), "last-play")
        result = evaluate(question, offline(question))
        assert [result["groups"][group]["sessions"] for group in ("all", "played", "skipped")] == [3, 0, 1]
        assert result["groups"]["played"]["HR@1"] is None
        assert result["unknown_targets"] == 2
        assert result["target_known"] == [False, False, True]
        assert result["notes"][0].startswith(
            "Skips were inferred from time, and no later play shows the outcome of a last play: 2 of 3 targets count "
            "neither as played nor as skipped, which leaves 1 skipped target."
        )

    def test_known_targets_are_the_last_plays_with_an_outcome(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", self.SESSIONS)
        question = Question(data, baseline(tmp_path / "r", data), "last-play", targets="known")
        result = evaluate(question, offline(question))
        assert [result["groups"][group]["sessions"] for group in ("all", "played", "skipped")] == [3, 1, 2]
        assert result["session_length"] == [2, 2, 3]
        assert result["unknown_targets"] == 0
        assert result["targets"] == "known"
        assert result["notes"][0].startswith("2 of 3 targets were validation targets of the training")

    def test_known_validation_targets_of_a_training_on_all_plays_are_not_asked_for(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", self.SESSIONS)
        question = Question(data, baseline(tmp_path / "r", data), "last-play", "validation", targets="known")
        with pytest.raises(InputError, match="was trained without --targets known"):
            evaluate(question, offline(question))

    def test_a_log_without_outcomes_has_no_known_targets(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "abca?", "s2": "abba?"}, options={"no_skips": True})
        release = baseline(tmp_path / "r", data)
        question = Question(data, release, "last-play", targets="known")
        with pytest.raises(BadOption, match="no play has a known outcome"):
            evaluate(question, offline(question))
        last = Question(data, release, "last-play")
        result = evaluate(last, offline(last))
        assert result["notes"][0].startswith("The log does not tell skipped from played tracks, so all 2 targets")
        assert [result["groups"][group]["sessions"] for group in ("all", "played", "skipped")] == [2, 0, 0]


class TestConditions:
    def test_a_dataset_of_other_tracks_is_refused(self, tmp_path: Path) -> None:
        home = dataset(tmp_path / "home", {"s1": "abc"})
        away = dataset(tmp_path / "away", {"s1": "xyz", "s2": "zyx"})
        question = Question(away, baseline(tmp_path / "r", home), "last-play")
        with pytest.raises(InputError, match=r"0 of 3 tracks of .*away are in .*r,"):
            evaluate(question, offline(question))

    @pytest.mark.parametrize(
        ("tracks", "constant"),
        [
            (1, ["HR@1", "HR@5", "HR@10", "HR@20", "MAP@10", "MRR@10", "NDCG@10"]),
            (2, ["HR@5", "HR@10", "HR@20"]),
            (10, ["HR@10", "HR@20"]),
            (11, ["HR@20"]),
            (21, []),
        ],
    )
    @pytest.mark.parametrize("protocol", ["full", "sampled"])
    def test_metrics_of_a_small_catalogue_are_constant(
        self, tracks: int, constant: list[str], protocol: Any, tmp_path: Path
    ) -> None:
        names = "abcdefghijklmnopqrstuvwxyz"[:tracks]
        data = dataset(tmp_path / "d", {"s1": names * 4, "s2": names[::-1] * 3 + names[0] * 2})
        question = Question(data, baseline(tmp_path / "r", data, "markov"), "last-play", protocol=protocol)
        result = evaluate(question, offline(question))
        assert result["by_construction"] == constant
        assert all(value(result, "all", metric) == 1 for metric in constant)
        assert any("by construction" in note for note in result["notes"]) == bool(constant)

    def test_one_target_describes_one_session(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "abcab", "s2": "ab"})
        question = Question(data, baseline(tmp_path / "r", data), "last-play")
        assert (
            "There is 1 test target: the metrics describe one session only"
            in evaluate(question, offline(question))["notes"][-1]
        )


class RandomRanker:
    """A score for every pair of session and track, drawn from its bits."""

    def rank(self, windows: Windows, k: int) -> Ranked:
        raise AssertionError("the sampled protocol scores candidates only")

    def scores(self, windows: Windows, rows: Int) -> Float32:
        return np.random.default_rng(int(windows.tracks.sum())).random(rows.shape).astype(np.float32)


class TestSampled:
    @given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 40), st.integers(0, 9))
    def test_candidates_are_the_target_and_distinct_tracks_outside_the_session(
        self, heard: list[int], target: int, seed: int
    ) -> None:
        rows = np.array(heard, dtype=np.int64)
        inputs = Sessions(rows, np.zeros(len(rows), dtype=np.bool_), np.array([0, len(rows)]))
        drawn = sample_candidates(inputs, 0, target, 40, (seed, 0))
        assert drawn[0] == target
        # 1,000 do not fit into 40 tracks: all outside the session are drawn, each once.
        assert sorted(drawn[1:].tolist()) == sorted(set(range(1, 41)) - set(heard) - {target})

    def test_every_track_outside_is_as_likely(self) -> None:
        rows = np.array([5, 9], dtype=np.int64)
        inputs = Sessions(rows, np.zeros(2, dtype=np.bool_), np.array([0, 2]))
        counts = np.zeros(4001)
        for number in range(200):
            drawn = sample_candidates(inputs, 0, 7, 4000, (0, number))
            assert len(drawn) == 1001
            counts[drawn[1:]] += 1
        assert counts[[0, 5, 7, 9]].sum() == 0
        outside = np.delete(counts, [0, 5, 7, 9])
        # Binomial with 200 draws and p = 1000 / 3997: mean 50.0, standard deviation 6.1
        assert outside.mean() == pytest.approx(200 * 1000 / 3997)
        assert outside.std() == pytest.approx(6.1, abs=0.4)

    def test_a_random_scorer_gets_its_theoretical_value(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        plays = pl.DataFrame(
            {
                "session_id": np.repeat(np.arange(4000), 4).astype(str),
                "track_id": [f"t{n}" for n in rng.integers(0, 1500, 16000)],
                "skipped": rng.random(16000) < 0.5,
            }
        )
        data = write_dataset(tmp_path / "d", plays, "random")
        question = Question(data, baseline(tmp_path / "r", data), "last-play", protocol="sampled")
        recommender = Recommender(RandomRanker(), PopularityRanker(question.release.catalogue.plays), 20)
        result = evaluate(question, LocalRecommender(recommender, question.to_release()))
        assert value(result, "all", "HR@10") == pytest.approx(10 / 1001, abs=4 * (0.01 / 4000) ** 0.5)
        assert value(result, "all", "HR@20") == pytest.approx(20 / 1001, abs=4 * (0.02 / 4000) ** 0.5)

    def test_a_plain_loop_gives_the_same_ranks(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "abcab", "s2": "ababdb", "s3": "cabeca", "s4": "dedcb"})
        question = Question(data, baseline(tmp_path / "r", data, "markov"), "last-play", protocol="sampled")
        result = evaluate(question, offline(question))
        asked, catalogue = question.examples(), question.release.catalogue
        part = training_part(data, "last-play").gathered()
        for i, target in enumerate(asked.targets):
            session = asked.inputs.select(slice(i, i + 1))
            last = session.rows[-1]

            def score(row: int, last: int = last) -> float:
                count = sum(
                    part.rows[j] == last and part.rows[j + 1] == row
                    for n in range(len(part))
                    for j in range(part.offsets[n], part.offsets[n + 1] - 1)
                )
                return int(count) + float(catalogue.plays[row] / (catalogue.plays.sum() + 1))

            others = [row for row in range(1, 6) if row not in {*session.rows.tolist(), target}]
            scores = [score(row) for row in others]
            rank = 1 + sum(s > score(target) for s in scores) + sum(s == score(target) for s in scores) / 2
            assert result["ranks"][i] == rank

    def test_it_cannot_go_through_a_service(self, tmp_path: Path) -> None:
        data = dataset(tmp_path / "d", {"s1": "abc"})
        question = Question(data, baseline(tmp_path / "r", data), "last-play", protocol="sampled")
        service = HttpRecommender("http://127.0.0.1:9", data.catalogue, question.release)
        with service, pytest.raises(BadOption, match="use --protocol full"):
            evaluate(question, service)


class TestRepeats:
    # Test targets: `a`, four plays after the first `a`; `b`, right after a `b`; `e`, new in its session.
    SESSIONS: Final = {"s1": "abcda", "s2": "ab-b", "s3": "abcde"}

    @pytest.mark.parametrize(
        ("policy", "excluded", "track_of"),
        [
            ("allow", [], None),
            ("after:1", [1], "the 1 play before it"),
            ("after:3", [1], "the 3 plays before it"),
            ("after:4", [0, 1], "the 4 plays before it"),
            ("never", [0, 1], "its session"),
        ],
    )
    @pytest.mark.parametrize("protocol", ["full", "sampled"])
    def test_targets_that_the_policy_excludes_are_misses(
        self, policy: str, excluded: list[int], track_of: str | None, protocol: Any, tmp_path: Path
    ) -> None:
        data = dataset(tmp_path / "d", self.SESSIONS)
        allowed = Question(data, baseline(tmp_path / "r", data, "markov"), "last-play", protocol=protocol)
        before = evaluate(allowed, offline(allowed))
        assert before["repeat"] == "allow"
        assert None not in before["ranks"]
        question = replace(allowed, repeat=repeat_policy(policy))
        result = evaluate(question, offline(question))
        assert result["repeat"] == policy
        assert [i for i, rank in enumerate(result["ranks"]) if rank is None] == excluded
        notes = [note for note in result["notes"] if note.startswith("repeat=")]
        assert notes == [
            f"repeat={policy} excludes every target that repeats a track of {track_of}, {len(excluded)} of 3: each of "
            "them counts as a miss."
        ] * bool(excluded)
        if protocol == "sampled":  # the other targets have the same candidates as before
            others = [rank for i, rank in enumerate(before["ranks"]) if i not in excluded]
            assert [rank for rank in result["ranks"] if rank is not None] == others

    def test_a_new_target_moves_up_where_tracks_of_its_session_are_excluded(self, tmp_path: Path) -> None:
        # Training holds a six times, b five times, c twice, and no d. The first session before its target d is aaabbc.
        data = dataset(tmp_path / "d", {"s1": "aaabbcd", "s2": "aabbccd", "s3": "abcaa"})
        release = baseline(tmp_path / "r", data)
        ranks = {}
        for policy in ("allow", "after:2", "never"):
            question = Question(data, release, "last-play", repeat=repeat_policy(policy))
            ranks[policy] = evaluate(question, offline(question))["ranks"][0]
        assert ranks == {"allow": 4, "after:2": 2, "never": 1}

    @given(
        st.lists(st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(1, 4)), max_size=6),
        st.sampled_from(["allow", "never", "after:1", "after:2", "after:3", "after:7", "after:1000"]),
    )
    def test_the_excluded_targets_are_those_that_serving_excludes(
        self, sessions: list[tuple[list[int], int]], policy: str
    ) -> None:
        repeat = repeat_policy(policy)
        offsets = np.cumsum([0, *(len(rows) for rows, _ in sessions)])
        rows = np.array([row for heard, _ in sessions for row in heard], dtype=np.int64)
        whole = Sessions(rows, np.zeros(len(rows), dtype=np.bool_), offsets)
        targets = np.array([target for _, target in sessions], dtype=np.int64)
        nothing = np.zeros(len(sessions), dtype=np.bool_)
        asked = Examples(SessionViews.of(whole), targets, nothing, np.arange(len(sessions)))
        popularity = PopularityRanker(np.ones(5, dtype=np.float32))
        answers = Recommender(popularity, popularity, 20).recommend(whole, 4, repeat=repeat)
        missing = [target not in answer.rows for target, answer in zip(targets, answers, strict=True)]
        assert asked.excluded_by(repeat).tolist() == missing


def test_a_service_that_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", {"s1": "abc"})
    service = HttpRecommender("http://127.0.0.1:9", data.catalogue, baseline(tmp_path / "r", data))
    with service, pytest.raises(InputError, match=r"--url http://127\.0\.0\.1:9: GET /releases/current got no"):
        service.serves()


@pytest.mark.parametrize(
    ("url", "key", "line"),
    [
        *(
            (url, None, "is not the address of a service")
            for url in ("", "localhost:8000", "http://[::1", "http://h:p")
        ),
        ("http://127.0.0.1:9", "k\u00e9y", "--key contains characters that no key has"),
    ],
)
def test_an_address_or_key_that_no_service_has_is_one_clear_line(
    tmp_path: Path, url: str, key: str | None, line: str
) -> None:
    data = dataset(tmp_path / "d", {"s1": "abc"})
    with pytest.raises(InputError, match=line):
        HttpRecommender(url, data.catalogue, baseline(tmp_path / "r", data), key)
