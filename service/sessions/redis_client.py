"""The Redis client: pipelining, retries, confirmation by replicas, and a circuit breaker. Knows nothing of sessions.

Commands that arrive while others are in flight go out together in one pipeline, which costs one round trip. A command
is retried over a new connection only if it may safely run twice.

The circuit breaker opens after several failures in a row, or after one that took the whole timeout. While it is open,
commands fail at once. A background probe closes it again, so that no request has to wait for the test.

Errors tell clients what a failure means for them. The address of Redis and its message go to the log only
(`StoreUnavailable.reason`).
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from segue.errors import StoreUnavailable
from service.batching import MicroBatch
from service.settings import Settings
from service.telemetry import Telemetry

# What says that nobody answered at all.
AWAY: Final = (RedisConnectionError, RedisTimeoutError, OSError)
# What Redis answers when it is alive and yet cannot serve: full, read-only, failing to save, without a quorum. The
# client makes classes of some words and cuts them from the text; within a script's error the word stays.
_UNFIT_CLASSES: Final[dict[type[RedisError], str]] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
}
_UNFIT: Final = (
    "OOM",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "NOPERM",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "LOADING",
    "BUSY",
    "TRYAGAIN",
)


# How Redis 7 says NOPERM of a command within a script.
_SCRIPT_FORBIDDEN: Final = "The user executing the script can't"
# What clients are told for each; where Redis is and what it said goes to the log alone.
_TEXTS: Final = {
    "OOM": "the session store is full: try again later, and have its operator raise its memory limit "
    "(SEGUE_REDIS_MAX_MEMORY_MB of the embedded Redis, maxmemory of any other)",
    "READONLY": "the session store is a read-only replica: name its primary in SEGUE_REDIS_URL",
    "MISCONF": "the session store cannot write to its disk: try again later",
    "NOREPLICAS": "the session store has fewer replicas than it wants for a write: try again later",
    "NOPERM": "the session store does not let Segue's user write: grant what docs/operations.md lists",
}
_REFUSES: Final = "the session store refuses this for now: try again later"


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what says that Redis is away or unfit into StoreUnavailable; other errors are ours and go on."""
    try:
        yield
    except (RedisError, OSError) as error:
        found = as_store_error(error)
        if found is error:
            raise
        raise found from error


