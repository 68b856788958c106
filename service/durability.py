"""Whether Redis keeps what the service promises that it keeps: SEGUE_DURABILITY against Redis' own configuration."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from segue.errors import BadOption, StoreUnavailable
from service.redis_errors import store_errors
from service.settings import FSYNC, Durability

_log = structlog.get_logger()

# From the weakest on. A server without an append-only file is as `no`: what it holds ends with it.
_STRENGTH: Final = ("no", "everysec", "always")


class DurabilityCheck:
    """Holds what was promised against what Redis is configured to do."""

    def __init__(self, client: "Redis | RedisCluster", promised: Durability) -> None:
        self._client = client
        self._promised: Durability = promised
        self._warned = False

    async def refuse_weak(self) -> None:
        """Raise BadOption with one line if Redis keeps less than was promised, StoreUnavailable if it does not answer.

        A server that does not let its configuration be read is believed, and a line of the log says so.
        """
        if self._promised == "memory":
            return
        try:
            with store_errors():
                configurations = await self._configurations()
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, ResponseError):
                raise
            self._warn(error.reason)
        except ResponseError as error:  # a server that has no such command, or another name for it
            self._warn(str(error))
        else:
            refuse_weaker(self._promised, configurations)

    async def _configurations(self) -> list[Mapping[str, str]]:
        """What each server that takes writes says of its append-only file."""
        if isinstance(self._client, Redis):
            found: Any = await self._client.config_get("append*")
            return [found]
        by_node: Any = await self._client.config_get("append*", target_nodes=RedisCluster.PRIMARIES)
        return list(by_node.values()) if _is_by_node(by_node) else [by_node]

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("durability_not_verified", promised=self._promised, reason=reason)


def refuse_weaker(promised: Durability, configurations: Iterable[Mapping[str, str]]) -> None:
    """Raise BadOption if one of the configurations (`CONFIG GET append*`) keeps less than was promised."""
    for found in configurations:
        fsync = found.get("appendfsync", "no") if found.get("appendonly") == "yes" else "no"
        if _STRENGTH.index(fsync) < _STRENGTH.index(FSYNC[promised]):
            raise BadOption(
                f"durability is {promised}, and Redis has appendonly {found.get('appendonly')} and appendfsync "
                f"{found.get('appendfsync')}: set appendonly yes and appendfsync {FSYNC[promised]} there, or a weaker "
                "SEGUE_DURABILITY"
            )


def _is_by_node(answer: Mapping[str, Any]) -> bool:
    """A client of a cluster answers for each node where it asked several, and plainly where there is but one."""
    return all(isinstance(value, Mapping) for value in answer.values())
