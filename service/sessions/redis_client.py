"""The Redis client: pipelining, retries, confirmation by replicas, and a circuit breaker. Independent of sessions.

Commands that arrive while others are in flight are sent together in one pipeline, which costs one round trip. A command
is retried over a new connection only if it is safe to run twice.

The circuit breaker opens after several failures in a row, or after one timeout. While it is open, commands fail
immediately. A background probe closes it again, so no request waits for a test command.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from segue.errors import StoreUnavailable
from service.batching import MicroBatch
from service.sessions.redis_errors import CLIENT_ERRORS, as_store_error, connection_errors, is_unreachable
from service.settings import Settings
from service.telemetry import Telemetry

MAX_FAILURES: Final = 2  # in a row: a single failure may come from a stale connection
PROBE_INTERVAL_S: Final = 0.25


class CircuitBreaker:
    """Stops sending commands while Redis is unreachable. For one event loop."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[Any]],
        on_change: Callable[[bool], None] = lambda _: None,
        probe_interval_s: float = PROBE_INTERVAL_S,
    ) -> None:
        """`probe` raises an exception if Redis is unreachable. `on_change` gets the new `is_open`."""
        self.is_open = False
        self._probe = probe
        self._on_change = on_change
        self._probe_interval_s = probe_interval_s
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None

    def succeeded(self) -> None:
        """Record a response."""
        self._failures = 0

    def failed(self, *, timed_out: bool) -> None:
        """Record a command without a response."""
        self._failures += 1
        if not self.is_open and (timed_out or self._failures >= MAX_FAILURES):
            self._set(is_open=True)
            self._probing = asyncio.create_task(self._close_again())

    async def aclose(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _close_again(self) -> None:
        while self.is_open:
            await asyncio.sleep(self._probe_interval_s)
            try:
                await self._probe()
            except CLIENT_ERRORS as error:
                if is_unreachable(error):
                    continue
                # Redis responds. The next command reports the error.
            except Exception:  # noqa: BLE001 (without a further probe, the circuit would stay open)
                _log.exception("redis_probe_error")
                continue
            self._failures = 0
            self._set(is_open=False)

    def _set(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._on_change(is_open)


_MAX_PIPELINES: Final = 1  # in flight: a second one would only split the batches
_MIN_LOG_INTERVAL_S: Final = 1.0  # thousands of commands per second may fail with the same error
_HERE: Final = Path(__file__).parent

_log = structlog.get_logger()


class Command(NamedTuple):
    """A Redis command."""

    words: tuple[str | int, ...]
    repeatable: bool  # whether it is safe to run it twice
    writes: bool


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, called by its hash."""

    text: str
    sha: str

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a script file of this package."""
        text = (_HERE / name).read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], arguments: Sequence[str | int], *, repeatable: bool) -> Command:
        """The command that runs the script."""
        return Command(("EVALSHA", self.sha, len(keys), *keys, *arguments), repeatable, writes=True)


