"""Work that waits together is done together, and nothing waits when there is nothing to wait for.

A request that finds the work idle starts at once, alone. Those that come while it runs are the next batch. So batches
are as large as the load makes them, and there is no time to tune.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from segue.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST: Final = 64
# service/http/admission_control.py lets far fewer in; this bounds the memory whoever calls.
MAX_QUEUE: Final = 4096


class MicroBatch(Generic[Item, Result]):
    """Calls `work` with batches of what it is called with. For one event loop."""

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        max_concurrent_batches: int = 1,
        largest: int = LARGEST,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        """`work` answers for each item in its order, with an exception for an item that failed.

        At most `max_concurrent_batches` batches of at most `largest` items run at a time, and `max_queue` items wait.
        """
        self._work = work
        self._at_once = max_concurrent_batches
        self._largest = largest
        self._most_waiting = max_queue
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item) -> Result:
        """The result for one item. Raises what `work` raised or answered for it, and Overloaded if too many wait."""
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting:,} others wait already: try again in a moment")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running < self._at_once:
            self._running += 1
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)  # asyncio itself keeps no reference
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self) -> None:
        try:
            while batch := self._next():
                await self._do(batch)
        finally:
            self._running -= 1  # at once, not when the task is noticed to be done: nobody may wait for a finished one

    async def _do(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 (every caller gets it)
            results = [error] * len(batch)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue  # its caller has gone
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _next(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._largest:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
