"""Lists that are more than the first tracks of a ranking: spacing, and the steps of a policy.

The steps have one order: boosts, diversity, spacing, pins, exploration. They choose among more ranked tracks than the
list has. A step moves tracks, and never makes a list shorter. The list after each step is kept for explanations.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from segue.arrays import Float32, Float64, Int
from segue.catalogue import PAD_ROW, Catalogue, Row
from segue.errors import NoEmbeddings, UnknownAttribute
from segue.filters import Every, Filter
from segue.list_steps import (
    CANDIDATES_PER_TRACK,
    MAX_CANDIDATES,
    UNKNOWN,
    Groups,
    Spacing,
    boosted,
    diversified,
    explored,
    forbidden,
    names_of,
    pinned,
    propensities,
    spaced,
)
from segue.policy import Pin, Policy
from segue.recommend import EncoderRanker, Recommendation

if TYPE_CHECKING:
    from service.releases.loaded import LoadedRelease, Question

Step: TypeAlias = Literal["boost", "diversity", "spacing", "pin", "exploration"]

LEAST_CANDIDATES: Final = 100
_LEAST_PROBABILITY: Final = 1e-38


class Move(NamedTuple):
    """A step that changed the rank of a track. Ranks are from 1."""

    step: Step
    from_rank: int | None  # None: the track was not among the ranked ones
    to_rank: int
    rules: list[str]  # for spacing: the rules that held back this track or those it overtook


@dataclass(frozen=True, slots=True)
class Steps:
    """How a list was made."""

    ranking: list[Row]  # the tracks by their scores
    lists: list[tuple[Step, list[Row]]]  # the tracks in order after each step that ran
    rules: dict[Row, int]  # the rules of spacing that moved a track, as a set of bits
    propensities: list[float] | None = None  # of the tracks at their ranks; None without exploration, or not asked for
    before_exploration: list[Row] | None = None  # the list without exploration, if there are propensities

    def moves(self, rows: Iterable[Row]) -> list[list[Move]]:
        """Return the steps that changed the rank of each track, in order."""
        ranked = _ranks(self.ranking)
        after = [(step, _ranks(listed)) for step, listed in self.lists]
        return [self._moves(row, ranked.get(row), after) for row in rows]

    def _moves(self, row: Row, before: int | None, ranks: list[tuple[Step, dict[Row, int]]]) -> list[Move]:
        moves: list[Move] = []
        for step, rank_of in ranks:
            after = rank_of.get(row)
            if after is None or after == before:
                continue  # a track that a step leaves out keeps its rank, in case a later step takes it
            rules = names_of(self.rules.get(row, 0)) if step == "spacing" else []
            moves.append(Move(step, before, after, rules))
            before = after
        return moves


def _ranks(rows: list[Row]) -> dict[Row, int]:
    return {row: rank for rank, row in enumerate(rows, start=1)}


class Grouping:
    """The artist, or the album, of each track: the first of some attributes that the catalogue has."""

    def __init__(self, catalogue: Catalogue, names: Sequence[str]) -> None:
        attributes = catalogue.attributes
        name = next((name for name in names if name in attributes), None)
        self._attributes, self._name = attributes, name
        values = None if name is None else attributes[name].values
        self._unknown = int(np.argmax(values.is_null())) if values is not None and values.null_count() else UNKNOWN

    @property
    def is_known(self) -> bool:
        """Whether the catalogue has one of the attributes."""
        return self._name is not None

    def of(self, rows: Int) -> list[int]:
        """Return the number of the group of each row, UNKNOWN for none. `rows` [n] int64. It must be known."""
        assert self._name is not None
        codes = self._attributes.codes_of(self._name, rows)
        codes[(rows == PAD_ROW) | (codes == self._unknown)] = UNKNOWN
        numbers: list[int] = codes.tolist()
        return numbers


class Lists:
    """Makes the lists of a release."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.artists = Grouping(catalogue, ("artist_id", "artist"))
        self.albums = Grouping(catalogue, ("album_id", "album"))

    def check(self, spacing: Spacing) -> None:
        """Raise UnknownAttribute if a rule needs artists or albums that the release does not know."""
        for needed, known, what, rules in (
            (spacing.of_artists, self.artists.is_known, "artists", "max_per_artist and artist_gap"),
            (spacing.of_albums, self.albums.is_known, "albums", "max_per_album and album_gap"),
        ):
            if needed and not known:
                column = "an attribute artist_id" if what == "artists" else "an attribute album_id or album"
                raise UnknownAttribute(
                    f"the release knows no {what}, which {rules} need: prepare the log again with {column}, for "
                    "example with `segue prepare --tracks`"
                )

    def made(
        self, live: "LoadedRelease", wanted: Filter | None, asked: "Sequence[Question]"
    ) -> list[tuple[Recommendation, Steps | None]]:
        """Return the list of each question, and how it was made.

        All questions have the filter `wanted` and the same station.
        """
        now = time.time()
        sizes = [_candidates(question, now) for question in asked]
        lists: list[tuple[Recommendation, Steps | None]] = []
        for question, size, one in zip(asked, sizes, live.ranked(wanted, asked, sizes), strict=True):
            if question.spacing is None and question.policy is None:
                lists.append((one, None))
                continue
            made = _List(self, live, question, one, now)
            if made.relaxed and len(one.rows) == size < MAX_CANDIDATES:
                [one] = live.ranked(wanted, [question], [MAX_CANDIDATES])  # noqa: PLW2901 (more tracks to choose from)
                made = _List(self, live, question, one, now)
            steps = Steps(one.rows.tolist(), made.lists, made.rules, made.propensities, made.before_exploration)
            lists.append((made.recommendation(one), steps))
        return lists


