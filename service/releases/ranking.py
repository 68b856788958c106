"""Batched ranking that isolates questions on which the model hangs, so that other questions are not affected.

A question asks for a list of next tracks, or for the order of given candidates.

If a batch fails or times out, its questions are retried one by one in a separate thread pool. If a question times out
in that pool, each track of its window is ranked in a window of its own. Tracks that time out again are blocked for a
while. If no single track times out, the whole window is tried once more and is blocked if it times out again. A single
timeout blocks nothing, because a busy machine may have caused the timeout. Questions with a blocked track or window are
rejected immediately, so that they use no thread. The service answers these questions with the fallback.
"""

import asyncio
import math
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from segue.catalogue import PAD_ROW
from segue.errors import ModelUnavailable
from segue.filters import Filter
from segue.recommend import Source
from segue.sessions import Play, RepeatPolicy
from segue.window import to_sessions, to_windows
from service.batching import MAX_BATCH_SIZE, MicroBatch
from service.releases.loaded import LoadedRelease, Question, RecommendResult
from service.telemetry import Telemetry
from service.threads import Threads, timed_out

BLOCK_S: Final = 60.0  # how long a track or window is blocked before it is tried again
_MAX_ALONE: Final = 4 * MAX_BATCH_SIZE  # maximum number of questions queued for the separate pool
_MAX_REMEMBERED: Final = 10_000  # maximum number of suspect tracks, and of suspect windows
_MAX_CULPRITS: Final = 2  # per window; finding each of them takes a full deadline

_Window: TypeAlias = tuple[tuple[str, bool], ...]  # (track id, skipped) pairs
_TRY_ALONE: Final = -math.inf

Cause = TypeVar("Cause", str, _Window)


