"""Recommenders that are restricted to the tracks of a filter, and leave out removed tracks."""

import threading
from collections.abc import Set as AbstractSet
from typing import Final

import numpy as np

from segue.arrays import Int
from segue.catalogue import PAD_ROW, Catalogue
from segue.filters import Allowed, Filter, check_filter, tracks_allowed
from segue.recommend import Recommender

_MAX_FILTERS: Final = 64  # filters whose bitmaps are kept: 1.25 MB each for 10 million tracks
_NO_ROWS: Final[Int] = np.empty(0, dtype=np.int64)


class RestrictedRecommenders:
    """The recommenders of a release for filters, without removed tracks. Thread-safe; the latest ones are kept."""

    def __init__(
        self, whole: Recommender, catalogue: Catalogue, removed: AbstractSet[str] = frozenset(), rows: Int = _NO_ROWS
    ) -> None:
        """`whole` recommends all tracks of `catalogue`. `rows` [n] int64 are those of the `removed` tracks in it."""
        self._whole = whole
        self._catalogue = catalogue
        self._removed = removed
        self._removed_rows = rows
        self.has_all = not len(rows)  # whether no track of the catalogue is removed
        self._lock = threading.Lock()
        self._kept: dict[Filter | None, tuple[Allowed, Recommender]] = {}

    def without(self, removed: AbstractSet[str]) -> "RestrictedRecommenders":
        """Return the recommenders without these tracks, and with all others. Ids outside the catalogue are ignored.

        Only the ids that differ are looked up, because a million tracks may be removed.
        """
        restored = self._catalogue.rows(list(self._removed - removed))
        added = self._catalogue.rows(list(removed - self._removed))
        still = self._removed_rows[~np.isin(self._removed_rows, restored)]
        rows = np.concatenate((still, added[added != PAD_ROW]))
        return RestrictedRecommenders(self._whole, self._catalogue, removed, rows)

    def recommender(self, wanted: Filter | None) -> Recommender:
        """Return the recommender of the allowed tracks. Raises BadFilter or UnknownAttribute."""
        return self._whole if wanted is None and self.has_all else self._of(wanted)[1]

    def allowed(self, wanted: Filter | None) -> Allowed | None:
        """Return the allowed tracks; None: all. Raises BadFilter or UnknownAttribute."""
        return None if wanted is None and self.has_all else self._of(wanted)[0]

    def is_ready(self, wanted: Filter | None) -> bool:
        """Return whether the others return at once. Raises BadFilter or UnknownAttribute."""
        if wanted is not None:
            check_filter(wanted, self._catalogue.attributes)  # always: kept filters {"x": 1} and {"x": true} are equal
        return wanted in self._kept or (wanted is None and self.has_all)

    def _of(self, wanted: Filter | None) -> tuple[Allowed, Recommender]:
        with self._lock:
            found = self._kept.pop(wanted, None)
            if found is not None:
                self._kept[wanted] = found  # as the latest one
                return found
        made = self._made(wanted)
        with self._lock:
            self._kept[wanted] = made
            while len(self._kept) > _MAX_FILTERS:
                del self._kept[next(iter(self._kept))]
        return made

    def _made(self, wanted: Filter | None) -> tuple[Allowed, Recommender]:
        if wanted is None:
            allowed = Allowed(np.ones(len(self._catalogue), dtype=np.bool_))
        else:
            allowed = tracks_allowed(wanted, self._catalogue.attributes, len(self._catalogue))
        allowed = allowed if self.has_all else allowed.without(self._removed_rows)
        return allowed, self._whole.within(allowed)
