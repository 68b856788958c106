"""Calls in threads have a deadline: interrupted where they can be, given up where not."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from segue.errors import ModelUnavailable
from service.threads import MAX_STUCK, BlockingCalls, Threads, interrupt_of_this_thread
from tests.stopwatch import Stopwatch

TIMEOUT_S = 0.2


class Interrupt:
    """Stands for onnxruntime.RunOptions."""

    terminate = False


def until_interrupted() -> None:
    interrupt = interrupt_of_this_thread(Interrupt)
    assert interrupt is not None
    while not interrupt.terminate:
        time.sleep(0.005)
    raise RuntimeError("Exiting due to terminate flag being set to true.")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def wait_until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_call_that_can_be_interrupted_is_and_its_thread_goes_on() -> None:
    async def test() -> None:
        stuck: list[int] = []
        threads = Threads(1, TIMEOUT_S, on_stuck=stuck.append)
        for _ in range(3):
            with Stopwatch() as watch, pytest.raises(ModelUnavailable, match=r"did not respond within 0\.2 s"):
                await threads.run(until_interrupted)
            assert watch.wall_seconds > TIMEOUT_S * 0.9
            assert watch.seconds < 5 * TIMEOUT_S
            assert await threads.run(lambda: 7) == 7  # not interrupted by what was meant for the call before
        assert stuck == []
        threads.close()

    run(test())


def test_what_a_call_raises_in_time_is_raised() -> None:
    async def test() -> None:
        threads = Threads(1, TIMEOUT_S)
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)
        threads.close()

    run(test())


def test_threads_that_are_stuck_are_replaced_up_to_a_number_and_accepted_again_once_they_return() -> None:
    async def test() -> None:
        stuck: list[int] = []
        threads = Threads(2, TIMEOUT_S, on_stuck=stuck.append)
        returns = threading.Event()
        for number in range(MAX_STUCK):
            assert not threads.exhausted
            with pytest.raises(ModelUnavailable):
                await threads.run(returns.wait)
            assert sum(stuck) == number + 1
            assert number == MAX_STUCK - 1 or await threads.run(lambda: 7) == 7
        assert threads.exhausted
        with Stopwatch() as watch, pytest.raises(ModelUnavailable, match="4 model calls hang"):
            await threads.run(lambda: 7)
        assert watch.seconds < TIMEOUT_S / 2
        returns.set()
        await wait_until(lambda: not threads.exhausted)
        assert await threads.run(lambda: 7) == 7
        await wait_until(lambda: sum(stuck) == 0)
        threads.close()

    run(test())


def test_calls_that_wait_behind_stuck_ones_are_given_up_with_them() -> None:
    async def test() -> None:
        threads = Threads(1, TIMEOUT_S)
        returns = threading.Event()
        calls = [asyncio.ensure_future(threads.run(returns.wait)) for _ in range(MAX_STUCK + 3)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in found] == [ModelUnavailable] * len(calls)
        returns.set()
        await wait_until(lambda: not threads.exhausted)
        threads.close()

    run(test())


def test_a_long_call_gets_more_time() -> None:
    async def test() -> None:
        threads = Threads(1, TIMEOUT_S)
        await threads.run_long(time.sleep, 3 * TIMEOUT_S)
        with pytest.raises(ModelUnavailable, match=r"within 1 s"):
            await threads.run_long(until_interrupted)
        threads.close()

    run(test())


_CALLS_FOR_HALF_A_SECOND = """
import asyncio, time
from service.threads import Threads
from tests.stopwatch import Stopwatch

def busy():
    print("began", flush=True)
    for _ in range(25):
        time.sleep(0.02)
    return "answered"

print(asyncio.run(Threads(1, 2.0).run(busy)))
"""


def test_the_time_in_which_the_process_is_stopped_does_not_count() -> None:
    with subprocess.Popen([sys.executable, "-c", _CALLS_FOR_HALF_A_SECOND], stdout=subprocess.PIPE, text=True) as calls:
        assert calls.stdout is not None
        try:
            assert calls.stdout.readline() == "began\n"
            calls.send_signal(signal.SIGSTOP)
            time.sleep(2.5)
            calls.send_signal(signal.SIGCONT)
            assert calls.communicate(timeout=30)[0] == "answered\n"
        finally:
            calls.kill()


def test_calls_that_wait_for_a_disk_have_a_limit_and_a_number() -> None:
    async def test() -> None:
        calls = BlockingCalls("the disk", TIMEOUT_S, max_calls=2)
        assert await calls(lambda: 7) == 7
        returns = threading.Event()
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r"the disk: no response within 0\.2 s"):
                await calls(returns.wait)
        with pytest.raises(TimeoutError, match="2 calls have not returned"):
            await calls(lambda: 7)
        returns.set()
        await asyncio.sleep(0.1)
        assert await calls(lambda: 7) == 7
        with pytest.raises(FileNotFoundError):
            await calls(open, "/nowhere")

    run(test())
