"""Lists with artist spacing: rank more tracks than a list has, and choose among them (segue.spacing)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from segue.arrays import Int
from segue.catalogue import PAD_ROW, Catalogue
from segue.errors import UnknownAttribute
from segue.recommend import Recommendation
from segue.spacing import CANDIDATES_PER_TRACK, MAX_CANDIDATES, UNKNOWN, spaced

if TYPE_CHECKING:
    from service.releases.loaded import Question

Recommend: TypeAlias = Callable[[Sequence["Question"], list[int]], list[Recommendation]]


class Artists:
    """The artist of each track: the attribute `artist_id`, or the name `artist` if there is none."""

    def __init__(self, catalogue: Catalogue) -> None:
        attributes = catalogue.attributes
        name = next((name for name in ("artist_id", "artist") if name in attributes), None)
        self._attributes, self._name = attributes, name
        values = None if name is None else attributes[name].values
        self._unknown = int(np.argmax(values.is_null())) if values is not None and values.null_count() else UNKNOWN

    def check(self) -> None:
        """Raise UnknownAttribute if no artist is known."""
        if self._name is None:
            raise UnknownAttribute(
                "the release knows no artists, which max_per_artist and artist_gap need: prepare the log again with "
                "artists, for example with `segue prepare --tracks`"
            )

    def of(self, rows: Int) -> list[int]:
        """Return the number of the artist of each row, UNKNOWN for none. `rows` [n] int64. Raises as `check`."""
        self.check()
        assert self._name is not None
        codes = self._attributes.codes_of(self._name, rows)
        codes[(rows == PAD_ROW) | (codes == self._unknown)] = UNKNOWN
        numbers: list[int] = codes.tolist()
        return numbers

    def lists(self, asked: "Sequence[Question]", catalogue: Catalogue, recommend: Recommend) -> list[Recommendation]:
        """Return the list of each question, with its spacing. `recommend` ranks a number of tracks for questions."""
        sizes = [
            question.k if question.spacing is None else max(CANDIDATES_PER_TRACK * question.k, 100)
            for question in asked
        ]
        found = recommend(asked, sizes)
        for number, question in enumerate(asked):
            if question.spacing is None:
                continue
            latest = question.plays[max(len(question.plays) - question.spacing.artist_gap, 0) :]
            before = self.of(catalogue.rows([play.track_id for play in latest]))
            one = found[number]
            chosen = spaced(self.of(one.rows), question.k, question.spacing, before)
            if chosen.relaxed and len(one.rows) == sizes[number] < MAX_CANDIDATES:
                [one] = recommend([question], [MAX_CANDIDATES])
                chosen = spaced(self.of(one.rows), question.k, question.spacing, before)
            found[number] = replace(one, rows=one.rows[chosen.places], scores=one.scores[chosen.places])
        return found
