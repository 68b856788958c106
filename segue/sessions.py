"""Events, plays, the rule that turns the events of a session into plays, and the policy for repeated tracks.

A client reports two types of events: a track started (`play`), or a track was skipped (`skip`).
docs/session-semantics.md describes the rule. This module is the reference implementation in Python. The Redis script
service/sessions/append_events.lua implements the same rule, and a property test compares the two implementations.
"""

import enum
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


class Event(BaseModel):
    """One action of a listener."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: EventType = Field(description="`play`: the track started. `skip`: the listener moved on from it.")
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


def apply_event(plays: list[Play], event: Event) -> None:
    """Apply one event to the plays of a session, in place.

    A `play` event appends a play with the outcome PLAYED. A `skip` event changes the latest play to SKIPPED if that
    play is of the same track and not yet skipped. Any other `skip` event appends a play with the outcome SKIPPED.
    """
    at_ms = None if event.at is None else round(event.at.timestamp() * 1000)
    latest = plays[-1] if plays else None
    if event.type is EventType.SKIP:
        if latest is not None and latest.track_id == event.track_id and not latest.skipped:
            heard = latest.ms_played if event.ms_played is None else event.ms_played
            plays[-1] = latest._replace(outcome=Outcome.SKIPPED, ms_played=heard)
        else:
            plays.append(Play(event.track_id, Outcome.SKIPPED, at_ms, event.ms_played))
    else:
        plays.append(Play(event.track_id, Outcome.PLAYED, at_ms, event.ms_played))


def plays_of(events: Iterable[Event]) -> list[Play]:
    """Return the plays that result from a sequence of events, oldest first. Events with a repeated id are ignored."""
    plays: list[Play] = []
    seen: set[str] = set()
    for event in events:
        if event.event_id is None or event.event_id not in seen:
            apply_event(plays, event)
        if event.event_id is not None:
            seen.add(event.event_id)
    return plays


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
