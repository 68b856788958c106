"""Sessions in Redis: one atomic script for a write, one command for a read. docs/session-semantics.md says the rules.

Commands that come while others are under way go out together, in one pipeline: one round trip for all of them.

Sessions are spread over 64 buckets by a hash of their id; the bucket is the keys' hash tag, so that a session's keys
and the stream its events are logged to share a slot of Redis Cluster.
"""

import contextlib
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
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
from segue.events import Event
from segue.sessions import Outcome, Play
from service.micro_batch import MicroBatch
from service.settings import Settings

BUCKETS: Final = 64
# At least this many of a session's latest event ids are remembered.
MAX_EVENT_IDS: Final = 5000
# What Redis answers when it is alive and yet cannot serve: full, read-only, failing to save, without a quorum. The
# client makes classes of some words and cuts them from the text; within a script's error the word stays.
_UNFIT_CLASSES: Final = (OutOfMemoryError, ReadOnlyError, NoPermissionError, ClusterDownError, TryAgainError)
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
# Latest and earliest time of datetime in UTC, so that a stored time can always be shown.
_MIN_MS, _MAX_MS = -62_135_596_800_000, 253_402_300_799_999
_HERE = Path(__file__).parent

_PIPELINES: Final = 1  # under way at a time: a second would carry half of what the first could have waited for
_Command: TypeAlias = tuple[str | int, ...]

Timed = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Appended:
    """What one write did."""

    length: int  # plays that the session now holds
    duplicates: int  # events that had been reported before
    plays: list[Play]  # oldest first; empty unless asked for
    credits: list[str] = field(default_factory=list)  # see append_events.lua


def connect(settings: Settings) -> "Redis | RedisCluster":
    """A client with its own connections, made at the first command. `redis_url` must be set."""
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
    if settings.redis_cluster:
        return RedisCluster.from_url(settings.redis_url or "", **common)
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        settings.redis_url or "",
        timeout=settings.redis_timeout_s,  # seconds to wait for a free connection
        **common,
    )
    return Redis.from_pool(pool)


def bucket_of(session_id: str) -> int:
    """The bucket of a session, 0 to 63."""
    return zlib.crc32(session_id.encode()) % BUCKETS


def stream_of(bucket: int) -> str:
    """The stream that the events of a bucket's sessions are logged to."""
    return f"segue:{{b{bucket}}}:events"


def keys_of(session_id: str) -> list[str]:
    """The keys of a session: plays, facts, event ids, and the stream of its bucket."""
    bucket = bucket_of(session_id)
    family = f"segue:{{b{bucket}}}:{session_id}"
    return [f"{family}:plays", f"{family}:facts", f"{family}:event_ids", stream_of(bucket)]


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str

    @classmethod
    def read(cls, name: str) -> Self:
        text = (_HERE / name).read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], arguments: Sequence[str | int]) -> _Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class SessionStore:
    """The plays of every session. All methods raise StoreUnavailable if Redis cannot be reached or refuses."""

    def __init__(
        self, client: "Redis | RedisCluster", settings: Settings, timed: Timed = lambda _: contextlib.nullcontext()
    ) -> None:
        """`timed` gives a context that measures the operation of the given name."""
        self._client = client
        self._timed = timed
        self._idle_gap_ms = max(1, round(settings.idle_gap_s * 1000))
        self._max_plays = settings.max_session_plays
        self._stream_length = settings.stream_max_length if settings.event_log else 0
        self._append = _Script.read("append_events.lua")
        self._erase = _Script.read("erase_session.lua")
        self._remember = _Script.read("remember.lua")
        self._send = MicroBatch(self._pipeline, _PIPELINES)

    async def append(self, session_id: str, events: Sequence[Event], *, with_plays: bool = False) -> Appended:
        """Apply the events to the session, all or none, in one round trip."""
        limits = [self._idle_gap_ms, self._max_plays, MAX_EVENT_IDS, self._stream_length, int(with_plays)]
        arguments = [session_id, *limits, *(word for event in events for word in _words(event))]
        length, duplicates, plays, credits_ = await self._send(self._append.call(keys_of(session_id), arguments))
        return Appended(int(length), int(duplicates), _plays(plays), credits_)

    async def plays(self, session_id: str) -> list[Play]:
        """The session's plays, oldest first; none for an unknown session."""
        return _plays(await self._send(("LRANGE", keys_of(session_id)[0], 0, -1)))

    async def remember(self, session_id: str, release: str, track_ids: Sequence[str]) -> None:
        """Keep what a release recommended to a session as long as the session itself, in place of the list before."""
        shown = "\n".join((release, *track_ids, ""))
        await self._send(self._remember.call(keys_of(session_id)[1:2], [shown]))

    async def erase(self, session_id: str) -> None:
        """Erase the session from Redis and have the event log erase it from its files."""
        await self._send(self._erase.call(keys_of(session_id), [session_id, self._stream_length]))

    async def check(self) -> None:
        """Return if Redis answers."""
        with self._timed("ping"), store_errors():
            await self._client.ping()

    async def _pipeline(self, commands: list[_Command]) -> list[Any]:
        """What Redis answers to each command; an exception where it refuses one."""
        with self._timed("commands"), store_errors():
            answers = await self._execute(commands)
            unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:  # Redis was started anew, or its scripts were flushed; nothing was carried out
                for script in (self._append, self._erase, self._remember):
                    await self._client.script_load(script.text)
                again = await self._execute([commands[i] for i in unknown])
                for i, answer in zip(unknown, again, strict=True):
                    answers[i] = answer
        return [_as_store_error(answer) if isinstance(answer, Exception) else answer for answer in answers]

    async def _execute(self, commands: list[_Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what says that Redis is away or unfit into StoreUnavailable; other errors are ours and go on."""
    try:
        yield
    except (RedisError, OSError) as error:
        found = _as_store_error(error)
        if found is error:
            raise
        raise found from error


def _as_store_error(error: Exception) -> Exception:
    """StoreUnavailable for what says that Redis is away or unfit; any other error as it is."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return StoreUnavailable(f"Redis cannot be reached ({_reason(error)}): try again in a moment")
    if isinstance(error, RedisClusterException):
        return StoreUnavailable(f"the Redis Cluster cannot be used ({_reason(error)}): try again later")
    if isinstance(error, _UNFIT_CLASSES) or (isinstance(error, RedisError) and any(w in str(error) for w in _UNFIT)):
        return StoreUnavailable(f"Redis refuses the command ({_reason(error)}): try again later")
    return error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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
