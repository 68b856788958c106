"""One question of a batch that fails or hangs costs the others no answer, and a bounded amount of work."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from onnxruntime import RunOptions

from segue.errors import ModelUnavailable
from segue.release import Release
from segue.sessions import Play
from service.releases.loaded import LoadedRelease, Question, RecommendResult, load_release
from service.releases.ranking import BLOCK_S, Ranking
from service.telemetry import Telemetry
from service.threads import Threads, interrupt_of_this_thread

TIMEOUT_S = 0.5
HANGS, FAILS = "g1-t01", "g1-t02"


class Faulty:
    """A live release that hangs on one track and fails on another; it remembers how many questions it was asked."""

    def __init__(self, live: LoadedRelease) -> None:
        self._live = live
        self.release, self.catalogue = live.release, live.catalogue
        self.asked: list[int] = []
        self.hangs_once = False
        self.returns = threading.Event()

    def answer(self, questions: Sequence[Question]) -> list[RecommendResult]:
        self.asked.append(len(questions))
        tracks = {play.track_id for question in questions for play in question.plays}
        if self.hangs_once:
            self.hangs_once = False
            self._hang()
        if FAILS in tracks:
            raise ValueError("it fails")
        if HANGS in tracks or ({"g2-t01", "g2-t02"} <= tracks and len(questions) == 1):
            self._hang()
        return self._live.answer(questions)

    def _hang(self) -> None:
        """Return at an interrupt only, or once the test is over."""
        interrupt = interrupt_of_this_thread(RunOptions)
        assert interrupt is not None
        while not interrupt.terminate and not self.returns.wait(0.005):
            pass
        raise RuntimeError("Exiting due to terminate flag being set to true.")


def question(*tracks: str) -> Question:
    return Question([Play(track) for track in tracks], 3)


@pytest.fixture
def faulty(tiny_release: Release) -> Iterator[Faulty]:
    faulty = Faulty(load_release(tiny_release.path))
    yield faulty
    faulty.returns.set()


def ranking_of(faulty: Faulty) -> Ranking:
    threads = Threads(1, TIMEOUT_S)
    return Ranking(faulty, threads, threads.separate_pool(1), 1, Telemetry())  # type: ignore[arg-type]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def examined(ranking: Ranking) -> None:
    """Wait until what was to be found out about a question that hung is known."""
    while tasks := set(ranking._ranker._tasks):
        await asyncio.wait(tasks)


async def all_of(ranking: Ranking, questions: Sequence[Question]) -> list[str]:
    """The source of each answer, or the error's name. All but the first are one batch."""
    found = await asyncio.gather(*(ranking(one) for one in questions), return_exceptions=True)
    return [one.source if isinstance(one, RecommendResult) else type(one).__name__ for one in found]


@pytest.mark.parametrize(("track", "error"), [(HANGS, "ModelUnavailable"), (FAILS, "ValueError")])
@pytest.mark.parametrize("place", [1, 5, 9])
def test_one_question_of_a_batch_is_at_fault(faulty: Faulty, track: str, error: str, place: int) -> None:
    async def test() -> None:
        questions = [question(f"g0-t{number:02}") for number in range(10)]
        questions[place] = question("g0-t10", track)
        expected = ["model"] * 10
        expected[place] = error
        assert await all_of(ranking_of(faulty), questions) == expected
        assert sum(faulty.asked) <= 2 * 10 + 2  # each twice, and the tracks of one

    run(test())


def test_a_track_that_hung_is_refused_without_work(faulty: Faulty) -> None:
    async def test() -> None:
        ranking = ranking_of(faulty)
        with pytest.raises(ModelUnavailable):
            await ranking(question("g0-t00", HANGS))
        await examined(ranking)  # its tracks are tried
        asked = len(faulty.asked)
        for _ in range(20):
            with pytest.raises(ModelUnavailable):
                await ranking(question("g5-t00", HANGS))
        assert len(faulty.asked) == asked
        assert (await ranking(question("g0-t00"))).source == "model"
        beyond_the_window = [Play(HANGS), *(Play(f"g3-t{number:02}") for number in range(5))]
        assert not ranking._ranker._is_blocked(Question(beyond_the_window, 3))

    run(test())


def test_a_track_is_tried_again_apart_after_a_while(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        passed = 0.0
        monkeypatch.setattr(
            "service.releases.ranking.time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
        )
        ranking = ranking_of(faulty)
        for _ in range(2):
            with pytest.raises(ModelUnavailable):
                await ranking(question(HANGS))
        await examined(ranking)
        passed = BLOCK_S  # the block of the first ends
        asked = len(faulty.asked)
        with pytest.raises(ModelUnavailable):
            await ranking(question(HANGS))
        for _ in range(3):
            with pytest.raises(ModelUnavailable):
                await ranking(question(HANGS))
        assert len(faulty.asked) == asked + 2  # tried, examined, and then refused again

    run(test())


@pytest.mark.parametrize("tracks", [("g0-t00",), ("g0-t00", "g0-t01"), ("g0-t00", "g0-t00")])
def test_nothing_is_remembered_of_what_hung_once(faulty: Faulty, tracks: tuple[str, ...]) -> None:
    """Its cause may have been the machine: a slow disk, a core taken away."""

    async def test() -> None:
        ranking = ranking_of(faulty)
        faulty.hangs_once = True
        with pytest.raises(ModelUnavailable):
            await ranking(question(*tracks))
        assert (await ranking(question(*tracks))).source == "model"
        asked = len(faulty.asked)
        assert (await ranking(question(*tracks))).source == "model"
        assert len(faulty.asked) == asked + 1
        assert not ranking._ranker._tracks
        assert not ranking._ranker._windows

    run(test())


def test_a_window_that_hangs_although_none_of_its_tracks_does_is_remembered_as_a_whole(faulty: Faulty) -> None:
    async def test() -> None:
        ranking = ranking_of(faulty)
        together = question("g2-t01", "g2-t02")
        with pytest.raises(ModelUnavailable):
            await ranking(together)
        await examined(ranking)
        asked = len(faulty.asked)
        with pytest.raises(ModelUnavailable):
            await ranking(together)
        assert len(faulty.asked) == asked
        assert (await ranking(question("g2-t01"))).source == "model"
        assert (await ranking(question("g2-t02"))).source == "model"

    run(test())
