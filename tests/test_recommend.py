"""Session in, ranked tracks out: sources, exclusions, and batches that change nothing."""

from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.arrays import Float32, Int
from segue.catalogue import PAD_ROW
from segue.recommend import EncoderRanker, PopularityRanker, Ranked, Recommendation, Recommender
from segue.sessions import Outcome, Play
from segue.window import Windows, to_sessions
from tests.catalogues import catalogue_of

TRACKS = 30
CATALOGUE = catalogue_of([f"t{i}" for i in range(1, TRACKS + 1)])
EMBEDDINGS = np.random.default_rng(0).standard_normal((TRACKS + 1, 4)).astype(np.float32)


class MeanEncoder:
    """Query: the sum of what was played minus the sum of what was skipped."""

    def encode(self, windows: Windows) -> Float32:
        signs = np.where(windows.tracks == PAD_ROW, 0.0, np.where(windows.skipped, -1.0, 1.0)).astype(np.float32)
        return np.einsum("bw,bwd->bd", signs, EMBEDDINGS[windows.tracks])  # type: ignore[no-any-return]


class Exact:
    def search(self, queries: Float32, k: int) -> Ranked:
        scores = queries @ EMBEDDINGS[1:].T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranked(order + 1, np.take_along_axis(scores, order, axis=1))


class Forgetful(Exact):
    """An approximate index that finds three tracks at most."""

    def search(self, queries: Float32, k: int) -> Ranked:
        rows, scores = super().search(queries, k)
        rows, scores = rows.copy(), scores.copy()
        rows[:, 3:], scores[:, 3:] = PAD_ROW, -np.inf
        return Ranked(rows, scores)


def recommender(index: Exact | None = None) -> Recommender:
    ranker = EncoderRanker(MeanEncoder(), index or Exact(), Exact(), EMBEDDINGS)
    return Recommender(ranker, PopularityRanker(np.arange(TRACKS + 1)), window=5)


Answers: TypeAlias = list[Recommendation]


def ask(
    *sessions: list[Play], k: int = 5, exclude: list[Int] | None = None, heard: bool = False
) -> list[Recommendation]:
    return recommender().recommend(to_sessions(sessions, CATALOGUE), k, exclude, exclude_heard=heard)


def played(*numbers: int) -> list[Play]:
    return [Play(f"t{number}") for number in numbers]


class TestSources:
    def test_a_session_without_usable_plays_gets_popularity(self) -> None:
        empty, unknown, known = ask([], [Play("elsewhere")], played(3), k=2)
        assert empty.source == unknown.source == "popularity"
        assert empty.rows.tolist() == unknown.rows.tolist() == [TRACKS, TRACKS - 1]
        assert known.source == "model"

    def test_the_window_is_told(self) -> None:
        plays = [*played(1, 2, 3, 4), Play("t5", Outcome.SKIPPED), Play("elsewhere"), Play("t6", Outcome.SKIPPED)]
        (answer,) = ask(plays)
        assert (answer.window_plays, answer.window_skips) == (3, 2)

    def test_a_skip_changes_the_answer(self) -> None:
        one, other = ask(played(3, 8), [Play("t3"), Play("t8", Outcome.SKIPPED)])
        assert one.rows.tolist() != other.rows.tolist()


tracks = st.integers(1, TRACKS)


class TestExclusions:
    @given(
        st.lists(st.integers(1, TRACKS), max_size=40),
        st.sets(st.integers(1, TRACKS)),
        st.integers(1, 40),
        st.booleans(),
    )
    def test_they_never_shorten_the_answer_while_tracks_are_left(
        self, heard: list[int], excluded: set[int], k: int, exclude_heard: bool
    ) -> None:
        barred = excluded | (set(heard) if exclude_heard else set())
        (answer,) = ask(played(*heard), k=k, exclude=[np.array(sorted(excluded), dtype=np.int64)], heard=exclude_heard)
        assert len(answer.rows) == min(k, TRACKS - len(barred))
        assert not barred & set(answer.rows.tolist())
        assert len(set(answer.rows.tolist())) == len(answer.rows)
        assert (np.diff(answer.scores) <= 0).all()

    def test_what_is_left_keeps_its_order(self) -> None:
        (all_of_them,) = ask(played(4), k=TRACKS)
        (without,) = ask(played(4), k=TRACKS, exclude=[all_of_them.rows[[0, 2]]])
        assert without.rows.tolist() == np.delete(all_of_them.rows, [0, 2]).tolist()


class TestBatches:
    @given(st.lists(st.lists(st.integers(1, TRACKS), max_size=8), min_size=1, max_size=5))
    def test_sessions_together_get_what_each_gets_alone(self, sessions: list[list[int]]) -> None:
        together = ask(*[played(*numbers) for numbers in sessions], heard=True)
        for numbers, answer in zip(sessions, together, strict=True):
            (alone,) = ask(played(*numbers), heard=True)
            assert alone.rows.tolist() == answer.rows.tolist()
            assert alone.source == answer.source
            assert alone.scores == pytest.approx(answer.scores, abs=1e-5)

    def test_an_index_that_finds_too_few_is_helped_by_exact_search(self) -> None:
        sessions = to_sessions([played(2), played(5, 6)], CATALOGUE)
        helped = recommender(Forgetful()).recommend(sessions, 8)
        exact = recommender().recommend(sessions, 8)
        assert [answer.rows.tolist() for answer in helped] == [answer.rows.tolist() for answer in exact]

    def test_given_tracks_have_the_scores_that_they_are_ranked_by(self) -> None:
        sessions = to_sessions([played(2, 9), []], CATALOGUE)
        ranked = recommender().recommend(sessions, 6)
        scores = recommender().scores(sessions, np.stack([answer.rows for answer in ranked]))
        assert scores == pytest.approx(np.stack([answer.scores for answer in ranked]), abs=1e-5)
