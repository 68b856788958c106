"""Added tracks: an answer is that of a release which has the track, and nothing else of the answer changes."""

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")

from segue.arrays import Float32
from segue.catalogue import Catalogue
from segue.errors import InputError, UnknownAttribute
from segue.filters import Allowed, read_filter
from segue.hybrid import HybridRanker
from segue.list_steps import Spacing
from segue.sessions import Outcome, Play, Station, repeat_policy
from service.releases.added import AddedTrack, added_to, check_track
from service.releases.added_ranker import AddedRanker, AddedRows
from service.releases.explanation import explain_answer
from service.releases.loaded import LoadedRelease, Question, load_release
from service.releases.ranking import RankQuestion, rank_candidates
from tests.conftest import write_encoder_release
from tests.test_candidates import folder, sessions_of
from tests.test_ngram import Fixed, counts_of, window_of
from training.models.mixture import prior_mixture

__all__ = ["folder"]  # a fixture

TRACKS, NEW, DIMENSION = 40, 8, 6
WINDOW: Final = 5
GENRES, MARKETS = ("rock", "jazz", "folk"), ("DE", "US")


def frame_and_embeddings() -> tuple[pl.DataFrame, Float32]:
    """Return TRACKS tracks of a release, and NEW further ones in the last lines."""
    rng = np.random.default_rng(3)
    count = TRACKS + NEW
    frame = pl.DataFrame(
        {
            "track_id": [f"t{i:02}" for i in range(TRACKS)] + [f"new/{i}" for i in range(NEW)],
            "plays": [500 - 7 * i for i in range(TRACKS)] + [0] * NEW,
            "title": [f"Song {i}" for i in range(count)],
            "artist": [f"Artist {i % 7}" for i in range(count)],
            "genre": [(*GENRES, None)[i % 4] for i in range(count)],
            "explicit": [(True, False, None)[i % 3] for i in range(count)],
            "year": [None if i % 5 == 0 else 2000 + i % 6 for i in range(count)],
            "markets": [(["DE"], ["DE", "US"], [], None)[i % 4] for i in range(count)],
        },
        schema_overrides={"markets": pl.List(pl.String)},
    ).with_columns(released=pl.date(2020, 1, 1) + pl.duration(days=pl.int_range(pl.len()) % 9))
    embeddings = rng.normal(size=(count + 1, DIMENSION)).astype(np.float32)
    embeddings[0] = 0
    return frame, embeddings


def opened(path: Path, frame: pl.DataFrame, embeddings: Float32) -> LoadedRelease:
    places = np.tanh(embeddings[:, :2])
    write_encoder_release(path, Catalogue.from_frame(frame), embeddings, WINDOW, {"map.npy": places})
    return load_release(path)


def changed(**facts: Any) -> AddedTrack:
    return AddedTrack.now(**{"title": None, "artist": None, "attributes": {}, **facts})


def as_added(line: dict[str, Any], **more: Any) -> AddedTrack:
    names = {"title": line["title"], "artist": line["artist"]}
    values = {name: line[name] for name in ("genre", "explicit", "year", "markets")}
    return AddedTrack.now(**names, attributes={**values, "released": str(line["released"])}, **more)


@lru_cache
def both() -> tuple[LoadedRelease, LoadedRelease, dict[str, AddedTrack]]:
    """Return a release, one that was trained with the new tracks as well, and these tracks as added ones.

    Half of the new tracks have an embedding, the others neighbours.
    """
    base = Path(tempfile.mkdtemp())
    frame, embeddings = frame_and_embeddings()
    rng = np.random.default_rng(4)
    part = opened(base / "part", frame.head(TRACKS), embeddings[: TRACKS + 1])
    added = {}
    plays = frame["plays"].to_list()
    for place in range(TRACKS, TRACKS + NEW):
        line = frame.row(place, named=True)
        if place % 2:
            track = as_added(line, embedding=embeddings[place + 1].tolist())
        else:
            near = rng.choice(TRACKS, size=3, replace=False)
            track = as_added(line, neighbours=[f"t{i:02}" for i in near])
            embeddings[place + 1] = embeddings[near + 1].mean(axis=0)
        track = check_track(line["track_id"], track, part.stored_catalogue, part.vectors)
        plays[place] = int(np.mean([plays[int(name[1:])] for name in track.neighbours]))
        added[line["track_id"]] = track
    whole = opened(base / "whole", frame.with_columns(pl.Series("plays", plays)), embeddings)
    return part.with_added(added), whole, added


