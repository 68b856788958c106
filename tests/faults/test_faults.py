"""Faults while listeners report: nothing acknowledged is lost, doubled or moved, in the sessions and in the event log.

Real servers, 225,000 events and more over all tests. A failed request is sent again with the same event ids.
"""

import contextlib
import random
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from segue.release import Release
from service.sessions.embedded_redis import repair_aof
from tests.conftest import ServiceProcess, track_ids
from tests.event_log_reader import read_back
from tests.faults.ledger import Ledger, Listeners, shown_by
from tests.faults.servers import Proxy
from tests.hostile import write_hanging_release
from tests.live.redis_server import Server
from tests.stopwatch import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# What a client may get while something is down: no acknowledgement, never a wrong one.
REFUSALS = {"503", "ConnectError", "ReadError", "RemoteProtocolError", "WriteError", "ReadTimeout", "ConnectTimeout"}


class Stand:
    """A service, its Redis, and listeners that report to it wherever it is."""

    def __init__(self, release: Release, folder: Path) -> None:
        self.release_path, self._folder = release.path, folder
        self.redis = Server(folder / "redis", appendonly="yes", appendfsync="always")
        self.redis_url = self.redis.url
        self.ledger = Ledger()
        self.service: ServiceProcess | None = None
        self._address = "http://127.0.0.1:9"  # nobody listens there

    @property
    def events_folder(self) -> Path:
        return self._folder / "data" / "events"

    def start(self, **settings: object) -> str:
        """Start the service, and tell the listeners where it is."""
        given: dict[str, Any] = {"event_log_flush_s": 0.3, "redis_timeout_s": 0.5, "log_level": "error", **settings}
        given |= {"durability": "always"}  # with less, a Redis that is killed may have kept writes back during a flush
        self.service = ServiceProcess(self.release_path, self._folder / "data", redis_url=self.redis_url, **given)
        self._address = self.service.address()
        return self._address

    def start_redis(self) -> None:
        """As docs/operate/failures.md says a Redis that crashed is to be started."""
        repair_aof(self._folder / "redis")
        self.redis.start()

    def kill(self) -> None:
        """End the service at once."""
        assert self.service is not None
        self.service.kill()

    def listeners(self) -> Listeners:
        return Listeners(lambda: self._address, self.ledger)

    def wait_for_more(self, listeners: Listeners, most: int = 1500) -> None:
        """Wait until some more events are acknowledged, how many differs."""
        listeners.wait_for(self.ledger.events + random.Random(self.ledger.events).randint(100, most))

    def check(self) -> None:
        """Sessions and event log hold what was acknowledged, and no client got an answer that it should not."""
        assert set(self.ledger.answers) <= {"200", *REFUSALS}, self.ledger.answers
        with httpx.Client(base_url=self._address, timeout=20, trust_env=False) as client:
            assert self.ledger.violations(shown_by(client)) == {}
        assert self.service is not None
        assert self.service.stop() == 0
        logged = read_back(self.events_folder)
        of = {name.partition("@")[0]: plays for name, plays in logged.items()}
        assert len(of) == len(logged), "a session has begun twice"
        assert self.ledger.violations(lambda session: of.get(session, [])) == {}
        record = self._folder / "record"  # kept by pytest for the last runs
        record.write_text(f"{self.ledger.events:,} events acknowledged, answers {dict(self.ledger.answers)}\n")


@pytest.fixture
def stand(tiny_release: Release, tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tiny_release, tmp_path)
    yield stand
    if stand.service is not None:
        with contextlib.suppress(ValueError):
            stand.service.stop()
    stand.redis.kill()


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.nightly)])
def test_the_service_is_killed_many_times(stand: Stand, kills: int) -> None:
    with stand.listeners() as listeners:
        for _ in range(kills):
            stand.start()
            stand.wait_for_more(listeners)
            stand.kill()
        stand.start()
        listeners.wait_for(2000 * kills)
    stand.check()


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.nightly)])
def test_redis_is_killed_many_times(stand: Stand, kills: int) -> None:
    stand.start()
    with stand.listeners() as listeners:
        for _ in range(kills):
            stand.wait_for_more(listeners)
            stand.redis.kill()
            time.sleep(random.Random(stand.ledger.events).random() / 3)
            stand.start_redis()
        listeners.wait_for(3000 * kills)
    assert stand.ledger.answers["503"]
    stand.check()


