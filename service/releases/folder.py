"""The folder of releases, and the response models that describe releases.

The folder contains one subfolder per release, and a pointer file named `current`. The pointer contains the folder name
of the live release. An optional second line contains the folder name of the previous release, for a rollback. A line
that starts with `ended` says which A/B test a swap ended. All workers and replicas that share the folder watch the
pointer, so writing the pointer swaps the release in all of them.
"""

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, Field

from segue.errors import BadOption, BadRelease, ReleasesUnavailable, SwapRefused, UnknownRelease
from segue.safe_files import CHECKPOINT_SUFFIX, RUN_SUFFIX
from service.releases.loaded import LoadedRelease
from service.settings import FOLDER_NAME_PATTERN

POINTER: Final = "current"
_NOT_RELEASES: Final = (CHECKPOINT_SUFFIX, RUN_SUFFIX)  # folders that training creates next to a release
_MAX_POINTER_BYTES: Final = 1024
_ENDED: Final = "ended "


@dataclass(frozen=True, slots=True)
class PointerState:
    """A snapshot of the pointer and of the release that it names. Two equal snapshots mean that nothing changed."""

    name: str
    written_ns: int
    files: tuple[tuple[str, int, int], ...]  # name, size and modification time of each file of the release
    before: str | None = None  # the previous release
    ended: str | None = None  # the A/B test that a swap ended, as service/releases/experiment.py reads it

    def is_pointer_of(self, other: "PointerState | None") -> bool:
        """Whether the pointer is the same. The files of the release may differ."""
        return other is not None and (self.name, self.written_ns) == (other.name, other.written_ns)

    @property
    def written(self) -> datetime:
        """When the pointer was written."""
        return datetime.fromtimestamp(self.written_ns // 1_000_000_000, UTC)


class ReleasesFolder:
    """Finds releases by folder name, and reads and writes the pointer.

    All methods do blocking disk I/O. Do not call them on the event loop.
    """

    def __init__(self, path: Path) -> None:
        """Use the folder `path`. Raises BadOption if `path` is not a folder."""
        if not path.is_dir():
            raise BadOption(
                f"SEGUE_RELEASES_DIR is {path}, which is not a folder: create it, with one folder per release"
            )
        self._path = path

    def find(self, name: str) -> Path:
        """Return the path of a release. Raises UnknownRelease if the folder does not exist.

        Raises BadRelease for a symbolic link, because a link may point outside the folder of releases.
        """
        path = self._path / name
        if not re.fullmatch(FOLDER_NAME_PATTERN, name) or name == POINTER or not path.is_dir():
            raise UnknownRelease(
                f"{name[:200]!r} is not a folder in {self._path}: copy the release there and use its folder name"
            )
        if path.is_symlink():
            raise BadRelease(f"{path} is a link: copy the release itself into {self._path}")
        return path

    def folders(self) -> list[Path]:
        """Return all subfolders that may be releases, sorted by name, without checking their contents.

        Raises ReleasesUnavailable.
        """
        try:
            return sorted(
                path
                for path in self._path.iterdir()
                if re.fullmatch(FOLDER_NAME_PATTERN, path.name) and path.suffix not in _NOT_RELEASES and path.is_dir()
            )
        except OSError as error:
            raise ReleasesUnavailable(
                f"{self._path} cannot be read ({error.strerror}): check its disk and permissions"
            ) from error

    def holds(self, path: Path) -> bool:
        """Return True if `path` is a direct subfolder of this folder."""
        return path.absolute().parent.resolve() == self._path.resolve()

    def look(self) -> PointerState | None:
        """Read the pointer. Return None if it does not exist or is empty. Raises ReleasesUnavailable."""
        file = self._path / POINTER
        try:
            if not file.is_file():
                return None
            with file.open("rb") as stream:
                text = stream.read(_MAX_POINTER_BYTES).decode(errors="replace")
                written_ns = os.fstat(stream.fileno()).st_mtime_ns
        except OSError as error:
            raise ReleasesUnavailable(
                f"{file} cannot be read ({error.strerror}): check its disk and permissions"
            ) from error
        name, *others = (line.strip() for line in text.strip().split("\n"))
        before = next((line for line in others if re.fullmatch(FOLDER_NAME_PATTERN, line)), None)
        ended = next((line.removeprefix(_ENDED) for line in others if line.startswith(_ENDED)), None)
        return PointerState(name, written_ns, self._files(name), before, ended) if name else None

    def point(self, name: str, before: str | None = None, ended: str | None = None) -> PointerState:
        """Write the pointer atomically, and return its new state.

        `name` is the folder name of the live release, `before` that of the previous release, and `ended` the A/B test
        that a swap ended. Raises ReleasesUnavailable if the pointer cannot be written.
        """
        files = self._files(name)
        lines = name, before, ended and f"{_ENDED}{ended}"
        unfinished = self._path / f".{POINTER}.{uuid.uuid4().hex[:8]}"
        try:
            unfinished.write_text("".join(f"{line}\n" for line in lines if line), encoding="utf-8")
            # The state is read before the rename, because another process may replace the pointer right after it.
            seen = PointerState(name, unfinished.stat().st_mtime_ns, files, before, ended)
            unfinished.replace(self._path / POINTER)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise ReleasesUnavailable(
                f"{self._path / POINTER} cannot be written ({error.strerror}): the service must be able to write there"
            ) from error
        return seen

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder during a swap, across all services that share the folder.

        Raises SwapRefused if another swap is in progress, and ReleasesUnavailable if the folder is not writable.
        """
        try:
            lock = (self._path / f".{POINTER}.lock").open("w")
        except OSError as error:
            raise ReleasesUnavailable(
                f"{self._path} cannot be written ({error.strerror}): the service must be able to write there"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SwapRefused("another swap is in progress: retry after it") from error
            yield

    def _files(self, name: str) -> tuple[tuple[str, int, int], ...]:
        if not re.fullmatch(FOLDER_NAME_PATTERN, name):
            return ()
        try:
            facts = [(file.name, file.lstat()) for file in (self._path / name).iterdir()]
        except OSError:  # removed in the meantime
            return ()
        return tuple(sorted((file, found.st_size, found.st_mtime_ns) for file, found in facts))


# --- facts about releases, as the API returns them ---


class ReleaseBody(BaseModel):
    """A release as the API describes it, with facts from its manifest."""

    name: str = Field(description="Name of the release in responses")
    folder: str = Field(description="Its folder name, for `PUT /releases/current`")
    model: str
    tracks: int = Field(description="Tracks in the catalogue")
    dimension: int | None = Field(description="Columns of the item embeddings")
    window: int = Field(description="Number of latest plays that the encoder uses")
    loss: dict[str, Any] | None = Field(description="The training loss")
    created: datetime
    dataset: dict[str, Any] = Field(description="The dataset that it was trained on")
    evaluation: dict[str, Any] = Field(description="Validation metrics of the trained model")
    index: dict[str, Any] = Field(description="The index of its embeddings")

    @classmethod
    def of(cls, live: LoadedRelease) -> Self:
        """Create the response model for a loaded release."""
        manifest = live.release.manifest
        return cls(
            name=manifest.name,
            folder=live.folder,
            model=manifest.model,
            tracks=manifest.tracks,
            dimension=manifest.dimension,
            window=manifest.window.length,
            loss=manifest.loss.model_dump() if manifest.loss is not None else None,
            created=manifest.created,
            dataset=manifest.dataset.model_dump(),
            evaluation=manifest.evaluation,
            index=live.index_facts,
        )


class ListedRelease(BaseModel):
    """A folder in `SEGUE_RELEASES_DIR`, described by its manifest. Its other files were not checked."""

    folder: str = Field(description="Folder name, for `PUT /releases/current`")
    name: str | None = Field(default=None, description="Name of the release in responses")
    model: str | None = None
    created: datetime | None = None
    tracks: int | None = None
    validation_hr10: float | None = Field(default=None, description="HR@10 on validation targets, if known")
    problem: str | None = Field(default=None, description="Why it cannot be served, if the manifest shows it")


class ReleaseList(BaseModel):
    """The releases that the service can swap to."""

    items: list[ListedRelease] = Field(description="Newest first, at most 1,000")
    can_swap: bool = Field(description="Whether a folder of releases is set (`SEGUE_RELEASES_DIR`)")
    current: str = Field(description="The folder of the current release")
    before: str | None = Field(
        default=None, description="The folder of the release before it, to roll back to. Absent if unknown"
    )
