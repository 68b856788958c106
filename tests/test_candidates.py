"""Candidates are ranked by the recommender's own scores: a list of recommendations keeps its order and its scores."""

from pathlib import Path

import numpy as np
import pytest

from segue.cli import main
from segue.recommend import Recommender
from segue.release import Release
from segue.sessions import Outcome, Play, repeat_policy
from service.releases.loaded import LoadedRelease, Question, load_release
from service.releases.ranking import RankQuestion, answer_all, popular, rank_candidates, without_unwanted

SMALL = ("dimension=8", "heads=2", "epochs=1", "negatives=20", "window=6", "caution=0")


def run(*arguments: object) -> None:
    assert main([str(word) for word in arguments]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("candidates")
    run("simulate", "--tracks", 1000, "--sessions", 300, "--out", folder / "data")
    run("train", folder / "data", "--model", "ngram", "--set=window=6", "--out", folder / "ngram")
    options = [f"--set={option}" for option in SMALL]
    run("train", folder / "data", "--model", "sasrec", *options, "--out", folder / "encoder")
    mixed = ["--model", "hybrid", "--init-from", folder / "encoder", "--set", "epochs=0"]
    run("train", folder / "data", *mixed, "--out", folder / "hybrid")
    return folder


def sessions_of(live: LoadedRelease) -> list[list[Play]]:
    rng = np.random.default_rng(7)
    drawn = rng.integers(1, len(live.catalogue), size=(30, 8))
    outcomes = list(Outcome)
    sessions = [
        [Play(live.catalogue.track_id(row), outcomes[row % 2]) for row in rows[: 1 + place % 8]]
        for place, rows in enumerate(drawn.tolist())
    ]
    return [*sessions, [], [Play("nobody")], [Play("nobody"), *sessions[0]]]


@pytest.mark.parametrize("caution", [0.0, 1.5])
@pytest.mark.parametrize("name", ["encoder", "hybrid", "ngram"])
def test_a_recommended_list_keeps_its_order_and_scores(folder: Path, name: str, caution: float) -> None:
    live = load_release(folder / name)
    for number, plays in enumerate(sessions_of(live)):
        [listed] = live.answer([Question(plays, 40, repeat=repeat_policy("allow"), caution=caution)])
        names = [track.track_id for track in listed.tracks]
        ranked = rank_candidates(live, RankQuestion(plays, 40, caution=caution, candidates=names))
        assert (ranked.source, ranked.window_plays, ranked.window_skips) == (
            listed.source,
            listed.window_plays,
            listed.window_skips,
        )
        np.testing.assert_allclose(ranked.scores, listed.scores, rtol=2e-5, atol=1e-9)
        assert ranked.rows == listed.rows
        shuffled = np.random.default_rng(number).permutation(names).tolist()
        again = rank_candidates(live, RankQuestion(plays, 40, caution=caution, candidates=shuffled))
        np.testing.assert_array_equal(again.scores, ranked.scores)
        if len(set(listed.scores.tolist())) == len(names):  # no ties
            assert again.rows == ranked.rows


def test_equal_scores_keep_the_order_of_the_caller(tiny_release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    live = load_release(tiny_release.path)
    monkeypatch.setattr(Recommender, "scores", lambda self, sessions, rows, caution: (rows % 2).astype(np.float32))
    question = RankQuestion([Play("g1-t00")], 4, caution=0.0, candidates=["g0-t01", "g0-t04", "x", "g0-t00", "g0-t03"])
    assert [track.track_id for track in rank_candidates(live, question).tracks] == [
        "g0-t04",
        "g0-t00",
        "g0-t01",
        "g0-t03",
    ]


def test_repeat_removes_the_candidates_that_it_would_not_recommend() -> None:
    plays = [Play("a"), Play("b", Outcome.SKIPPED), Play("c")]
    candidates = ["c", "x", "a", "b"]
    for text, allowed, filtered in (
        ("allow", ["c", "x", "a", "b"], []),
        ("never", ["x"], ["c", "a", "b"]),
        ("after:2", ["x", "a"], ["c", "b"]),
    ):
        assert without_unwanted(candidates, plays, repeat_policy(text)) == (allowed, filtered)


def test_a_batch_of_both_kinds_is_answered_in_order(tiny_release: Release) -> None:
    live = load_release(tiny_release.path)
    plays = [Play("g1-t00")]
    lists = Question(plays, 3)
    ranks = RankQuestion(plays, 3, candidates=["g0-t00", "g1-t05", "nobody"])
    alone = [live.answer([lists])[0], rank_candidates(live, ranks)]
    for questions in ([lists, ranks], [ranks, lists], [ranks, ranks]):
        found = answer_all(live, questions)
        for question, answer in zip(questions, found, strict=True):
            expected = alone[isinstance(question, RankQuestion)]
            assert answer.rows == expected.rows
            np.testing.assert_array_equal(answer.scores, expected.scores)
    assert [track.track_id for track in alone[1].tracks] == ["g1-t05", "g0-t00"]


def test_the_fallback_ranks_by_popularity(tiny_release: Release) -> None:
    live = load_release(tiny_release.path)
    found = popular(live, RankQuestion([Play("g1-t00")], 3, candidates=["g1-t05", "nobody", "g0-t00"]))
    assert (found.source, [track.track_id for track in found.tracks]) == ("popularity", ["g0-t00", "g1-t05"])
    assert rank_candidates(live, RankQuestion([Play("g1-t00")], 1, candidates=["nobody"])).rows == []
