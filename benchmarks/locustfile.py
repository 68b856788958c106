"""Listeners at a service: search, play, skip about half, ask for what comes next; every answer is checked.

    segue serve RELEASE --port 8000
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 --headless -u 200 -r 50 -t 60s

With SEGUE_API_KEY in the environment, or a file named by SEGUE_KEY_FILE, every request carries that API key (scope
`admin`, as listeners erase their sessions).
A listener stays for at most SESSION_TRACKS tracks, then erases the session and begins another. Think times are a tenth
of a real listener's, so 200 users are as much load as 2,000. With RAMP=100:30,400:60 in the environment,
instead of -u, -r and -t, 100 users stay for 30 s and then 400 for 60 s. At the end, beside locust's latencies: the
share of plays that were skipped, and how many different tracks were served.
"""

import os
import random
import uuid
from pathlib import Path
from typing import Any

from locust import HttpUser, LoadTestShape, between, events, task

SESSION_TRACKS = 25
NEXT = 20
SKIP_RATE = 0.5
ASK_RATE = 0.2  # how often the next tracks are asked for by a request of their own
SEARCH_RATE = 0.05  # how often a listener searches instead of taking what is recommended

_plays: dict[str, int] = {"play": 0, "skip": 0}
_served: set[str] = set()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _tell(**_: object) -> None:
    share = _plays["skip"] / max(_plays["play"], 1)
    print(f"{_plays['play']} plays, {share:.0%} of them skipped; {len(_served)} different tracks were served")


def _key() -> str:
    """The API key: SEGUE_API_KEY, or what is in the file that SEGUE_KEY_FILE names."""
    file = os.environ.get("SEGUE_KEY_FILE")
    return Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get("SEGUE_API_KEY", "")


if os.environ.get("RAMP"):

    class Ramp(LoadTestShape):
        """As many users as RAMP says, one step after another; each step's users come within 5 seconds."""

        steps = [tuple(map(int, step.split(":"))) for step in os.environ["RAMP"].split(",")]  # noqa: RUF012

        def tick(self) -> tuple[int, float] | None:
            """Users and users to start each second; None at the end."""
            left = self.get_run_time()  # type: ignore[no-untyped-call]
            for users, seconds in self.steps:
                if left < seconds:
                    return users, max(users / 5, 1)
                left -= seconds
            return None


class Listener(HttpUser):
    """One listener with one session at a time."""

    wait_time = between(0.5, 2.5)

    def on_start(self) -> None:
        """Begin a session."""
        if key := _key():
            self.client.headers["Authorization"] = f"Bearer {key}"
        self.session_id = f"locust-{uuid.uuid4().hex}"
        self.heard: list[str] = []
        self.next: list[str] = []

    def on_stop(self) -> None:
        """Leave nothing behind."""
        self.client.delete(f"/sessions/{self.session_id}", name="DELETE /sessions/{id}")

    @task
    def listen(self) -> None:
        """Play a track, skip it or not, and look at what comes next."""
        if not self.next or random.random() < SEARCH_RATE:
            self._search()
        if not self.next:
            return
        track = self.next[0]
        self._report("play", track)
        if random.random() < SKIP_RATE:
            self._report("skip", track)
        self.heard.append(track)
        if random.random() < ASK_RATE:
            self._ask()
        if len(self.heard) >= SESSION_TRACKS:
            self.on_stop()
            self.on_start()

    def _search(self) -> None:
        query = random.choice(("", "a", "e", "o"))
        with self.client.get("/tracks", params={"query": query}, name="GET /tracks", catch_response=True) as answer:
            if not answer.ok:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
            elif tracks := [item["track_id"] for item in answer.json()["items"]]:
                self.next = random.sample(tracks, len(tracks))

    def _report(self, kind: str, track: str) -> None:
        event = {"type": kind, "track_id": track, "event_id": uuid.uuid4().hex}
        with self.client.post(
            f"/sessions/{self.session_id}/events?recommend={NEXT}&repeat=never",
            json={"events": [event]},
            name=f"POST events, {kind}",
            catch_response=True,
        ) as answer:
            if not answer.ok:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
                return
            body = answer.json()
            expected = len(self.heard) + 1
            if body["length"] != expected or body["accepted"] != 1:
                answer.failure(f"the session holds {body['length']} plays, expected {expected}")
            _plays[kind] += 1
            self._take(body["recommendations"], {*self.heard, track}, answer)

    def _ask(self) -> None:
        with self.client.get(
            "/recommendations",
            params={"session_id": self.session_id, "k": NEXT, "repeat": "never"},
            name="GET /recommendations",
            catch_response=True,
        ) as answer:
            if answer.ok:
                self._take(answer.json(), set(self.heard), answer)
            else:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")

    def _take(self, body: dict[str, Any], heard: set[str], answer: Any) -> None:
        tracks = [item["track_id"] for item in body["items"]]
        scores = [item["score"] for item in body["items"]]
        if not tracks or len(set(tracks)) != len(tracks):
            answer.failure(f"{len(tracks)} tracks, {len(set(tracks))} different ones")
        elif heard & set(tracks):
            answer.failure("a heard track was recommended")
        elif scores != sorted(scores, reverse=True):
            answer.failure("the tracks are not in the order of their scores")
        self.next = tracks
        _served.update(tracks)
