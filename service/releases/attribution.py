"""Attribution: counts the plays and skips of recommended tracks by the release that recommended them."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

from segue.errors import StoreUnavailable
from service.releases.experiment import SessionSampler
from service.releases.loaded import RecommendResult
from service.sessions.store import SessionStore
from service.telemetry import Telemetry

_MAX_STORING: Final = 200  # lists being written to Redis; if Redis is slow, further lists are dropped


class Attribution:
    """Counts the plays and skips of recommended tracks by release, for a sample of the sessions.

    Each recommended list is stored in Redis with its session, because another worker usually receives the events that
    follow. The response does not wait for Redis: the write is part of the next command pipeline. The Redis script that
    stores an event reads the list together with the session. The sampling unit is the session, so the play and skip
    rates are unbiased. Use an instance in one event loop only.
    """

    def __init__(self, store: SessionStore, share: float, telemetry: Telemetry) -> None:
        """Create the attribution. `share` is the share of sessions in the sample, from 0 to 1."""
        self._store = store
        self._sample = SessionSampler("credits", share)
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[None]] = set()

    def remember(self, session_id: str, answer: RecommendResult) -> None:
        """Start to store a recommended list if the session is in the sample. Does not wait until it is stored."""
        if session_id in self._sample and len(self._tasks) < _MAX_STORING:
            task = asyncio.create_task(self._remember(session_id, answer))
            self._tasks.add(task)  # asyncio itself keeps no reference
            task.add_done_callback(self._tasks.discard)

    def count(self, attributions: Iterable[str]) -> None:
        """Count the attributions that the session store returned for events.

        service/sessions/append_events.lua describes the format of an attribution.
        """
        for attribution in attributions:
            kind, _, release = attribution.partition("\t")
            if kind != "L":
                self._telemetry.attributed_plays.labels(release).inc()
            if kind != "P":
                self._telemetry.attributed_skips.labels(release).inc()

    async def _remember(self, session_id: str, answer: RecommendResult) -> None:
        track_ids = [answer.release.catalogue.track_id(row) for row in answer.rows]
        with contextlib.suppress(StoreUnavailable):  # the list is lost; metrics show that Redis is unavailable
            await self._store.remember(session_id, answer.release.name, track_ids)
