"""The session store in Redis. docs/session-semantics.md describes the rules.

A write is one atomic script and a read is one command. service/sessions/redis_client.py sends them. Sessions are spread
over 64 buckets by a hash of their id. The bucket is the hash tag of the keys, so that a session's keys and its event
stream share a slot of Redis Cluster.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from redis.asyncio import Redis, RedisCluster

from segue.errors import BadOption, StoreUnavailable
from segue.sessions import MAX_PREFERENCES, Event, Play, SessionState, Station
from service.sessions.preferences import ListenerStore, decode_session, encode_station
from service.sessions.privacy import BUCKETS, bucket_of, erased_marker
from service.sessions.redis_client import Command, RedisCommands, Script
from service.sessions.redis_errors import CLIENT_ERRORS
from service.sessions.redis_server import DurabilityCheck
from service.settings import Settings
from service.telemetry import Telemetry

# Event ids stored per session for deduplication; the oldest are dropped.
MAX_EVENT_IDS: Final = 5000
_PROBE_S: Final = 60
# Range of datetime in UTC, so that every stored time can be converted.
_MIN_MS, _MAX_MS = -62_135_596_800_000, 253_402_300_799_999


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of one write."""

    length: int  # plays in the session
    duplicates: int  # events ignored because their id was already known
    session: SessionState  # empty unless requested
    attributions: list[str] = field(default_factory=list)  # format: see append_events.lua
    dropped: int = 0  # entries dropped from the event log's full stream
    began: bool = False  # whether these events started the session

    @property
    def plays(self) -> list[Play]:
        """The plays, oldest first. Empty unless requested."""
        return self.session.plays


def _found_by(play: Play | None) -> tuple[str, str]:
    """What a script finds a stored play by: its time in ms and its track id, '' for none."""
    return ("", "") if play is None else (str(play.at_ms), play.track_id)


def stream_of(bucket: int) -> str:
    """The key of the event stream of a bucket."""
    return f"segue:{{b{bucket}}}:events"


def preferences_of(bucket: int) -> str:
    """The key of the stream of likes, dislikes and bans of a bucket."""
    return f"segue:{{b{bucket}}}:preferences"


def lists_of(bucket: int) -> str:
    """The key of the stream of served lists of a bucket."""
    return f"segue:{{b{bucket}}}:lists"


def erasures_of(bucket: int) -> str:
    """The key of the set of a bucket's sessions to erase from the event log's files, each as `<id>@<ms>`."""
    return f"segue:{{b{bucket}}}:erasures"


def keys_of(session_id: str) -> list[str]:
    """The keys of a session: plays, facts, event ids, and the two streams of its bucket (events, preferences)."""
    bucket = bucket_of(session_id)
    prefix = f"segue:{{b{bucket}}}:{session_id}"
    return [f"{prefix}:plays", f"{prefix}:facts", f"{prefix}:event_ids", stream_of(bucket), preferences_of(bucket)]


