"""Connects to Redis and checks that the server matches the settings.

The check compares SEGUE_DURABILITY with the server's configuration. `INFO` returns the version, the kind of server, the
memory limit, the eviction policy and whether there is an append-only file. `CONFIG GET` returns how often that file is
flushed. If the Redis user lacks the permission, the check passes and a warning names what was not verified.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import structlog
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from segue.errors import BadOption, StoreUnavailable
from service.sessions.embedded_redis import MIN_VERSION, format_version
from service.sessions.redis_errors import StoreMisconfigured, connection_errors, store_errors
from service.settings import FSYNC, Durability, Settings

_log = structlog.get_logger()

Facts = Mapping[str, Any]

# Options after the `?` of `redis_url`, besides those of TLS.
_URL_OPTIONS: Final = {
    *("client_name", "db", "health_check_interval", "max_connections", "password", "protocol"),
    *("socket_connect_timeout", "socket_keepalive", "socket_timeout", "timeout", "username"),
}
_SINGLE_OPTIONS: Final = {"db", "timeout"}  # not for a cluster


def connect(settings: Settings) -> "Redis | RedisCluster":
    """Create a Redis client. It connects with its first command. `redis_url` must be set.

    Raises BadOption if the client cannot use `redis_url`, or if `redis_password_file` is not one line.
    """
    common: dict[str, Any] = {
        "decode_responses": True,
        "max_connections": settings.redis_connections,
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        # A write that timed out may have been executed. Clients can retry it safely if its events have ids.
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.redis_ca_file is not None:
        common["ssl_ca_certs"] = str(settings.redis_ca_file)
    if settings.redis_password_file is not None:
        common["password"] = _read_password(settings.redis_password_file)
    url = settings.redis_url or ""
    _check_url(url, cluster=settings.redis_cluster)
    client: Redis | RedisCluster
    connections: list[tuple[type[AbstractConnection], dict[str, Any]]]
    try:
        if settings.redis_cluster:
            client = RedisCluster.from_url(url, **common)
            connections = [(node.connection_class, node.connection_kwargs) for node in client.startup_nodes]
        else:
            pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
                url,
                timeout=settings.redis_timeout_s,  # seconds to wait for a free connection
                **common,
            )
            client = Redis.from_pool(pool)
            connections = [(pool.connection_class, pool.connection_kwargs)]
        for connection_class, options in connections:
            connection_class(**options)  # checks the options; it does not connect
    except (TypeError, ValueError, RedisError, RedisClusterException) as error:
        option = re.search(r"unexpected keyword argument ('\w+')", str(error))
        reason = f"the client has no option {option[1]}" if option else str(error).partition("\n")[0]
        raise BadOption(f"redis_url cannot be used: {reason}; correct SEGUE_REDIS_URL") from None
    _report_closed_transports(client)
    return client


def _check_url(url: str, *, cluster: bool) -> None:
    """Raise BadOption for a URL that redis-py would misread. The message contains no part of a password."""
    parts = urlsplit(url)
    options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    supported = _URL_OPTIONS - _SINGLE_OPTIONS if cluster else _URL_OPTIONS
    unsupported = [name for name in options if name not in supported and not re.fullmatch(r"ssl_[a-z_]+", name)]
    # redis-py would use database 0 for another path.
    has_database = parts.scheme == "unix" or "db" in options or re.fullmatch(r"/*[0-9]*/*", parts.path)
    if "@" in parts.path + parts.query + parts.fragment and (unsupported or parts.fragment or not has_database):
        raise BadOption(
            "redis_url has a `/`, `?` or `#` before the `@`: write these characters of a password as %2F, %3F, %23"
        )
    if not has_database:
        raise BadOption(
            f"redis_url ends with {parts.path!r}, which is not the number of a database: correct SEGUE_REDIS_URL"
        )
    for name in unsupported:
        raise BadOption(f"redis_url has the unsupported option {name!r}: use {', '.join(sorted(supported))}, ssl_*")
    for name in options:
        if name.startswith("ssl_") and parts.scheme != "rediss":
            raise BadOption(f"redis_url has the option {name!r}, which requires rediss://: correct SEGUE_REDIS_URL")


def _read_password(file: Path) -> str:
    """The password in a file, without the line break."""
    try:
        password = file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadOption(f"redis_password_file {file} cannot be read: {reason}; write the password into it") from error
    if not password or "\n" in password:
        raise BadOption(f"redis_password_file {file} must contain exactly one line: write the password into it")
    return password


class _ReportsClosedTransport(AbstractConnection):
    """Raises ConnectionError, not RuntimeError, if the connection was closed just before a write.

    uvloop raises RuntimeError for a write to a closed transport, which asyncio's own event loop ignores until the next
    read (MagicStack/uvloop#506). Without this class, the client would not treat it as a lost connection.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command as the base class does."""
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            raise RedisConnectionError("Connection lost before the command was sent.") from error


def _report_closed_transports(client: "Redis | RedisCluster") -> None:
    """Make a new client raise ConnectionError for every lost connection. Call it before the first command."""
    if isinstance(client, Redis):
        client.connection_pool.connection_class = _reporting(client.connection_pool.connection_class)
        return
    client.connection_kwargs["connection_class"] = _reporting(client.connection_kwargs["connection_class"])
    for node in client.startup_nodes:  # those discovered later get `connection_kwargs`
        node.connection_class = client.connection_kwargs["connection_class"]


def _reporting(base: type[AbstractConnection]) -> type[AbstractConnection]:
    return type(base.__name__, (_ReportsClosedTransport, base), {})


# From weakest to strongest. A server without an append-only file counts as `no`: its data ends with its process.
_STRENGTH: Final = ("no", "everysec", "always")


class DurabilityCheck:
    """Compares the kind, version and configuration of the server with the settings, above all its durability."""

    def __init__(self, client: "Redis | RedisCluster", required: Durability) -> None:
        self._client = client
        self._required: Durability = required
        self._warned: set[str] = set()

    async def check(self) -> None:
        """Raise BadOption if Redis does not match the settings, StoreUnavailable if it is unreachable.

        If a server does not reveal its configuration, the check passes and a warning is logged.
        """
        try:
            await self._ping()
            info = await self._query("info")
        except StoreMisconfigured as error:
            raise BadOption(f"{error} ({error.reason})") from None
        check_version(info)
        if isinstance(self._client, Redis):
            await self._check_mode(info)
        memory = info or await self._query("config_get", "maxmemory*")
        if not memory:
            self._warn("its memory limit", "grant +info to its user")
        check_eviction_policy(memory)
        if self._required == "memory":
            return
        files = await self._query("config_get", "append*")
        if files:
            check_durability(self._required, files)
        else:
            check_append_only(self._required, info)
            self._warn("appendfsync" if info else "its append-only file", "grant +config|get to its user")

    async def _check_mode(self, info: list[Facts]) -> None:
        """Raise BadOption if the server (`INFO`) is a Sentinel, or one of several nodes of a cluster."""
        if any(facts.get("redis_mode") == "sentinel" for facts in info):
            raise BadOption("Redis is a Sentinel, which stores no sessions: set SEGUE_REDIS_URL to the primary")
        if any(int(facts.get("cluster_enabled", 0)) for facts in info):
            for facts in await self._query("execute_command", "CLUSTER INFO"):
                if int(facts.get("cluster_size", 1)) > 1:
                    raise BadOption("Redis is one of several nodes of a cluster: set SEGUE_REDIS_CLUSTER=true")

    async def _ping(self) -> None:
        """Raise StoreMisconfigured if Redis rejects the connection. It may reject PING itself."""
        try:
            with connection_errors():
                await self._client.ping()
        except StoreMisconfigured:
            raise
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, ResponseError):
                raise

    async def _query(self, command: str, *words: str) -> list[Facts]:
        """The reply of each primary.

        Empty if the user lacks the permission, or if a server does not support the command, as some hosted ones do.
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
            _log.warning("durability_not_verified", promised=self._required, unknown=what, remedy=remedy)


def check_version(info: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO`) is older than the minimum version."""
    for facts in info:
        version = str(facts.get("redis_version", ""))
        numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
        if numbers and numbers < MIN_VERSION:
            raise BadOption(f"Redis has version {version}: Segue needs {format_version(MIN_VERSION)} or later")


