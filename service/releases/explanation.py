"""Explain an answer: contributions of plays, ranks without skips, excluded tracks, positions on the map.

The score of a track is the inner product of its embedding and the encoder's query, and a query can be made of any part
of a session's plays. So the plays are players of a game whose outcome is the score, and the contribution of a play is
its Shapley value: what it adds to the plays before it, on average over the orders of the plays. Contributions add up
to the score, and a play that changes nothing has 0. Orders are drawn in pairs of reverses, for a smaller variance.

Source: Shapley, "A value for n-person games", 1953; Strumbelj and Kononenko, "Explaining prediction models and
individual predictions with feature contributions", Knowledge and Information Systems 2014,
https://doi.org/10.1007/s10115-013-0679-x; pairs of orders: Mitchell et al., JMLR 2022, https://arxiv.org/abs/2104.12199.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import PAD_ROW, Row
from segue.map_projection import NEAREST, among
from segue.recommend import QueryEncoder
from segue.sessions import Play
from segue.window import Windows, to_sessions, to_windows
from service.releases.loaded import LoadedRelease, Question, RecommendResult, Track

RANKED_AGAIN: Final = 200


@dataclass(frozen=True, slots=True)
class ExcludedTrack:
    """A track that was excluded from an answer, although it would rank within it."""

    track: Track
    rank: int  # among all tracks, from 1
    heard: bool  # excluded as heard in the session, otherwise as one that the client excludes


@dataclass(frozen=True, slots=True)
class Places:
    """Positions of a session and its next tracks on the map, each [n, 2] float32."""

    path: Float32  # every play of the session, oldest first; NaN if the track is not in the catalogue
    plays: Float32  # the plays in the window, oldest first
    items: Float32  # the next tracks, best first
    query: Float32 | None  # [2] float32, the query vector; None if there is none


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the tracks of an answer have their ranks."""

    plays: list[tuple[Track, bool]]  # the plays in the window, oldest first, and whether they were skipped
    contributions: Float32  # [tracks, plays] float32, a row adds up to its track's score
    ranks_without_skips: list[int | None]  # of each track, if no play had been skipped; None beyond RANKED_AGAIN
    filtered: list[ExcludedTrack]
    places: Places | None  # None if the release has no map


def explain_answer(live: LoadedRelease, question: Question, answer: RecommendResult) -> Explanation:
    """Explain the answer of `live` to `question`. Runs the encoder some hundred times."""
    catalogue, recommender = live.catalogue, live.recommender
    heard = set(catalogue.rows([play.track_id for play in question.plays]).tolist() if question.exclude_heard else [])
    # Popularity uses no plays, whether the session has none or the model failed.
    sessions = to_sessions([question.plays if answer.source == "model" else ()], catalogue)
    window = to_windows(sessions, live.release.manifest.window.length)
    seen = np.flatnonzero(window.tracks[0] != PAD_ROW)
    excluded = np.array(sorted((heard | set(catalogue.rows(question.exclude).tolist())) - {PAD_ROW}), dtype=np.int64)

    [unfiltered] = recommender.recommend(sessions, len(answer.rows) + len(excluded))
    rank_of = {row: rank for rank, row in enumerate(unfiltered.rows.tolist(), start=1)}
    last = max((rank_of[row] for row in answer.rows if row in rank_of), default=0)
    filtered = sorted((rank_of[row], row) for row in excluded.tolist() if rank_of.get(row, last) < last)

    [unskipped] = recommender.recommend(sessions.played(), RANKED_AGAIN, [excluded])
    ranks = {row: rank for rank, row in enumerate(unskipped.rows.tolist(), start=1)}
    targets = np.asarray(live.release.item_embeddings)[answer.rows]
    plays: list[Row] = window.tracks[0, seen].tolist()
    return Explanation(
        plays=[(live.track(row), bool(skip)) for row, skip in zip(plays, window.skipped[0, seen], strict=True)],
        contributions=contributions(live.encoder, window, targets),
        ranks_without_skips=[ranks.get(row) for row in answer.rows],
        filtered=[ExcludedTrack(live.track(row), rank, row in heard) for rank, row in filtered],
        places=_places(live, question.plays, window, plays, answer.rows) if live.has_map else None,
    )


