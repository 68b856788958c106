"""What a client reports about a listener: a track started (`play`) or was skipped (`skip`).

Knows nothing of how events become plays (segue.sessions) nor of where they are kept (service.session_store).
"""

import enum
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

# Printable text without control characters or lone surrogates; outer blanks count. Catalogues written by
# `segue prepare` keep to the same rule.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f\u2028\u2029]+$"
MAX_ID_LENGTH = 256

TrackId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=TEXT_PATTERN),
    Field(description="The catalogue's own id of the track", examples=["t0000042"]),
]


class EventType(enum.StrEnum):
    """The kinds of event."""

    PLAY = "play"
    SKIP = "skip"


class Event(BaseModel):
    """One thing that a listener did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: EventType = Field(description="`play`: the track started. `skip`: the listener moved on from it.")
    track_id: TrackId
    at: AwareDatetime | None = Field(
        default=None, description="When it happened, RFC 3339 with an offset; the time of arrival where absent"
    )
    ms_played: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="How much of the track was heard, in milliseconds"
    )
    event_id: TrackId | None = Field(
        default=None, description="The client's own id of the event; the same id again has no effect"
    )


def play(track_id: str, at: datetime | None = None) -> Event:
    """The event that `track_id` started."""
    return Event(type=EventType.PLAY, track_id=track_id, at=at)


def skip(track_id: str, at: datetime | None = None) -> Event:
    """The event that `track_id` was skipped."""
    return Event(type=EventType.SKIP, track_id=track_id, at=at)
