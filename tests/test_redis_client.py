"""Whatever happens to a connection to Redis, the client reports a lost connection, on the service's event loop."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from segue.errors import StoreUnavailable
from service.sessions.embedded_redis import embedded_redis
from service.sessions.redis_client import RedisCommands, Script
from service.sessions.redis_server import connect
from service.settings import Settings
from service.telemetry import Telemetry
from tests.faults.servers import Proxy
from tests.live.redis_server import Server

Client = Redis | RedisCluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("redis") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("embedded")) as url:
        yield url


def run(use: Callable[[Client], Coroutine[Any, Any, None]], url: str, **settings: Any) -> None:
    async def whole() -> None:
        client = connect(Settings(release=Path("unused"), redis_url=url, **settings))
        async with contextlib.aclosing(client):
            await asyncio.wait_for(use(client), 60)

    uvloop.run(whole())


@pytest.mark.parametrize("kind", ["server", "embedded", "redis_cluster"])
def test_a_write_to_a_connection_that_was_just_closed(kind: str, request: pytest.FixtureRequest) -> None:
    async def use(client: Client) -> None:
        await client.ping()
        if isinstance(client, RedisCluster):
            nodes = [*client.startup_nodes, *client.get_nodes()]
            connections = [node.acquire_connection() for node in nodes]
        else:
            connections = [client.connection_pool.make_connection()]  # type: ignore[no-untyped-call]
        for connection in connections:
            await connection.connect()  # type: ignore[no-untyped-call]
            assert connection._writer is not None
            connection._writer.transport.abort()
            with pytest.raises(RedisConnectionError):
                await connection.send_command("PING")
            assert not connection.is_connected
            await connection.send_command("PING")  # over a new connection
            assert await connection.read_response() == "PONG"
            await connection.disconnect()

    redis = request.getfixturevalue(kind)
    run(use, redis.url if isinstance(redis, Server) else redis, redis_cluster=kind == "redis_cluster")


def test_connections_that_are_reset_at_any_moment(server: Server) -> None:
    proxy = Proxy(server.port)
    outcomes: Counter[str] = Counter()

    async def ask(client: Redis, number: int) -> None:
        while outcomes["ConnectionError"] < 500:
            try:
                if number % 2:
                    await client.get("key")
                else:
                    pipeline = client.pipeline(transaction=False)
                    for _ in range(3):
                        pipeline.set("key", "value")
                    await pipeline.execute(raise_on_error=False)
                outcomes["answered"] += 1
            except (RedisError, OSError) as error:
                outcomes[type(error).__name__] += 1
                await client.connection_pool.disconnect(inuse_connections=False)

    async def use(client: Client) -> None:
        assert isinstance(client, Redis)
        proxy.resets_after = 1500
        await asyncio.gather(*(ask(client, number) for number in range(4)))
        assert outcomes["answered"] > 100, outcomes
        proxy.resets_after = None
        proxy.cut()
        await client.connection_pool.disconnect()
        assert await client.ping()

    with contextlib.closing(proxy):
        run(use, f"redis://127.0.0.1:{proxy.port}")


def test_redis_that_is_restarted_again_while_scripts_are_loaded(server: Server) -> None:
    script = Script("return redis.call('GET', KEYS[1])", "0" * 40)  # loaded under its own hash, so never known

    async def use(client: Client) -> None:
        commands = RedisCommands(client, Settings(release=Path("unused")), Telemetry(), [script])
        with pytest.raises(StoreUnavailable, match="rejects commands at the moment") as caught:
            await commands(script.call(["key"], [], repeatable=True))
        assert caught.value.reason.startswith("NOSCRIPT")
        await commands.aclose()

    run(use, server.url)
