"""Micro-batching without a delay: items that arrive while a batch runs form the next batch.

If nothing runs, an item starts immediately, alone. So the batch size follows the load, and there is no batching window
to tune.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from segue.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH_SIZE: Final = 64
# service/http/admission_control.py accepts far fewer requests. This bounds the memory independently of it.
MAX_QUEUE: Final = 4096


class MicroBatch(Generic[Item, Result]):
    """Combines the items of concurrent calls into batches and calls `work` with each batch. For one event loop."""

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        max_concurrent_batches: int = 1,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        """`work` returns one result per item, in order. The result of a failed item is an exception.

        At most `max_concurrent_batches` batches of at most `max_batch_size` items run concurrently, and at most
        `max_queue` items are queued.
        """
        self._work = work
        self._max_concurrent_batches = max_concurrent_batches
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item) -> Result:
        """Return the result for one item. Raises its exception from `work`, or Overloaded if the queue is full."""
        if len(self._queue) >= self._max_queue:
            raise Overloaded(f"{self._max_queue:,} requests are already queued: try again in a moment")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._running < self._max_concurrent_batches:
            self._running += 1
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)  # asyncio itself keeps no reference
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self) -> None:
        try:
            while batch := self._next_batch():
                await self._run(batch)
        finally:
            self._running -= 1  # here, not in a done callback: an item must not queue behind a finished task

    async def _run(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
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
                continue  # its caller was cancelled
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _next_batch(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._queue and len(batch) < self._max_batch_size:
            item, future = self._queue.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
