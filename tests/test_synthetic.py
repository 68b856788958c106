"""Synthetic sessions follow their rule, and the same seed generates the same sessions."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from segue.errors import BadOption
from training.data.synthetic import MIN_TRACKS, SyntheticData, simulate, simulate_sessions


@pytest.fixture(scope="module")
def world() -> SyntheticData:
    return simulate_sessions(2_000, 5_000, seed=7)


def test_the_same_seed_gives_the_same_dataset(tmp_path: Path) -> None:
    one, two = (simulate(1_000, 200, tmp_path / name, seed=3) for name in ("one", "two"))
    assert one.facts == two.facts
    for file in ("sessions.parquet", "catalogue.parquet", "dataset.json"):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes()


def test_another_seed_gives_another_dataset(tmp_path: Path) -> None:
    one, two = (simulate(1_000, 200, tmp_path / str(seed), seed=seed) for seed in (3, 4))
    assert one.facts.fingerprint != two.facts.fingerprint


def test_the_dataset_holds_the_plays_of_the_world(tmp_path: Path) -> None:
    world, dataset = simulate_sessions(1_000, 200, seed=3), simulate(1_000, 200, tmp_path / "d", seed=3)
    track_of_row = pl.Series(["", *dataset.catalogue.track_ids])
    assert track_of_row.gather(dataset.sessions.rows).to_list() == world.plays["track_id"].to_list()
    assert dataset.sessions.skipped.tolist() == world.skipped.tolist()
    assert dataset.session_ids.to_list() == world.plays["session_id"].unique(maintain_order=True).to_list()
    assert dataset.facts.source == "synthetic"
    assert dataset.facts.options == {"tracks": 1_000, "sessions": 200, "seed": 3}


def test_the_smallest_world_has_all_its_tracks_with_names(tmp_path: Path) -> None:
    catalogue = simulate(MIN_TRACKS, 50, tmp_path / "d").catalogue
    assert len(catalogue) == MIN_TRACKS
    assert "t0000042" in catalogue
    assert catalogue.frame.select("title", "artist").null_count().row(0) == (0, 0)
    assert catalogue.frame["artist"].n_unique() > 30


def test_names_of_bands_are_plurals(tmp_path: Path) -> None:
    artists = simulate(2000, 100, tmp_path / "world").catalogue.frame["artist"]
    assert not artists.str.contains("sss$|Echos$").any()
    assert artists.str.contains("Compasses$|Echoes$").any()


def test_listeners_skip_what_does_not_fit_their_taste(world: SyntheticData) -> None:
    assert world.skipped[world.fits].mean() == pytest.approx(0.05, abs=0.01)
    assert world.skipped[~world.fits].mean() == pytest.approx(0.9, abs=0.01)
    assert 0.4 <= world.skipped.mean() <= 0.5


def test_sessions_have_ten_to_twenty_plays(world: SyntheticData) -> None:
    lengths = np.diff(world.offsets)
    assert (lengths.min(), lengths.max()) == (10, 20)


def test_a_session_stays_in_its_playlist(world: SyntheticData) -> None:
    for session in range(0, len(world.session_taste), 500):
        heard = world.track[world.offsets[session] : world.offsets[session + 1]]
        assert set(heard) <= set(playlist_of(world, session))


def playlist_of(world: SyntheticData, session: int) -> list[int]:
    number = world.session_playlist[session]
    start, end = world.playlist_offsets[number : number + 2]
    return [int(track) for track in world.playlist_tracks[start:end]]


def test_playlists_mix_two_or_three_genres_and_name_a_track_once(world: SyntheticData) -> None:
    bounds = zip(world.playlist_offsets[:-1], world.playlist_offsets[1:], strict=True)
    playlists = [world.playlist_tracks[start:end] for start, end in bounds]
    assert {len(set(world.genre[tracks])) for tracks in playlists} == {2, 3}
    assert all(len(set(tracks)) == len(tracks) for tracks in playlists)
    assert min(map(len, playlists)) >= 15
    assert len(np.unique(world.playlist_tracks)) > 0.95 * len(world.genre)


def test_every_other_play_is_the_next_of_the_playlist_that_was_not_heard(world: SyntheticData) -> None:
    in_order = pairs = expected = 0.0
    for session in range(1_000):
        playlist = playlist_of(world, session)
        heard = world.track[world.offsets[session] : world.offsets[session + 1]].tolist()
        for step, (now, after) in enumerate(itertools.pairwise(heard), start=1):
            unheard = set(playlist) - set(heard[:step])
            if not unheard:
                break  # heard through, it starts again
            others = playlist[playlist.index(now) + 1 :] + playlist[: playlist.index(now)]
            # A jump to a place that was heard goes on to the first that was not.
            reached = [next(t for t in [*others[place:], now, *others] if t in unheard) for place in range(len(others))]
            in_order += reached[0] == after
            expected += 0.5 + 0.5 * reached.count(reached[0]) / len(others)
            pairs += 1
    assert in_order / pairs == pytest.approx(expected / pairs, abs=0.01)
    assert 0.5 < expected / pairs < 0.7


def test_a_session_repeats_no_track_before_its_playlist_is_heard_through(world: SyntheticData) -> None:
    for session in range(1_000):
        heard = world.track[world.offsets[session] : world.offsets[session + 1]]
        assert len(set(heard)) == min(len(heard), len(playlist_of(world, session)))


def test_what_comes_next_does_not_depend_on_the_taste(world: SyntheticData) -> None:
    not_first = np.ones(len(world.track), dtype=np.bool_)
    not_first[world.offsets[:-1]] = False
    assert world.fits[not_first].mean() == pytest.approx(world.fits[~not_first].mean(), abs=0.03)


def test_an_artist_has_one_genre_and_about_twenty_tracks(world: SyntheticData) -> None:
    by_artist = pl.DataFrame({"artist": world.artist, "genre": world.genre}).group_by("artist")
    summary = by_artist.agg(pl.col("genre").n_unique().alias("genres"), pl.len().alias("tracks"))
    assert summary["genres"].to_list() == [1] * 100
    assert summary["tracks"].to_list() == [20] * 100


@pytest.mark.parametrize(
    ("tracks", "sessions", "seed", "message"),
    [
        (999, 10, 0, "tracks is 999, expected 1,000 to 10,000,000"),
        (10_000_001, 10, 0, "tracks is 10,000,001"),
        (1_000, 0, 0, "sessions is 0, expected 1 to"),
        (1_000, 10, -1, "seed is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, tracks: int, sessions: int, seed: int, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        simulate(tracks, sessions, tmp_path / "d", seed)
    assert list(tmp_path.iterdir()) == []
