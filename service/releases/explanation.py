"""Explain an answer: contributions of plays, ranks without skips, excluded tracks, positions on the map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from segue.arrays import Float32
from segue.catalogue import PAD_ROW, Row
from segue.explain import contributions
from segue.map_projection import NEAREST, among
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
    contributions: Float32  # [tracks, plays] float32, see segue.explain; a row adds up to its track's score
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
