"""A session as clients see it: its plays now, and a stream of server-sent events with its changes.

Each open stream reads its session from Redis twice a second, so it sees the changes of every worker.
Publishing every event instead would cost every event, for the few sessions that are watched.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, 2026.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from pydantic import BaseModel, Field

from segue.errors import Overloaded, StoreUnavailable
from segue.sessions import Outcome, Play
from service.sessions.store import SessionStore

EVENT_STREAM: Final = "text/event-stream"
POLL_INTERVAL_S: Final = 0.5
HEARTBEAT_INTERVAL_S: Final = 5.0  # below the idle timeout of any proxy; docker/haproxy.cfg has 10 s
MAX_STREAM_S: Final = 300.0  # then the client asks again, with an API key that may have been revoked
MAX_STREAMS: Final = 256  # per worker; each uses a connection and reads Redis twice a second

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BEAT: Final = b":\n\n"
_AWAY: Final = b"event: away\ndata: {}\n\n"


class PlayBody(BaseModel):
    """One play of a track in a session."""

    track_id: str
    outcome: Outcome
    at: datetime = Field(description="Start of the play, RFC 3339 in UTC")
    ms_played: int | None = Field(default=None, description="Absent if the client did not report it")


class SessionBody(BaseModel):
    """The plays of a session, oldest first."""

    session_id: str
    plays: list[PlayBody]

    @classmethod
    def of(cls, session_id: str, plays: list[Play]) -> Self:
        """The body for a session."""
        bodies = [
            PlayBody(
                track_id=play.track_id,
                outcome=play.outcome,
                at=_EPOCH + timedelta(milliseconds=play.at_ms or 0),
                ms_played=play.ms_played,
            )
            for play in plays
        ]
        return cls(session_id=session_id, plays=bodies)


class SessionStreams:
    """The open streams of one worker. For one event loop."""

    def __init__(self, store: SessionStore, max_streams: int = MAX_STREAMS) -> None:
        self._store = store
        self._max_streams = max_streams
        self._open = 0

    def acquire_slot(self) -> None:
        """Take a slot for one more stream, until `release_slot`. Raises Overloaded if there is none."""
        if self._open >= self._max_streams:
            raise Overloaded(
                f"{self._max_streams} session streams are open, the maximum of a worker: try again in a moment"
            )
        self._open += 1

    def release_slot(self) -> None:
        """Give back the slot of a stream that has ended."""
        self._open -= 1

    async def changes(self, session_id: str, leaving: asyncio.Event) -> AsyncIterator[bytes]:
        """The session's plays now and after each change, for `MAX_STREAM_S` or until `leaving` is set.

        Sends `away` while the session store is unavailable. Sends at least a heartbeat every `HEARTBEAT_INTERVAL_S`
        seconds, so that both ends notice when the other is gone, and no proxy closes the connection as idle.
        """
        shown: list[Play] | None = None
        sent_at = time.monotonic()
        ends_at = sent_at + MAX_STREAM_S
        while not leaving.is_set() and time.monotonic() < ends_at:
            plays = await self._plays(session_id)
            if plays is None:
                shown, sent_at = None, time.monotonic()
                yield _AWAY
            elif plays != shown:
                shown, sent_at = plays, time.monotonic()
                yield (
                    b"event: session\ndata: %b\n\n"
                    % SessionBody.of(session_id, plays).model_dump_json(exclude_none=True).encode()
                )
            elif time.monotonic() - sent_at >= HEARTBEAT_INTERVAL_S - POLL_INTERVAL_S:
                sent_at = time.monotonic()
                yield _BEAT
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), POLL_INTERVAL_S)

    async def _plays(self, session_id: str) -> list[Play] | None:
        try:
            return await self._store.plays(session_id)
        except StoreUnavailable:
            return None
