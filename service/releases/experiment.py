"""The A/B test: which sessions the second release serves, what a swap did to the test, and what listeners did.

A swap that changes an arm ends the comparison. The service refuses it unless the request says so, and then writes the
end of the test into the pointer of the releases folder. All workers and replicas read it there, also after a restart.

Attribution counts the plays and skips of recommended tracks by the release that recommended them, also without a test.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

import structlog
from pydantic import BaseModel, Field

from segue.errors import EndsExperiment, StoreUnavailable
from segue.release import Manifest
from segue.sessions import Play
from service.releases.loaded import LoadedRelease, RecommendResult
from service.sessions.store import SessionStore
from service.telemetry import Telemetry

_log = structlog.get_logger()

State: TypeAlias = Literal["running", "ended", "void", "idle"]

_MAX_STORING: Final = 200  # lists being written to Redis; if Redis is slow, further lists are dropped


class ExperimentBody(BaseModel):
    """The A/B test: a second release that serves a share of the sessions."""

    release: str
    folder: str
    share: float = Field(description="Share of the sessions that `SEGUE_EXPERIMENT` gives to the second release")
    state: State = Field(
        description="`running`: it divides the sessions. `ended`: a swap ended it, and all sessions get the live "
        "release. `void`: both releases are the same. `idle`: its share is 0"
    )
    since: datetime = Field(
        description="The state and both releases are unchanged since then. `running` and `idle`: no earlier than the "
        "start of the service, where counters start"
    )
    reason: str | None = Field(default=None, description="Why it is `ended` or `void`")


class SessionSampler:
    """Selects a random share of all sessions. `session_id in sampler` takes about a microsecond.

    The result is the same in every worker, on every machine and after every restart. A sample with a larger share
    contains the sample with a smaller share. Samples for different purposes are independent of each other and of the
    buckets of the session store. The hash is a keyed BLAKE2. A prefix is not enough with a linear hash such as the CRC
    of the session store, because it would only permute the buckets.
    """

    def __init__(self, purpose: str, share: float) -> None:
        """Create a sampler. `purpose` is the key of the hash. `share` is the share of sessions, from 0 to 1."""
        self._key = blake2b(purpose.encode(), digest_size=32).digest()
        self._end = int(share * 2**64)

    def __contains__(self, session_id: str) -> bool:
        """Return True if the session is in the sample."""
        if not self._end:
            return False
        return int.from_bytes(blake2b(session_id.encode(), digest_size=8, key=self._key).digest(), "big") < self._end


NO_SESSIONS: Final = SessionSampler("none", 0.0)


class Experiment:
    """The A/B test of one worker."""

    def __init__(self, folder: str, share: float) -> None:
        """Create the test of SEGUE_EXPERIMENT: the folder name of the second release, and its share of the sessions."""
        self.folder = folder
        self._share = share
        # The name is part of the hash, so that the samples of different experiments are independent.
        self._sample = SessionSampler(f"experiment {folder}", share)
        self._started = datetime.now(UTC)
        self._ended: tuple[datetime, str] | None = None  # when, and the folder name that was swapped to

    @property
    def share(self) -> float:
        """The share of the sessions that the second release serves now."""
        return 0.0 if self._ended else self._share

    @property
    def sample(self) -> SessionSampler:
        """The sessions that the second release serves now."""
        return NO_SESSIONS if self._ended else self._sample

    def follow(self, ended: str | None) -> None:
        """Read the end of a test from the pointer. It has no effect if it is that of another test."""
        before, self._ended = self._ended, self._read(ended)
        if self._ended and not before:
            _log.info("experiment_ended", experiment=self._named, since=self._ended[0].isoformat(), by=self._ended[1])
        elif before and not self._ended:
            _log.info("experiment_resumed", experiment=self._named)

    def end(self, target: str, ended: str | None) -> str | None:
        """Return the text for the pointer if a swap to the folder `target` ends the test.

        `ended` is the text of the pointer before the swap. It stays if this test has ended already, or has no sessions.
        """
        if not self._share or self._read(ended):
            return ended
        return f"{self._named} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {target}"

    def check_swap(self, target: Manifest, folder: str, ended: str | None, live: tuple[str, str]) -> None:
        """Raise EndsExperiment if a swap changes an arm of the running test.

        `target` and `folder` describe the release to swap to, `ended` is the text of the pointer, and `live` has the
        names of the current and of the second release.
        """
        current, second = live
        if not self._share or self._read(ended) or current in (second, target.name):
            return
        why = "both arms would be the same release" if target.name == second else "the other arm would change"
        raise EndsExperiment(
            f"an A/B test is running: {self._share * 100:.4g} % of the sessions get {self.folder}. A swap to {folder} "
            f'would end it, because {why}: send "end_experiment": true to swap and end the test'
        )

    def state(self, current: LoadedRelease, second: LoadedRelease, live_since: datetime | None) -> ExperimentBody:
        """Describe the test. `live_since` is the time of the latest swap, None if there was none."""
        state: State = "running" if self._share else "idle"
        since, reason = max(live_since or self._started, self._started), None
        if self._ended:
            state, since, reason = "ended", self._ended[0], f"a swap to {self._ended[1]} ended it"
        elif self._share and current.name == second.name:
            state, since, reason = "void", live_since or self._started, f"both arms are {current.name}"
        return ExperimentBody(
            release=second.name, folder=second.folder, share=self._share, state=state, since=since, reason=reason
        )

    @property
    def _named(self) -> str:
        return f"{self.folder}:{Decimal(str(self._share)):f}"

    def _read(self, ended: str | None) -> tuple[datetime, str] | None:
        words = (ended or "").split(" ")
        if len(words) != 3 or words[0] != self._named:
            return None
        try:
            return datetime.fromisoformat(words[1]).astimezone(UTC), words[2]
        except ValueError:
            return None


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

    def remember(self, session_id: str, plays: Sequence[Play], answer: RecommendResult) -> None:
        """Start to store the list that followed `plays` if the session is in the sample. Does not wait for it."""
        if session_id in self._sample and len(self._tasks) < _MAX_STORING:
            task = asyncio.create_task(self._remember(session_id, plays[-1] if plays else None, answer))
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

    async def _remember(self, session_id: str, latest: Play | None, answer: RecommendResult) -> None:
        track_ids = [answer.release.catalogue.track_id(row) for row in answer.rows]
        with contextlib.suppress(StoreUnavailable):  # the list is lost; metrics show that Redis is unavailable
            await self._store.remember(session_id, latest, answer.release.name, track_ids)
