"""Removed tracks: takedowns that hold at once, for all releases, on every worker and replica, and after restarts.

`removed-tracks.json` (service/releases/tracks_file.py) has the removed ids and the times of their removal. A track
stays removed in all releases until it is restored, so no swap and no training brings it back.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from service.releases.tracks_file import TracksFile

FILE: Final = "removed-tracks.json"
MAX_REMOVED: Final = 1_000_000


class RemovedTracks(TracksFile[str]):
    """The removed tracks of a folder of releases: the time of the removal by id."""

    file: ClassVar[str] = FILE
    key: ClassVar[str] = "removed"
    most: ClassVar[int] = MAX_REMOVED
    remedy: ClassVar[str] = "restore some, or train again without them"

    @classmethod
    def read_value(cls, value: Any) -> str:
        """Return the time of a removal."""
        if not isinstance(value, str):
            raise TypeError("expected a time")
        return value

    @property
    def since(self) -> Mapping[str, str]:
        """The time of the removal of each removed track."""
        return self.tracks

    async def change(self, track_id: str, *, removed: bool) -> bool:
        """Remove or restore a track, in the file as well. Return whether this changed anything. Raises as `edit`."""
        return bool(await self.change_all([track_id], removed=removed))

    async def change_all(self, track_ids: Sequence[str], *, removed: bool) -> int:
        """Remove or restore tracks, in the file as well. Return how many of them this changed. Raises as `edit`."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        changed: set[str] = set()

        def change(since: dict[str, str]) -> bool:
            changed.update(one for one in track_ids if removed != (one in since))
            for track_id in changed:
                if removed:
                    since[track_id] = now
                else:
                    del since[track_id]
            return bool(changed)

        await self.edit(change)
        return len(changed)
