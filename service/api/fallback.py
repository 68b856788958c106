"""What is answered while Redis, or the model, is away: the release's most played tracks, if the operator wants it so.

Writes have no such way out: what cannot be stored is not acknowledged.
"""

import math
import time
from typing import Final

import structlog

from segue.errors import ModelUnavailable, SegueError, StoreUnavailable
from segue.sessions import Play
from service.releases.loaded import Question, RecommendResult
from service.releases.registry import ActiveRelease
from service.sessions.store import SessionStore
from service.telemetry import Telemetry

_SECONDS_BETWEEN_LINES: Final = 1.0

_log = structlog.get_logger()


class PopularityFallback:
    """Reads sessions and ranks for them, and knows what to do where either fails."""

    def __init__(self, store: SessionStore, telemetry: Telemetry, *, wanted: bool) -> None:
        """Without `wanted`, what fails is raised."""
        self._store = store
        self._telemetry = telemetry
        self._wanted = wanted
        self._told = -math.inf

    async def plays(self, session_id: str) -> list[Play]:
        """The session's plays; none if the store is away, as of a session that holds none. Raises StoreUnavailable."""
        try:
            return await self._store.plays(session_id)
        except StoreUnavailable:
            if not self._wanted:
                raise
            self._telemetry.fallbacks.labels("store").inc()
            return []

    async def answer(self, served: ActiveRelease, question: Question) -> RecommendResult:
        """The next tracks, by popularity if encoder or index fail."""
        try:
            return await served.ranking(question)
        except Exception as error:  # ONNX Runtime's and FAISS's errors share no class of their own
            if isinstance(error, SegueError) and not isinstance(error, ModelUnavailable):
                raise
            if not self._wanted:
                raise
            self._tell(served, error)
            self._telemetry.fallbacks.labels("model").inc()
            return served.live.popular(question)

    def _tell(self, served: ActiveRelease, error: Exception) -> None:
        """At most once a second, as each of thousands of requests may fail."""
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        if isinstance(error, ModelUnavailable):
            _log.error("model_error", release=served.live.name, reason=str(error))
        else:
            _log.exception("model_error", release=served.live.name)
