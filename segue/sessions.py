"""How events become the plays of a session. The rule, in words, is in docs/session-semantics.md.

This is the reference in plain Python; the Redis script in service/sessions/append_events.lua follows it and a property
test holds the two together.
"""

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from segue.events import Event, EventType, play, skip


class Outcome(enum.StrEnum):
    """How a play ended."""

    PLAYED = "played"
    SKIPPED = "skipped"


class Play(NamedTuple):
    """One presentation of a track in a session."""

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

    A `play` appends a played track. A `skip` of the latest track, if that still counts as played, turns it into a
    skip; any other `skip` appends a skipped track.
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
    """The plays that a sequence of events amounts to, oldest first. An id that came before has no effect again."""
    plays: list[Play] = []
    seen: set[str] = set()
    for event in events:
        if event.event_id is None or event.event_id not in seen:
            apply_event(plays, event)
        if event.event_id is not None:
            seen.add(event.event_id)
    return plays


def events_of(plays: Sequence[Play]) -> list[Event]:
    """Events that rebuild exactly these plays: `plays_of(events_of(plays))` has the same tracks and outcomes.

    A skipped play is sent as `play` and then `skip`: a lone `skip` of a track that was just played would turn
    that earlier play into a skip instead of adding one.
    """
    events: list[Event] = []
    for heard in plays:
        events.append(play(heard.track_id))
        if heard.skipped:
            events.append(skip(heard.track_id))
    return events
