"""Attribution: which release recommended a track that a listener then played or skipped, for a sample of the sessions.

Recommended lists are stored in Redis with the session, because the worker that answers a list seldom receives the event
that follows it. Storing is not awaited: the command goes out after the response, in the next pipeline. The script that
stores an event reads the list together with the session.

Whole sessions are sampled, so the rates are unbiased. A sampler gives the same answer in every worker, on every machine
and after every restart, and a larger share keeps all sessions of a smaller one. Samplers of different purposes, and the
buckets of the session store, are independent: the hash is a keyed BLAKE2, because a prefix would only permute the
buckets of a linear hash such as the store's CRC.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from segue.errors import StoreUnavailable
from service.releases.loaded import RecommendResult
from service.sessions.store import SessionStore
from service.telemetry import Telemetry


class SessionSampler:
    """The sessions that a share is made of: `session_id in draw`. About a microsecond."""

    def __init__(self, purpose: str, share: float) -> None:
        """`purpose` makes the draw independent of others; `share` is 0 to 1."""
        self._key = blake2b(purpose.encode(), digest_size=32).digest()
        self._end = int(share * 2**64)

    def __contains__(self, session_id: str) -> bool:
        """Whether the session is drawn."""
        if not self._end:
            return False
        return int.from_bytes(blake2b(session_id.encode(), digest_size=8, key=self._key).digest(), "big") < self._end


_MOST_UNDER_WAY: Final = 200  # lists on their way to Redis; if it lags, lists are dropped, not queued


class Attribution:
    """Remembers lists and counts what became of them. For one event loop."""

    def __init__(self, store: SessionStore, share: float, telemetry: Telemetry) -> None:
        """`share` of the sessions, 0 to 1, is looked at."""
        self._store = store
        self._drawn = SessionSampler("credits", share)
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[None]] = set()

    def remember(self, session_id: str, answer: RecommendResult) -> None:
        """Remember an answer, if the session is one of those looked at; nobody waits for it."""
        if session_id in self._drawn and len(self._tasks) < _MOST_UNDER_WAY:
            task = asyncio.create_task(self._remember(session_id, answer))
            self._tasks.add(task)  # asyncio itself keeps no reference
            task.add_done_callback(self._tasks.discard)

    def count(self, credits_: Iterable[str]) -> None:
        """Count what the store answered to events; see append_events.lua."""
        for credit in credits_:
            kind, _, release = credit.partition("\t")
            if kind != "L":
                self._telemetry.recommended_plays.labels(release).inc()
            if kind != "P":
                self._telemetry.recommended_skips.labels(release).inc()

    async def _remember(self, session_id: str, answer: RecommendResult) -> None:
        track_ids = [answer.release.table.track_id(row) for row in answer.rows]
        with contextlib.suppress(StoreUnavailable):  # a list less; requests and metrics tell that Redis is away
            await self._store.remember(session_id, answer.release.name, track_ids)