class RedisCommands:
    """Sends commands to Redis. Raises StoreUnavailable if Redis is unreachable or rejects a command."""

    def __init__(
        self, client: "Redis | RedisCluster", settings: Settings, telemetry: Telemetry, scripts: Sequence[Script]
    ) -> None:
        """`scripts` are loaded into Redis when a command needs them."""
        self._client = client
        self._telemetry = telemetry
        self._batch_sizes = telemetry.batch_size.labels("redis")
        self._scripts = scripts
        self._replicas = settings.redis_wait_replicas
        self._wait: Final = ("WAIT", settings.redis_wait_replicas, settings.redis_wait_timeout_ms)
        self._circuit = CircuitBreaker(client.ping, self._on_change)
        self._writes = MicroBatch(self._pipeline, _MAX_PIPELINES)
        # If writes wait for replicas, reads get their own pipeline and do not wait.
        self._reads = MicroBatch(self._pipeline, _MAX_PIPELINES) if settings.redis_wait_replicas else self._writes
        self._logged_at = 0.0

    async def __call__(self, command: Command) -> Any:
        """Send a command and return the reply."""
        if self._circuit.is_open:
            raise _unavailable()
        return await (self._writes if command.writes else self._reads)(command)

    async def aclose(self) -> None:
        """Stop background tasks."""
        await self._circuit.aclose()

    async def _pipeline(self, commands: list[Command]) -> list[Any]:
        """The reply to each command. A rejected command has an exception as its reply."""
        self._batch_sizes.observe(len(commands))
        if self._circuit.is_open:  # it opened while the commands were queued
            raise _unavailable()
        try:
            with self._telemetry.time_redis("commands"), connection_errors():
                replies = await self._execute_loading_scripts(commands)
        except StoreUnavailable as error:
            self._log_error(error)
            cause = error.__cause__
            # In a cluster, the other nodes may still respond.
            if isinstance(self._client, Redis) and is_unreachable(cause):
                self._circuit.failed(timed_out=isinstance(cause, RedisTimeoutError))
            raise
        self._circuit.succeeded()
        return [self._convert_error(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _execute_loading_scripts(self, commands: list[Command]) -> list[Any]:
        replies = await self._execute_with_retry(commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # Redis was restarted, or its scripts were flushed; these commands were not executed
            for script in self._scripts:
                await self._client.script_load(script.text)
            retried = await self._execute([commands[i] for i in unknown])
            for i, reply in zip(unknown, retried, strict=True):
                replies[i] = reply
        return replies

    async def _execute_with_retry(self, commands: list[Command]) -> list[Any]:
        """Execute commands; retry over a new connection if the connection was lost, for example by a restart of Redis.

        It is unknown which commands were executed before. Therefore only repeatable commands are retried; the others
        fail.
        """
        try:
            return await self._execute(commands)
        except RedisConnectionError as error:
            repeatable = [i for i, command in enumerate(commands) if command.repeatable]
            if not repeatable or not isinstance(self._client, Redis):
                raise
            replies: list[Any] = [error] * len(commands)
            await self._close_idle_connections()
            retried = await self._execute([commands[i] for i in repeatable])
            for i, reply in zip(repeatable, retried, strict=True):
                replies[i] = reply
            self._telemetry.redis_retries.inc(len(repeatable))
            return replies

    async def _close_idle_connections(self) -> None:
        """Close the idle connections: if one was lost, the others probably were too."""
        if isinstance(self._client, Redis):  # the cluster client manages its own
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _execute(self, commands: list[Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command.words)
        waits = self._replicas and any(command.writes for command in commands)
        if waits:
            pipeline.execute_command(*self._wait)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        if waits:
            acknowledged = replies.pop()
            if isinstance(acknowledged, Exception) or int(acknowledged) < self._replicas:
                failure = acknowledged if isinstance(acknowledged, Exception) else _too_few_replicas(self._replicas)
                for i, command in enumerate(commands):
                    if command.writes and not isinstance(replies[i], Exception):
                        replies[i] = failure
        return replies

    def _convert_error(self, reply: Exception) -> Exception:
        error = as_store_error(reply)
        if isinstance(error, StoreUnavailable):
            self._log_error(error)
        return error

    def _log_error(self, error: StoreUnavailable) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _MIN_LOG_INTERVAL_S:
            self._logged_at = now
            _log.warning("redis_unavailable", reason=error.reason)

    def _on_change(self, is_open: bool) -> None:
        self._telemetry.redis_circuit_open.set(int(is_open))
        _log.warning("redis_circuit_opened" if is_open else "redis_circuit_closed")


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("the session store does not respond: try again in a moment")


def _too_few_replicas(number: int) -> StoreUnavailable:
    return StoreUnavailable(
        f"fewer than {number} replicas of the session store confirmed the write in time: retry it with the same "
        "event ids"
    )
