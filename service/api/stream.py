"""A session as it changes: server-sent events of its plays, whichever worker or replica the changes come by.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, 2026. Each open stream looks at its session in
Redis twice a second. Publishing every event instead would cost each of them, for the few sessions that are watched.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from segue.errors import Overloaded, StoreUnavailable
from segue.sessions import Play
from service.api.bodies import SessionBody
from service.sessions.store import SessionStore

LOOK_EVERY_S: Final = 0.5
BEAT_EVERY_S: Final = 5.0  # below the idle timeout of any proxy; docker/haproxy.cfg has 10 s
LONGEST_S: Final = 300.0  # then the client asks again, with a key that may have been revoked
MOST_STREAMS: Final = 256  # of a worker; each holds a connection and asks Redis twice a second

_BEAT: Final = b":\n\n"
_AWAY: Final = b"event: away\ndata: {}\n\n"


class SessionStreams:
    """The open streams of one worker. For one event loop."""

    def __init__(self, store: SessionStore, most: int = MOST_STREAMS) -> None:
        self._store = store
        self._most = most
        self._open = 0

    def acquire_slot(self) -> None:
        """For one more stream, until `release_slot`. Raises Overloaded where no other can be opened."""
        if self._open >= self._most:
            raise Overloaded(f"{self._most} sessions are watched here already: try again in a moment")
        self._open += 1

    def release_slot(self) -> None:
        """A stream has ended."""
        self._open -= 1

    async def changes(self, session_id: str, leaving: asyncio.Event) -> AsyncIterator[bytes]:
        """The session's plays now and after each change, for `LONGEST_S` or until `leaving` is set.

        `away` while the session store is. Something is sent every `BEAT_EVERY_S` seconds, so that both ends notice when
        the other has gone and no proxy takes the connection for an idle one.
        """
        shown: list[Play] | None = None
        sent_at = time.monotonic()
        ends_at = sent_at + LONGEST_S
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
            elif time.monotonic() - sent_at >= BEAT_EVERY_S - LOOK_EVERY_S:
                sent_at = time.monotonic()
                yield _BEAT
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), LOOK_EVERY_S)

    async def _plays(self, session_id: str) -> list[Play] | None:
        try:
            return await self._store.plays(session_id)
        except StoreUnavailable:
            return None