class SessionStore:
    """The plays of all sessions. All methods raise StoreUnavailable if Redis is unreachable or rejects the command."""

    def __init__(self, client: "Redis | RedisCluster", settings: Settings, telemetry: Telemetry | None = None) -> None:
        """`telemetry` measures the commands."""
        self._idle_gap_ms = max(1, round(settings.idle_gap_s * 1000))
        self._max_plays = settings.max_session_plays
        self._stream_length = settings.event_log_stream_max_length if settings.event_log else 0
        self._append = Script.read("append_events.lua")
        self._erase = Script.read("erase_session.lua")
        self._remember = Script.read("remember.lua")
        self._log_list = Script.read("log_list.lua")
        self._probe = Script.read("write_probe.lua")
        self._set_station = Script.read("set_station.lua")
        change_bans = Script.read("change_bans.lua")
        self._client = client
        scripts = (
            self._append,
            self._erase,
            self._remember,
            self._log_list,
            self._probe,
            self._set_station,
            change_bans,
        )
        self._send = RedisCommands(client, settings, telemetry or Telemetry(), scripts)
        self.listeners = ListenerStore(self._send, change_bans, self._idle_gap_ms)
        self._durability = DurabilityCheck(client, settings.durability)

    async def append(
        self, session_id: str, events: Sequence[Event], *, with_plays: bool = False, listener_id: str | None = None
    ) -> Appended:
        """Apply the events to the session atomically, in one round trip.

        If the connection is lost, the write is retried only if all events have an id. With a listener, the bans among
        the events are stored with the listener first: they may be in another node of a cluster.
        """
        if listener_id is not None:
            await self.listeners.apply(listener_id, session_id, events)
        limits = [self._idle_gap_ms, self._max_plays, MAX_EVENT_IDS, self._stream_length, int(with_plays)]
        arguments: list[str | int] = [session_id, *limits, listener_id or "", MAX_PREFERENCES]
        for event in events:
            arguments += _encode(event)
        have_ids = all(event.event_id for event in events)
        command = self._append.call(keys_of(session_id), arguments, repeatable=have_ids)
        length, duplicates, stored, attributions, dropped, began = await self._send(command)
        session = decode_session(stored)
        return Appended(int(length), int(duplicates), session, attributions, int(dropped), bool(began))

    def kept(self, plays: list[Play]) -> list[Play]:
        """The latest of these plays, at most `max_session_plays`."""
        return plays[-self._max_plays :]

    async def session(self, session_id: str) -> SessionState:
        """The session's plays, oldest first, and its preferences. Empty for an unknown session."""
        words = ("LRANGE", keys_of(session_id)[0], 0, -1)
        return decode_session(await self._send(Command(words, repeatable=True, writes=False)))

    async def plays(self, session_id: str) -> list[Play]:
        """The session's plays, oldest first. Empty for an unknown session."""
        return (await self.session(session_id)).plays

    async def set_station(self, session_id: str, station: Station | None) -> bool:
        """Set the station of a session, or remove it. Returns whether the session had one."""
        lines = "" if station is None else encode_station(station)
        arguments: list[str | int] = [self._idle_gap_ms, lines]
        return bool(await self._send(self._set_station.call(keys_of(session_id)[:3], arguments, repeatable=True)))

    async def remember(self, session_id: str, latest: Play | None, release: str, track_ids: Sequence[str]) -> None:
        """Store the list that a release recommended after the play `latest`, unless a later list is stored."""
        recommended = "\n".join((release, *track_ids, ""))
        arguments: list[str | int] = [recommended, *_found_by(latest)]
        await self._send(self._remember.call(keys_of(session_id)[:2], arguments, repeatable=True))

    async def log_list(self, session_id: str, plays: int, latest: Play, at_ms: int, fields: Mapping[str, str]) -> int:
        """Log a list that was served to the session. Returns the entries dropped from the full stream.

        `plays` is the number of stored plays that the list followed, and `latest` is the last of them. `fields` are
        those of an entry besides session, position and time (service/sessions/event_log.py). Nothing is logged if the
        session was erased, or has dropped this play since.
        """
        position = plays if plays < self._max_plays else ""  # "": older plays may have been dropped
        pairs = [part for pair in fields.items() for part in pair]
        stored, facts = keys_of(session_id)[:2]
        keys = [facts, stored, lists_of(bucket_of(session_id))]
        arguments: list[str | int] = [self._stream_length, session_id, position, at_ms, *_found_by(latest), *pairs]
        return int(await self._send(self._log_list.call(keys, arguments, repeatable=True)))

    async def erase(self, session_id: str) -> None:
        """Erase the session from Redis. The event log's writer erases it from its files later."""
        bucket = bucket_of(session_id)
        keys = [*keys_of(session_id), lists_of(bucket), erasures_of(bucket), erased_marker(bucket)]
        arguments: list[str | int] = [session_id, int(self._stream_length > 0)]
        await self._send(self._erase.call(keys, arguments, repeatable=True))

    async def check(self) -> None:
        """Raise StoreUnavailable unless writes are accepted, replicated and durable as configured.

        Each primary gets a small write with an expiry, by a script.
        """
        buckets = self._bucket_per_primary()
        probes = [self._probe.call([f"segue:{{b{bucket}}}:probe"], [_PROBE_S], repeatable=True) for bucket in buckets]
        await asyncio.gather(*(self._send(probe) for probe in probes))
        try:
            await self._durability.check()
        except BadOption as error:
            raise StoreUnavailable(str(error)) from None

    def _bucket_per_primary(self) -> list[int]:
        """One bucket of each primary."""
        if isinstance(self._client, Redis):
            return [0]
        try:
            nodes = {bucket: self._client.get_node_from_key(stream_of(bucket)) for bucket in range(BUCKETS)}
        except CLIENT_ERRORS:  # the client discovers the nodes with its first command
            return list(range(BUCKETS))
        return list({node.name if node is not None else "": bucket for bucket, node in nodes.items()}.values())

    async def aclose(self) -> None:
        """Stop background tasks."""
        await self._send.aclose()


def _encode(event: Event) -> tuple[str, str, str | int, str | int, str]:
    at_ms: str | int = ""
    if event.at is not None:
        at_ms = min(max(round(event.at.timestamp() * 1000), _MIN_MS), _MAX_MS)
    ms_played = "" if event.ms_played is None else event.ms_played
    return event.type.value, event.track_id, at_ms, ms_played, event.event_id or ""