ids = [f"t{i:02}" for i in range(TRACKS)]
new_ids = [f"new/{i}" for i in range(NEW)]
filters = st.sampled_from(
    [
        "genre:rock",
        "genre:none",
        "!genre:jazz,explicit:false",
        "markets:DE",
        "year:2001..2003",
        "released:2020-01-03..",
        'artist:"Artist 3"|"Artist 1"',
    ]
)
options = st.fixed_dictionaries(
    {
        "plays": st.lists(st.builds(Play, st.sampled_from(ids), st.sampled_from(list(Outcome))), max_size=WINDOW + 2),
        "k": st.integers(1, TRACKS + NEW),
        "exclude": st.lists(st.sampled_from([*ids, *new_ids]), max_size=6),
        "repeat": st.sampled_from(["allow", "never", "after:2"]).map(repeat_policy),
        "filter": st.none() | filters.map(read_filter),
        "spacing": st.none() | st.builds(Spacing, st.none() | st.integers(1, 3), st.integers(0, 2)),
    }
)


def test_an_added_track_by_the_name_of_an_artist_has_the_artists_id(tmp_path: Path) -> None:
    """Bans and spacing go by the id if the release has one."""
    frame = pl.DataFrame(
        {
            "track_id": ["a", "b", "c"],
            "artist": ["Ada", "Ada", "Bo"],
            "artist_id": ["1", "1", "2"],
            "plays": [3, 2, 1],
            "skips": [0, 0, 0],
        }
    )
    write_encoder_release(tmp_path / "r", Catalogue.from_frame(frame), np.eye(4, dtype=np.float32), 5)
    live = load_release(tmp_path / "r").with_added({"new": changed(title="New", artist="Ada", neighbours=["c"])})
    assert live.seeds.of_same_artist(["a"]) == ["a", "b", "new"]
    question = Question([Play("c")], 4, spacing=Spacing(max_per_artist=1))
    [found] = live.answer([replace(question, exclude=("a", "b"))])
    assert {track.track_id for track in found.tracks} == {"new", "c"}
    first = live.answer([question])[0].tracks[:2]
    assert len({"1" if track.artist == "Ada" else "2" for track in first}) == 2


def test_a_station_outlives_its_added_seeds() -> None:
    """A request finds the rows of its seeds, waits, and may be ranked after the added tracks have changed."""
    live, whole, added = both()
    seeds = [new_ids[0], new_ids[2], ids[1]]  # the first two have neighbours
    pull, _ = live.seeds.known_pull(Station(tuple(seeds), (), 0.5))
    stand_ins = [added[seeds[0]].neighbours[0], added[seeds[1]].neighbours[0], ids[1]]
    assert pull.seeds == (tuple(whole.catalogue.rows(stand_ins).tolist()),)
    questions = [Question([Play("t00")], 9, station=pull)]
    [before], [after] = live.answer(questions), live.with_added({}).answer(questions)
    assert set(after.rows) <= set(range(1, TRACKS + 1))
    shown = [row for row in before.rows if row <= TRACKS]
    assert [row for row in after.rows if row in shown] == shown


@given(series=st.lists(st.sets(st.sampled_from([*ids, *new_ids, "no/such"]), max_size=6), max_size=6))
@settings(max_examples=30)
def test_takedowns_follow_one_another(series: list[set[str]]) -> None:
    live = both()[0].with_added(both()[2])
    for removed in series:
        live.remove(removed)
        found = live.recommend([Play("t00")], TRACKS + NEW).tracks
        assert {track.track_id for track in found} == {*ids, *new_ids} - removed


