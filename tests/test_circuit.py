"""While Redis does not answer, nobody waits for it."""

import asyncio
from collections.abc import Awaitable, Callable

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from service.sessions.redis_client import MAX_FAILURES, CircuitBreaker


class Server:
    """Answers probes while it is up."""

    def __init__(self) -> None:
        self.up = False
        self.asked = 0
        self.error: Exception = RedisConnectionError("away")

    async def ping(self) -> bool:
        self.asked += 1
        if not self.up:
            raise self.error
        return True


def run(test: Callable[[Server, CircuitBreaker, list[bool]], Awaitable[None]]) -> None:
    async def whole() -> None:
        server, told = Server(), list[bool]()
        circuit = CircuitBreaker(server.ping, told.append, probe_interval_s=0.01)
        await test(server, circuit, told)
        await circuit.aclose()

    asyncio.run(asyncio.wait_for(whole(), 5))


async def until_closed(circuit: CircuitBreaker) -> None:
    while circuit.is_open:
        await asyncio.sleep(0.005)


def test_it_opens_after_failures_in_a_row_and_an_answer_between_them_counts() -> None:
    async def test(server: Server, circuit: CircuitBreaker, told: list[bool]) -> None:
        for _ in range(3):
            for _ in range(MAX_FAILURES - 1):
                circuit.failed(timed_out=False)
            assert not circuit.is_open
            circuit.succeeded()
        for _ in range(MAX_FAILURES):
            circuit.failed(timed_out=False)
        assert circuit.is_open
        assert told == [True]

    run(test)


def test_one_timeout_is_enough() -> None:
    async def test(server: Server, circuit: CircuitBreaker, told: list[bool]) -> None:
        circuit.failed(timed_out=True)
        assert circuit.is_open

    run(test)


def test_a_probe_in_the_background_closes_it() -> None:
    async def test(server: Server, circuit: CircuitBreaker, told: list[bool]) -> None:
        circuit.failed(timed_out=True)
        while server.asked < 3:
            assert circuit.is_open
            await asyncio.sleep(0.005)
        circuit.failed(timed_out=True)  # one that was under way: no second probe, and told once
        server.up = True
        await until_closed(circuit)
        assert told == [True, False]
        asked = server.asked
        await asyncio.sleep(0.05)
        assert server.asked == asked
        circuit.failed(timed_out=False)
        assert not circuit.is_open  # failures are counted anew

    run(test)


def test_an_error_that_redis_responds_with_closes_it_too() -> None:
    """The next command reports that error to its client."""
    for error in (InvalidResponse("HTTP/1.1"), ResponseError("MISCONF no disk")):

        async def test(server: Server, circuit: CircuitBreaker, told: list[bool], error: Exception = error) -> None:
            server.error = error
            circuit.failed(timed_out=True)
            await until_closed(circuit)

        run(test)


def test_an_unexpected_error_does_not_end_the_probes() -> None:
    async def test(server: Server, circuit: CircuitBreaker, told: list[bool]) -> None:
        server.error = RuntimeError("unexpected")
        circuit.failed(timed_out=True)
        while server.asked < 3:
            await asyncio.sleep(0.005)
        server.up = True
        await until_closed(circuit)

    run(test)


def test_nothing_is_left_of_it_when_it_is_closed_for_good() -> None:
    async def test(server: Server, circuit: CircuitBreaker, told: list[bool]) -> None:
        circuit.failed(timed_out=True)
        await circuit.aclose()
        asked = server.asked
        await asyncio.sleep(0.05)
        assert server.asked == asked

    run(test)