def test_connections_to_redis_are_cut_slowed_and_held(stand: Stand) -> None:
    """What was held comes after its command has been sent again: it must change nothing any more."""
    proxy = Proxy(stand.redis.port)
    stand.redis_url = f"redis://127.0.0.1:{proxy.port}"
    stand.start()
    with stand.listeners() as listeners:
        for _ in range(20):
            stand.wait_for_more(listeners)
            proxy.cut()
        for _ in range(5):
            stand.wait_for_more(listeners)
            proxy.hold()
            time.sleep(1.0)
            proxy.release()
        proxy.delay_s = 0.05
        stand.wait_for_more(listeners)
        proxy.delay_s = 0.0
        listeners.wait_for(30_000)
    assert stand.ledger.answers["503"]
    stand.check()
    proxy.close()


def test_redis_has_no_memory_left(stand: Stand) -> None:
    stand.start()
    with stand.listeners() as listeners, stand.redis.client() as redis:
        for _ in range(3):
            stand.wait_for_more(listeners)
            redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) + 50_000)
            refused = stand.ledger.answers["503"]
            until(lambda refused=refused: stand.ledger.answers["503"] >= refused + 20, 30)  # type: ignore[misc]
            redis.config_set("maxmemory", 0)
        listeners.wait_for(10_000)
    stand.check()


def test_the_disk_of_the_event_log_is_full(stand: Stand) -> None:
    """No file of the service may grow beyond 100 bytes for a while: events wait in Redis, and none is lost."""
    address = stand.start()
    assert stand.service is not None
    process = psutil.Process(stand.service.process.pid)
    with stand.listeners() as listeners, stand.redis.client() as redis:
        listeners.wait_for(2000)
        before = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        time.sleep(1)  # what was being written then
        files = set(stand.events_folder.glob("*.parquet"))
        listeners.wait_for(stand.ledger.events + 4000)
        time.sleep(1)
        assert set(stand.events_folder.glob("*.parquet")) == files
        waiting = sum(redis.xlen(key) for key in redis.scan_iter(match="*:events", count=10_000))
        assert waiting >= 4000
        metrics = httpx.get(f"{address}/metrics", trust_env=False).text
        assert float(re.findall(r"^segue_event_log_failures_total (\S+)", metrics, re.MULTILINE)[0]) > 0
        process.rlimit(psutil.RLIMIT_FSIZE, before)
        listeners.wait_for(10_000)
    stand.check()


def test_everything_is_killed_together(stand: Stand) -> None:
    stand.start()
    with stand.listeners() as listeners:
        for _ in range(5):
            stand.wait_for_more(listeners)
            stand.redis.kill()
            stand.kill()
            stand.start_redis()
            stand.start()
        listeners.wait_for(15_000)
    stand.check()


def test_the_model_hangs_on_a_track_that_is_asked_for_all_the_time(tiny_release: Release, tmp_path: Path) -> None:
    poison = "g1-t01"
    write_hanging_release(tiny_release, tmp_path / "hanging", track_ids().index(poison) + 1)
    stand = Stand(tiny_release, tmp_path)
    stand.release_path = tmp_path / "hanging"
    try:
        address = stand.start(ranking_timeout_s=2)
        leaving = threading.Event()
        sources: Counter[str] = Counter()

        def ask(track: str, every_s: float) -> None:
            with httpx.Client(base_url=address, timeout=20, trust_env=False) as client:
                while not leaving.wait(every_s):
                    body = {"events": [{"type": "play", "track_id": track}], "k": 5}
                    answer = client.post("/recommendations/what-if", json=body)
                    found = answer.json()["source"] if answer.is_success else str(answer.status_code)
                    sources[f"{track} {found}"] += 1

        askers = [threading.Thread(target=ask, args=(poison, 0.1), daemon=True) for _ in range(3)]
        askers += [threading.Thread(target=ask, args=("g3-t05", 0.05), daemon=True)]
        for thread in askers:
            thread.start()
        with stand.listeners() as listeners:
            listeners.wait_for(20_000)
            until(lambda: sources["g3-t05 model"] > 20, 120, lambda: str(sources))
        leaving.set()
        for thread in askers:
            thread.join(30)
        assert set(sources) == {f"{poison} 503", "g3-t05 model"}, sources
        stand.check()
    finally:
        if stand.service is not None:
            with contextlib.suppress(ValueError):
                stand.service.stop()
        stand.redis.kill()
