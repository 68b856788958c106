"""Stations: the mixture against every track scored by hand, windows of seeds, radios, bans, and explanations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.arrays import Float64
from segue.catalogue import PAD_ROW
from segue.filters import Allowed
from segue.list_steps import Spacing
from segue.play_head import FEATURES, OutcomeCounts, PlayHead, linear_weights
from segue.recommend import NORMALISED, EncoderRanker, PopularityRanker, Recommender
from segue.sessions import LIKES_WEIGHT, NEVER_REPEAT, Outcome, Play, Preferences, Station, repeat_policy
from segue.window import Windows, to_sessions, to_windows
from service.releases.explanation import contributions, explain_answer
from service.releases.loaded import LoadedRelease, Question, load_release
from service.releases.ranking import RankQuestion, popular, rank_candidates
from service.releases.stations import MAX_WINDOWS, Pull, StationRanker, pulled, seed_windows
from tests.conftest import track_ids, write_encoder_release, write_tiny_release
from tests.test_filters import CATALOGUE, EMBEDDINGS, PLAYS, RANKERS, TRACKS, sessions

LENGTH = 5
pulls = st.builds(
    Pull,
    st.lists(
        st.lists(st.integers(1, TRACKS), min_size=1, max_size=8, unique=True).map(tuple), min_size=1, max_size=6
    ).map(tuple),
    st.sampled_from([0.01, 0.3, 0.5, 1.0]),
)


def probabilities(kind: str, windows: Windows) -> Float64:
    """P(next) of every track, by hand. [windows, TRACKS] float64."""
    if kind in {"exact", "hnsw"}:
        scores = (EMBEDDINGS[windows.tracks].sum(axis=1) @ EMBEDDINGS[1:].T).astype(np.float64)
        best = np.sort(scores, axis=1)[:, ::-1][:, :NORMALISED]
        result: Float64 = np.exp(scores) / np.exp(best).sum(axis=1, keepdims=True)
        return result
    every = np.broadcast_to(np.arange(1, TRACKS + 1), (len(windows), TRACKS))
    return np.asarray(RANKERS[kind].scores(windows, every), dtype=np.float64)


def by_hand(kind: str, session: list[Play], pull: Pull) -> Float64:
    windows = to_windows(to_sessions([session], CATALOGUE), LENGTH)
    asked = seed_windows(pull.seeds, LENGTH)
    of_seeds = sum(share * probabilities(kind, asked.windows)[i] for i, share in enumerate(asked.shares))
    if not (windows.tracks != PAD_ROW).any():
        return np.asarray(of_seeds)
    return np.asarray((1 - pull.weight) * probabilities(kind, windows)[0] + pull.weight * of_seeds)


class TestMixture:
    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(RANKERS)), sessions, pulls, st.integers(1, TRACKS + 5), st.booleans())
    def test_a_list_is_the_best_by_the_mixture_of_both_probabilities(
        self, kind: str, session: list[Play], pull: Pull, k: int, never: bool
    ) -> None:
        recommender = pulled(Recommender(RANKERS[kind], PopularityRanker(PLAYS), LENGTH), pull)
        asked = to_sessions([session], CATALOGUE)
        heard = {int(play.track_id[1:]) for play in session} if never else set()
        [found] = recommender.recommend(asked, k, repeat=NEVER_REPEAT if never else repeat_policy("allow"))
        expected = by_hand(kind, session, pull)
        left = [row for row in range(1, TRACKS + 1) if row not in heard]
        assert found.source == "model"
        assert len(found.rows) == min(k, len(left))
        assert set(found.rows.tolist()) <= set(left)
        best = np.sort(expected[np.array(left) - 1])[::-1][:k]
        np.testing.assert_allclose(found.scores, best, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(found.scores, expected[found.rows - 1], rtol=1e-4, atol=1e-12)
        every = np.arange(1, TRACKS + 1)[None]
        np.testing.assert_allclose(recommender.scores(asked, every)[0], expected, rtol=1e-4, atol=1e-12)

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from(sorted(RANKERS)), st.lists(sessions, min_size=2, max_size=4), pulls, st.integers(1, 20))
    def test_a_batch_gives_what_each_session_gets_alone(
        self, kind: str, batch: list[list[Play]], pull: Pull, k: int
    ) -> None:
        recommender = pulled(Recommender(RANKERS[kind], PopularityRanker(PLAYS), LENGTH), pull)
        for found, session in zip(recommender.recommend(to_sessions(batch, CATALOGUE), k), batch, strict=True):
            [alone] = recommender.recommend(to_sessions([session], CATALOGUE), k)
            np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)

    @pytest.mark.parametrize("kind", sorted(RANKERS))
    def test_with_weight_1_the_session_has_no_effect(self, kind: str) -> None:
        recommender = pulled(Recommender(RANKERS[kind], PopularityRanker(PLAYS), LENGTH), Pull(((3, 9),), 1.0))
        one, other, none = recommender.recommend(
            to_sessions([[Play("t1"), Play("t2")], [Play("t40", Outcome.SKIPPED)], []], CATALOGUE), 20
        )
        assert one.rows.tolist() == other.rows.tolist() == none.rows.tolist()
        np.testing.assert_allclose(one.scores, none.scores, rtol=1e-6)

    def test_only_allowed_tracks_are_listed_and_the_seeds_may_be_others(self) -> None:
        allowed = Allowed(np.arange(1, TRACKS + 1) % 7 == 0)
        for kind, ranker in RANKERS.items():
            whole = Recommender(ranker, PopularityRanker(PLAYS), LENGTH)
            [found] = pulled(whole.within(allowed), Pull(((1, 2),), 0.5)).recommend(to_sessions([[]], CATALOGUE), 50)
            assert sorted(found.rows.tolist()) == allowed.rows.tolist(), kind

    def test_an_encoder_is_never_asked_about_an_empty_window(self) -> None:
        class Strict:
            def encode(self, windows: Windows) -> Any:
                assert (windows.tracks != PAD_ROW).any(axis=1).all()
                return np.asarray(EMBEDDINGS[windows.tracks].sum(axis=1), dtype=np.float32)

        known = RANKERS["exact"]
        ranker = EncoderRanker(Strict(), known.index, known.exact, EMBEDDINGS)
        recommender = pulled(Recommender(ranker, PopularityRanker(PLAYS), LENGTH), Pull(((1,),), 0.5))
        found = recommender.recommend(to_sessions([[], [Play("t2")], [Play("nobody")]], CATALOGUE), 3)
        assert [len(one.rows) for one in found] == [3, 3, 3]


class TestSeedWindows:
    def test_each_seed_has_a_window_with_its_first_row_as_the_latest_play(self) -> None:
        windows, shares = seed_windows([(7, 8, 9), (4,)], 4)
        assert windows.tracks.tolist() == [[PAD_ROW, 9, 8, 7], [PAD_ROW, PAD_ROW, PAD_ROW, 4]]
        assert not windows.skipped.any()
        assert shares.tolist() == [0.5, 0.5]

    def test_a_long_list_is_dealt_to_several_windows_of_one_seed(self) -> None:
        windows, shares = seed_windows([(1, 2, 3, 4, 5), (6,)], 3)
        assert windows.tracks.tolist() == [[5, 3, 1], [PAD_ROW, 4, 2], [PAD_ROW, PAD_ROW, 6]]
        assert shares.tolist() == [0.25, 0.25, 0.5]

    @given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=60, unique=True), min_size=1, max_size=11))
    def test_there_are_few_windows_each_with_a_play_and_every_seed_in_them(
        self, seeds: Sequence[Sequence[int]]
    ) -> None:
        windows, shares = seed_windows(seeds, 20)
        assert 1 <= len(windows) <= MAX_WINDOWS
        assert shares.sum() == pytest.approx(1)
        assert (windows.tracks[:, -1] != PAD_ROW).all()
        assert {seed[0] for seed in seeds} <= set(windows.tracks.ravel().tolist())


class TestPreferences:
    def test_likes_pull_a_little_without_a_station_and_join_one(self) -> None:
        assert Preferences().pull is None
        likes = Preferences(likes=["a", "b"])
        assert likes.pull == Station(("b", "a"), (), LIKES_WEIGHT)
        likes.station = Station(("c", "a"), ("X",), 0.7)
        assert likes.pull == Station(("c", "a", "b"), ("X",), 0.7)
        likes.station = Station(("c",), (), 0.0)
        assert likes.pull is None

    def test_unwanted_tracks_do_not_pull(self) -> None:
        station = Station(("a", "b", "c"), (), 0.5)
        said = Preferences(likes=["d"], dislikes=["a"], bans=["b", "d"], artist_bans=["c"], station=station)
        assert said.pull is None
        assert said.unwanted == ["a", "b", "d"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    """A release with a play head that says that tracks with an even row are skipped."""
    tracks = np.zeros((len(track_ids()) + 1, 3, 2), dtype=np.int32)
    tracks[1:, 0] = [[50, 50 * (row % 2 == 0)] for row in range(1, len(track_ids()) + 1)]
    none = np.empty(0, dtype=np.int64), np.empty((0, 2, 2), dtype=np.int32)
    weights = np.zeros(len(FEATURES))
    weights[FEATURES.index("track")] = 1.0
    head = PlayHead(OutcomeCounts(tracks, *none), linear_weights(weights))
    return load_release(write_tiny_release(tmp_path_factory.mktemp("stations") / "release", more=head.arrays()).path)


def listed(live: LoadedRelease, question: Question) -> list[str]:
    [answer] = live.answer([question])
    return [track.track_id for track in answer.tracks]


def radio(live: LoadedRelease, *artists: str, weight: float = 0.5) -> Pull:
    pull, unknown = live.seeds.pull(Station((), artists, weight))
    assert not unknown
    assert pull is not None
    return pull


class TestRelease:
    def test_a_radio_from_one_artist_plays_without_any_play(self, live: LoadedRelease) -> None:
        found = listed(live, Question([], 8, station=radio(live, "Artist 4")))
        assert {track.partition("-")[0] for track in found} == {"g4"}
        assert live.answer([Question([], 8, station=radio(live, "artist 4"))])[0].source == "model"

    def test_a_radio_with_a_maximum_per_artist_still_fills(self, live: LoadedRelease) -> None:
        [answer] = live.answer([Question([], 15, station=radio(live, "Artist 4"), spacing=Spacing(2, 0))])
        artists = [track.artist for track in answer.tracks]
        assert len(artists) == 15
        assert artists[0] == "Artist 4"
        assert (
            max(artists.count(artist) for artist in artists) > 2
        )  # five other artists fill ten places, then it gives in
        [whole] = live.answer([Question([], len(track_ids()), station=radio(live, "Artist 4"), spacing=Spacing(2, 0))])
        assert sorted(whole.rows) == list(range(1, len(track_ids()) + 1))

    def test_several_kinds_of_questions_in_a_batch(self, live: LoadedRelease) -> None:
        plays = [Play("g1-t00")]
        questions = [
            Question(plays, 5),
            Question(plays, 5, station=radio(live, "Artist 2")),
            Question([], 5),
            Question([], 5, station=radio(live, "Artist 2")),
            Question(plays, 5, station=radio(live, "Artist 2", weight=1.0)),
        ]
        for question, answer in zip(questions, live.answer(questions), strict=True):
            [alone] = live.answer([question])
            assert (answer.source, answer.rows) == (alone.source, alone.rows)
            np.testing.assert_allclose(answer.scores, alone.scores, rtol=1e-6)

    def test_seeds_are_found_by_name_in_any_case_and_unknown_ones_are_told(self, live: LoadedRelease) -> None:
        pull, unknown = live.seeds.pull(Station(("g0-t01", "nobody"), ("ARTIST 3", "No One"), 0.4))
        assert unknown == ["nobody", "No One"]
        assert pull is not None
        first = live.catalogue.row("g3-t00")
        window = live.release.manifest.window.length
        assert pull == Pull(((live.catalogue.row("g0-t01"),), tuple(range(first, first + min(window, 12)))), 0.4)
        assert live.seeds.pull(Station(("nobody",), ("No One",))) == (None, ["nobody", "No One"])

    def test_the_artist_of_a_track_is_found_with_all_tracks(self, live: LoadedRelease) -> None:
        expected = [track for track in track_ids() if track.startswith("g2-")]
        assert sorted(live.seeds.of_same_artist(["g2-t05"])) == expected
        assert live.seeds.of_same_artist(["nobody"]) == ["nobody"]

    def test_ranked_candidates_keep_the_order_and_scores_of_a_list(self, live: LoadedRelease) -> None:
        for plays in ([Play("g1-t00"), Play("g0-t02", Outcome.SKIPPED)], []):
            for caution in (0.0, 1.5):
                station = radio(live, "Artist 5")
                [answer] = live.answer([Question(plays, 40, caution=caution, station=station)])
                names = [track.track_id for track in answer.tracks]
                asked = RankQuestion(plays, 40, caution=caution, station=station, candidates=names)
                ranked = rank_candidates(live, asked)
                assert (ranked.rows, ranked.source) == (answer.rows, "model")
                np.testing.assert_allclose(ranked.scores, answer.scores, rtol=1e-5)
                fallback = popular(live, asked)
                assert fallback.source == "popularity"

    def test_caution_reranks_a_station(self, live: LoadedRelease) -> None:
        [answer] = live.answer([Question([], 6, caution=5.0, station=radio(live, "Artist 4"))])
        assert [row % 2 for row in answer.rows] == [1] * 6

    def test_the_fallback_keeps_its_distance_from_what_just_played(self, live: LoadedRelease) -> None:
        [first] = popular(live, Question([], 1)).tracks
        [heard, *_] = [one for one in live.seeds.of_same_artist([first.track_id]) if one != first.track_id]
        for gap in (0, 2):
            answer = popular(live, Question([Play(heard)], 5, spacing=Spacing(artist_gap=gap)))
            assert (answer.tracks[0].artist == first.artist) is (gap == 0)
            assert first.artist not in [track.artist for track in answer.tracks[:gap]]

    def test_the_fallback_leaves_out_what_is_banned_and_needs_no_model(self, live: LoadedRelease) -> None:
        best = listed(live, Question([], 3))
        question = Question([Play("g3-t00")], 5, exclude=best, station=radio(live, "Artist 4"))
        answer = popular(live, question)
        assert answer.source == "popularity"
        assert not {track.track_id for track in answer.tracks} & set(best)


class TestDislikes:
    """A dislike never raises the other tracks of its artist by the way it is applied."""

    @pytest.mark.parametrize("station", [False, True])
    def test_a_dislike_leaves_the_scores_of_all_other_tracks(self, live: LoadedRelease, station: bool) -> None:
        plays = [Play("g1-t00"), Play("g2-t03")]
        pull = radio(live, "Artist 1") if station else None
        [before] = live.answer([Question(plays, 72, station=pull)])
        [after] = live.answer([Question(plays, 72, exclude=["g1-t04"], station=pull)])
        scores = dict(zip(before.rows, before.scores.tolist(), strict=True))
        del scores[live.catalogue.row("g1-t04")]
        assert after.rows == list(scores)
        np.testing.assert_allclose(after.scores, list(scores.values()), rtol=1e-6)

    def test_a_dislike_of_what_played_counts_as_its_skip(self, live: LoadedRelease) -> None:
        skipped = [Play("g1-t00", Outcome.SKIPPED), Play("g2-t03")]
        before = live.answer([Question([Play("g1-t00"), Play("g2-t03")], 72)])[0]
        after = live.answer([Question(skipped, 72, exclude=["g1-t00"])])[0]
        rank = {row: place for place, row in enumerate(before.rows)}
        others = [live.catalogue.row(f"g1-t{number:02}") for number in range(1, 12)]
        assert all(after.rows.index(row) > rank[row] for row in others)


class TestExplanations:
    @pytest.mark.parametrize("caution", [0.0, 1.5])
    @pytest.mark.parametrize("plays", [[], [Play("g1-t00"), Play("g2-t00", Outcome.SKIPPED), Play("g3-t01")]])
    def test_baseline_and_contributions_add_up_to_the_score(
        self, live: LoadedRelease, plays: list[Play], caution: float
    ) -> None:
        question = Question(plays, 12, ["g5-t00"], caution=caution, station=radio(live, "Artist 5"))
        [answer] = live.answer([question])
        why = explain_answer(live, question, answer)
        assert why.baseline is not None
        total = np.array(why.baseline) + why.contributions.sum(axis=1)
        np.testing.assert_allclose(total, answer.scores, rtol=1e-4, atol=1e-6)
        assert why.parts is not None
        np.testing.assert_allclose([sum(of.values()) for of in why.parts], answer.scores, rtol=1e-4, atol=1e-6)
        assert [*why.parts[0]] == (["next", "played"] if caution else ["session", "station"])
        if not caution:
            assert all((of["session"] > 0) is bool(plays) for of in why.parts)
        assert [one.track.track_id for one in why.filtered] == ["g5-t00"]

    def test_a_play_contributes_its_shapley_value_of_the_mixture(self) -> None:
        ranker = StationRanker(RANKERS["hybrid"], seed_windows([(3, 9)], LENGTH), 0.4)
        windows = to_windows(to_sessions([[Play("t2")]], CATALOGUE), LENGTH)
        targets = np.arange(1, 8)
        none = Windows(np.zeros_like(windows.tracks), np.zeros_like(windows.skipped))
        baseline = ranker.scores(none, targets[None])[0].astype(np.float64)
        found = contributions(ranker, windows, targets, baseline=baseline)
        expected = ranker.scores(windows, targets[None])[0] - baseline
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-9)


def test_artist_ids_are_seeds_as_well(tmp_path: Path) -> None:
    import polars as pl

    from segue.catalogue import Catalogue
    from service.releases.stations import Seeds

    frame = pl.DataFrame(
        {
            "track_id": ["a", "b", "c", "d"],
            "plays": [5, 9, 7, 1],
            "skips": [0, 0, 0, 0],
            "artist": ["X", "X", "Y", None],
            "artist_id": ["1", "1", "2", None],
        }
    )
    seeds = Seeds(Catalogue.from_frame(frame), 20)
    for name, rows in (("1", (2, 1)), ("x", (2, 1)), ("2", (3,))):
        assert seeds.pull(Station((), (name,))) == (Pull((rows,), 0.5), [])
    assert seeds.of_same_artist(["d"]) == ["d"]
    assert seeds.of_same_artist(["a"]) == ["a", "b"]


def test_artists_are_those_of_ids_in_sets_and_of_names_without_an_id() -> None:
    import polars as pl

    from segue.catalogue import Catalogue
    from service.releases.stations import Seeds

    facts = {"track_id": ["a", "b", "c", "d", "e"], "plays": [5, 4, 3, 2, 1], "skips": [0] * 5}
    names = ["X", "X", "Y", "X", "Z"]
    seeds = Seeds(
        Catalogue.from_frame(pl.DataFrame({**facts, "artist": names, "artist_id": ["1", "1", "2", None, "1"]})), 9
    )
    assert seeds.of_same_artist(["a"]) == ["a", "b", "d", "e"]  # d by its name, as it has no id
    assert seeds.of_same_artist(["d"]) == ["d", "a", "b"]
    some = [["1"], ["1"], ["2"], [], None]
    empty = Seeds(Catalogue.from_frame(pl.DataFrame({**facts, "artist": names, "artist_id": some})), 9)
    assert empty.of_same_artist(["a"]) == ["a", "b", "d"]
    assert empty.of_same_artist(["d"]) == ["d", "a", "b"]
    sets = [["1"], ["1", "2"], ["2"], ["3"], None]
    seeds = Seeds(Catalogue.from_frame(pl.DataFrame({**facts, "artist_id": sets})), 9)
    assert seeds.of_same_artist(["a"]) == ["a", "b"]
    assert seeds.of_same_artist(["b"]) == ["b", "a", "c"]
    assert seeds.pull(Station((), ("2",))) == (Pull(((2, 3),), 0.5), [])


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "String"])
def test_a_changed_track_stays_a_seed_of_its_artist(dtype: str, tmp_path: Path) -> None:
    import polars as pl

    from segue.catalogue import Catalogue
    from service.releases.added import AddedTrack

    frame = pl.DataFrame({"track_id": ["a", "b", "c"], "plays": [5, 9, 7], "artist_id": [12, 12, 7]})
    frame = frame.with_columns(pl.col("artist_id").cast(getattr(pl, dtype)), skips=pl.lit(0))
    embeddings = np.eye(4, dtype=np.float32)
    write_encoder_release(tmp_path / "r", Catalogue.from_frame(frame), embeddings, 5)
    live = load_release(tmp_path / "r")
    renamed = AddedTrack.now(title="New title", artist=None, attributes={})
    for one in (live, live.with_added({"a": renamed}), live.with_added({"a": renamed, "b": renamed})):
        for written in ("12",) if dtype == "String" else ("12", "12.0"):
            pull, unknown = one.seeds.pull(Station((), (written,)))
            assert unknown == []
            assert pull is not None
            assert sorted(pull.seeds[0]) == [1, 2]
        assert sorted(one.seeds.of_same_artist(["a"])) == ["a", "b"]
    known = {"artist_id": "7" if dtype == "String" else 7}
    with_new = live.with_added({"new": AddedTrack.now(title="N", artist=None, attributes=known, neighbours=["a"])})
    for track_id in ("c", "new"):
        assert sorted(with_new.seeds.of_same_artist([track_id])) == ["c", "new"]
