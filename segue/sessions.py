"""Events, the rules that turn the events of a session into plays and preferences, and the policy for repeated tracks.

A client reports what happened to a track (`play`, `skip`) and what the listener thinks of it (`like`, `dislike`, `ban`
and their opposites). docs/session-semantics.md describes the rules. This module is the reference implementation in
Python. The Redis script service/sessions/append_events.lua implements the same rules, and a property test compares the
two implementations.
"""

import enum
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    StringConstraints,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import core_schema

from segue.errors import BadOption

# Text without control characters (C0, DEL, C1), line separators or lone surrogates. Leading and trailing spaces are
# significant. `segue prepare` applies the same rule to catalogues.
CONTROL_CHARACTERS: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
TEXT_PATTERN = rf"^[^{CONTROL_CHARACTERS}]+$"
MAX_ID_LENGTH = 256
SESSION_ID_PATTERN: Final = r"^[A-Za-z0-9._~-]{1,128}$"
REPEAT_PATTERN: Final = r"^(allow|never|after:([1-9][0-9]{0,2}|1000))$"
REPEAT_EXPECTED: Final = "expected allow, never, or after:N with N from 1 to 1000"

# `date-time` of RFC 3339, section 5.6, in upper case, without leap seconds, with at most nine fractional digits.
TIME_PATTERN: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
TIME_EXPECTED: Final = "Input should be an RFC 3339 time with an offset, such as 2026-11-28T20:00:00Z"


def _time_schema(source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
    """Return a schema that accepts only TIME_PATTERN in JSON. pydantic alone also accepts, for example, Unix times.

    The schema is about twice as fast as a validator function in Python.
    """
    text = core_schema.str_schema(pattern=TIME_PATTERN, max_length=40)
    in_json = core_schema.no_info_after_validator_function(datetime.fromisoformat, text)
    named = core_schema.custom_error_schema(in_json, custom_error_type="rfc3339", custom_error_message=TIME_EXPECTED)
    return core_schema.json_or_python_schema(json_schema=named, python_schema=handler(source))


Time = Annotated[
    AwareDatetime,
    GetPydanticSchema(_time_schema),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIME_PATTERN}),
]
TrackId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=TEXT_PATTERN),
    Field(description="The catalogue's own id of the track", examples=["t0000042"]),
]


def whole_number(value: object) -> object:
    """Read 1000.0 as 1000: JSON has no integers, so strict validation would reject it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class EventType(enum.StrEnum):
    """The type of an event."""

    PLAY = "play"
    SKIP = "skip"
    LIKE = "like"
    UNLIKE = "unlike"
    DISLIKE = "dislike"
    UNDISLIKE = "undislike"
    BAN = "ban"
    UNBAN = "unban"
    BAN_ARTIST = "ban_artist"
    UNBAN_ARTIST = "unban_artist"

    @property
    def is_of_ban(self) -> bool:
        """Whether an event of this type sets or lifts a ban."""
        return self in _OF_BANS


_OF_BANS: Final = frozenset({EventType.BAN, EventType.UNBAN, EventType.BAN_ARTIST, EventType.UNBAN_ARTIST})


class Event(BaseModel):
    """One action of a listener."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: EventType = Field(
        description="`play`: the track started. `skip`: the listener moved on from it. `like`: more like it. "
        "`dislike`: not again in this session. `ban`: never again. `ban_artist`: nothing of its artist again. "
        "`unlike`, `undislike`, `unban`, `unban_artist`: take that back"
    )
    track_id: TrackId
    at: Time | None = Field(
        default=None,
        description="Time of the event, RFC 3339 with an offset, such as `2026-11-28T20:00:00.5+01:00`. Default: the "
        "time of arrival. Digits beyond microseconds have no effect",
    )
    ms_played: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="Milliseconds of the track that were heard"
    )
    event_id: TrackId | None = Field(
        default=None, description="Your id of the event. Sending the same id again has no effect"
    )

    _whole_ms = field_validator("ms_played", mode="before")(whole_number)


def play(track_id: str, at: datetime | None = None) -> Event:
    """Create the event that the track started."""
    return Event(type=EventType.PLAY, track_id=track_id, at=at)