class _AskAlone(Exception):
    """The batch of a question failed. The caller must retry the question alone."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Ranking:
    """Ranks questions with one release. Use an instance in one event loop only."""

    def __init__(
        self, live: LoadedRelease, threads: Threads, alone: Threads, max_concurrent_batches: int, telemetry: Telemetry
    ) -> None:
        """Run at most `max_concurrent_batches` batches concurrently in the pool `threads`.

        The pool `alone` ranks questions that are retried alone.
        """
        # These objects have no reference cycle, so a replaced release is freed when its last request ends.
        self._ranker = _Ranker(live, threads, alone, telemetry)
        self._batched = MicroBatch(self._ranker.rank, max_concurrent_batches)

    def rank_with(self, live: LoadedRelease) -> None:
        """Rank with the same release with other added tracks from now on."""
        self._ranker.live = live

    async def __call__(self, question: Question) -> RecommendResult:
        """Recommend the next tracks for one question. Raises ModelUnavailable if the model hangs on the question.

        Any other exception of the model for this question is raised unchanged.
        """
        if self._ranker.is_suspect(question):
            return await self._ranker.ask_alone(question, timed_out(self._ranker.timeout_s))
        try:
            return await self._batched(question)
        except _AskAlone as failed:
            error = failed.error
        return await self._ranker.ask_alone(question, error)


class _Ranker:
    def __init__(self, live: LoadedRelease, threads: Threads, alone: Threads, telemetry: Telemetry) -> None:
        self.timeout_s = threads.timeout_s
        self.live = live
        self._threads = threads
        self._alone = alone
        self._batch_sizes = telemetry.batch_size.labels("ranking")
        self._lane = asyncio.Lock()
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # Tracks and windows that may hang the model, with the time until which they are blocked. Both dictionaries are
        # empty until the first timeout.
        self._tracks: dict[str, float] = {}
        self._windows: dict[_Window, float] = {}  # windows that hang although no single track of them hangs

    async def rank(self, questions: list[Question]) -> Sequence[RecommendResult | BaseException]:
        """Return the result or the exception for each question. _AskAlone means that the caller must retry it alone."""
        suspect = [self.is_suspect(question) for question in questions]
        if any(suspect):  # some questions became suspect while they were queued
            again = _AskAlone(timed_out(self.timeout_s))
            others = [question for question, is_suspect in zip(questions, suspect, strict=True) if not is_suspect]
            answers = iter(await self.rank(others))
            return [again if is_suspect else next(answers) for is_suspect in suspect]
        if not questions:
            return []
        self._batch_sizes.observe(len(questions))
        try:
            return await self._threads.run(self._answer, questions)
        except Exception as error:  # noqa: BLE001 (exceptions of ONNX Runtime and FAISS have no common base class)
            if isinstance(error, ModelUnavailable):
                if self._threads.exhausted:
                    return [error] * len(questions)
                for question in questions:
                    self._suspect(question)
            if len(questions) == 1:
                if isinstance(error, ModelUnavailable):
                    self._start(self._examine(questions[0]))
                return [error]
            return [_AskAlone(error) for _ in questions]

    async def ask_alone(self, question: Question, error: Exception) -> RecommendResult:
        """Rank one question alone and return the result. Raises `error` if too many questions are queued."""
        self._check_blocked(question)
        if self._waiting >= _MAX_ALONE:
            raise error
        answer: asyncio.Future[RecommendResult] = asyncio.get_running_loop().create_future()
        self._start(self._answer_alone(question, answer))
        return await answer

    async def _answer_alone(self, question: Question, answer: "asyncio.Future[RecommendResult]") -> None:
        self._waiting += 1
        try:
            async with self._lane:
                if answer.done():
                    return  # the client has disconnected
                try:
                    self._check_blocked(question)
                    [found] = await self._alone.run(self._answer, [question])
                except Exception as error:  # noqa: BLE001 (exceptions of ONNX Runtime and FAISS have no common base class)
                    if not answer.done():
                        answer.set_exception(error)
                    if isinstance(error, ModelUnavailable) and not self._is_blocked(question):
                        await self._find_culprits(question)
                else:
                    self._clear(question)
                    if not answer.done():
                        answer.set_result(found)
        finally:
            self._waiting -= 1

    async def _examine(self, question: Question) -> None:
        """Find the tracks that hang the model, for a question that was alone in its batch."""
        async with self._lane:
            if not self._is_blocked(question):
                await self._find_culprits(question)

    async def _find_culprits(self, question: Question) -> None:
        """Rank each track of a window alone. Block the tracks that hang, or the window if no single track hangs."""
        window = self._window(question)
        culprits = 0
        for track_id, play in {play.track_id: play for play in window}.items():
            if culprits == _MAX_CULPRITS or self._alone.exhausted:
                return
            if await self._hangs([play]):
                _remember(self._tracks, track_id, time.monotonic() + BLOCK_S)
                culprits += 1
            else:
                self._tracks.pop(track_id, None)
        if not culprits and len(window) > 1 and await self._hangs(window[::-1]):
            _remember(self._windows, _as_key(window), time.monotonic() + BLOCK_S)

    async def _hangs(self, plays: Sequence[Play]) -> bool:
        try:
            await self._alone.run(self._answer, [Question(plays, 1)])
        except ModelUnavailable:
            return True
        except Exception:  # noqa: BLE001 (an error is not a hang)
            return False
        return False

    def _answer(self, questions: Sequence[Question]) -> list[RecommendResult]:
        return answer_all(self.live, questions)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- suspects ---

    def _window(self, question: Question) -> list[Play]:
        """Return the plays in the encoder's window, latest first."""
        length, catalogue = self.live.release.manifest.window.length, self.live.catalogue
        seen: list[Play] = []
        for play in reversed(question.plays):
            if play.track_id in catalogue:
                seen.append(play)
                if len(seen) == length:
                    break
        return seen

    def is_suspect(self, question: Question) -> bool:
        """Return True if the question must be ranked alone."""
        if not self._windows and not (self._tracks and any(play.track_id in self._tracks for play in question.plays)):
            return False
        window = self._window(question)
        return _as_key(window) in self._windows or any(play.track_id in self._tracks for play in window)

    def _is_blocked(self, question: Question) -> bool:
        """Return True if the question has a blocked track or window."""
        now = time.monotonic()
        window = self._window(question)
        return self._windows.get(_as_key(window), _TRY_ALONE) > now or any(
            self._tracks.get(play.track_id, _TRY_ALONE) > now for play in window
        )

    def _check_blocked(self, question: Question) -> None:
        if self._is_blocked(question):
            raise timed_out(self.timeout_s)

    def _suspect(self, question: Question) -> None:
        """Mark the tracks of a question as suspect.

        Questions with a suspect track are ranked alone. A track is no longer suspect after one of them succeeds.
        """
        for play in self._window(question):
            _remember(self._tracks, play.track_id, self._tracks.get(play.track_id, _TRY_ALONE))

    def _clear(self, question: Question) -> None:
        window = self._window(question)
        self._windows.pop(_as_key(window), None)
        for play in window:
            self._tracks.pop(play.track_id, None)


def _remember(causes: dict[Cause, float], cause: Cause, until: float) -> None:
    """Add or update a cause as the latest entry. Drop the oldest entry if there are too many."""
    causes.pop(cause, None)
    causes[cause] = until
    if len(causes) > _MAX_REMEMBERED:
        del causes[next(iter(causes))]


def _as_key(window: Sequence[Play]) -> _Window:
    return tuple((play.track_id, play.skipped) for play in window)


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
    if not any(isinstance(one, RankQuestion) for one in questions):
        return live.answer(questions)
    lists = [one for one in questions if not isinstance(one, RankQuestion)]
    listed = iter(live.answer(lists) if lists else ())
    return [rank_candidates(live, one) if isinstance(one, RankQuestion) else next(listed) for one in questions]


def popular(live: LoadedRelease, question: Question) -> RecommendResult:
    """Answer one question by popularity, without the encoder and the index. The fallback if the model fails."""
    if isinstance(question, RankQuestion):
        return rank_candidates(live, replace(question, plays=(), station=None))
    return live.popular(question)
