"""Batched ranking that isolates questions on which the model hangs, so that other questions are not affected.

If a batch fails or times out, its questions are retried one by one in a separate thread pool. If a question times out
in that pool, each track of its window is ranked in a window of its own. Tracks that time out again are blocked for a
while. If no single track times out, the whole window is tried once more and is blocked if it times out again. A single
timeout blocks nothing, because a busy machine may have caused the timeout. Questions with a blocked track or window are
rejected immediately, so that they use no thread. The service answers these questions with the fallback.
"""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from segue.errors import ModelUnavailable
from segue.sessions import Play
from service.batching import MAX_BATCH_SIZE, MicroBatch
from service.releases.candidates import RankQuestion, answer_all
from service.releases.loaded import LoadedRelease, Question, RecommendResult
from service.telemetry import Telemetry
from service.threads import Threads, timed_out

BLOCK_S: Final = 60.0  # how long a track or window is blocked before it is tried again
_MAX_ALONE: Final = 4 * MAX_BATCH_SIZE  # maximum number of questions queued for the separate pool
_MAX_REMEMBERED: Final = 10_000  # maximum number of suspect tracks, and of suspect windows
_MAX_CULPRITS: Final = 2  # per window; finding each of them takes a full deadline

_Window: TypeAlias = tuple[tuple[str, bool], ...]  # (track id, skipped) pairs
_TRY_ALONE: Final = -math.inf


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
        if any(isinstance(question, RankQuestion) for question in questions):
            return answer_all(self.live, questions)
        return self.live.answer(questions)

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


Cause = TypeVar("Cause", str, _Window)


def _remember(causes: dict[Cause, float], cause: Cause, until: float) -> None:
    """Add or update a cause as the latest entry. Drop the oldest entry if there are too many."""
    causes.pop(cause, None)
    causes[cause] = until
    if len(causes) > _MAX_REMEMBERED:
        del causes[next(iter(causes))]


def _as_key(window: Sequence[Play]) -> _Window:
    return tuple((play.track_id, play.skipped) for play in window)
