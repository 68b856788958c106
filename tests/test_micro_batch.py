"""What waits together is done together, and whose result is whose."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from segue.errors import Overloaded
from service.batching import MicroBatch


class PrepareJob:
    """Doubles numbers, and remembers the batches. It waits at `gate` while that is shut."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: list[int]) -> Sequence[int | BaseException]:
        self.batches.append(items)
        await self.gate.wait()
        if 13 in items:
            raise RuntimeError("the whole batch")
        return [ValueError(f"{item} is odd") if item % 2 else item * 2 for item in items]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 5))


async def _after_starting(*calls: Coroutine[Any, Any, int]) -> list["asyncio.Task[int]"]:
    tasks = [asyncio.create_task(call) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_a_lone_item_does_not_wait() -> None:
    async def test() -> None:
        work = PrepareJob()
        batch = MicroBatch(work)
        assert [await batch(2), await batch(4)] == [4, 8]
        assert work.batches == [[2], [4]]

    run(test())


def test_what_comes_while_work_runs_is_the_next_batch_up_to_the_largest() -> None:
    async def test() -> None:
        work = PrepareJob()
        work.gate.clear()
        batch = MicroBatch(work, max_batch_size=3)
        first = await _after_starting(batch(0))
        others = await _after_starting(*(batch(item) for item in (2, 4, 6, 8)))
        work.gate.set()
        assert await asyncio.gather(*first, *others) == [0, 4, 8, 12, 16]
        assert work.batches == [[0], [2, 4, 6], [8]]

    run(test())


def test_as_many_batches_run_at_once_as_allowed() -> None:
    async def test() -> None:
        work = PrepareJob()
        work.gate.clear()
        batch = MicroBatch(work, max_concurrent_batches=2)
        tasks = [task for item in (2, 4, 6) for task in await _after_starting(batch(item))]
        assert work.batches == [[2], [4]]
        work.gate.set()
        assert await asyncio.gather(*tasks) == [4, 8, 12]

    run(test())


def test_a_failure_reaches_those_it_concerns() -> None:
    async def test() -> None:
        work = PrepareJob()
        work.gate.clear()
        batch = MicroBatch(work)
        first = await _after_starting(batch(13))
        others = await _after_starting(batch(2), batch(3))
        work.gate.set()
        results = await asyncio.gather(*first, *others, return_exceptions=True)
        assert [str(result) for result in results] == ["the whole batch", "4", "3 is odd"]
        assert await batch(4) == 8

    run(test())


def test_one_who_has_gone_is_not_worked_for_and_stops_nobody() -> None:
    async def test() -> None:
        work = PrepareJob()
        work.gate.clear()
        batch = MicroBatch(work)
        running = await _after_starting(batch(0))
        gone, stays = await _after_starting(batch(2), batch(4))
        gone.cancel()
        running[0].cancel()
        await asyncio.sleep(0)
        work.gate.set()
        assert await stays == 8
        assert work.batches == [[0], [4]]
        with pytest.raises(asyncio.CancelledError):
            await gone

    run(test())


def test_what_is_too_much_is_refused_at_once_and_the_others_are_worked_for() -> None:
    async def test() -> None:
        work = PrepareJob()
        work.gate.clear()
        batch = MicroBatch(work, max_batch_size=1, max_queue=2)
        running = await _after_starting(batch(0))
        waiting = await _after_starting(batch(2), batch(4))
        with pytest.raises(Overloaded, match="2 requests are already queued"):
            await batch(6)
        work.gate.set()
        assert await asyncio.gather(*running, *waiting) == [0, 4, 8]
        assert await batch(6) == 12

    run(test())