def as_store_error(error: Exception) -> Exception:
    """StoreUnavailable for what says that Redis is away or unfit; any other error as it is."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, AWAY):
        return StoreUnavailable("the session store cannot be reached: try again in a moment", reason)
    if isinstance(error, RedisClusterException):
        return StoreUnavailable("the session store cannot be used: try again later", reason)
    word = _unfit(error)
    if word is None:
        return error
    # The client cuts some of the words off, and operators look for them.
    return StoreUnavailable(_TEXTS.get(word, _REFUSES), reason if word in reason else f"{word} {reason}")


def _unfit(error: Exception) -> str | None:
    """Which of these an error says, if any."""
    for kind, word in _UNFIT_CLASSES.items():
        if isinstance(error, kind):
            return word
    if not isinstance(error, RedisError):
        return None
    if _SCRIPT_FORBIDDEN in str(error):
        return "NOPERM"
    return next((word for word in _UNFIT if word in str(error)), None)


FAILURES: Final = 2  # in a row: a single one may be a connection that had grown old
PAUSE_S: Final = 0.25  # between two probes


class CircuitBreaker:
    """Whether it is worth while to ask. For one event loop."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[Any]],
        on_change: Callable[[bool], None] = lambda _: None,
        pause_s: float = PAUSE_S,
    ) -> None:
        """`probe` raises RedisError or OSError where there is no answer; `on_change` hears whether it is now open."""
        self.is_open = False
        self._probe = probe
        self._on_change = on_change
        self._pause_s = pause_s
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None

    def succeeded(self) -> None:
        """A command was answered."""
        self._failures = 0

    def failed(self, *, timed_out: bool) -> None:
        """A command was not answered, be it at once or within the timeout."""
        self._failures += 1
        if not self.is_open and (timed_out or self._failures >= FAILURES):
            self._set(is_open=True)
            self._probing = asyncio.create_task(self._close_again())

    async def aclose(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _close_again(self) -> None:
        while self.is_open:
            await asyncio.sleep(self._pause_s)
            try:
                await self._probe()
            except (RedisError, OSError):
                continue
            self._failures = 0
            self._set(is_open=False)

    def _set(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._on_change(is_open)


_PIPELINES: Final = 1  # under way at a time: a second would carry half of what the first could have waited for
_SECONDS_BETWEEN_LINES: Final = 1.0  # of the log, about what Redis refuses: it may be each of thousands a second
_HERE: Final = Path(__file__).parent

_log = structlog.get_logger()


class Command(NamedTuple):
    """What Redis is to do."""

    words: tuple[str | int, ...]
    repeatable: bool  # whether it does no harm to do it twice
    writes: bool


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, called by its hash."""

    text: str
    sha: str

    @classmethod
    def read(cls, name: str) -> Self:
        """The script in a file of this package."""
        text = (_HERE / name).read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], arguments: Sequence[str | int], *, repeatable: bool) -> Command:
        """The command that runs it."""
        return Command(("EVALSHA", self.sha, len(keys), *keys, *arguments), repeatable, writes=True)


class RedisCommands:
    """Sends commands to Redis. Everything raises StoreUnavailable if Redis is away or refuses."""

    def __init__(
        self, client: "Redis | RedisCluster", settings: Settings, telemetry: Telemetry, scripts: Sequence[Script]
    ) -> None:
        """`scripts` are those that commands call."""
        self._client = client
        self._telemetry = telemetry
        self._sizes = telemetry.batch_size.labels("redis")
        self._scripts = scripts
        self._replicas = settings.redis_wait_replicas
        self._wait: Final = ("WAIT", settings.redis_wait_replicas, settings.redis_wait_timeout_ms)
        self._circuit = CircuitBreaker(client.ping, self._on_change)
        self._writes = MicroBatch(self._pipeline, _PIPELINES)
        # Where writes wait for replicas, reads do not wait with them.
        self._reads = MicroBatch(self._pipeline, _PIPELINES) if settings.redis_wait_replicas else self._writes
        self._told = 0.0

    async def __call__(self, command: Command) -> Any:
        """What Redis answers."""
        if self._circuit.is_open:
            raise _unavailable()
        return await (self._writes if command.writes else self._reads)(command)

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._circuit.aclose()

    async def _pipeline(self, commands: list[Command]) -> list[Any]:
        """What Redis answers to each command; an exception where it refuses one."""
        self._sizes.observe(len(commands))
        if self._circuit.is_open:  # it opened while they waited
            raise _unavailable()
        try:
            with self._telemetry.time_redis("commands"), store_errors():
                answers = await self._answers(commands)
        except StoreUnavailable as error:
            self._tell(error)
            if isinstance(error.__cause__, AWAY) and isinstance(self._client, Redis):  # a node is not the cluster
                self._circuit.failed(timed_out=isinstance(error.__cause__, RedisTimeoutError))
            raise
        self._circuit.succeeded()
        return [self._logged_error(answer) if isinstance(answer, Exception) else answer for answer in answers]

    async def _answers(self, commands: list[Command]) -> list[Any]:
        answers = await self._on_a_good_connection(commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # Redis was started anew, or its scripts were flushed; nothing was carried out
            for script in self._scripts:
                await self._client.script_load(script.text)
            again = await self._execute([commands[i] for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return answers

    async def _on_a_good_connection(self, commands: list[Command]) -> list[Any]:
        """The answers, by a new connection if the one that was there had ended, as after a restart of Redis.

        How far Redis had come by then is not known, so that what must not be done twice has failed.
        """
        try:
            return await self._execute(commands)
        except RedisConnectionError as error:
            repeatable = [i for i, command in enumerate(commands) if command.repeatable]
            if not repeatable or not isinstance(self._client, Redis):
                raise
            answers: list[Any] = [error] * len(commands)
            await self._forget_connections()
            again = await self._execute([commands[i] for i in repeatable])
            for i, answer in zip(repeatable, again, strict=True):
                answers[i] = answer
            self._telemetry.redis_retries.inc(len(repeatable))
            return answers

    async def _forget_connections(self) -> None:
        """Close those that wait for use: where one has ended, the others are no younger."""
        if isinstance(self._client, Redis):  # a cluster's client looks after its own
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _execute(self, commands: list[Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command.words)
        waits = self._replicas and any(command.writes for command in commands)
        if waits:
            pipeline.execute_command(*self._wait)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if waits:
            acknowledged = answers.pop()
            if isinstance(acknowledged, Exception) or int(acknowledged) < self._replicas:
                failure = acknowledged if isinstance(acknowledged, Exception) else _too_few_replicas(self._replicas)
                for i, command in enumerate(commands):
                    if command.writes and not isinstance(answers[i], Exception):
                        answers[i] = failure
        return answers

    def _logged_error(self, answer: Exception) -> Exception:
        error = as_store_error(answer)
        if isinstance(error, StoreUnavailable):
            self._tell(error)
        return error

    def _tell(self, error: StoreUnavailable) -> None:
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            _log.warning("redis_unavailable", reason=error.reason)

    def _on_change(self, is_open: bool) -> None:
        self._telemetry.redis_circuit_open.set(int(is_open))
        _log.warning("redis_circuit_opened" if is_open else "redis_circuit_closed")


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("the session store does not answer at present: try again in a moment")


def _too_few_replicas(number: int) -> StoreUnavailable:
    return StoreUnavailable(
        f"fewer than {number} replicas of the session store have confirmed the write in time: send it again, "
        "with the same event ids"
    )
