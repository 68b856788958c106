"""How Redis keeps the preferences of sessions and the bans of listeners.

The preferences of a session are the first element of the list of its plays, so that one reply has both, and a session
without preferences costs nothing more. service/sessions/append_events.lua describes the format. The bans of a listener
are in keys of their own. They do not expire.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from segue.sessions import Event, EventType, Outcome, Play, Preferences, SessionState, Station
from service.sessions.privacy import bucket_of, erased_marker
from service.sessions.redis_client import Command, RedisCommands, Script

MAX_BANS: Final = 1000  # of a listener; the oldest are dropped
_MAX_EVENT_IDS: Final = 1000  # of a listener's bans, stored for deduplication
_MARK: Final = "="
_BAN, _ARTIST_BAN = "B", "A"


def decode_session(stored: Sequence[str]) -> SessionState:
    """Return the session in a reply to LRANGE."""
    if stored and stored[0][:1] == _MARK:
        return SessionState(_decode_plays(stored[1:]), _decode_preferences(stored[0]))
    return SessionState(_decode_plays(stored))


def _decode_plays(stored: Sequence[str]) -> list[Play]:
    plays = []
    for line in stored:
        outcome, at_ms, ms_played, track_id = line.split("\t", 3)
        heard_ms = int(ms_played) if ms_played else None
        plays.append(Play(track_id, Outcome.SKIPPED if outcome == "S" else Outcome.PLAYED, int(at_ms), heard_ms))
    return plays


def _decode_preferences(text: str) -> Preferences:
    found: dict[str, list[str]] = {}
    for line in text.split("\n")[1:]:
        kind, _, value = line.partition("\t")
        found.setdefault(kind, []).append(value)
    station = None
    if "Sw" in found:
        tracks, artists = found.get("St", ()), found.get("Sa", ())
        station = Station(tuple(tracks), tuple(artists), float(found["Sw"][0]))
    return Preferences(
        likes=found.get("L", []),
        dislikes=found.get("D", []),
        bans=found.get(_BAN, []),
        artist_bans=found.get(_ARTIST_BAN, []),
        station=station,
        listener_id=found["U"][0] if "U" in found else None,
    )


def encode_station(station: Station) -> str:
    """Return the lines of a station, as set_station.lua takes them."""
    seeds = [("St", track) for track in station.tracks] + [("Sa", artist) for artist in station.artists]
    return "".join(f"\n{kind}\t{value}" for kind, value in [("Sw", repr(station.weight)), *seeds])


class Bans(NamedTuple):
    """The bans of a listener, oldest first."""

    tracks: list[str]
    artists: list[str]  # tracks whose artists are banned

    def added_to(self, preferences: Preferences | None) -> Preferences | None:
        """Return the preferences of a session together with these bans."""
        if not self.tracks and not self.artists:
            return preferences
        known = preferences or Preferences()
        return replace(known, bans=[*known.bans, *self.tracks], artist_bans=[*known.artist_bans, *self.artists])


class ListenerStore:
    """The bans of listeners, which hold in all their sessions. Methods raise StoreUnavailable as SessionStore does."""

    def __init__(self, send: RedisCommands, change: Script, idle_gap_ms: int) -> None:
        """`change` is the script change_bans.lua. A session ends `idle_gap_ms` after its last event."""
        self._send = send
        self._change = change
        self._idle_gap_ms = idle_gap_ms

    async def bans(self, listener_id: str) -> Bans:
        """Return the bans of a listener. Empty for an unknown one."""
        words = ("ZRANGE", _keys_of(listener_id)[0], 0, -1)
        stored: list[str] = await self._send(Command(words, repeatable=True, writes=False))
        entries = [line.partition("\t") for line in stored]
        of_kind = {kind: [track for found, _, track in entries if found == kind] for kind in (_BAN, _ARTIST_BAN)}
        return Bans(of_kind[_BAN], of_kind[_ARTIST_BAN])

    async def apply(self, listener_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Apply the events that set or lift bans. An event id of a session has an effect once."""
        changes: list[str | int] = []
        for event in events:
            if event.type.is_of_ban:
                kind = _BAN if event.type in (EventType.BAN, EventType.UNBAN) else _ARTIST_BAN
                sets = int(event.type in (EventType.BAN, EventType.BAN_ARTIST))
                event_id = "" if event.event_id is None else f"{session_id}\t{event.event_id}"
                changes += [sets, f"{kind}\t{event.track_id}", event_id]
        if changes:
            arguments = [MAX_BANS, _MAX_EVENT_IDS, self._idle_gap_ms, *changes]
            await self._send(self._change.call(_keys_of(listener_id), arguments, repeatable=True))

    async def erase(self, listener_id: str) -> None:
        """Erase all that is stored of a listener."""
        await self._send(Command(("DEL", *_keys_of(listener_id)), repeatable=True, writes=True))
        # The append-only file still contains it: request a rewrite (service/sessions/privacy.py).
        marker = erased_marker(bucket_of(listener_id))
        await self._send(Command(("SET", marker, "1", "EX", 172_800), repeatable=True, writes=True))


def _keys_of(listener_id: str) -> list[str]:
    """The keys of a listener: bans and event ids. Keys of sessions have fewer parts."""
    prefix = f"segue:{{b{bucket_of(listener_id)}}}:listeners:{listener_id}"
    return [f"{prefix}:bans", f"{prefix}:event_ids"]
