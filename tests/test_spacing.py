"""Artist spacing: a maximum per artist and a gap between their tracks, given up only where no other track is left."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.errors import InputError
from segue.sessions import Play
from segue.spacing import UNKNOWN, Spacing, spaced
from service.releases.loaded import LoadedRelease, Question, load_release
from tests.conftest import TRACKS_OF_A_GENRE, track_ids, write_tiny_release

rankings = st.lists(st.integers(UNKNOWN, 6), max_size=40)
spacings = st.builds(Spacing, st.none() | st.integers(1, 4), st.integers(0, 5))


@given(rankings, st.integers(0, 45), spacings, st.lists(st.integers(UNKNOWN, 6), max_size=6))
def test_a_list_obeys_its_spacing_or_says_that_it_does_not(
    artists: list[int], k: int, spacing: Spacing, before: list[int]
) -> None:
    chosen = spaced(artists, k, spacing, before)
    assert len(chosen.places) == min(k, len(artists)) == len(set(chosen.places))  # never shorter
    listed = [artists[place] for place in chosen.places]
    counts = Counter(artist for artist in listed if artist != UNKNOWN)
    heard = [*before, *listed]
    near = [
        heard[at]
        for at in range(len(before), len(heard))
        if heard[at] != UNKNOWN and heard[at] in heard[max(at - spacing.artist_gap, 0) : at]
    ]
    kept = not near and (spacing.max_per_artist is None or max(counts.values(), default=0) <= spacing.max_per_artist)
    assert chosen.relaxed is not kept


@given(rankings, st.integers(0, 45), spacings, st.lists(st.integers(UNKNOWN, 6), max_size=6))
def test_each_place_gets_the_best_track_that_may_have_it(
    artists: list[int], k: int, spacing: Spacing, before: list[int]
) -> None:
    chosen = spaced(artists, k, spacing, before).places
    for number, place in enumerate(chosen):
        listed = [artists[other] for other in chosen[:number]]
        heard = [*before, *listed]
        latest = heard[max(len(heard) - spacing.artist_gap, 0) :]

        def rank(other: int, listed: list[int] = listed, latest: list[int] = latest) -> tuple[bool, bool, int]:
            artist = artists[other]
            if artist == UNKNOWN:
                return False, False, other
            full = spacing.max_per_artist is not None and listed.count(artist) >= spacing.max_per_artist
            return full, full or artist in latest, other

        assert place == min((other for other in range(len(artists)) if other not in chosen[:number]), key=rank)


@given(rankings, st.integers(0, 45))
def test_without_options_it_is_the_ranking(artists: list[int], k: int) -> None:
    assert spaced(artists, k, Spacing()).places == list(range(min(k, len(artists))))


@pytest.mark.parametrize("options", [{"max_per_artist": 0}, {"artist_gap": -1}, {"artist_gap": 21}])
def test_values_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        Spacing(**options)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return load_release(write_tiny_release(tmp_path_factory.mktemp("spacing") / "release").path)


def artists_of(live: LoadedRelease, k: int, spacing: Spacing, *plays: str) -> list[str]:
    [answer] = live.answer([Question([Play(track) for track in plays], k, spacing=spacing)])
    return [track.artist or "" for track in answer.tracks]


def test_a_release_spaces_the_artists_of_its_lists(live: LoadedRelease) -> None:
    plain = artists_of(live, 10, Spacing(), "g1-t00")
    assert plain == ["Artist 1"] * 10
    spread = artists_of(live, 10, Spacing(2, 1), "g1-t00")
    assert max(Counter(spread).values()) == 2
    assert all(one != other for one, other in itertools.pairwise(spread))
    assert spread[0] != "Artist 1"  # the play before counts
    others = artists_of(live, 8, Spacing(None, 5), "g1-t00", "g2-t00", "g3-t00")  # fewer plays than the gap
    assert not {"Artist 1", "Artist 2", "Artist 3"} & set(others[:3])
    artists = len(track_ids()) // TRACKS_OF_A_GENRE
    everything = artists_of(live, len(track_ids()), Spacing(1, 3), "g1-t00")
    assert len(everything) == len(track_ids())  # soft: no list is shorter
    assert len(set(everything[:artists])) == artists


def test_the_popularity_list_is_spaced_too(live: LoadedRelease) -> None:
    assert max(Counter(artists_of(live, 6, Spacing(1))).values()) == 1
    question = Question([Play("g1-t00")], 6, spacing=Spacing(1))
    assert len({track.artist for track in live.popular(question).tracks}) == 6


def test_an_answer_does_not_depend_on_its_batch(live: LoadedRelease) -> None:
    questions = [
        Question([Play("g1-t00")], 8, spacing=spacing)
        for spacing in (None, Spacing(1), Spacing(None, 2), Spacing(3, 1))
    ]
    assert [one.rows for one in live.answer(questions)] == [live.answer([one])[0].rows for one in questions]


def test_a_release_without_artists_refuses(tmp_path: Path) -> None:
    from segue.errors import UnknownAttribute
    from service.releases.artists import Artists
    from tests.catalogues import catalogue_of

    with pytest.raises(UnknownAttribute, match="knows no artists"):
        Artists(catalogue_of(["a"])).check()
