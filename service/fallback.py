"""What is answered while Redis, or the model, is away: the release's most played tracks, if the operator wants it so.

Writes have no such way out: what cannot be stored is not acknowledged.
"""

import dataclasses

import structlog

from segue.errors import SegueError, StoreUnavailable
from segue.sessions import Play
from service.live_release import Answer, Question
from service.releases import Served
from service.session_store import SessionStore
from service.telemetry import Telemetry

_log = structlog.get_logger()


class Fallback:
    """Reads sessions and ranks for them, and knows what to do where either fails."""

    def __init__(self, store: SessionStore, telemetry: Telemetry, *, wanted: bool) -> None:
        """Without `wanted`, what fails is raised."""
        self._store = store
        self._telemetry = telemetry
        self._wanted = wanted

    async def plays(self, session_id: str) -> list[Play]:
        """The session's plays; none if the store is away, as of a session that holds none. Raises StoreUnavailable."""
        try:
            return await self._store.plays(session_id)
        except StoreUnavailable:
            if not self._wanted:
                raise
            self._telemetry.fallbacks.labels("store").inc()
            return []

    async def answer(self, served: Served, question: Question) -> Answer:
        """The next tracks, by popularity if encoder or index fail."""
        try:
            return await served.ranking(question)
        except SegueError:
            raise
        except Exception:  # ONNX Runtime's and FAISS's errors share no class of their own
            if not self._wanted:
                raise
            _log.exception("model_failed", release=served.live.name)
            self._telemetry.fallbacks.labels("model").inc()
            heard = [play.track_id for play in question.plays] if question.exclude_heard else []
            without = dataclasses.replace(question, plays=(), exclude=[*question.exclude, *heard])
            return await served.ranking(without)
