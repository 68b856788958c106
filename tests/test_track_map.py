"""The map of the tracks: like ones lie near each other, whoever takes part in drawing it, and always alike."""

from pathlib import Path

import numpy as np
import pytest

from segue.arrays import Float32, Int
from segue.map_projection import among, validate_map
from segue.release import open_release

pytest.importorskip("sklearn")
pytest.importorskip("faiss")

from sklearn.manifold import trustworthiness

from training import track_map as drawing
from training.track_map import track_map

GROUPS = 8


def grouped(tracks: int, dimension: int = 16) -> tuple[Float32, Int]:
    """Embeddings of tracks in eight tight groups, and the group of each; row 0 is padding."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(GROUPS, dimension))
    groups = rng.integers(0, GROUPS, tracks + 1)
    lengths = rng.uniform(0.5, 2, size=(tracks + 1, 1))  # which is no matter of likeness
    return ((centres[groups] + 0.1 * rng.normal(size=(tracks + 1, dimension))) * lengths).astype(np.float32), groups


def share_with_like_neighbours(places: Float32, groups: Int) -> float:
    distances = np.linalg.norm(places[1:, None] - places[None, 1:], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argsort(axis=1)[:, :10]
    return float((groups[1:][nearest] == groups[1:, None]).mean())


@pytest.fixture(autouse=True)
def as_many_landmarks_as_outside_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """See lighten_training in tests/preloaded.py."""
    monkeypatch.setattr(drawing, "LANDMARKS", 2000)


@pytest.mark.parametrize(("tracks", "landmarks"), [(40, 2000), (300, 2000), (300, 100)])
def test_like_tracks_lie_near_each_other(monkeypatch: pytest.MonkeyPatch, tracks: int, landmarks: int) -> None:
    """By two components where there are few tracks, by t-SNE, and among the nearest of those that took part in it."""
    monkeypatch.setattr(drawing, "LANDMARKS", landmarks)
    embeddings, groups = grouped(tracks)
    places = track_map(embeddings, np.arange(len(embeddings)))
    validate_map(Path("map.npy"), places, tracks)
    assert np.abs(places).max() == pytest.approx(1)
    assert (places[0] == 0).all()
    if tracks > 40:  # eight groups do not fit side by side into two components
        assert share_with_like_neighbours(places, groups) > 0.95
    else:
        assert share_with_like_neighbours(places, groups) > 2 / GROUPS


def test_the_map_is_unfolded_when_its_drawing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the steps bring no track nearer to its neighbours. Without groups it takes the most steps."""
    embeddings = np.random.default_rng(0).normal(size=(501, 16)).astype(np.float32)
    plays = np.arange(len(embeddings))
    directions = embeddings[1:] / np.linalg.norm(embeddings[1:], axis=1, keepdims=True)
    drawn = trustworthiness(directions, track_map(embeddings, plays)[1:], n_neighbors=10)
    monkeypatch.setattr(drawing, "_ITERATIONS", 2 * drawing._ITERATIONS)
    longer = trustworthiness(directions, track_map(embeddings, plays)[1:], n_neighbors=10)
    assert drawn == pytest.approx(longer, abs=0.01)


def test_the_same_embeddings_have_the_same_map() -> None:
    embeddings, _ = grouped(200)
    plays = np.arange(len(embeddings))
    assert (track_map(embeddings, plays) == track_map(embeddings.copy(), plays)).all()


def test_the_most_played_take_part_in_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A track that takes no part lies within its landmarks: it cannot be the outermost."""
    monkeypatch.setattr(drawing, "LANDMARKS", 100)
    embeddings, _ = grouped(300)
    plays = np.zeros(len(embeddings), dtype=np.int64)
    plays[101:201] = 5
    places = track_map(embeddings, plays)
    assert set((np.abs(places).argmax(axis=0)).tolist()) <= set(range(101, 201))


@pytest.mark.parametrize("tracks", [0, 1, 2, 5, 51, 60])
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_whatever_the_embeddings_are_the_map_has_places(tracks: int, value: float) -> None:
    embeddings = np.full((tracks + 1, 4), value, dtype=np.float32)
    validate_map(Path("map.npy"), track_map(embeddings, np.zeros(tracks + 1, dtype=np.int64)), tracks)


def test_a_place_among_others_is_worked_out_by_hand() -> None:
    """The last point counts nothing, the first twice as much as the second: (2 * (0, 0) + (3, 6)) / 3."""
    scores = np.array([[3, 2, 1], [1, 1, 1]], dtype=np.float32)
    places = np.array([[[0, 0], [3, 6], [9, 9]], [[0, 0], [3, 6], [9, 9]]], dtype=np.float32)
    assert among(scores, places).tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_a_release_of_before_there_were_maps_has_none() -> None:
    assert open_release(Path(__file__).parent / "releases" / "v1").track_map is None
