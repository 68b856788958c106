"""Where the service does what keeps a core busy: off the event loop, so that health stays responsive."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Runs a bounded number of calls at a time."""

    def __init__(self, number: int) -> None:
        """At most `number` calls run at once; the others wait."""
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="ranking")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` answers."""
        call = partial(contextvars.copy_context().run, function, *args, **kwargs)  # log lines name the request
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
