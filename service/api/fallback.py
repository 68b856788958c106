"""Read a session and rank its next tracks, with the popularity fallback.

The fallback answers with the release's most played tracks while Redis or the model is unavailable, if
SEGUE_FALLBACK=popularity. Writes have no fallback: an event that cannot be stored is not acknowledged.
"""

import time
from typing import Final

import structlog

from segue.errors import ModelUnavailable, SegueError, StoreUnavailable
from segue.sessions import SessionState
from service.api.state import AppState
from service.releases.candidates import popular
from service.releases.loaded import Question, RecommendResult
from service.releases.registry import ActiveRelease

_LOG_INTERVAL_S: Final = 1.0

_log = structlog.get_logger()


async def stored_or_none(service: AppState, session_id: str, listener_id: str | None = None) -> SessionState:
    """The session, with the bans of its listener. Without the store none, if there is a fallback.

    Raises StoreUnavailable without a fallback.
    """
    try:
        found = await service.store.session(session_id)
        if listener_id is None and found.preferences is None:
            return found
        return await with_bans(service, found, listener_id)
    except StoreUnavailable:
        if not service.fallback:
            raise
        service.telemetry.fallbacks.labels("store").inc()
        return SessionState([])


async def with_bans(service: AppState, found: SessionState, listener_id: str | None = None) -> SessionState:
    """The session together with the bans of this listener, or of the one that it remembers."""
    if listener_id is None and found.preferences is not None:
        listener_id = found.preferences.listener_id
    if listener_id is None:
        return found
    bans = await service.store.listeners.bans(listener_id)
    return found._replace(preferences=bans.added_to(found.preferences))


async def answer_or_popular(service: AppState, active: ActiveRelease, question: Question) -> RecommendResult:
    """The next tracks, by popularity if encoder or index fail and there is a fallback."""
    try:
        return await active.ranking(question)
    except Exception as error:  # ONNX Runtime's and FAISS's errors share no class of their own
        if (isinstance(error, SegueError) and not isinstance(error, ModelUnavailable)) or not service.fallback:
            raise
        _log_model_error(service, active, error)
        service.telemetry.fallbacks.labels("model").inc()
        return popular(active.live, question)


def _log_model_error(service: AppState, active: ActiveRelease, error: Exception) -> None:
    """Log at most one line a second, as each of thousands of requests may fail."""
    now = time.monotonic()
    if now - service.model_error_logged_at < _LOG_INTERVAL_S:
        return
    service.model_error_logged_at = now
    if isinstance(error, ModelUnavailable):
        _log.error("model_error", release=active.live.name, reason=str(error))
    else:
        _log.exception("model_error", release=active.live.name)
