"""Whether Redis keeps what the service promises that it keeps: what docs/operations.md asks of it, verified.

`INFO` tells its version, its memory limit and policy, and whether it has an append-only file; `CONFIG GET` how often
that is flushed. A user who may not ask is believed, and the log says what was not verified.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from segue.errors import BadOption, StoreUnavailable
from service.sessions.redis_errors import store_errors
from service.sessions.redis_program import OLDEST, shown
from service.settings import FSYNC, Durability

_log = structlog.get_logger()

Facts = Mapping[str, Any]

# From the weakest on. A server without an append-only file is as `no`: what it holds ends with it.
_STRENGTH: Final = ("no", "everysec", "always")


class DurabilityCheck:
    """Compares what was promised with what Redis is configured to do."""

    def __init__(self, client: "Redis | RedisCluster", promised: Durability) -> None:
        self._client = client
        self._promised: Durability = promised
        self._warned: set[str] = set()

    async def refuse_weak(self) -> None:
        """Raise BadOption with one line if Redis keeps less than was promised, StoreUnavailable if it does not answer.

        A server that does not say how it is configured is believed, and a line of the log says so.
        """
        told = await self._ask("info")
        refuse_old(told)
        memory = told or await self._ask("config_get", "maxmemory*")
        if not memory:
            self._warn("its memory limit", "grant +info to its user")
        refuse_evicting(memory)
        if self._promised == "memory":
            return
        files = await self._ask("config_get", "append*")
        if files:
            refuse_weaker(self._promised, files)
        else:
            refuse_without_file(self._promised, told)
            self._warn("appendfsync" if told else "its append-only file", "grant +config|get to its user")

    async def _ask(self, command: str, *words: str) -> list[Facts]:
        """What each server that takes writes answers.

        Nothing where the user may not ask, or a server has no such command or says nothing, as some that are hosted do.
        """
        try:
            with store_errors():
                if isinstance(self._client, Redis):
                    answers: list[Facts] = [await getattr(self._client, command)(*words)]
                else:
                    answer: Any = await getattr(self._client, command)(*words, target_nodes=RedisCluster.PRIMARIES)
                    answers = list(answer.values()) if _is_by_node(answer) else [answer]
                return answers if all(answers) else []
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, ResponseError):
                raise
        except ResponseError:
            pass
        return []

    def _warn(self, what: str, remedy: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning("durability_not_verified", promised=self._promised, unknown=what, remedy=remedy)


def refuse_old(told: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO`) is older than what Segue's commands need."""
    for facts in told:
        version = str(facts.get("redis_version", ""))
        numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
        if numbers and numbers < OLDEST:
            raise BadOption(f"Redis is of version {version}: Segue needs {shown(OLDEST)} or later")


def refuse_evicting(told: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO` or `CONFIG GET maxmemory*`) drops keys when it is full."""
    for facts in told:
        limit = int(facts.get("maxmemory", 0))
        policy = facts.get("maxmemory_policy", facts.get("maxmemory-policy", "noeviction"))
        if limit and policy != "noeviction":
            raise BadOption(
                f"Redis has maxmemory {limit:,} and maxmemory-policy {policy}, so it drops sessions when it is full: "
                "set maxmemory-policy noeviction there"
            )


def refuse_without_file(promised: Durability, told: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO`) has no append-only file although one was promised."""
    for facts in told:
        if not int(facts.get("aof_enabled", 1)):
            raise BadOption(
                f"durability is {promised}, and Redis has no append-only file: set appendonly yes and appendfsync "
                f"{FSYNC[promised]} there, or SEGUE_DURABILITY=memory"
            )


def refuse_weaker(promised: Durability, configurations: Iterable[Facts]) -> None:
    """Raise BadOption if one of the configurations (`CONFIG GET append*`) keeps less than was promised."""
    for found in configurations:
        fsync = str(found.get("appendfsync")) if found.get("appendonly") == "yes" else "no"
        strength = _STRENGTH.index(fsync) if fsync in _STRENGTH else -1  # of a value that is unknown nothing is certain
        if strength < _STRENGTH.index(FSYNC[promised]):
            raise BadOption(
                f"durability is {promised}, and Redis has appendonly {found.get('appendonly')} and appendfsync "
                f"{found.get('appendfsync')}: set appendonly yes and appendfsync {FSYNC[promised]} there, or a weaker "
                "SEGUE_DURABILITY"
            )


def _is_by_node(answer: Facts) -> bool:
    """A client of a cluster answers for each node where it asked several, and plainly where there is but one."""
    return bool(answer) and all(isinstance(value, Mapping) for value in answer.values())