def check_policy(policy: Policy, *, has_embeddings: bool) -> None:
    """Raise NoEmbeddings if the policy needs an encoder that the release does not have."""
    if policy.diversity and not has_embeddings:
        raise NoEmbeddings(
            f"the policy has diversity {policy.diversity:g}, but the release has no encoder and so no item embeddings: "
            "use a policy without diversity, or a release of another model"
        )


def within(wanted: Filter | None, rule: Filter) -> Filter:
    """Return the filter of tracks that a request allows and a rule of its policy is about."""
    return rule if wanted is None else Every((wanted, rule))


def _candidates(question: "Question", now: float) -> int:
    """Return how many tracks to rank for a list."""
    policy = question.policy
    if question.spacing is None and policy is None:
        return question.k
    size = max(CANDIDATES_PER_TRACK * question.k, LEAST_CANDIDATES)
    if policy is not None and policy.exploration is not None:
        size = max(size, policy.exploration.depth)
    if policy is not None and any(one.weight < 0 and one.is_active(now) for one in policy.boosts):
        size = max(size, MAX_CANDIDATES)  # a boost below 0 may lower all of the best tracks
    return size


class _List:
    """The list of one question. Its tracks are numbers of candidates, which are the ranked tracks and further ones."""

    def __init__(
        self, lists: Lists, live: "LoadedRelease", question: "Question", ranked: Recommendation, now: float
    ) -> None:
        self._parts, self._live, self._question, self._now = lists, live, question, now
        self._source = ranked.source
        self._rows, self._scores = ranked.rows, ranked.scores
        self.lists: list[tuple[Step, list[Row]]] = []
        self.rules: dict[Row, int] = {}
        self.relaxed = False
        self.propensities: list[float] | None = None
        self.before_exploration: list[Row] | None = None
        order, policy = list(range(len(ranked.rows))), question.policy
        if policy is not None and policy.boosts:
            order = self._boost(policy, order)
        best = order
        if policy is not None and policy.diversity and order:
            vectors = live.embeddings_of(self._rows[order])
            order = [order[place] for place in diversified(vectors, question.k, policy.diversity)]
            self._keep("diversity", order)
        pins = self._pins(policy.pins) if policy is not None and policy.pins else {}
        spacing = question.spacing
        has_rules = spacing is not None and (spacing.of_artists or spacing.of_albums)
        order = self._space(spacing, order, pins) if spacing is not None and has_rules else order[: question.k]
        if pins:
            order = pinned(order, pins, question.k)
            self._keep("pin", order)
        fixed = {place for place, candidate in enumerate(order) if candidate in pins.values()}
        if policy is not None and policy.exploration is not None:
            order = self._explore(policy, order, best, fixed)
        self._order = order

    def recommendation(self, ranked: Recommendation) -> Recommendation:
        """Return the list. The scores are those of the ranking."""
        return replace(ranked, rows=self._rows[self._order], scores=self._scores[self._order])

    def _keep(self, step: Step, order: Sequence[int]) -> None:
        self.lists.append((step, self._rows[list(order)].tolist()))

    def _boost(self, policy: Policy, order: list[int]) -> list[int]:
        live, question = self._live, self._question
        active = [one for one in policy.boosts if one.is_active(self._now) and one.weight]
        if not active:
            return order
        found = [self._best(one.filter, one.tracks, len(order)) for one in active if one.weight > 0]
        self._add([row for rows in found for row in rows])
        weights = np.zeros(len(self._rows))
        for one in active:
            if one.filter is not None:
                allowed = live.allowed(within(question.filter, one.filter))
                assert allowed is not None
                weights[allowed.contains(self._rows)] += one.weight
            else:
                weights[np.isin(self._rows, live.catalogue.rows(one.tracks or ()))] += one.weight
        made = boosted(self._log_scores(), weights)
        self._keep("boost", made)
        return made

    def _log_scores(self) -> Float64:
        """Return the logarithm of the probability of each candidate, up to a constant."""
        scores: Float64 = self._scores.astype(np.float64)
        of_encoder = isinstance(self._live.ranker, EncoderRanker) and self._question.station is None
        is_log = of_encoder or self._live.caution(self._question.caution) > 0
        return scores if is_log and self._source == "model" else np.log(np.maximum(scores, _LEAST_PROBABILITY))

    def _space(self, spacing: Spacing, order: list[int], pins: Mapping[int, int]) -> list[int]:
        """Return the list without its pins, which count for the maxima."""
        fixed = set(pins.values())
        order = [candidate for candidate in order if candidate not in fixed]
        artists, albums = self._groups(spacing, self._rows[[*order, *fixed]])
        if fixed:
            artists, albums = (
                groups and Groups(groups.tracks[: len(order)], groups.before, groups.tracks[len(order) :])
                for groups in (artists, albums)
            )
        chosen = spaced(max(self._question.k - len(fixed), 0), spacing, artists, albums)
        self.relaxed = chosen.relaxed
        self.rules = {int(self._rows[order[place]]): rules for place, rules in chosen.rules.items()}
        made = [order[place] for place in chosen.places]
        self._keep("spacing", made)
        return made

    def _groups(self, spacing: Spacing, rows: Int) -> tuple[Groups | None, Groups | None]:
        """Return the artists and the albums of tracks and of the latest plays; None where there is no rule."""
        heard = [play.track_id for play in self._question.plays] or list(self._question.latest)
        latest = heard[max(len(heard) - max(spacing.artist_gap, spacing.album_gap), 0) :]
        before = self._live.catalogue.rows(latest)
        artists, albums = (
            Groups(grouping.of(rows), grouping.of(before)) if needed else None
            for needed, grouping in (
                (spacing.of_artists, self._parts.artists),
                (spacing.of_albums, self._parts.albums),
            )
        )
        return artists, albums

    def _pins(self, pins: Sequence[Pin]) -> dict[int, int]:
        """Return the pinned candidates by place, from 0."""
        fixed: dict[int, int] = {}
        for pin in pins:
            if not pin.is_active(self._now) or pin.place > self._question.k or pin.place - 1 in fixed:
                continue
            used = {int(self._rows[candidate]) for candidate in fixed.values()}
            found = [row for row in self._best(pin.filter, pin.tracks, len(pins)) if row not in used]
            if found:
                fixed[pin.place - 1] = self._add(found[:1])[0]
        return fixed

    def _explore(self, policy: Policy, order: list[int], best: list[int], fixed: set[int]) -> list[int]:
        assert policy.exploration is not None
        question, depth = self._question, policy.exploration.depth
        seed = random.getrandbits(64) if question.seed is None else question.seed
        draw = random.Random(seed)  # noqa: S311 (not for secrets)
        spacing = question.spacing
        both = (None, None) if spacing is None else self._groups(spacing, self._rows)

        def may_have(listed: list[int], place: int, candidates: list[int]) -> list[int]:
            for albums, groups in zip((False, True), both, strict=True):
                if groups is not None and spacing is not None:
                    here = Groups([groups.tracks[one] for one in listed], groups.before)
                    wrong = forbidden(spacing, place, here, albums=albums)
                    candidates = [one for one in candidates if groups.tracks[one] not in wrong]
            return candidates

        pool, rate = best[question.k : depth], policy.exploration.rate
        made = explored(order, pool, rate, draw, fixed, may_have)
        if question.with_propensities:
            self.propensities = propensities(order, made, pool, rate, fixed, may_have)
            self.before_exploration = self._rows[order].tolist()
        if made != order:
            self._keep("exploration", made)
        return made

    def _best(self, rule: Filter | None, tracks: Sequence[str] | None, count: int) -> list[Row]:
        """Return the best allowed tracks of a filter, or those of `tracks` that are allowed, in their order."""
        question, live = self._question, self._live
        if rule is not None:
            [found] = live.ranked(within(question.filter, rule), [question], [count])
            best: list[Row] = found.rows.tolist()
            return best
        heard = [play.track_id for play in question.plays[question.repeat.start(len(question.plays)) :]]
        gone = set(live.catalogue.rows([*question.exclude, *heard]).tolist()) | {PAD_ROW}
        rows, allowed = live.catalogue.rows(tracks or ()), live.allowed(question.filter)
        rows = rows if allowed is None else rows[allowed.contains(rows)]
        return [row for row in rows.tolist() if row not in gone]

    def _add(self, rows: Sequence[Row]) -> list[int]:
        """Return the numbers of candidates, of which those that are new are scored and added."""
        known = {row: number for number, row in enumerate(self._rows.tolist())}
        new = [row for row in dict.fromkeys(rows) if row not in known]
        if new:
            known |= {row: len(known) + number for number, row in enumerate(new)}
            added: Int = np.array(new, dtype=np.int64)
            scores: Float32 = self._live.scores_of(self._question, added)
            self._rows = np.concatenate([self._rows, added])
            self._scores = np.concatenate([self._scores, scores])
        return [known[row] for row in rows]