def test_a_takedown_looks_up_only_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million tracks may be removed, and the next takedown must hold within a second."""
    live = both()[0].with_added(both()[2])
    looked_up: list[str] = []
    rows = live.catalogue.rows

    def noting(some: list[str]) -> Any:
        looked_up.extend(some)
        return rows(some)

    monkeypatch.setattr(live.catalogue, "rows", noting)
    removed = dict.fromkeys(ids[:20], "now")
    live.remove(removed.keys())
    assert set(looked_up) == set(removed)
    looked_up.clear()
    live.remove(({ids[3]: "now", **removed, ids[30]: "now"}).keys() - {ids[5]})
    assert sorted(looked_up) == [ids[5], ids[30]]


@given(options=options, removed=st.lists(st.sampled_from([*ids, *new_ids]), max_size=5))
@settings(deadline=None, max_examples=150)
def test_lists_are_those_of_a_release_with_the_tracks(options: dict[str, Any], removed: list[str]) -> None:
    """Lists, filters, exclusions, repeats, spacing and takedowns, with embeddings and with neighbours."""
    some, whole, _ = both()
    for live in (some, whole):
        live.remove(set(removed))
    question = Question(**options)
    [found], [expected] = some.answer([question]), whole.answer([question])
    assert found.source == expected.source
    np.testing.assert_allclose(
        found.scores, expected.scores, rtol=1e-4, atol=1 if found.source == "popularity" else 1e-4
    )
    if found.source == "model":
        assert [track.track_id for track in found.tracks] == [track.track_id for track in expected.tracks]
    assert not {track.track_id for track in found.tracks} & {*removed, *options["exclude"]}
    allowed = [live.search("", TRACKS + NEW, options["filter"]) for live in (some, whole)]
    assert {track.track_id for track in allowed[0]} == {track.track_id for track in allowed[1]}
    names = ("genre", "markets", "released", "year", "artist", "explicit")
    sets = [
        [{name: sorted(v) if isinstance(v, list) else v for name, v in (one or {}).items()} for one in lines]
        for lines in (live.attributes_of(expected.tracks, names) for live in (some, whole))
    ]
    assert sets[0] == sets[1]


@given(query=st.sampled_from([*ids, *new_ids]), k=st.integers(1, 60), wanted=st.none() | filters)
@settings(deadline=None, max_examples=60)
def test_similar_tracks_are_those_of_a_release_with_the_tracks(query: str, k: int, wanted: str | None) -> None:
    some, whole, _ = both()
    for live in (some, whole):
        live.remove(frozenset())
    read = None if wanted is None else read_filter(wanted)
    found, expected = some.similar(query, k, read), whole.similar(query, k, read)
    assert [track.track_id for track in found] == [track.track_id for track in expected]
    scores = [np.array([one.score or 0.0 for one in tracks]) for tracks in (found, expected)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_search_and_names() -> None:
    some, whole, _ = both()
    for query in ("song", "artist 3", "new/", "song 41", "nothing"):
        found, expected = some.search(query, 100), whole.search(query, 100)
        assert {(one.track_id, one.title, one.artist) for one in found} == {
            (one.track_id, one.title, one.artist) for one in expected
        }
    assert [one.track_id for one in some.search("song", 1)] == ["t00"]
    assert some.unknown(["t00", "new/1", "x"]) == ["x"]
    assert [some.catalogue.track_id(some.catalogue.row(name)) for name in (*ids, *new_ids)] == [*ids, *new_ids]
    with pytest.raises(IndexError):
        some.catalogue.track_id(TRACKS + NEW + 1)


def test_a_play_of_an_added_track_stands_for_its_first_neighbour_and_is_a_repeat_of_itself() -> None:
    some, _, added = both()
    some.remove(frozenset())
    first = added["new/1"].neighbours[0]
    for before in ([], [Play("t03", Outcome.SKIPPED)]):
        shown = some.recommend([*before, Play("new/1")], 48)
        assert shown.scores.tolist() == some.recommend([*before, Play(first)], 48).scores.tolist()
        heard = {track.track_id for track in some.recommend([*before, Play("new/1")], 48, repeat="never").tracks}
        assert "new/1" not in heard
        assert first in heard
        assert shown.source == "model"


@pytest.mark.parametrize("caution", [0.0, 1.5])
@pytest.mark.parametrize("name", ["encoder", "hybrid", "ngram"])
def test_a_score_is_the_mean_of_the_neighbours_scores(folder: Path, name: str, caution: float) -> None:
    base = load_release(folder / name)
    rng = np.random.default_rng(1)
    catalogue = base.catalogue
    near = {
        f"n{i}": [catalogue.track_id(row) for row in rng.integers(1, 200, size=1 + i % 4).tolist()] for i in range(9)
    }
    live = base.with_added({track_id: changed(neighbours=of) for track_id, of in near.items()})
    everything = [catalogue.track_id(row) for row in range(1, catalogue.num_rows)]
    for plays in sessions_of(base)[::4]:
        ranked = rank_candidates(base, RankQuestion(plays, 0, caution=0.0, candidates=everything))
        stored = dict(zip((one.track_id for one in ranked.tracks), ranked.scores.tolist(), strict=True))
        shown = live.answer([Question(plays, len(live.catalogue), caution=caution)])[0]
        again = rank_candidates(
            live, RankQuestion(plays, 0, caution=caution, candidates=[*reversed(near), "t", everything[5]])
        )
        scores = {one.track_id: one.score for one in shown.tracks}
        for one in again.tracks:
            assert scores.get(one.track_id, one.score) == pytest.approx(one.score, rel=1e-4, abs=1e-7)
        if not caution:
            assert set(near) <= set(scores)
            for track_id, of in near.items():
                expected = np.mean([stored[neighbour] for neighbour in of])
                assert scores[track_id] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            left = [one.track_id for one in shown.tracks if one.track_id not in near]
            assert left == [one.track_id for one in base.answer([Question(plays, len(left))])[0].tracks]
        assert shown.scores.tolist() == sorted(shown.scores.tolist(), reverse=True)


@pytest.mark.parametrize("caution", [0.0, 1.5])
@pytest.mark.parametrize("name", ["encoder", "hybrid", "ngram"])
def test_contributions_and_parts_add_up(folder: Path, name: str, caution: float) -> None:
    base = load_release(folder / name)
    ids = [base.catalogue.track_id(row) for row in range(1, 40)]
    live = base.with_added({"new": AddedTrack.now(title="N", artist=None, attributes={}, neighbours=ids[:3])})
    plays = [Play(ids[0]), Play("new"), Play(ids[7], Outcome.SKIPPED), Play(ids[1])]
    question = Question(plays, len(live.catalogue), caution=caution)
    [answer] = live.answer([question])
    place = [one.track_id for one in answer.tracks].index("new")
    chosen = [*range(3), place]
    answer = replace(answer, rows=[answer.rows[one] for one in chosen], scores=answer.scores[chosen])
    why = explain_answer(live, question, answer)
    baseline = np.zeros(len(chosen)) if why.baseline is None else np.array(why.baseline)
    np.testing.assert_allclose(why.contributions.sum(axis=1) + baseline, answer.scores, rtol=2e-3, atol=2e-5)
    assert [track.track_id for track, _ in why.plays] == [play.track_id for play in plays]
    assert (why.parts is None) == (name == "encoder" and not caution)
    if why.parts is not None:
        np.testing.assert_allclose([sum(one.values()) for one in why.parts], answer.scores, rtol=1e-3, atol=1e-6)
    if why.places is not None:
        assert np.isfinite(why.places.path).all()
        means = live.map.positions[live.stored_catalogue.rows(ids[:3])].mean(axis=0)
        np.testing.assert_allclose(why.places.items[-1], means, rtol=1e-5)


def test_without_an_encoder_similar_tracks_share_pairs(folder: Path) -> None:
    base = load_release(folder / "ngram")
    query = base.catalogue.track_id(3)
    live = base.with_added({"new": changed(neighbours=[query])})
    assert live.similar(query, 1)[0].track_id == "new"
    expected = base.similar(query, 30)
    assert [one.track_id for one in live.similar(query, 31)][1:] == [one.track_id for one in expected]
    found = live.similar("new", 31)
    assert [one.track_id for one in found] == [query, *(one.track_id for one in expected)]


def test_a_filter_that_hides_the_neighbours_leaves_the_score() -> None:
    """A hybrid shares out the encoder's part among the allowed tracks: neighbours count as such."""
    rng = np.random.default_rng(2)
    encoder = Fixed(rng.normal(size=59).tolist())
    ranker = HybridRanker(
        counts_of(rng.integers(1, 60, (30, 8)).tolist(), 60), prior_mixture(0.05), np.arange(1, 60), encoder
    )
    best = int(np.argmax(encoder.by_row))
    added = AddedRows(60, np.array([[best]]), np.ones((1, 1), np.float32), None)
    windows = window_of([3, 4, 5])
    hidden = np.arange(60) % 2 == 1  # and the added track is allowed
    hidden[[best - 1, 59]] = False, True
    seen = hidden.copy()
    seen[best - 1] = True
    expected = ranker.within(Allowed(seen[:59])).scores(windows, np.array([[best]]))[0, 0]
    without = ranker.within(Allowed(hidden[:59])).scores(windows, np.array([[best]]))[0, 0]
    assert expected > 1.4 * without
    within = AddedRanker(ranker, added).within(Allowed(hidden))
    found = within.rank(windows, 60)
    assert best not in found.rows
    assert found.scores[found.rows == 60] == pytest.approx(expected, rel=1e-5)
    assert within.scores(windows, np.array([[60]])) == pytest.approx(expected, rel=1e-5)
    stored = within.scores(windows, np.array([[60, 7]]))[0, 1]
    assert stored == pytest.approx(ranker.within(Allowed(hidden[:59])).scores(windows, np.array([[7]]))[0, 0], rel=1e-5)


