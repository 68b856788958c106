"""Recommenders that are restricted to the tracks of a filter, and leave out removed tracks."""

import threading
from typing import Final

import numpy as np

from segue.arrays import Int
from segue.catalogue import Catalogue
from segue.filters import Allowed, Filter, check_filter, tracks_allowed
from segue.recommend import Recommender

_MAX_FILTERS: Final = 64  # filters whose bitmaps are kept: 1.25 MB each for 10 million tracks


class RestrictedRecommenders:
    """The recommenders of a release for filters, without removed tracks. Thread-safe; the latest ones are kept."""

    def __init__(self, whole: Recommender, catalogue: Catalogue, removed: Int) -> None:
        """`whole` recommends all tracks of `catalogue`. `removed` [n] int64 are the rows of removed tracks."""
        self._whole = whole
        self._attributes = catalogue.attributes
        self._tracks = len(catalogue)
        self._removed = removed
        self._lock = threading.Lock()
        self._kept: dict[Filter | None, tuple[Allowed | None, Recommender]] = {}

    def recommender(self, wanted: Filter | None) -> Recommender:
        """Return the recommender of the allowed tracks. Raises BadFilter or UnknownAttribute."""
        return self._of(wanted)[1]

    def allowed(self, wanted: Filter | None) -> Allowed | None:
        """Return the allowed tracks; None: all. Raises BadFilter or UnknownAttribute."""
        return self._of(wanted)[0]

    def is_ready(self, wanted: Filter | None) -> bool:
        """Return whether the others return at once. Raises BadFilter or UnknownAttribute."""
        if wanted is not None:
            check_filter(wanted, self._attributes)  # always: the kept filters {"x": 1} and {"x": true} are equal
        return wanted in self._kept

    def _of(self, wanted: Filter | None) -> tuple[Allowed | None, Recommender]:
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

    def _made(self, wanted: Filter | None) -> tuple[Allowed | None, Recommender]:
        if wanted is None and not len(self._removed):
            return None, self._whole
        if wanted is None:
            allowed = Allowed(np.ones(self._tracks, dtype=np.bool_))
        else:
            allowed = tracks_allowed(wanted, self._attributes, self._tracks)
        allowed = allowed.without(self._removed) if len(self._removed) else allowed
        return allowed, self._whole.within(allowed)
