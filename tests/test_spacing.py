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
from segue.list_steps import RULES, UNKNOWN, Groups, Spaced, Spacing, forbidden, names_of, spaced
from segue.sessions import Play
from service.releases.loaded import LoadedRelease, Question, load_release
from tests.conftest import TRACKS_OF_A_GENRE, track_ids, write_tiny_release

artists_and_albums = st.lists(st.tuples(st.integers(UNKNOWN, 5), st.integers(UNKNOWN, 5)), max_size=40)
histories = st.lists(st.tuples(st.integers(UNKNOWN, 5), st.integers(UNKNOWN, 5)), max_size=6)
maxima, gaps = st.none() | st.integers(1, 4), st.integers(0, 5)
spacings = st.builds(Spacing, maxima, gaps, maxima, gaps)
Pairs = list[tuple[int, int]]


def chosen_of(tracks: Pairs, k: int, spacing: Spacing, before: Pairs) -> Spaced:
    artists, albums = (Groups([one[part] for one in tracks], [one[part] for one in before]) for part in (0, 1))
    return spaced(k, spacing, artists, albums)


def broken_rules(track: tuple[int, int], listed: Pairs, before: Pairs, spacing: Spacing) -> set[str]:
    """The rules that a track would break behind a list, in plain words."""
    broken = set()
    for part, name in ((0, "artist"), (1, "album")):
        most, gap = getattr(spacing, f"max_per_{name}"), getattr(spacing, f"{name}_gap")
        latest = [*before, *listed][-gap:] if gap else []
        if track[part] == UNKNOWN:
            continue
        if most is not None and [one[part] for one in listed].count(track[part]) >= most:
            broken.add(f"max_per_{name}")
        if track[part] in [one[part] for one in latest]:
            broken.add(f"{name}_gap")
    return broken


@given(artists_and_albums, st.integers(0, 45), spacings, histories)
def test_a_list_obeys_its_spacing_or_says_that_it_does_not(
    tracks: Pairs, k: int, spacing: Spacing, before: Pairs
) -> None:
    chosen = chosen_of(tracks, k, spacing, before)
    assert len(chosen.places) == min(k, len(tracks)) == len(set(chosen.places))  # never shorter
    listed = [tracks[place] for place in chosen.places]
    broken = [broken_rules(one, listed[:at], before, spacing) for at, one in enumerate(listed)]
    assert chosen.relaxed is any(broken)


@given(artists_and_albums, st.integers(0, 45), spacings, histories)
def test_each_place_gets_the_best_track_that_may_have_it(
    tracks: Pairs, k: int, spacing: Spacing, before: Pairs
) -> None:
    chosen = chosen_of(tracks, k, spacing, before)
    moved: dict[int, set[str]] = {}
    for number, place in enumerate(chosen.places):
        listed = [tracks[other] for other in chosen.places[:number]]
        left = [other for other in range(len(tracks)) if other not in chosen.places[:number]]
        broken = {other: broken_rules(tracks[other], listed, before, spacing) for other in left}
        worst = {other: max((RULES.index(rule) + 1 for rule in broken[other]), default=0) for other in left}
        assert place == min(left, key=lambda other: (worst[other], other))
        for other in left[: left.index(place)]:  # held back now, so this place overtook them
            moved.setdefault(other, set()).update(broken[other])
            moved.setdefault(place, set()).update(broken[other])
    assert {place: set(names_of(rules)) for place, rules in chosen.rules.items()} == moved


@given(artists_and_albums, st.integers(0, 45))
def test_without_options_it_is_the_ranking(tracks: Pairs, k: int) -> None:
    chosen = chosen_of(tracks, k, Spacing(), [])
    assert chosen.places == list(range(min(k, len(tracks))))
    assert not chosen.rules


@given(artists_and_albums.filter(bool), spacings, histories, st.data())
def test_a_track_fits_if_the_list_with_it_breaks_no_rule_of_its_own(
    tracks: Pairs, spacing: Spacing, before: Pairs, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(tracks) - 1))
    new = data.draw(st.tuples(st.integers(UNKNOWN, 5), st.integers(UNKNOWN, 5)))
    for part, albums in ((0, False), (1, True)):
        most, gap = (
            (spacing.max_per_album, spacing.album_gap) if albums else (spacing.max_per_artist, spacing.artist_gap)
        )
        listed = [one[part] for one in tracks]
        changed = [*listed[:at], new[part], *listed[at + 1 :]]
        heard, middle = [*(one[part] for one in before), *changed], len(before) + at
        near = [heard[other] for other in range(len(heard)) if 0 < abs(other - middle) <= gap]
        expected = new[part] == UNKNOWN or (
            new[part] not in near and (most is None or changed.count(new[part]) <= most)
        )
        groups = Groups(listed, [one[part] for one in before])
        assert (new[part] not in forbidden(spacing, at, groups, albums=albums)) is expected


@pytest.mark.parametrize(
    "options", [{"max_per_artist": 0}, {"artist_gap": -1}, {"artist_gap": 21}, {"max_per_album": 0}, {"album_gap": 21}]
)
def test_values_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        Spacing(**options)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    return load_release(write_tiny_release(tmp_path_factory.mktemp("spacing") / "release").path)


def artists_of(live: LoadedRelease, k: int, spacing: Spacing, *plays: str) -> list[str]:
    [answer] = live.answer([Question([Play(track) for track in plays], k, spacing=spacing)])
    return [track.artist or "" for track in answer.tracks]


def test_pins_of_an_artist_are_no_maximum_for_it() -> None:
    """Two tracks of 7 are pinned, more than are ranked: without a maximum, none is given up."""
    found = spaced(2, Spacing(artist_gap=1), Groups([7, 8], (), [7, 7]))
    assert (found.places, found.relaxed, found.rules) == ([0, 1], False, {})


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
    from service.releases.lists import Lists
    from tests.catalogues import catalogue_of

    lists = Lists(catalogue_of(["a"]))
    lists.check(Spacing())
    with pytest.raises(UnknownAttribute, match="knows no artists"):
        lists.check(Spacing(artist_gap=1))
    with pytest.raises(UnknownAttribute, match="knows no albums"):
        lists.check(Spacing(max_per_album=1))
