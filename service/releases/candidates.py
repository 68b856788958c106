"""Rank given candidates for a session, by the same rankers as recommendations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segue.catalogue import PAD_ROW
from segue.filters import Filter
from segue.recommend import Source
from segue.sessions import Play, RepeatPolicy
from segue.window import to_sessions, to_windows
from service.releases.loaded import LoadedRelease, Question, RecommendResult


@dataclass(frozen=True, slots=True)
class RankQuestion(Question):
    """A request to rank `candidates` for one session. `k`, `exclude` and `repeat` have no effect.

    The caller removes candidates that must not be in the answer (`without_unwanted`).
    """

    candidates: Sequence[str] = ()


def without_unwanted(
    candidates: Sequence[str], plays: Sequence[Play], repeat: RepeatPolicy, unwanted: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Return the candidates that `repeat` allows after `plays`, without unwanted ones, and the others, in order."""
    heard = {*unwanted, *(play.track_id for play in plays[repeat.start(len(plays)) :])}
    allowed = [track_id for track_id in candidates if track_id not in heard]
    return allowed, [track_id for track_id in candidates if track_id in heard]


def outside_filter(live: LoadedRelease, wanted: Filter, candidates: Sequence[str]) -> list[str]:
    """Return the candidates that a filter does not allow. Unknown ones are among them: they have no attributes."""
    allowed = live.allowed(wanted)
    assert allowed is not None
    inside = allowed.contains(live.catalogue.rows(candidates)).tolist()
    return [track_id for track_id, is_inside in zip(candidates, inside, strict=True) if not is_inside]


def rank_candidates(live: LoadedRelease, question: RankQuestion) -> RecommendResult:
    """Return the candidates in the catalogue by descending score; of equal scores, in the caller's order.

    Unknown candidates are not in the result. Popularity answers if the session has no play of a known track.
    """
    sessions = to_sessions([question.plays], live.catalogue)
    recommender = live.recommender_for(None, question.station)
    windows = to_windows(sessions, recommender.window)
    known = windows.tracks[0] != PAD_ROW
    skips = int(windows.skipped[0].sum())
    source: Source = "model" if known.any() or question.station else "popularity"
    rows = live.catalogue.rows(question.candidates)
    rows = rows[rows != PAD_ROW]
    scores = np.empty(0, dtype=np.float32)
    if len(rows):
        scores = recommender.scores(sessions, rows[None], live.caution(question.caution))[0]
        order = np.argsort(-scores, kind="stable")
        rows, scores = rows[order], scores[order]
    return RecommendResult(live, source, rows.tolist(), scores, int(known.sum()) - skips, skips)


def answer_all(live: LoadedRelease, questions: Sequence[Question]) -> list[RecommendResult]:
    """Answer questions of both kinds, in order. An answer does not depend on the other questions."""
    lists = [one for one in questions if not isinstance(one, RankQuestion)]
    listed = iter(live.answer(lists) if lists else ())
    return [rank_candidates(live, one) if isinstance(one, RankQuestion) else next(listed) for one in questions]


def popular(live: LoadedRelease, question: Question) -> RecommendResult:
    """Answer one question by popularity, without the encoder and the index. The fallback if the model fails."""
    if isinstance(question, RankQuestion):
        return rank_candidates(live, replace(question, plays=(), station=None))
    return live.popular(question)
