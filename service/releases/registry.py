"""Live releases: hot swap and A/B test.

A request gets one ActiveRelease and uses only that release, so no response mixes two releases. Reference counting frees
a replaced release when the last request that uses the release ends.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from segue.errors import (
    BadOption,
    BadRelease,
    InputError,
    ReleasesUnavailable,
    SegueError,
    SwapRefused,
    UnknownRelease,
)
from segue.ngram import FILES as COUNTS
from segue.release import ENCODER, read_manifest
from service.releases.added import AddedTrack, AddedTracksFile
from service.releases.experiment import NO_SESSIONS, Experiment, ExperimentBody, SessionSampler
from service.releases.folder import ListedRelease, PointerState, ReleaseList, ReleasesFolder
from service.releases.loaded import LoadedRelease, load_release
from service.releases.ranking import Ranking
from service.releases.removed import RemovedTracks
from service.releases.trial import validate_in_child
from service.settings import Settings
from service.telemetry import Telemetry
from service.threads import BlockingCalls, Threads

_log = structlog.get_logger()

_MAX_LISTED: Final = 1000
_DISK_TIMEOUT_S: Final = 5.0  # the folder of releases may be on a network
_APPLY_TIMEOUT_S: Final = 30.0  # a million removed ids take seconds


@dataclass(slots=True, eq=False)
class ActiveRelease:
    """A live release and the object that ranks questions with it."""

    live: LoadedRelease  # with added tracks and without removed ones
    ranking: Ranking
    added: Mapping[str, AddedTrack] = field(default_factory=dict)  # those that `live` has
    removed: Mapping[str, str] = field(default_factory=dict)  # those that `live` has not
    loaded: LoadedRelease = field(init=False)  # without added tracks

    def __post_init__(self) -> None:
        """Keep the release as it was loaded."""
        self.loaded = self.live

    def apply(self, added: Mapping[str, AddedTrack], removed: Mapping[str, str]) -> None:
        """Add and remove tracks. Does nothing if these are the same objects as in the last call."""
        live = self.live
        if added is not self.added:
            live = self.loaded.with_added(added) if added else self.loaded
            if live.added is not None and live.added.dropped:
                lines = live.added.dropped
                _log.warning("added_tracks_incomplete", release=live.name, tracks=len(lines), first=lines[:3])
        elif removed is self.removed:
            return
        live.remove(removed.keys())
        self.ranking.rank_with(live)
        self.live, self.added, self.removed = live, added, removed


def check_servable(settings: Settings) -> None:
    """Raise BadRelease if the service has no release to start with. Reads only manifests and creates nothing."""
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
        if ENCODER in manifest.files or COUNTS[0] in manifest.files
        else f"{manifest.model} has no encoder and no transition counts: it can be evaluated, not served",
    )


class ReleaseRegistry:
    """The live releases of one worker. Use an instance in one event loop only.

    A swap replaces the attribute `current` in a single assignment.
    """

    def __init__(self, settings: Settings, threads: Threads, telemetry: Telemetry) -> None:
        """Load the releases to start with. Loading is slow and blocks: do not call this on the event loop.

        Raises BadRelease or UnknownRelease with a one-line message, and BadOption if the settings have an experiment
        but no folder of releases.
        """
        self._threads = threads
        self._isolated_threads = threads.separate_pool(1)  # ranks questions that may hang the model
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
        self.removed = RemovedTracks(settings.releases_dir)
        self.added = AddedTracksFile(settings.releases_dir)
        self._applying = threading.Lock()
        self._following = asyncio.Lock()
        self._changing = BlockingCalls("the changed tracks", _APPLY_TIMEOUT_S)
        self._seen: PointerState | None = None
        self._swapping = False
        self._leaving = threading.Event()
        self._opening = BlockingCalls("a release")  # validation has its own time limit
        self._reading = BlockingCalls("the folder of releases", _DISK_TIMEOUT_S)
        self._challenger: ActiveRelease | None = None
        self._experiment: Experiment | None = None
        self._challenged: SessionSampler = NO_SESSIONS  # the sessions that the challenger serves
        self._live_since: datetime | None = None  # the latest swap
        self.current = self._served(self._first(settings.release))
        if settings.experiment is not None:
            if self._folder is None:
                raise BadOption("an experiment needs a folder of releases: set SEGUE_RELEASES_DIR")
            self._experiment = Experiment(*settings.experiment)
            self._challenger = self._served(self._validate_and_open(self._folder.find(self._experiment.folder)))
            self._follow_experiment()
        self._announce_live()

    def for_session(self, session_id: str) -> ActiveRelease:
        """Return the release that serves a session.

        A session keeps its release while the live releases, the experiment and its share stay the same.
        """
        if self._challenger is not None and session_id in self._challenged:
            return self._challenger
        return self.current

    def live(self) -> list[tuple[ActiveRelease, float]]:
        """Return the live releases with their shares of the sessions. The current release is first."""
        if self._challenger is None or self._challenger.live.name == self.current.live.name:
            return [(self.current, 1.0)]
        share = self._experiment.share if self._experiment is not None else 0.0
        return [(self.current, 1.0 - share), (self._challenger, share)]

    def named(self, name: str | None) -> ActiveRelease:
        """Return the live release with this name, or the current release for None. Raises UnknownRelease."""
        for served, _ in self.live():
            if name in (None, served.live.name):
                return served
        # The message must not list the live releases: clients need another scope of the API key to read them.
        raise UnknownRelease(f"{name!r} is not live here: GET /releases/current names the releases that are")

    async def swap(self, name: str, *, end_experiment: bool = False) -> ActiveRelease:
        """Swap to the release in the folder `name`, and write the pointer so that other workers and replicas follow.

        `end_experiment` ends a running A/B test. Without it, a swap that changes an arm of the test raises
        EndsExperiment. Raises SwapRefused if another swap is in progress or if there is no folder of releases. Raises
        UnknownRelease, BadRelease, and ReleasesUnavailable if the pointer cannot be written. After an error, the
        previous release stays live.
        """
        folder = self._folder
        if folder is None:
            raise SwapRefused("the service has no folder of releases: set SEGUE_RELEASES_DIR and restart it")

        def open_and_point() -> tuple[ActiveRelease, PointerState]:
            with folder.locked():
                if not end_experiment:
                    self._check_experiment(name, folder)
                live = self._served(self._validate_and_open(folder.find(name)))
                if self._leaving.is_set():
                    raise SwapRefused("the service is shutting down: retry the swap after the restart")
                ended = self._end_of_experiment(name, folder, end_experiment=end_experiment)
                return live, folder.point(name, self._before(folder, name), ended)

        with self._exclusive_swap(), self._count_rejections(name):
            try:
                live, seen = await self._opening(open_and_point)
            except asyncio.CancelledError:  # the service is shutting down, and the client gets an error
                self.leave()
                raise
            self._seen = seen
            self._replace(live, seen)
            return self.current

    def _check_experiment(self, name: str, folder: ReleasesFolder) -> None:
        """Raise EndsExperiment if a swap changes an arm of the A/B test. Raises BadRelease."""
        if self._experiment is not None and self._challenger is not None:
            live = self.current.live.name, self._challenger.live.name
            ended = self._end_of_experiment(name, folder, end_experiment=False)
            self._experiment.check_swap(read_manifest(folder.find(name)), name, ended, live)

    def _end_of_experiment(self, name: str, folder: ReleasesFolder, *, end_experiment: bool) -> str | None:
        """Return the end of the A/B test, for the pointer that a swap writes now: validation may take minutes."""
        seen = folder.look()
        ended = seen.ended if seen is not None else None
        if not end_experiment or self._experiment is None or self._challenger is None:
            return ended
        return self._experiment.end(name, ended)

    def leave(self) -> None:
        """Stop validating releases and writing the pointer, because the service is shutting down."""
        self._leaving.set()

    def experiment(self) -> ExperimentBody | None:
        """Return the state of the A/B test, or None if there is none."""
        if self._experiment is None or self._challenger is None:
            return None
        return self._experiment.state(self.current.live, self._challenger.live, self._live_since)

    async def listing(self) -> ReleaseList:
        """Return the releases in the folder. Reads only their manifests. Raises ReleasesUnavailable."""
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
        """Return the folder name of the release for a rollback from `name`.

        Return None if that release is not in the folder of releases.
        """
        seen, live = folder.look(), self.current.live
        if seen is not None and seen.name == name:
            return seen.before
        if seen is not None and (seen.name == live.folder or (seen.files and not seen.is_pointer_of(self._seen))):
            return seen.name  # also if this worker has not followed the pointer yet
        return live.folder if folder.holds(live.release.path) and live.folder != name else None

    async def watch(self, leaving: asyncio.Event) -> None:
        """Swap releases when the pointer changes, until `leaving` is set.

        A rejected release is loaded again only after the pointer or the files of the release have changed.
        """
        while self._folder is not None and not leaving.is_set():
            try:
                await self._follow(self._folder)
            except (SegueError, TimeoutError) as error:
                _log.error("release_pointer_unreadable", reason=str(error))
            except Exception:  # noqa: BLE001 (the task must not end)
                # No code awaits this background task, so it must survive unexpected errors.
                _log.exception("release_pointer_unreadable")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), self._poll_s)

    async def _follow(self, folder: ReleasesFolder) -> None:
        before = self._seen
        seen = await self._reading(folder.look)
        if seen is None or seen == before or self._swapping or self._seen is not before:
            return  # if a swap was requested during the read, `seen` is stale
        with self._exclusive_swap():
            self._seen = seen
            self._follow_experiment()
            with contextlib.suppress(SegueError), self._count_rejections(seen.name):
                live = await self._opening(lambda: self._served(self._validate_and_open(folder.find(seen.name))))
                self._replace(live, seen)

    def _first(self, release: Path) -> LoadedRelease:
        """Load the release that the pointer names. If that fails, load `release`."""
        with contextlib.suppress(SegueError):
            if self._folder is not None and (seen := self._folder.look()) is not None:
                self._seen = seen
                with self._count_rejections(seen.name):
                    live = self._validate_and_open(self._folder.find(seen.name))
                    self._live_since = seen.written
                    return live
        return self._open(release)

    def _validate_and_open(self, path: Path) -> LoadedRelease:
        """Validate a release in a child process, then load it in this process.

        A damaged release may crash the process that loads it. The child process isolates such a crash.
        """
        validate_in_child(path, self._validation_timeout_s, self._leaving)
        return self._open(path)

    def apply_changes(self) -> None:
        """Have the added tracks, and not the removed ones, in all answers from now on."""
        with self._applying:
            for served in (self.current, self._challenger):
                if served is not None:
                    served.apply(self.added.tracks, self.removed.since)

    async def follow_changes(self) -> None:
        """Call `apply_changes` in a thread of its own, as all ranking threads may hang. Raises ReleasesUnavailable."""
        async with self._following:
            try:
                await self._changing(self.apply_changes)
            except TimeoutError as error:
                raise ReleasesUnavailable(f"{error}. The change is stored: all workers follow it") from None

    def _served(self, live: LoadedRelease) -> ActiveRelease:
        """Return a release that is ready to answer. Slow if tracks were added: call it in a thread."""
        served = ActiveRelease(
            live, Ranking(live, self._threads, self._isolated_threads, self._max_concurrent_batches, self._telemetry)
        )
        served.apply(self.added.tracks, self.removed.since)
        return served

    def _replace(self, served: ActiveRelease, seen: PointerState) -> None:
        before = self.current.live.name
        self.current = served
        self._live_since = seen.written
        self._follow_experiment()
        self.apply_changes()  # of tracks that changed meanwhile
        self._telemetry.release_in_use.labels(before).set(0)
        self._announce_live()
        self._telemetry.release_swaps.labels("loaded").inc()
        _log.info("release_swapped", release=served.live.name, folder=served.live.folder, before=before)

    def _follow_experiment(self) -> None:
        """Apply the end of the A/B test in the pointer."""
        if self._experiment is not None:
            self._experiment.follow(self._seen.ended if self._seen is not None else None)
            self._challenged = self._experiment.sample

    def _announce_live(self) -> None:
        for served in (self.current, self._challenger):
            if served is not None:
                self._telemetry.release_in_use.labels(served.live.name).set(1)
        test = self.experiment()
        if test is not None and test.state == "void":
            _log.warning("experiment_void", experiment=test.folder, since=test.since.isoformat(), reason=test.reason)

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
        """Log and count the InputError of a rejected release, and raise it again."""
        try:
            yield
        except InputError as error:
            self._telemetry.release_swaps.labels("rejected").inc()
            _log.error("release_rejected", folder=name, reason=str(error))
            raise