# --- changes of known tracks, neighbours ---


def test_a_known_track_gets_names_and_attributes_and_keeps_the_others() -> None:
    some, _, _ = both()
    base = some.with_added({})
    values = {"genre": "ska", "year": None, "markets": ["FR"]}
    live = some.with_added({"t05": changed(title="Renamed", artist="Artist 99", attributes=values)})
    track = live.track(live.catalogue.row("t05"))
    assert (track.title, track.artist) == ("Renamed", "Artist 99")
    [found] = live.attributes_of([track], ["genre", "year", "markets", "released", "artist"])
    assert found == {"genre": "ska", "markets": ["FR"], "released": "2020-01-06", "artist": "Artist 99"}
    assert [one.track_id for one in live.search("renamed", 5)] == ["t05"]
    assert "t05" not in {one.track_id for one in live.search("song", 100)}
    assert len(live.search("", 100)) == TRACKS
    for text, expected in (("genre:ska", ["t05"]), ("markets:FR", ["t05"]), ('artist:"Artist 99"', ["t05"])):
        assert [one.track_id for one in live.recommend([Play("t01")], 9, filter=text).tracks] == expected
    for text in ("genre:jazz", "year:2005", "markets:US"):
        before = {one.track_id for one in base.recommend([Play("t01")], 99, filter=text).tracks}
        after = {one.track_id for one in live.recommend([Play("t01")], 99, filter=text).tracks}
        assert after == before - {"t05"}, text
    spaced = live.answer([Question([Play("t05")], 9, spacing=Spacing(artist_gap=1))])[0].tracks
    assert spaced[0].artist != "Artist 99"
    assert live.recommend([Play("t01")], 40).rows == base.recommend([Play("t01")], 40).rows


