"""Sessions in Redis, and the check that Redis keeps what the service promises. docs/session-semantics.md has the rules.

A write is one atomic script, a read is one command; service/sessions/redis_client.py sends them. Sessions are spread
over 64 buckets by a hash of their id. The bucket is the hash tag of the keys, so that a session's keys and the stream
of its events share a slot of Redis Cluster.

The durability check compares SEGUE_DURABILITY with the server. `INFO` states its version, its memory limit and policy,
and whether it has an append-only file; `CONFIG GET` states how often that file is flushed. If the user may not ask,
the check passes and the log says what was not verified.
"""

import asyncio
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from segue.errors import BadOption, StoreUnavailable
from segue.sessions import Event, Outcome, Play
from service.sessions.embedded_redis import OLDEST, shown
from service.sessions.privacy import BUCKETS, erased_marker
from service.sessions.redis_client import Command, RedisCommands, Script, store_errors
from service.settings import FSYNC, Durability, Settings
from service.telemetry import Telemetry

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

    async def check(self) -> None:
        """Raise BadOption with one line if Redis keeps less than was promised, StoreUnavailable if it does not answer.

        A server that does not say how it is configured is believed, and a line of the log says so.
        """
        told = await self._ask("info")
        check_version(told)
        memory = told or await self._ask("config_get", "maxmemory*")
        if not memory:
            self._warn("its memory limit", "grant +info to its user")
        check_eviction_policy(memory)
        if self._promised == "memory":
            return
        files = await self._ask("config_get", "append*")
        if files:
            check_durability(self._promised, files)
        else:
            check_append_only(self._promised, told)
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


def check_version(told: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO`) is older than what Segue's commands need."""
    for facts in told:
        version = str(facts.get("redis_version", ""))
        numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
        if numbers and numbers < OLDEST:
            raise BadOption(f"Redis is of version {version}: Segue needs {shown(OLDEST)} or later")


def check_eviction_policy(told: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO` or `CONFIG GET maxmemory*`) drops keys when it is full."""
    for facts in told:
        limit = int(facts.get("maxmemory", 0))
        policy = facts.get("maxmemory_policy", facts.get("maxmemory-policy", "noeviction"))
        if limit and policy != "noeviction":
            raise BadOption(
                f"Redis has maxmemory {limit:,} and maxmemory-policy {policy}, so it drops sessions when it is full: "
                "set maxmemory-policy noeviction there"
            )


def check_append_only(promised: Durability, told: Iterable[Facts]) -> None:
    """Raise BadOption if one of the servers (`INFO`) has no append-only file although one was promised."""
    for facts in told:
        if not int(facts.get("aof_enabled", 1)):
            raise BadOption(
                f"durability is {promised}, and Redis has no append-only file: set appendonly yes and appendfsync "
                f"{FSYNC[promised]} there, or SEGUE_DURABILITY=memory"
            )


def check_durability(promised: Durability, configurations: Iterable[Facts]) -> None:
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


# At least this many of a session's latest event ids are remembered.
MAX_EVENT_IDS: Final = 5000
_PROBE_S: Final = 60
# Latest and earliest time of datetime in UTC, so that a stored time can always be shown.
_MIN_MS, _MAX_MS = -62_135_596_800_000, 253_402_300_799_999


@dataclass(frozen=True, slots=True)
class Appended:
    """What one write did."""

    length: int  # plays that the session now holds
    duplicates: int  # events that had been reported before
    plays: list[Play]  # oldest first; empty unless asked for
    credits: list[str] = field(default_factory=list)  # see append_events.lua
    dropped: int = 0  # of the event log's entries, as the stream is full
    began: bool = False  # whether the session began with these events


def connect(settings: Settings) -> "Redis | RedisCluster":
    """A client with its own connections, made at the first command. `redis_url` must be set.

    Raises BadOption where `redis_password_file` cannot be read or holds no password.
    """
    common: dict[str, Any] = {
        "decode_responses": True,
        "max_connections": settings.redis_connections,
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        # A write that timed out may have been carried out: sending it again is the client's choice, by event id.
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.redis_ca_file is not None:
        common["ssl_ca_certs"] = str(settings.redis_ca_file)
    if settings.redis_password_file is not None:
        common["password"] = _password_in(settings.redis_password_file)
    if settings.redis_cluster:
        return RedisCluster.from_url(settings.redis_url or "", **common)
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        settings.redis_url or "",
        timeout=settings.redis_timeout_s,  # seconds to wait for a free connection
        **common,
    )
    return Redis.from_pool(pool)


def _password_in(file: Path) -> str:
    """The password that a file holds, without the line end."""
    try:
        password = file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadOption(f"redis_password_file {file} cannot be read: {reason}; write the password into it") from error
    if not password or "\n" in password:
        raise BadOption(f"redis_password_file {file} does not hold one line: write the password into it")
    return password


def bucket_of(session_id: str) -> int:
    """The bucket of a session, 0 to 63."""
    return zlib.crc32(session_id.encode()) % BUCKETS


def stream_of(bucket: int) -> str:
    """The stream that the events of a bucket's sessions are logged to."""
    return f"segue:{{b{bucket}}}:events"


