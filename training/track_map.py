"""Compute the two-dimensional map of a release's tracks from the item embeddings.

t-SNE places the most played tracks, which are called landmarks. Each other track is placed among its nearest landmarks.

t-SNE (van der Maaten and Hinton, JMLR 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html) keeps neighbours
together; a projection to two principal components does not. On 2,000 synthetic tracks with ten neighbours, t-SNE has a
trustworthiness (Venna and Kaski, 2001; 1 is best, 0.5 is chance) of 0.99, and two principal components have 0.68. The
running time of t-SNE grows with the number of points, so there are at most `LANDMARKS` landmarks.
"""

from typing import Any, Final

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from index.exact import ExactIndex
from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.map_projection import NEAREST, among

LANDMARKS: Final = 2000
_FEWEST: Final = 50  # with fewer tracks, t-SNE is not meaningful, so two principal components are used
_PERPLEXITY: Final = 30
_ITERATIONS: Final = 500  # with 300, a model with the skip loss has a trustworthiness of 0.95 instead of 0.99
_AT_ONCE: Final = 65_536
_FIRST_SPREAD: Final = 1e-4  # standard deviation of the initial t-SNE coordinates, as used by the authors


def track_map(embeddings: Float32, plays: Int) -> Float32:
    """Return map coordinates of each track, from -1 to 1. [num_rows, 2] float32; row 0 is padding and has zeros.

    `embeddings` [num_rows, dimension] float32 are compared by cosine similarity. `plays` [num_rows] int64 selects the
    landmarks: the tracks with the most plays. The result is deterministic on the same machine.
    """
    tracks = _directions(embeddings[FIRST_TRACK_ROW:])
    places = np.zeros((len(embeddings), 2), dtype=np.float32)
    landmarks: Int = np.argsort(-plays[FIRST_TRACK_ROW:], kind="stable")[:LANDMARKS]
    with threadpool_limits(1):  # several threads would add numbers in a random order, which changes the sums
        drawn = _drawn(tracks[landmarks])
        if len(landmarks) == len(tracks):
            places[FIRST_TRACK_ROW + landmarks] = drawn
        else:
            places[FIRST_TRACK_ROW:] = _among_landmarks(tracks, tracks[landmarks], drawn)
            places[FIRST_TRACK_ROW + landmarks] = drawn
    return _fitted(places)


def _directions(vectors: Float32) -> Float32:
    """Normalise the vectors to length 1. [n, dimension] float32.

    Zero vectors stay zero. NaN and infinity are replaced by 0; a later check rejects a release with such embeddings.
    """
    vectors = np.nan_to_num(vectors, posinf=0, neginf=0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Float32 = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found


def _drawn(tracks: Float32) -> Float32:
    """Return the t-SNE coordinates of the landmarks. [n, 2] float32.

    `tracks` [n, dimension] float32 are the embeddings of the landmarks, normalised to length 1. If there are too few
    landmarks, or t-SNE returns values that are not finite, return two principal components.
    """
    first = _principal(tracks)
    spread = float(first[:, 0].std()) if len(first) else 0.0
    if len(tracks) < _FEWEST or spread == 0:
        return first
    drawing: Any = TSNE(2, perplexity=_PERPLEXITY, max_iter=_ITERATIONS, init=first / spread * _FIRST_SPREAD)
    drawn: Float32 = drawing.fit_transform(tracks).astype(np.float32)
    return drawn if np.isfinite(drawn).all() else first


def _principal(tracks: Float32) -> Float32:
    """Return the first two principal components. [n, 2] float32.

    The sign of each component makes its largest absolute value positive, so that the result is deterministic.
    """
    found = np.zeros((len(tracks), 2), dtype=np.float32)
    if len(tracks) == 0:
        return found
    left, values, _ = np.linalg.svd(tracks - tracks.mean(axis=0), full_matrices=False)
    kept = (left * values)[:, :2]
    farthest = kept[np.abs(kept).argmax(axis=0), np.arange(kept.shape[1])]
    found[:, : kept.shape[1]] = kept * np.where(farthest < 0, -1, 1)
    return found


def _among_landmarks(tracks: Float32, landmarks: Float32, drawn: Float32) -> Float32:
    """Return coordinates of each track from the coordinates of its nearest landmarks. [tracks, 2] float32.

    `tracks` and `landmarks` are normalised embeddings. `drawn` [landmarks, 2] are the coordinates of the landmarks.
    """
    index = ExactIndex(np.concatenate([np.zeros((FIRST_TRACK_ROW, landmarks.shape[1]), dtype=np.float32), landmarks]))
    starts = range(0, len(tracks), _AT_ONCE)
    parts = []
    for start in starts:
        rows, scores = index.search(tracks[start : start + _AT_ONCE], NEAREST + 1)
        assert (rows != PAD_ROW).all()
        parts.append(among(scores, drawn[rows - FIRST_TRACK_ROW]))
    return np.concatenate(parts)


def _fitted(places: Float32) -> Float32:
    """Centre the coordinates in place and scale both axes by one factor, so that all tracks fit between -1 and 1."""
    tracks = places[FIRST_TRACK_ROW:]
    if len(tracks) == 0:
        return places
    low, high = tracks.min(axis=0), tracks.max(axis=0)
    reach = float((high - low).max()) / 2
    places[FIRST_TRACK_ROW:] = np.clip((tracks - (low + high) / 2) / (reach or 1), -1, 1)
    return places