def test_neighbours_are_the_most_played_tracks_of_the_album_or_artist() -> None:
    frame = pl.DataFrame(
        {
            "track_id": [f"t{i}" for i in range(9)],
            "plays": [1, 2, 3, 4, 5, 6, 7, 8, 9],
            "artist": ["A", "A", "A", "B", "B", "B", "B", "B", "B"],
            "album_id": ["x", "x", None, "y", "y", "y", "y", "y", "y"],
            "artist_id": [["1"], ["1", "2"], ["2"], ["3"], ["3"], ["3"], ["3"], ["3"], ["3"]],
        }
    )
    catalogue = Catalogue.from_frame(frame)
    for track, expected in (
        (changed(attributes={"album_id": "x", "artist_id": ["3"]}), ["t1", "t0"]),
        (changed(attributes={"album_id": "unknown", "artist_id": ["2", "9"]}, artist="B"), ["t2", "t1"]),
        (changed(artist="B"), ["t8", "t7", "t6", "t5", "t4"]),
        (changed(artist="C"), []),
        (changed(neighbours=["gone"], artist="A"), ["t2", "t1", "t0"]),
        (changed(neighbours=["t0", "gone"], artist="A"), ["t0"]),
        (changed(embedding=[1.0], release="other", neighbours=["t3"]), ["t3"]),
    ):
        found = added_to(catalogue, None, {"new": track})
        assert found.neighbours == {"new": expected}
        assert ("new" in found.catalogue) == bool(expected)
        assert any("new has no neighbour" in line for line in found.dropped) == (not expected)