def erasures_of(bucket: int) -> str:
    """The set of a bucket's sessions that the event log's files are still to forget, each as `<id>@<ms>`."""
    return f"segue:{{b{bucket}}}:erasures"


def keys_of(session_id: str) -> list[str]:
    """The keys of a session: plays, facts, event ids, and the stream of its bucket."""
    bucket = bucket_of(session_id)
    family = f"segue:{{b{bucket}}}:{session_id}"
    return [f"{family}:plays", f"{family}:facts", f"{family}:event_ids", stream_of(bucket)]


class SessionStore:
    """The plays of every session. All methods raise StoreUnavailable if Redis cannot be reached or refuses."""

    def __init__(self, client: "Redis | RedisCluster", settings: Settings, telemetry: Telemetry | None = None) -> None:
        """`telemetry` measures what goes to Redis."""
        self._idle_gap_ms = max(1, round(settings.idle_gap_s * 1000))
        self._max_plays = settings.max_session_plays
        self._stream_length = settings.event_log_stream_max_length if settings.event_log else 0
        self._append = Script.read("append_events.lua")
        self._erase = Script.read("erase_session.lua")
        self._remember = Script.read("remember.lua")
        self._probe = Script.read("write_probe.lua")
        self._client = client
        scripts = (self._append, self._erase, self._remember, self._probe)
        self._send = RedisCommands(client, settings, telemetry or Telemetry(), scripts)
        self._durability = DurabilityCheck(client, settings.durability)

    async def append(self, session_id: str, events: Sequence[Event], *, with_plays: bool = False) -> Appended:
        """Apply the events to the session, all or none, in one round trip.

        Events that all carry an id are sent again over a new connection if the one that was there had ended.
        """
        limits = [self._idle_gap_ms, self._max_plays, MAX_EVENT_IDS, self._stream_length, int(with_plays)]
        arguments: list[str | int] = [session_id, *limits, *(word for event in events for word in _words(event))]
        named = all(event.event_id for event in events)
        command = self._append.call(keys_of(session_id), arguments, repeatable=named)
        length, duplicates, plays, credits_, dropped, began = await self._send(command)
        return Appended(int(length), int(duplicates), _plays(plays), credits_, int(dropped), bool(began))

    def kept(self, plays: list[Play]) -> list[Play]:
        """The latest of these plays: as many as are kept of a session."""
        return plays[-self._max_plays :]

    async def plays(self, session_id: str) -> list[Play]:
        """The session's plays, oldest first; none for an unknown session."""
        words = ("LRANGE", keys_of(session_id)[0], 0, -1)
        return _plays(await self._send(Command(words, repeatable=True, writes=False)))

    async def remember(self, session_id: str, release: str, track_ids: Sequence[str]) -> None:
        """Keep what a release recommended to a session as long as the session itself, in place of the list before."""
        shown = "\n".join((release, *track_ids, ""))
        await self._send(self._remember.call(keys_of(session_id)[1:2], [shown], repeatable=True))

    async def erase(self, session_id: str) -> None:
        """Erase the session from Redis and have the event log erase it from its files."""
        bucket = bucket_of(session_id)
        keys = [*keys_of(session_id), erasures_of(bucket), erased_marker(bucket)]
        arguments: list[str | int] = [session_id, int(self._stream_length > 0)]
        await self._send(self._erase.call(keys, arguments, repeatable=True))

    async def check(self) -> None:
        """Return if writes are accepted, confirmed by as many replicas as they wait for, and kept as promised.

        Each server that takes writes gets a small one, by a script and with an expiry.
        """
        probes = [
            self._probe.call([f"segue:{{b{bucket}}}:probe"], [_PROBE_S], repeatable=True) for bucket in self._probed()
        ]
        await asyncio.gather(*(self._send(probe) for probe in probes))
        try:
            await self._durability.check()
        except BadOption as error:
            raise StoreUnavailable(str(error)) from None

    def _probed(self) -> list[int]:
        """A bucket of each server that takes writes."""
        if isinstance(self._client, Redis):
            return [0]
        try:
            nodes = {bucket: self._client.get_node_from_key(stream_of(bucket)) for bucket in range(BUCKETS)}
        except (RedisError, AttributeError):  # before its first command the client knows no node
            return list(range(BUCKETS))
        return list({node.name if node is not None else "": bucket for bucket, node in nodes.items()}.values())

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._send.aclose()


def _words(event: Event) -> tuple[str, str, str | int, str | int, str]:
    at_ms: str | int = ""
    if event.at is not None:
        at_ms = min(max(round(event.at.timestamp() * 1000), _MIN_MS), _MAX_MS)
    ms_played = "" if event.ms_played is None else event.ms_played
    return event.type.value, event.track_id, at_ms, ms_played, event.event_id or ""


def _plays(stored: Iterable[str]) -> list[Play]:
    plays = []
    for line in stored:
        outcome, at_ms, ms_played, track_id = line.split("\t", 3)
        heard = int(ms_played) if ms_played else None
        plays.append(Play(track_id, Outcome.SKIPPED if outcome == "S" else Outcome.PLAYED, int(at_ms), heard))
    return plays