def check_eviction_policy(replies: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO` or `CONFIG GET maxmemory*`) evicts keys when it is full."""
    for facts in replies:
        limit = int(facts.get("maxmemory", 0))
        policy = facts.get("maxmemory_policy", facts.get("maxmemory-policy", "noeviction"))
        if limit and policy != "noeviction":
            raise BadOption(
                f"Redis has maxmemory {limit:,} and maxmemory-policy {policy}, so it evicts sessions when it is full: "
                "set maxmemory-policy noeviction"
            )


def check_append_only(required: Durability, info: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO`) has no append-only file."""
    for facts in info:
        if not int(facts.get("aof_enabled", 1)):
            raise BadOption(
                f"durability is {required}, but Redis has no append-only file: set appendonly yes and appendfsync "
                f"{FSYNC[required]} in Redis, or SEGUE_DURABILITY=memory"
            )


def check_durability(required: Durability, configurations: Iterable[Facts]) -> None:
    """Raise BadOption if one of the configurations (`CONFIG GET append*`) is less durable than required."""
    for found in configurations:
        fsync = str(found.get("appendfsync")) if found.get("appendonly") == "yes" else "no"
        strength = _STRENGTH.index(fsync) if fsync in _STRENGTH else -1  # an unknown value guarantees nothing
        if strength < _STRENGTH.index(FSYNC[required]):
            raise BadOption(
                f"durability is {required}, but Redis has appendonly {found.get('appendonly')} and appendfsync "
                f"{found.get('appendfsync')}: set appendonly yes and appendfsync {FSYNC[required]} in Redis, or a "
                "weaker SEGUE_DURABILITY"
            )


def _is_by_node(answer: Facts) -> bool:
    """Whether a reply is a mapping from nodes to replies. With a single node, the cluster client omits that mapping."""
    return bool(answer) and all(isinstance(value, Mapping) for value in answer.values())
