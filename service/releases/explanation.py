"""Explain an answer: contributions of plays, ranks without skips, excluded tracks, positions on the map.

The ranker can score a track for any subset of a session's plays. The contribution of a play is therefore defined as its
Shapley value: the play is added to the plays before it in an ordering, and the change of the score is averaged over
many orderings. The contributions of all plays add up to the score. If the score is a mixture of parts (segue.hybrid),
the parts of a track also add up to its score. A play that never changes the score has the contribution 0. Random
orderings are sampled in pairs, each with its reverse, to reduce the variance.

Source: Shapley, "A value for n-person games", 1953; Strumbelj and Kononenko, "Explaining prediction models and
individual predictions with feature contributions", Knowledge and Information Systems 2014,
https://doi.org/10.1007/s10115-013-0679-x; antithetic sampling of orderings: Mitchell et al., JMLR 2022,
https://arxiv.org/abs/2104.12199.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from segue.arrays import Bool, Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Row
from segue.hybrid import ALL_PARTS, HybridRanker
from segue.map_projection import NEAREST, among
from segue.ngram import POPULARITY_PRIOR
from segue.recommend import CautiousRanker, Ranker
from segue.sessions import Play
from segue.window import Windows, to_sessions, to_windows
from service.releases.added_ranker import AddedRanker
from service.releases.lists import Move
from service.releases.loaded import LoadedRelease, Question, RecommendResult, Track
from service.releases.stations import StationRanker

RANKED_AGAIN: Final = 200


@dataclass(frozen=True, slots=True)
class ExcludedTrack:
    """A track that would appear in the answer if it were not excluded."""

    track: Track
    rank: int  # rank among all tracks; 1 is the best
    heard: bool  # True: excluded because of a play of the session (Question.repeat). False: excluded by the client


@dataclass(frozen=True, slots=True)
class Places:
    """Positions of a session and its next tracks on the map, each [n, 2] float32."""

    path: Float32  # all plays of the session, oldest first; NaN for a track outside the catalogue
    plays: Float32  # the plays in the window, oldest first
    items: Float32  # the recommended tracks, best first
    query: Float32 | None  # [2] float32, position of the query vector; None if the session has no query


@dataclass(frozen=True, slots=True)
class Explanation:
    """The reasons for the ranks of the tracks in an answer."""

    plays: list[tuple[Track, bool]]  # (track, skipped) for each play in the window, oldest first
    contributions: Float32  # [tracks, plays] float32; each row and the baseline add up to the score of its track
    baseline: list[float] | None  # the score of each track without any play; None if it is 0
    parts: list[dict[str, float]] | None  # for each track, what each part of a mixture adds to its score
    ranks_without_skips: list[int | None]  # rank of each track if skipped plays are removed; None beyond RANKED_AGAIN
    moves: list[list[Move]] | None  # for each track, the steps that changed its rank; None without policy and spacing
    filtered: list[ExcludedTrack]
    places: Places | None  # None if the release has no map


def explain_answer(live: LoadedRelease, question: Question, answer: RecommendResult) -> Explanation:
    """Explain the answer of `live` to `question`. The encoder runs on up to a few hundred windows."""
    catalogue, caution = live.catalogue, live.caution(question.caution)
    # A popularity answer has no station: it is the fallback.
    recommender = live.recommender_for(question.filter, question.station if answer.source == "model" else None)
    heard_plays = question.plays[question.repeat.start(len(question.plays)) :]
    heard = set(catalogue.rows([play.track_id for play in heard_plays]).tolist())
    # A popularity answer does not depend on the plays, so they are not explained.
    sessions = to_sessions([question.plays if answer.source == "model" else ()], catalogue)
    window = to_windows(sessions, live.release.manifest.window.length)
    seen = np.flatnonzero(window.tracks[0] != PAD_ROW)
    excluded = np.array(sorted((heard | set(catalogue.rows(question.exclude).tolist())) - {PAD_ROW}), dtype=np.int64)

    [unfiltered] = recommender.recommend(sessions, len(answer.rows) + len(excluded), caution=caution)
    rank_of = {row: rank for rank, row in enumerate(unfiltered.rows.tolist(), start=1)}
    last = max((rank_of[row] for row in answer.rows if row in rank_of), default=0)
    filtered = sorted((rank_of[row], row) for row in excluded.tolist() if rank_of.get(row, last) < last)

    [unskipped] = recommender.recommend(sessions.played(), RANKED_AGAIN, [excluded], caution=caution)
    ranks = {row: rank for rank, row in enumerate(unskipped.rows.tolist(), start=1)}
    targets = np.array(answer.rows, dtype=np.int64)
    plays: list[Row] = window.tracks[0, seen].tolist()
    ranker = recommender.ranker_with(caution)
    baseline = _without_plays(live, ranker, window.tracks.shape[1], targets)
    return Explanation(
        plays=[(live.track(row), bool(skip)) for row, skip in zip(plays, window.skipped[0, seen], strict=True)],
        contributions=contributions(ranker, window, targets, baseline=baseline),
        baseline=baseline.tolist() if baseline is not None and answer.source == "model" else None,
        parts=_parts(live, ranker, window, targets) if answer.source == "model" else None,
        ranks_without_skips=[ranks.get(row) for row in answer.rows],
        moves=answer.steps.moves(answer.rows) if answer.steps is not None else None,
        filtered=[ExcludedTrack(live.track(row), rank, row in heard) for rank, row in filtered],
        places=_places(live, question.plays, window, plays, answer.rows) if live.has_map else None,
    )


def _parts(live: LoadedRelease, ranker: Ranker, window: Windows, targets: Int) -> list[dict[str, float]] | None:
    """Return what each part of a mixture adds to the score of each target. None if the ranker is no mixture.

    With caution, the parts are log P(next) and the weighted log P(played). With a station and without caution, they are
    those of the session and of the seeds.
    """
    mixed = ranker.ranker if isinstance(ranker, AddedRanker) else ranker
    if isinstance(ranker, CautiousRanker):
        names: tuple[str, ...] = ("next", "played")
    elif isinstance(ranker, StationRanker):
        names = ("session", "station")
    elif isinstance(mixed, HybridRanker):
        names = ALL_PARTS if live.embeddings is not None else ALL_PARTS[:-1]
    else:
        return None
    scores = cast("HybridRanker", ranker).part_scores(window, targets[None])[:, 0].T
    return [dict(zip(names, line.tolist(), strict=False)) for line in scores]


def _without_plays(live: LoadedRelease, ranker: Ranker, length: int, targets: Int) -> Float64 | None:
    """Return the score of each target without any play. None if it is 0: without caution and station.

    With caution, P(next) is by popularity. With a station, it is P(next | seeds).
    """
    if not isinstance(ranker, CautiousRanker | StationRanker):
        return None
    plays = np.maximum(live.catalogue.plays, POPULARITY_PRIOR)
    none = Windows(np.full((1, length), PAD_ROW, dtype=np.int64), np.zeros((1, length), dtype=np.bool_))
    without: Float64
    if isinstance(ranker, StationRanker) or isinstance(ranker.ranker, StationRanker):
        without = ranker.scores(none, targets[None])[0].astype(np.float64)
        return without
    log_next = np.log(plays[targets] / plays[FIRST_TRACK_ROW:].sum())
    without = log_next + ranker.caution * ranker.head.log_played(none, targets[None])[0]
    return without


def _places(
    live: LoadedRelease, session: Sequence[Play], window: Windows, plays: list[Row], items: list[Row]
) -> Places:
    positions, added = live.map.positions, live.added_rows

    def places_of(asked: Sequence[Row] | Int) -> Float32:
        found = np.asarray(asked, dtype=np.int64)
        return positions[found] if added is None else added.mean_of(positions, found)

    rows = live.catalogue.rows([play.track_id for play in session])
    path = places_of(rows)
    path[rows == PAD_ROW] = np.nan
    window = window if added is None else added.windows(window)
    query = None
    if plays and live.embeddings is not None:
        nearest = live.nearest(live.embeddings.encoder.encode(window), min(NEAREST + 1, len(live.stored_catalogue)))
        found = nearest.rows[0] != PAD_ROW
        if found.any():
            [query] = among(nearest.scores[:, found], positions[nearest.rows[:, found]])
    return Places(path, places_of(plays), places_of(items), query)


ORDERS: Final = 16  # number of orderings to average over; all orderings are used if there are at most this many
_WINDOWS_AT_ONCE: Final = 256


def contributions(
    ranker: Ranker, window: Windows, targets: Int, orders: int = ORDERS, baseline: Float64 | None = None
) -> Float32:
    """Return the contribution of each play in a window to the score of each target track. [targets, plays] float32.

    `window` [1, window] contains the plays; padding is ignored. `targets` [targets] int64 are the rows of the target
    tracks, `baseline` [targets] their scores without plays; None: 0. Each row of the result and the baseline add up to
    the score of the track. The result is deterministic.
    """
    places = np.flatnonzero(window.tracks[0] != PAD_ROW)
    count = len(places)
    if not count:
        return np.zeros((len(targets), 0), dtype=np.float32)
    drawn = _orders(count, orders)
    # joined[order, step, play]: True if the play is among the first `step + 1` plays of the ordering.
    joined = np.argsort(drawn, axis=1)[:, None, :] <= np.arange(count)[None, :, None]
    parts, which = np.unique(joined.reshape(-1, count), axis=0, return_inverse=True)
    scores = _scores(ranker, window, places, parts, targets)[which]
    scores = scores.reshape(len(drawn), count, len(targets))
    before = np.broadcast_to(0.0 if baseline is None else baseline, (len(drawn), 1, len(targets)))
    added = np.diff(scores, axis=1, prepend=before)
    total: Float64 = np.zeros((count, len(targets)))
    for order, steps in zip(drawn, added, strict=True):
        total[order] += steps
    return (total / len(drawn)).T.astype(np.float32)


def _orders(count: int, most: int) -> Int:
    """Return orderings of `count` plays: all of them, or a sample in pairs of reverses. [orders, count] int64."""
    if math.factorial(count) <= most:
        return np.array(list(itertools.permutations(range(count))), dtype=np.int64)
    rng = np.random.default_rng(count)  # a fixed seed makes the contributions deterministic
    half = np.array([rng.permutation(count) for _ in range(-(-most // 2))], dtype=np.int64)
    return np.concatenate([half, half[:, ::-1]])


def _scores(ranker: Ranker, window: Windows, places: Int, parts: Bool, targets: Int) -> Float64:
    """Return the score of each target for each subset of the plays. [parts, targets] float64.

    `places` [plays] are the columns of the plays in `window`. `parts` [parts, plays] marks the plays of each subset.
    """
    length = window.tracks.shape[1]
    tracks, skipped = window.tracks[0, places], window.skipped[0, places]
    # The column of each selected play: the plays of a subset fill the window from the right, without gaps.
    columns = length - np.cumsum(parts[:, ::-1], axis=1)[:, ::-1]
    lines, plays = np.nonzero(parts)
    shown = Windows(
        np.full((len(parts), length), PAD_ROW, dtype=np.int64), np.zeros((len(parts), length), dtype=np.bool_)
    )
    shown.tracks[lines, columns[lines, plays]] = tracks[plays]
    shown.skipped[lines, columns[lines, plays]] = skipped[plays]
    starts = range(0, len(parts), _WINDOWS_AT_ONCE)
    blocks = [shown.select(slice(start, start + _WINDOWS_AT_ONCE)) for start in starts]
    rows = [np.broadcast_to(targets, (len(block), len(targets))) for block in blocks]
    return np.concatenate([ranker.scores(*asked) for asked in zip(blocks, rows, strict=True)]).astype(np.float64)
