"""The checker itself: it has to catch what the fault tests look for."""

import itertools
from pathlib import Path

import httpx
import pytest

from segue.release import Release
from segue.sessions import play, skip
from tests.conftest import ServiceProcess
from tests.faults.ledger import Ledger, Listeners, Shown, shown_by, violations
from tests.live.redis_server import Server

EVENTS = [play("a"), play("b"), skip("b"), play("c"), skip("d")]
SHOWN: Shown = [("a", False), ("b", True), ("c", False), ("d", True)]


def test_what_was_acknowledged_is_right() -> None:
    assert violations(EVENTS, [], SHOWN) == []


def test_a_batch_without_an_answer_may_be_there_or_not_but_whole() -> None:
    tail = [play("e"), play("f")]
    assert violations(EVENTS, tail, SHOWN) == []
    assert violations(EVENTS, tail, [*SHOWN, ("e", False), ("f", False)]) == []
    assert violations(EVENTS, tail, [*SHOWN, ("e", False)]) == ["lost: f"]


@pytest.mark.parametrize("at", range(4))
def test_every_single_loss_is_caught(at: int) -> None:
    track = SHOWN[at][0]
    assert violations(EVENTS, [], SHOWN[:at] + SHOWN[at + 1 :]) == [f"lost: {track}"]
    assert violations(EVENTS, [], [*SHOWN, SHOWN[at]]) == [f"twice: {track}"]
    assert violations(EVENTS, [], [*SHOWN, ("x", False)]) == ["never sent: x"]
    changed = [*SHOWN[:at], (track, not SHOWN[at][1]), *SHOWN[at + 1 :]]
    assert violations(EVENTS, [], changed) == [f"changed: {track}"]


def test_every_other_order_is_caught() -> None:
    for order in itertools.permutations(SHOWN):
        assert violations(EVENTS, [], list(order)) == ([] if list(order) == SHOWN else ["out of order"])


def test_a_loss_planted_in_redis_is_caught(tiny_release: Release, tmp_path: Path) -> None:
    """Against the real service: a play taken out, doubled, and moved, each in a session of its own."""
    redis = Server(tmp_path / "redis", appendonly="yes")
    service = ServiceProcess(tiny_release.path, tmp_path / "data", redis_url=redis.url)
    ledger = Ledger()
    try:
        with service.client() as client:
            with Listeners(lambda: str(client.base_url), ledger, number=3) as listeners:
                listeners.wait_for(1500)
            assert set(ledger.answers) == {"200"}
            assert ledger.violations(shown_by(client)) == {}
            _damage(redis, client)
            found = ledger.violations(shown_by(client))
        assert {session: [what.split(":")[0] for what in wrong] for session, wrong in found.items()} == {
            "l0-0": ["lost"],
            "l1-0": ["twice"],
            "l2-0": ["out of order"],
        }
    finally:
        service.stop()
        redis.kill()


def _damage(redis: Server, client: httpx.Client) -> None:
    with redis.client() as connection:
        lost, doubled, moved = (
            next(connection.scan_iter(match=f"*:{session}:plays", count=10_000)) for session in ("l0-0", "l1-0", "l2-0")
        )
        connection.lset(lost, 7, "gone")
        connection.lrem(lost, 1, "gone")
        connection.rpush(doubled, str(connection.lindex(doubled, 3)))
        connection.rpush(moved, str(connection.lpop(moved)))
    assert client.get("/sessions/l0-0").status_code == 200
