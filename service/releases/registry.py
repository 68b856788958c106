"""Live releases: which one serves a session (hot swap, A/B test), and the attribution of plays and skips.

A request takes one ActiveRelease and uses no other, so no response mixes two releases. A replaced release is freed with
the last request that uses it, by Python's reference counts.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Final

import structlog

from segue.errors import (
    BadOption,
    BadRelease,
    InputError,
    ReleasesUnavailable,
    SegueError,
    StoreUnavailable,
    SwapRefused,
    UnknownRelease,
)
from segue.release import ENCODER, read_manifest
from service.releases.folder import ListedRelease, PointerState, ReleaseList, ReleasesFolder
from service.releases.loaded import LoadedRelease, RecommendResult, load_release
from service.releases.ranking import Ranking
from service.releases.trial import validate_in_child
from service.sessions.store import SessionStore
from service.settings import Settings
from service.telemetry import Telemetry
from service.threads import BlockingCalls, Threads

_log = structlog.get_logger()

_MAX_LISTED: Final = 1000
_DISK_TIMEOUT_S: Final = 5.0  # the folder of releases may be on a network


@dataclass(frozen=True, slots=True, eq=False)
class ActiveRelease:
    """A release and its ranking."""

    live: LoadedRelease
    ranking: Ranking


def check_servable(settings: Settings) -> None:
    """Raise BadRelease if there is no release to start with. Reads only manifests and creates nothing."""
    if settings.releases_dir is not None:
        folder = ReleasesFolder(settings.releases_dir)
        with contextlib.suppress(SegueError):
            seen = folder.look()
            if seen is not None:
                read_manifest(folder.find(seen.name))
                return
    read_manifest(settings.release)


def _listed(path: Path) -> ListedRelease:
    if path.is_symlink():
        return ListedRelease(folder=path.name, problem="it is a link: copy the release itself")
    try:
        manifest = read_manifest(path)
    except BadRelease as error:
        return ListedRelease(folder=path.name, problem=str(error))
    validation = manifest.evaluation.get("validation")
    hr10 = validation.get("HR@10") if isinstance(validation, dict) else None
    return ListedRelease(
        folder=path.name,
        name=manifest.name,
        model=manifest.model,
        created=manifest.created,
        tracks=manifest.tracks,
        validation_hr10=hr10 if isinstance(hr10, (int, float)) else None,
        problem=None
        if ENCODER in manifest.files
        else f"{manifest.model} has no encoder: it can be evaluated, not served",
    )


class SessionSampler:
    """A random share of the sessions: `session_id in sampler`, in about a microsecond.

    A sampler gives the same answer in every worker, on every machine and after every restart, and a larger share
    contains all sessions of a smaller one. Samplers of different purposes, and the buckets of the session store, are
    independent: the hash is a keyed BLAKE2, because a prefix would only permute the buckets of a linear hash such as
    the store's CRC.
    """

    def __init__(self, purpose: str, share: float) -> None:
        """`purpose` makes the sample independent of others; `share` is 0 to 1."""
        self._key = blake2b(purpose.encode(), digest_size=32).digest()
        self._end = int(share * 2**64)

    def __contains__(self, session_id: str) -> bool:
        """Whether the session is in the sample."""
        if not self._end:
            return False
        return int.from_bytes(blake2b(session_id.encode(), digest_size=8, key=self._key).digest(), "big") < self._end


_MAX_STORING: Final = 200  # lists on their way to Redis; if it lags, further lists are dropped


class Attribution:
    """Attribution: count the plays and skips of recommended tracks by release, for a sample of the sessions.

    A recommended list is stored in Redis with the session, because the worker that answers a list seldom receives the
    event that follows it. Storing is not awaited: the command goes out after the response, in the next pipeline. The
    script that stores an event reads the list together with the session. Whole sessions are sampled, so the rates are
    unbiased. For one event loop.
    """

    def __init__(self, store: SessionStore, share: float, telemetry: Telemetry) -> None:
        """`share` of the sessions, 0 to 1, is sampled."""
        self._store = store
        self._sample = SessionSampler("credits", share)
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[None]] = set()

    def remember(self, session_id: str, answer: RecommendResult) -> None:
        """Store a recommended list if the session is in the sample. Returns before it is stored."""
        if session_id in self._sample and len(self._tasks) < _MAX_STORING:
            task = asyncio.create_task(self._remember(session_id, answer))
            self._tasks.add(task)  # asyncio itself keeps no reference
            task.add_done_callback(self._tasks.discard)

    def count(self, attributions: Iterable[str]) -> None:
        """Count the attributions that the store returned for events. append_events.lua describes their format."""
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


class ReleaseRegistry:
    """The releases of one worker. For one event loop; `current` is replaced by a single assignment."""

    def __init__(self, settings: Settings, threads: Threads, telemetry: Telemetry) -> None:
        """Load the first release. Takes long: call it off the event loop.

        Raises BadRelease or UnknownRelease with one line, BadOption for an experiment without a folder of releases.
        """
        self._threads = threads
        self._isolated_threads = threads.separate_pool(1)  # for questions that may hang
        self._telemetry = telemetry
        self._max_concurrent_batches = settings.ranking_threads
        self._poll_s = settings.releases_poll_interval_s
        self._validation_timeout_s = settings.release_validation_timeout_s
        self._open = partial(
            load_release,
            device=settings.index_device,
            threads=settings.encoder_threads,
            timed=telemetry.time_ranking,
        )
        self._folder = ReleasesFolder(settings.releases_dir) if settings.releases_dir is not None else None
        self._seen: PointerState | None = None
        self._swapping = False
        self._leaving = threading.Event()
        self._opening = BlockingCalls("a release")  # validation has its own time limit
        self._reading = BlockingCalls("the folder of releases", _DISK_TIMEOUT_S)
        self._challenger: ActiveRelease | None = None
        self._share = 0.0  # of the sessions that the challenger serves
        self.current = self._served(self._first(settings.release))
        if settings.experiment is not None:
            name, self._share = settings.experiment
            if self._folder is None:
                raise BadOption("an experiment needs a folder of releases: set SEGUE_RELEASES_DIR")
            self._challenger = self._served(self._validate_and_open(self._folder.find(name)))
            # The name is part of the hash, so that each experiment samples other sessions.
            self._experiment_sample = SessionSampler(f"experiment {name}", self._share)
        self._update_in_use()

    def for_session(self, session_id: str) -> ActiveRelease:
        """The release for a session. It stays the same while releases, experiment and share are unchanged."""
        if self._challenger is not None and session_id in self._experiment_sample:
            return self._challenger
        return self.current

    def live(self) -> list[tuple[ActiveRelease, float]]:
        """The live releases, the current one first, each with its share of the sessions."""
        if self._challenger is None or self._challenger.live.name == self.current.live.name:
            return [(self.current, 1.0)]
        return [(self.current, 1.0 - self._share), (self._challenger, self._share)]

    def named(self, name: str | None) -> ActiveRelease:
        """The live release of this name; the current one for None. Raises UnknownRelease."""
        for served, _ in self.live():
            if name in (None, served.live.name):
                return served
        # The message must not list the live releases: that needs another scope.
        raise UnknownRelease(f"{name!r} is not live here: GET /releases/current names the releases that are")

    async def swap(self, name: str) -> ActiveRelease:
        """Swap to the release in the folder `name`, here and, through the pointer, wherever the folder is watched.

        Raises SwapRefused during another swap or without a folder of releases, UnknownRelease, BadRelease, and
        ReleasesUnavailable if the pointer cannot be written. After an error, the previous release stays live.
        """
        folder = self._folder
        if folder is None:
            raise SwapRefused("the service has no folder of releases: set SEGUE_RELEASES_DIR and restart it")

        def open_and_point() -> tuple[LoadedRelease, PointerState]:
            with folder.locked():
                live = self._validate_and_open(folder.find(name))
                if self._leaving.is_set():
                    raise SwapRefused("the service is shutting down: retry the swap after the restart")
                return live, folder.point(name, self._before(folder, name))

        with self._exclusive_swap(), self._count_rejections(name):
            try:
                live, self._seen = await self._opening(open_and_point)
            except asyncio.CancelledError:  # the service is shutting down, and the client gets an error
                self.leave()
                raise
            self._replace(live)
            return self.current

    def leave(self) -> None:
        """Stop validating releases and writing the pointer, because the service is shutting down."""
        self._leaving.set()

    @property
    def challenger(self) -> ActiveRelease | None:
        """The release under test in the experiment, if there is one."""
        return self._challenger

    async def listing(self) -> ReleaseList:
        """The releases in the folder, from their manifests only. Raises ReleasesUnavailable."""
        try:
            return await self._reading(self._listing)
        except TimeoutError as error:
            raise ReleasesUnavailable(f"{error}: check its disk") from None

    def _listing(self) -> ReleaseList:
        folder, current = self._folder, self.current.live
        if folder is None:
            return ReleaseList(items=[], can_swap=False, current=current.folder)
        listed = [_listed(path) for path in folder.folders()]
        listed.sort(key=lambda one: (one.created is not None and one.created.timestamp(), one.folder), reverse=True)
        seen = folder.look()
        before = seen.before if seen is not None and seen.name == current.folder else None
        return ReleaseList(items=listed[:_MAX_LISTED], can_swap=True, current=current.folder, before=before)

    def _before(self, folder: ReleasesFolder, name: str) -> str | None:
        """The release to roll back to from `name`; None if it is not in the folder of releases."""
        seen, live = folder.look(), self.current.live
        if seen is not None and seen.name == name:
            return seen.before
        if seen is not None and seen.name == live.folder:
            return seen.name
        return live.folder if folder.holds(live.release.path) and live.folder != name else None

    async def watch(self, leaving: asyncio.Event) -> None:
        """Follow the pointer until `leaving` is set. A rejected release is retried only after it has changed."""
        while self._folder is not None and not leaving.is_set():
            try:
                await self._follow(self._folder)
            except (SegueError, TimeoutError) as error:
                _log.error("release_pointer_unreadable", reason=str(error))
            except Exception:  # noqa: BLE001 (see below)
                # Nothing awaits this background task: it must survive unexpected errors.
                _log.exception("release_pointer_unreadable")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), self._poll_s)

    async def _follow(self, folder: ReleasesFolder) -> None:
        before = self._seen
        seen = await self._reading(folder.look)
        if seen is None or seen == before or self._swapping or self._seen is not before:
            return  # `seen` is stale if a swap was requested in the meantime
        with self._exclusive_swap():
            self._seen = seen
            with contextlib.suppress(SegueError), self._count_rejections(seen.name):
                self._replace(await self._opening(lambda: self._validate_and_open(folder.find(seen.name))))

    def _first(self, release: Path) -> LoadedRelease:
        """The release that the pointer names; the configured one if that fails."""
        with contextlib.suppress(SegueError):
            if self._folder is not None and (seen := self._folder.look()) is not None:
                self._seen = seen
                with self._count_rejections(seen.name):
                    return self._validate_and_open(self._folder.find(seen.name))
        return self._open(release)

    def _validate_and_open(self, path: Path) -> LoadedRelease:
        """Validate a release in a child process, which may crash, then load it here."""
        validate_in_child(path, self._validation_timeout_s, self._leaving)
        return self._open(path)

    def _served(self, live: LoadedRelease) -> ActiveRelease:
        return ActiveRelease(
            live, Ranking(live, self._threads, self._isolated_threads, self._max_concurrent_batches, self._telemetry)
        )

    def _replace(self, live: LoadedRelease) -> None:
        before = self.current.live.name
        self.current = self._served(live)
        self._telemetry.release_in_use.labels(before).set(0)
        self._update_in_use()
        self._telemetry.release_swaps.labels("loaded").inc()
        _log.info("release_swapped", release=live.name, folder=live.folder, before=before)

    def _update_in_use(self) -> None:
        for served in (self.current, self._challenger):
            if served is not None:
                self._telemetry.release_in_use.labels(served.live.name).set(1)

    @contextlib.contextmanager
    def _exclusive_swap(self) -> Iterator[None]:
        if self._swapping:
            raise SwapRefused("another swap is in progress: retry after it")
        self._swapping = True
        try:
            yield
        finally:
            self._swapping = False

    @contextlib.contextmanager
    def _count_rejections(self, name: str) -> Iterator[None]:
        """Log and count a rejected release."""
        try:
            yield
        except InputError as error:
            self._telemetry.release_swaps.labels("rejected").inc()
            _log.error("release_rejected", folder=name, reason=str(error))
            raise
