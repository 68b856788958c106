"""Session in, ranked tracks out: sources, exclusions, and batches that change nothing."""

from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.arrays import Float32, Int
from segue.catalogue import PAD_ROW
from segue.errors import BadOption
from segue.filters import Allowed
from segue.recommend import EncoderRanker, PopularityRanker, Ranked, Recommendation, Recommender
from segue.sessions import ALLOW_REPEATS, NEVER_REPEAT, Outcome, Play, RepeatPolicy, repeat_policy
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
    def search(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        scores = queries @ EMBEDDINGS[1:].T
        if allowed is not None:
            scores[:, ~allowed.contains(np.arange(1, TRACKS + 1))] = -np.inf
            k = min(k, allowed.count)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranked(order + 1, np.take_along_axis(scores, order, axis=1))


class Forgetful(Exact):
    """An approximate index that finds three tracks at most."""

    def search(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        rows, scores = super().search(queries, k, allowed)
        rows, scores = rows.copy(), scores.copy()
        rows[:, 3:], scores[:, 3:] = PAD_ROW, -np.inf
        return Ranked(rows, scores)


def recommender(index: Exact | None = None) -> Recommender:
    ranker = EncoderRanker(MeanEncoder(), index or Exact(), Exact(), EMBEDDINGS)
    return Recommender(ranker, PopularityRanker(np.arange(TRACKS + 1)), window=5)


Answers: TypeAlias = list[Recommendation]


def ask(
    *sessions: list[Play], k: int = 5, exclude: list[Int] | None = None, repeat: RepeatPolicy = ALLOW_REPEATS
) -> list[Recommendation]:
    return recommender().recommend(to_sessions(sessions, CATALOGUE), k, exclude, repeat=repeat)


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


policies = st.sampled_from(["allow", "never", *(f"after:{number}" for number in (1, 2, 3, 5, 8, 40, 1000))]).map(
    repeat_policy
)


def may_repeat(heard: list[int], track: int, policy: str) -> bool:
    """The rule, play by play: how many plays of any track came after the latest play of this one."""
    needed = {"allow": 0, "never": float("inf")}.get(policy)
    for plays_since, one in enumerate(reversed(heard)):
        if one == track:
            return plays_since >= (int(policy.split(":")[1]) if needed is None else needed)
    return True


class TestRepeats:
    @pytest.mark.parametrize(
        ("policy", "excluded"),
        [
            ("allow", []),
            ("after:1", [2]),
            ("after:2", [2, 9]),
            ("after:3", [2, 9, 1]),
            ("after:4", [2, 9, 1]),  # the fourth play from the end is of track 2 again
            ("after:5", [2, 9, 1, 7]),
            ("after:6", [2, 9, 1, 7, 4]),
            ("after:1000", [2, 9, 1, 7, 4]),
            ("never", [2, 9, 1, 7, 4]),
        ],
    )
    def test_by_hand(self, policy: str, excluded: list[int]) -> None:
        (answer,) = ask(played(4, 7, 2, 1, 9, 2), k=TRACKS, repeat=repeat_policy(policy))
        assert sorted({*range(1, TRACKS + 1)} - {*answer.rows.tolist()}) == sorted(excluded)

    def test_skipped_plays_and_plays_of_unknown_tracks_count(self) -> None:
        plays = [*played(3, 8), Play("t5", Outcome.SKIPPED), Play("elsewhere")]
        for policy, excluded in (("after:1", set()), ("after:2", {5}), ("after:3", {5, 8}), ("after:4", {5, 8, 3})):
            (answer,) = ask(plays, k=TRACKS, repeat=repeat_policy(policy))
            assert {*range(1, TRACKS + 1)} - {*answer.rows.tolist()} == excluded

    def test_plays_before_the_window_count(self) -> None:
        plays = played(*range(1, 21))  # the window has 5 plays
        (answer,) = ask(plays, k=TRACKS, repeat=NEVER_REPEAT)
        assert sorted(answer.rows.tolist()) == list(range(21, TRACKS + 1))
        (answer,) = ask(plays, k=TRACKS, repeat=repeat_policy("after:12"))
        assert sorted(answer.rows.tolist()) == [*range(1, 9), *range(21, TRACKS + 1)]

    @given(st.lists(st.integers(1, 6), max_size=20), policies)
    def test_it_excludes_what_the_rule_says_and_nothing_else(self, heard: list[int], policy: RepeatPolicy) -> None:
        (answer,) = ask(played(*heard), k=TRACKS, repeat=policy)
        allowed = {track for track in range(1, TRACKS + 1) if may_repeat(heard, track, policy.text)}
        assert set(answer.rows.tolist()) == allowed

    @given(st.lists(st.integers(1, TRACKS), max_size=20))
    def test_never_is_the_longest_gap(self, heard: list[int]) -> None:
        (never,), (longest,) = (ask(played(*heard), repeat=repeat_policy(text)) for text in ("never", "after:1000"))
        assert never.rows.tolist() == longest.rows.tolist()

    @given(st.lists(st.tuples(st.lists(st.integers(1, TRACKS), max_size=8), policies), min_size=1, max_size=5))
    def test_each_session_of_a_batch_has_its_own_policy(self, asked: list[tuple[list[int], RepeatPolicy]]) -> None:
        sessions = to_sessions([played(*heard) for heard, _ in asked], CATALOGUE)
        together = recommender().recommend(sessions, 5, repeat=[policy for _, policy in asked])
        for (heard, policy), answer in zip(asked, together, strict=True):
            (alone,) = ask(played(*heard), repeat=policy)
            assert alone.rows.tolist() == answer.rows.tolist()


class TestRepeatPolicies:
    @pytest.mark.parametrize("text", ["allow", "never", "after:1", "after:9", "after:10", "after:999", "after:1000"])
    def test_a_policy_is_read_and_written(self, text: str) -> None:
        policy = repeat_policy(text)
        assert str(policy) == text
        assert repeat_policy(text) is policy  # requests do not parse it again
        if text.startswith("after"):
            assert policy.plays == int(text[6:])

    @pytest.mark.parametrize(
        "text",
        [
            *("", "Allow", "allow ", "allow\n", "no", "true", "after", "after:", "after:0", "after:-1", "after:01"),
            *("after:1001", "after:10000", "after: 5", "after:5 ", "after:1.5", "after:٣", "never:1", "5"),
        ],
    )
    def test_any_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(BadOption) as caught:
            repeat_policy(text)
        expected = "expected allow, never, or after:N with N from 1 to 1000, such as after:20"
        assert str(caught.value) == f"repeat {text!r}: {expected}"


class TestExclusions:
    @given(
        st.lists(st.integers(1, TRACKS), max_size=40),
        st.sets(st.integers(1, TRACKS)),
        st.integers(1, 40),
        policies,
    )
    def test_they_never_shorten_the_answer_while_tracks_are_left(
        self, heard: list[int], excluded: set[int], k: int, repeat: RepeatPolicy
    ) -> None:
        barred = excluded | {track for track in heard if not may_repeat(heard, track, repeat.text)}
        (answer,) = ask(played(*heard), k=k, exclude=[np.array(sorted(excluded), dtype=np.int64)], repeat=repeat)
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
        together = ask(*[played(*numbers) for numbers in sessions], repeat=NEVER_REPEAT)
        for numbers, answer in zip(sessions, together, strict=True):
            (alone,) = ask(played(*numbers), repeat=NEVER_REPEAT)
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