def test_an_embedding_of_another_release_counts_by_its_neighbours() -> None:
    some, whole, added = both()
    moved = replace(added["new/1"], release="another")
    live = some.with_added({"new/1": moved})
    assert live.added_rows is not None
    assert live.added_rows.vectors is not None
    rows = whole.catalogue.rows(list(moved.neighbours))
    expected = some.release.item_embeddings[rows].mean(axis=0)
    np.testing.assert_allclose(live.added_rows.vectors[0], expected, rtol=1e-5)


def test_a_release_that_was_trained_with_the_track_uses_its_vector_and_drops_what_it_lacks() -> None:
    _, whole, added = both()
    live = whole.with_added({**added, "t01": changed(attributes={"mood": "calm", "year": "soon", "genre": "ska"})})
    assert live.added_rows is None
    assert live.added is not None
    assert live.added.neighbours == {}
    assert live.added.dropped == ["mood, year of t01 is no attribute of it, or one of another kind"]
    assert live.recommend([Play("t01")], 48).rows == whole.with_added({}).recommend([Play("t01")], 48).rows
    assert live.attributes_of([live.track(2)], ["genre", "year"]) == [{"genre": "ska", "year": 2001}]


WRONG: Final[list[tuple[dict[str, Any], type[Exception], str]]] = [
    (
        {"attributes": {"mood": "calm"}},
        UnknownAttribute,
        r"'mood' is not an attribute of this release. It has artist, exp",
    ),
    ({"attributes": {"year": "2001"}}, InputError, "year is a number in this release, and the body has '2001': give a"),
    ({"attributes": {"year": True}}, InputError, "year is a number"),
    ({"attributes": {"year": 1e300}}, InputError, "a number up to 2"),
    ({"attributes": {"explicit": 1}}, InputError, "give true or false"),
    ({"attributes": {"artist": "Artist 1"}}, InputError, "artist is in `attributes`: give it beside them"),
    ({"attributes": {"artist": None}}, InputError, "artist is in `attributes`"),
    ({"attributes": {"released": "2020-02-30"}}, InputError, "a date such as 2026-11-29"),
    ({"attributes": {"markets": "DE"}}, InputError, "a list of at most 500 texts"),
    ({"attributes": {"genre": "a\x00"}}, InputError, "a text of 1 to"),
    ({"neighbours": ["t01", "gone"]}, InputError, "the neighbour 'gone' is not in the catalogue of 40 tracks"),
    ({"embedding": [0.5] * 5}, InputError, "the embedding has 5 numbers, the current release has 6 dimensions"),
    ({}, InputError, "nothing says what 'new' is like: give neighbours, an embedding, or artist with the value"),
    ({"artist": "Nobody"}, InputError, "nothing says what"),
]


@pytest.mark.parametrize(("facts", "error", "told"), WRONG)
def test_what_does_not_fit_the_release_is_refused(facts: Any, error: type[Exception], told: str) -> None:
    some, _, _ = both()
    with pytest.raises(error, match=told):
        check_track("new", changed(**facts), some.stored_catalogue, some.vectors)


def test_without_embeddings_none_can_be_supplied() -> None:
    some, _, _ = both()
    with pytest.raises(InputError, match="has no embeddings"):
        check_track("new", changed(embedding=[0.5]), some.stored_catalogue, None)
