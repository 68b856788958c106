"""What Redis has of a session, for tests that would otherwise have to wait for a time."""

from typing import Any

import redis

from service.sessions.store import keys_of
from tests.stopwatch import until


def end_session(client: "redis.Redis", session_id: str) -> None:
    """Expire a session now instead of after its idle gap, and wait until Redis has deleted it."""
    keys = keys_of(session_id)[:3]
    assert client.pttl(keys[0]) > 0
    for key in keys:
        client.pexpire(key, 1)
    until(lambda: not client.exists(*keys))


def wait_until_remembered(client: "redis.Redis", session_id: str, recommendations: dict[str, Any]) -> None:
    """Wait until the recommended list is stored with its session. The answer that has it does not wait for that."""
    lines = [recommendations["release"], *(item["track_id"] for item in recommendations["items"])]
    until(lambda: (client.hget(keys_of(session_id)[1], "shown") or "").splitlines() == lines)
