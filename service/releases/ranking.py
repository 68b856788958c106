"""Batched ranking in which a question that hangs the model does not affect the others.

If a batch fails or times out, its questions are retried one by one in a separate pool. If a question times out there,
each track of its window is ranked alone. Tracks that time out again are blocked for a while; if there are none, the
window is blocked if it times out again. A single timeout blocks nothing, because the machine may have caused it.
Questions with a blocked track are rejected immediately, so that they occupy no thread, and get the fallback.
"""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from segue.errors import ModelUnavailable
from segue.sessions import Play
from service.batching import MAX_BATCH_SIZE, MicroBatch
from service.releases.loaded import LoadedRelease, Question, RecommendResult
from service.telemetry import Telemetry
from service.threads import Threads, timed_out

BLOCK_S: Final = 60.0  # how long a track or window is blocked before it is tried again
_MAX_ALONE: Final = 4 * MAX_BATCH_SIZE  # questions queued for the separate pool
_MAX_REMEMBERED: Final = 10_000  # tracks, and windows
_MAX_CULPRITS: Final = 2  # per window; each of them costs a whole deadline

_Window: TypeAlias = tuple[tuple[str, bool], ...]  # (track id, skipped) pairs
_TRY_ALONE: Final = -math.inf


class _AskAlone(Exception):
    """The question's batch failed. Retry the question alone."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Ranking:
    """Ranks questions with one release. For one event loop."""

    def __init__(
        self, live: LoadedRelease, threads: Threads, alone: Threads, max_concurrent_batches: int, telemetry: Telemetry
    ) -> None:
        """At most `max_concurrent_batches` batches run in `threads`. Questions retried alone run in `alone`."""
        # Two objects without a reference cycle, so that a replaced release is freed with its last request.
        self._ranker = _Ranker(live, threads, alone, telemetry)
        self._batched = MicroBatch(self._ranker.rank, max_concurrent_batches)

    async def __call__(self, question: Question) -> RecommendResult:
        """Recommend the next tracks. Raises the model's error for this question, ModelUnavailable if it hangs."""
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
        self._live = live
        self._threads = threads
        self._alone = alone
        self._batch_sizes = telemetry.batch_size.labels("ranking")
        self._lane = asyncio.Lock()
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # What may hang the model, and until when it is blocked. Both are empty until the first timeout.
        self._tracks: dict[str, float] = {}
        self._windows: dict[_Window, float] = {}  # windows that hang although none of their tracks does

    async def rank(self, questions: list[Question]) -> Sequence[RecommendResult | BaseException]:
        """The result or the error of each question; _AskAlone if it must be retried alone."""
        suspect = [self.is_suspect(question) for question in questions]
        if any(suspect):  # they became suspect while they were queued
            again = _AskAlone(timed_out(self.timeout_s))
            others = [question for question, is_suspect in zip(questions, suspect, strict=True) if not is_suspect]
            answers = iter(await self.rank(others))
            return [again if is_suspect else next(answers) for is_suspect in suspect]
        if not questions:
            return []
        self._batch_sizes.observe(len(questions))
        try:
            return await self._threads.run(self._live.answer, questions)
        except Exception as error:  # noqa: BLE001 (ONNX Runtime's and FAISS's errors share no class of their own)
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
        """The result of one question. Raises `error` if too many are queued."""
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
                    return  # its client has disconnected
                try:
                    self._check_blocked(question)
                    [found] = await self._alone.run(self._live.answer, [question])
                except Exception as error:  # noqa: BLE001 (as above)
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
        """Find the culprits of a question that was alone in its batch."""
        async with self._lane:
            if not self._is_blocked(question):
                await self._find_culprits(question)

    async def _find_culprits(self, question: Question) -> None:
        """Rank each track of a window alone. Block the tracks that hang, otherwise the window."""
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
            await self._alone.run(self._live.answer, [Question(plays, 1)])
        except ModelUnavailable:
            return True
        except Exception:  # noqa: BLE001 (an error is not a hang)
            return False
        return False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- suspects ---

    def _window(self, question: Question) -> list[Play]:
        """The plays in the encoder's window, latest first."""
        length, catalogue = self._live.release.manifest.window.length, self._live.catalogue
        seen: list[Play] = []
        for play in reversed(question.plays):
            if play.track_id in catalogue:
                seen.append(play)
                if len(seen) == length:
                    break
        return seen

    def is_suspect(self, question: Question) -> bool:
        """Whether the question must be ranked alone."""
        if not self._windows and not (self._tracks and any(play.track_id in self._tracks for play in question.plays)):
            return False
        window = self._window(question)
        return _as_key(window) in self._windows or any(play.track_id in self._tracks for play in window)

    def _is_blocked(self, question: Question) -> bool:
        """Whether the question has a blocked track or window."""
        now = time.monotonic()
        window = self._window(question)
        return self._windows.get(_as_key(window), _TRY_ALONE) > now or any(
            self._tracks.get(play.track_id, _TRY_ALONE) > now for play in window
        )

    def _check_blocked(self, question: Question) -> None:
        if self._is_blocked(question):
            raise timed_out(self.timeout_s)

    def _suspect(self, question: Question) -> None:
        """Rank every question with a track of this one alone, until one of them succeeds."""
        for play in self._window(question):
            _remember(self._tracks, play.track_id, self._tracks.get(play.track_id, _TRY_ALONE))

    def _clear(self, question: Question) -> None:
        window = self._window(question)
        self._windows.pop(_as_key(window), None)
        for play in window:
            self._tracks.pop(play.track_id, None)


Cause = TypeVar("Cause", str, _Window)


def _remember(causes: dict[Cause, float], cause: Cause, until: float) -> None:
    """Add a cause as the latest one. The oldest is dropped at the limit."""
    causes.pop(cause, None)
    causes[cause] = until
    if len(causes) > _MAX_REMEMBERED:
        del causes[next(iter(causes))]


def _as_key(window: Sequence[Play]) -> _Window:
    return tuple((play.track_id, play.skipped) for play in window)
