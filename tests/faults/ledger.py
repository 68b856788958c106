"""Listeners that report events until they are acknowledged, and what must then be true of their sessions.

A listener sends a batch of events, and the same batch with the same event ids again until it is answered 200: what a
client of the service is told to do. What was acknowledged is in the ledger; `violations` compares it with what the
service shows.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from segue.sessions import Event, plays_of
from tests.stopwatch import until

Shown = list[tuple[str, bool]]  # track id and whether it was skipped, oldest first

EVENTS_OF_A_SESSION = 800  # below the 1,000 plays that a session keeps
RETRY_AFTER_S = 0.02


def violations(acknowledged: Sequence[Event], unanswered: Sequence[Event], shown: Shown) -> list[str]:
    """What is wrong with a session: events lost, twice, out of order, changed, or never sent.

    `unanswered` is the batch that was under way at the end: it may be there, whole, or not at all.
    """
    allowed = [_shown(acknowledged), _shown([*acknowledged, *unanswered])]
    if shown in allowed:
        return []
    expected = allowed[1] if len(shown) > len(allowed[0]) else allowed[0]
    have, want = Counter(track for track, _ in shown), Counter(track for track, _ in expected)
    found = [f"lost: {track}" for track in (want - have)]
    found += [f"twice: {track}" for track in (have - want) if track in want]
    found += [f"never sent: {track}" for track in (have - want) if track not in want]
    if not found:
        places = [track for track, _ in expected]
        if [track for track, _ in shown] != places:
            found.append("out of order")
        else:
            found += [f"changed: {one[0]}" for one, other in zip(shown, expected, strict=True) if one != other]
    return found


def _shown(events: Sequence[Event]) -> Shown:
    return [(play.track_id, play.skipped) for play in plays_of(events)]


@dataclass
class Ledger:
    """What listeners were told, by session."""

    acknowledged: dict[str, list[Event]] = field(default_factory=dict)
    unanswered: dict[str, list[Event]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)  # by status or exception
    events: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def violations(self, shown_of: Callable[[str], Shown]) -> dict[str, list[str]]:
        """Every session in which something is wrong."""
        wrong = {
            session: violations(events, self.unanswered.get(session, []), shown_of(session))
            for session, events in self.acknowledged.items()
        }
        return {session: what for session, what in wrong.items() if what}


class Listeners:
    """Threads that report events of sessions of their own, until told to end."""

    def __init__(self, address: Callable[[], str], ledger: Ledger, *, number: int = 6, batch: int = 20) -> None:
        """`address` is where the service is now."""
        self._address, self._ledger, self._batch = address, ledger, batch
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"l{i}",), daemon=True) for i in range(number)]

    def __enter__(self) -> "Listeners":
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, each listener with its last batch answered or given up after some seconds."""
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    def wait_for(self, events: int, seconds: float = 120) -> None:
        """Wait until so many events are acknowledged."""
        ledger = self._ledger
        until(lambda: ledger.events >= events, seconds, lambda: f"{ledger.events} events of {events}: {ledger.answers}")

    def _run(self, name: str) -> None:
        with httpx.Client(timeout=5, trust_env=False) as client:
            for number in itertools.count():
                session = f"{name}-{number}"
                with self._ledger.lock:
                    self._ledger.acknowledged[session] = []
                for first in range(0, EVENTS_OF_A_SESSION, self._batch):
                    if self._ended.is_set():
                        return
                    if not self._report(client, session, list(_events(session, first, self._batch))):
                        return

    def _report(self, client: httpx.Client, session: str, events: list[Event]) -> bool:
        """Send the batch until it is acknowledged; False if it was not, although there was time to."""
        body = {"events": [event.model_dump(mode="json", exclude_none=True) for event in events]}
        give_up = None
        while give_up is None or time.monotonic() < give_up:
            outcome = self._sent(client, session, body)
            with self._ledger.lock:
                self._ledger.answers[outcome] += 1
                if outcome == "200":
                    self._ledger.acknowledged[session] += events
                    self._ledger.events += len(events)
                    return True
            if give_up is None and self._ended.is_set():
                give_up = time.monotonic() + 5
            time.sleep(RETRY_AFTER_S)
        with self._ledger.lock:
            self._ledger.unanswered[session] = events
        return False

    def _sent(self, client: httpx.Client, session: str, body: dict[str, Any]) -> str:
        try:
            answer = client.post(f"{self._address()}/sessions/{session}/events", json=body)
        except httpx.HTTPError as error:
            return type(error).__name__
        return str(answer.status_code)


def _events(session: str, first: int, number: int) -> list[Event]:
    """Plays of tracks that no other event names; every fifth track is skipped after it began."""
    events = []
    for at in range(first, first + number):
        skips = at % 5 == 4
        track = f"{session}/{at - 1 if skips else at}"
        kind = "skip" if skips else "play"
        events.append(Event.model_validate({"type": kind, "track_id": track, "event_id": f"{session}:{at}"}))
    return events


def shown_by(client: httpx.Client) -> Callable[[str], Shown]:
    """What a service shows of a session."""

    def shown(session: str) -> Shown:
        answer = client.get(f"/sessions/{session}")
        if answer.status_code == 404:
            return []
        assert answer.status_code == 200, answer.text
        return [(play["track_id"], play["outcome"] == "skipped") for play in answer.json()["plays"]]

    return shown