def _places(
    live: LoadedRelease, session: Sequence[Play], window: Windows, plays: list[Row], items: list[Row]
) -> Places:
    positions = live.map.positions
    rows = live.catalogue.rows([play.track_id for play in session])
    path = positions[rows]
    path[rows == PAD_ROW] = np.nan
    query = None
    if plays:
        nearest = live.nearest(live.encoder.encode(window), min(NEAREST + 1, len(live.catalogue)))
        found = nearest.rows[0] != PAD_ROW
        if found.any():
            [query] = among(nearest.scores[:, found], positions[nearest.rows[:, found]])
    empty = np.empty(0, dtype=np.int64)
    return Places(path, positions[plays or empty], positions[items or empty], query)


ORDERS: Final = 16  # orders of the plays that are averaged over; all of them where there are no more
_WINDOWS_AT_ONCE: Final = 256


def contributions(encoder: QueryEncoder, window: Windows, targets: Float32, orders: int = ORDERS) -> Float32:
    """What each play of one window contributes to the score of each target track. [targets, plays] float32.

    `window` [1, window] holds the plays, of which padding is none; `targets` [targets, dimension] float32 are
    embeddings. A line adds up to the score of its track. The same window has the same contributions always.
    """
    places = np.flatnonzero(window.tracks[0] != PAD_ROW)
    count = len(places)
    if not count:
        return np.zeros((len(targets), 0), dtype=np.float32)
    drawn = _orders(count, orders)
    # joined[order, step, play]: whether the play has come in after so many steps.
    joined = np.argsort(drawn, axis=1)[:, None, :] <= np.arange(count)[None, :, None]
    parts, which = np.unique(joined.reshape(-1, count), axis=0, return_inverse=True)
    scores = (_queries(encoder, window, places, parts).astype(np.float64) @ targets.T.astype(np.float64))[which]
    scores = scores.reshape(len(drawn), count, len(targets))
    added = np.diff(scores, axis=1, prepend=0.0)  # without any play there is no query, and no score
    total: Float64 = np.zeros((count, len(targets)))
    for order, steps in zip(drawn, added, strict=True):
        total[order] += steps
    return (total / len(drawn)).T.astype(np.float32)


def _orders(count: int, most: int) -> Int:
    """Orders of `count` plays, drawn in pairs of reverses, or all of them. [orders, count] int64."""
    if math.factorial(count) <= most:
        return np.array(list(itertools.permutations(range(count))), dtype=np.int64)
    rng = np.random.default_rng(count)  # one seed: who asks again is told the same
    half = np.array([rng.permutation(count) for _ in range(-(-most // 2))], dtype=np.int64)
    return np.concatenate([half, half[:, ::-1]])


def _queries(encoder: QueryEncoder, window: Windows, places: Int, parts: Bool) -> Float32:
    """The encoder's queries for windows that hold a part of the plays, padded anew. [parts, dimension] float32."""
    length = window.tracks.shape[1]
    tracks, skipped = window.tracks[0, places], window.skipped[0, places]
    # Where each kept play goes: as many columns from the right as kept plays follow it.
    columns = length - np.cumsum(parts[:, ::-1], axis=1)[:, ::-1]
    lines, plays = np.nonzero(parts)
    shown = Windows(
        np.full((len(parts), length), PAD_ROW, dtype=np.int64), np.zeros((len(parts), length), dtype=np.bool_)
    )
    shown.tracks[lines, columns[lines, plays]] = tracks[plays]
    shown.skipped[lines, columns[lines, plays]] = skipped[plays]
    starts = range(0, len(parts), _WINDOWS_AT_ONCE)
    return np.concatenate([encoder.encode(shown.select(slice(start, start + _WINDOWS_AT_ONCE))) for start in starts])