def skip(track_id: str, at: datetime | None = None) -> Event:
    """Create the event that the track was skipped."""
    return Event(type=EventType.SKIP, track_id=track_id, at=at)


class Outcome(enum.StrEnum):
    """How a play ended."""

    PLAYED = "played"
    SKIPPED = "skipped"


class Play(NamedTuple):
    """One play of a track in a session, skipped or not."""

    track_id: str
    outcome: Outcome = Outcome.PLAYED
    at_ms: int | None = None  # milliseconds since 1970-01-01 UTC
    ms_played: int | None = None

    @property
    def skipped(self) -> bool:
        """Whether the listener skipped the track."""
        return self.outcome is Outcome.SKIPPED


LIKES_WEIGHT: Final = 0.2  # of the liked tracks, in a session without a station
MAX_PREFERENCES: Final = 500  # of each kind; the oldest are dropped


@dataclass(frozen=True, slots=True)
class Station:
    """Seeds that pull the recommendations of a session by `weight`, from 0 (not at all) to 1 (they alone count)."""

    tracks: tuple[str, ...] = ()
    artists: tuple[str, ...] = ()  # names, or values of the attribute artist_id
    weight: float = 0.5


@dataclass(slots=True)
class Preferences:
    """What a listener said of tracks in a session. Ids are in the order of their events, each of them once."""

    likes: list[str] = field(default_factory=list)
    dislikes: list[str] = field(default_factory=list)
    bans: list[str] = field(default_factory=list)
    artist_bans: list[str] = field(default_factory=list)  # tracks whose artists are banned
    station: Station | None = None
    listener_id: str | None = None

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return self != Preferences()

    @property
    def unwanted(self) -> list[str]:
        """The tracks that must not be recommended, without the other tracks of banned artists."""
        return [*self.dislikes, *self.bans]

    @property
    def pull(self) -> Station | None:
        """The station together with the likes, or None if nothing pulls. Unwanted tracks do not pull.

        Without a station the likes pull with LIKES_WEIGHT. The latest likes come first.
        """
        station = self.station or Station(weight=LIKES_WEIGHT)
        unwanted = {*self.unwanted, *self.artist_bans}
        tracks = [track for track in dict.fromkeys((*station.tracks, *reversed(self.likes))) if track not in unwanted]
        if not station.weight or not (tracks or station.artists):
            return None
        return Station(tuple(tracks), station.artists, station.weight)


class SessionState(NamedTuple):
    """The plays of a session, oldest first, and its preferences, if there are any."""

    plays: list[Play]
    preferences: Preferences | None = None


def apply_event(plays: list[Play], event: Event) -> None:
    """Apply one event to the plays of a session, in place. Events other than `play`, `skip` and `dislike` change none.

    A `play` event appends a play with the outcome PLAYED. A `skip` event changes the latest play to SKIPPED if that
    play is of the same track and not yet skipped. Any other `skip` event appends a play with the outcome SKIPPED. A
    `dislike` event changes the latest play of its track to SKIPPED.
    """
    at_ms = None if event.at is None else round(event.at.timestamp() * 1000)
    latest = plays[-1] if plays else None
    if event.type is EventType.SKIP:
        if latest is not None and latest.track_id == event.track_id and not latest.skipped:
            plays[-1] = _skipped(latest, event)
        else:
            plays.append(Play(event.track_id, Outcome.SKIPPED, at_ms, event.ms_played))
    elif event.type is EventType.PLAY:
        plays.append(Play(event.track_id, Outcome.PLAYED, at_ms, event.ms_played))
    elif event.type is EventType.DISLIKE:
        place = next((i for i in reversed(range(len(plays))) if plays[i].track_id == event.track_id), None)
        if place is not None and not plays[place].skipped:
            plays[place] = _skipped(plays[place], event)


def _skipped(heard: Play, event: Event) -> Play:
    ms_played = heard.ms_played if event.ms_played is None else event.ms_played
    return heard._replace(outcome=Outcome.SKIPPED, ms_played=ms_played)


