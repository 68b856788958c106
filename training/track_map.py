"""The map of a release's tracks: t-SNE of the most played ones, and all others among the nearest of those.

t-SNE (van der Maaten and Hinton, JMLR 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html) keeps neighbours
together; two principal components do not. For the ten nearest on the map of 2,000 synthetic tracks, its
trustworthiness (Venna and Kaski, 2001; 1 is the best, 0.5 chance) is 0.99, theirs 0.68. Its time grows with the number
of points, so at most `LANDMARKS` tracks take part.
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
_FEWEST: Final = 50  # below, neighbourhoods say nothing: two principal components do
_PERPLEXITY: Final = 30
_ITERATIONS: Final = 500  # 300 leave the map of embeddings with a skip loss half unfolded (.95 instead of .99)
_AT_ONCE: Final = 65_536
_FIRST_SPREAD: Final = 1e-4  # of t-SNE's first places, as its authors have it


def track_map(embeddings: Float32, plays: Int) -> Float32:
    """A place for each track, within -1 to 1 in both directions. [num_rows, 2] float32; row 0 is padding and 0.

    `embeddings` [num_rows, dimension] float32 are compared by direction, `plays` [num_rows] say who takes part in
    t-SNE.
    The same embeddings and plays have the same map on the same machine; nothing is drawn at random.
    """
    tracks = _directions(embeddings[FIRST_TRACK_ROW:])
    places = np.zeros((len(embeddings), 2), dtype=np.float32)
    landmarks: Int = np.argsort(-plays[FIRST_TRACK_ROW:], kind="stable")[:LANDMARKS]
    with threadpool_limits(1):  # the order in which threads add up would tell
        drawn = _drawn(tracks[landmarks])
        if len(landmarks) == len(tracks):
            places[FIRST_TRACK_ROW + landmarks] = drawn
        else:
            places[FIRST_TRACK_ROW:] = _among_landmarks(tracks, tracks[landmarks], drawn)
            places[FIRST_TRACK_ROW + landmarks] = drawn
    return _fitted(places)


def _directions(vectors: Float32) -> Float32:
    """The vectors at length 1; those that are 0, or no numbers (which a release is refused for later), at 0."""
    vectors = np.nan_to_num(vectors, posinf=0, neginf=0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Float32 = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found


def _drawn(tracks: Float32) -> Float32:
    """Places of the landmarks, `tracks` [n, dimension] float32 of length 1. [n, 2] float32."""
    first = _principal(tracks)
    spread = float(first[:, 0].std()) if len(first) else 0.0
    if len(tracks) < _FEWEST or spread == 0:
        return first
    drawing: Any = TSNE(2, perplexity=_PERPLEXITY, max_iter=_ITERATIONS, init=first / spread * _FIRST_SPREAD)
    drawn: Float32 = drawing.fit_transform(tracks).astype(np.float32)
    return drawn if np.isfinite(drawn).all() else first


def _principal(tracks: Float32) -> Float32:
    """The first two principal components, whose signs are chosen so that the farthest track is on the positive side."""
    found = np.zeros((len(tracks), 2), dtype=np.float32)
    if len(tracks) == 0:
        return found
    left, values, _ = np.linalg.svd(tracks - tracks.mean(axis=0), full_matrices=False)
    kept = (left * values)[:, :2]
    farthest = kept[np.abs(kept).argmax(axis=0), np.arange(kept.shape[1])]
    found[:, : kept.shape[1]] = kept * np.where(farthest < 0, -1, 1)
    return found


def _among_landmarks(tracks: Float32, landmarks: Float32, drawn: Float32) -> Float32:
    """Each track among the nearest landmarks. [tracks, 2] float32."""
    index = ExactIndex(np.concatenate([np.zeros((FIRST_TRACK_ROW, landmarks.shape[1]), dtype=np.float32), landmarks]))
    starts = range(0, len(tracks), _AT_ONCE)
    parts = []
    for start in starts:
        rows, scores = index.search(tracks[start : start + _AT_ONCE], NEAREST + 1)
        assert (rows != PAD_ROW).all()
        parts.append(among(scores, drawn[rows - FIRST_TRACK_ROW]))
    return np.concatenate(parts)


def _fitted(places: Float32) -> Float32:
    """The places moved and scaled evenly, so that the tracks just fit between -1 and 1."""
    tracks = places[FIRST_TRACK_ROW:]
    if len(tracks) == 0:
        return places
    low, high = tracks.min(axis=0), tracks.max(axis=0)
    reach = float((high - low).max()) / 2
    places[FIRST_TRACK_ROW:] = np.clip((tracks - (low + high) / 2) / (reach or 1), -1, 1)
    return places