def apply_preference(preferences: Preferences, event: Event, *, with_listener: bool = False) -> None:
    """Apply one event to the preferences of a session, in place. `play` and `skip` change none.

    A track is liked, disliked or neither: `like` and `dislike` replace each other. `ban` takes a like back.
    `with_listener`: the request names a listener. Its bans are stored with the listener, not with the session.
    """
    track, own = event.track_id, not with_listener
    likes, dislikes = preferences.likes, preferences.dislikes
    if event.type is EventType.LIKE:
        _change(likes, track, add=True)
        _change(dislikes, track, add=False)
    elif event.type is EventType.DISLIKE:
        _change(dislikes, track, add=True)
        _change(likes, track, add=False)
    elif event.type is EventType.UNLIKE:
        _change(likes, track, add=False)
    elif event.type is EventType.UNDISLIKE:
        _change(dislikes, track, add=False)
    elif event.type is EventType.BAN:
        _change(preferences.bans, track, add=own)
        _change(likes, track, add=False)
    elif event.type is EventType.BAN_ARTIST:
        _change(preferences.artist_bans, track, add=own)
    elif event.type is EventType.UNBAN:
        _change(preferences.bans, track, add=False)
    elif event.type is EventType.UNBAN_ARTIST:
        _change(preferences.artist_bans, track, add=False)


def _change(tracks: list[str], track: str, *, add: bool) -> None:
    """Add a track at the end unless it is there, or remove it."""
    if not add and track in tracks:
        tracks.remove(track)
    elif add and track not in tracks:
        tracks.append(track)
        del tracks[:-MAX_PREFERENCES]


def session_of(events: Iterable[Event], listener_id: str | None = None) -> SessionState:
    """Return the session that results from a sequence of events. Events with a repeated id are ignored."""
    plays: list[Play] = []
    preferences = Preferences(listener_id=listener_id)
    seen: set[str] = set()
    for event in events:
        if event.event_id is None or event.event_id not in seen:
            apply_event(plays, event)
            apply_preference(preferences, event, with_listener=listener_id is not None)
        if event.event_id is not None:
            seen.add(event.event_id)
    return SessionState(plays, preferences or None)


def plays_of(events: Iterable[Event]) -> list[Play]:
    """Return the plays that result from a sequence of events, oldest first. Events with a repeated id are ignored."""
    return session_of(events).plays


def events_of(plays: Sequence[Play]) -> list[Event]:
    """Return events that result in `plays`: `plays_of(events_of(plays))` has the same tracks and outcomes.

    A skipped play becomes a `play` event and a `skip` event. A `skip` event alone could change the previous play
    instead of adding a play.
    """
    events: list[Event] = []
    for heard in plays:
        events.append(play(heard.track_id))
        if heard.skipped:
            events.append(skip(heard.track_id))
    return events


@dataclass(frozen=True, slots=True)
class RepeatPolicy:
    """Whether tracks of a session may be recommended in the same session.

    A policy excludes the tracks of the session's last `plays` plays. `allow` excludes none, `never` those of all plays.
    `after:N` excludes those of the last N plays: a track may be recommended again once at least N plays have followed
    its latest play. Every play counts, also a skipped one and one of a track outside the catalogue.
    """

    text: str
    plays: int

    def __str__(self) -> str:
        """Return the policy as `repeat_policy` reads it."""
        return self.text

    def start(self, length: int) -> int:
        """Return the index of the first play whose track is excluded, in a session of `length` plays."""
        return max(length - self.plays, 0)


@functools.lru_cache(maxsize=1024)  # all valid texts; every request for recommendations has one
def repeat_policy(text: str) -> RepeatPolicy:
    """Return the policy for `allow`, `never` or `after:N` with N from 1 to 1000. Raises BadOption for other texts."""
    if not re.fullmatch(REPEAT_PATTERN, text):
        raise BadOption(f"repeat {text!r}: {REPEAT_EXPECTED}, such as after:20")
    plays = {"allow": 0, "never": sys.maxsize}.get(text)
    return RepeatPolicy(text, int(text.removeprefix("after:")) if plays is None else plays)


ALLOW_REPEATS: Final = repeat_policy("allow")
NEVER_REPEAT: Final = repeat_policy("never")
