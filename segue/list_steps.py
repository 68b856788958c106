"""The steps that make a list from a ranking, besides spacing (segue.spacing): diversity, pins and exploration.

A policy (segue.policy) applies its steps in this order: boosts, diversity, spacing, pins, exploration. A step changes
places, never the number of tracks. Candidates are numbers; 0 is the best of the ranking.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import TypeAlias

import numpy as np

from segue.arrays import Float32, Float64

# Returns those of some candidates that a place of a list may have: (list, place, candidates) -> candidates.
MayHave: TypeAlias = Callable[[list[int], int, list[int]], list[int]]


def boosted(values: Float64, weights: Float64) -> list[int]:
    """Return the candidates by descending `values` + `weights`, [n] float64 each. Of equal sums, the first comes first.

    `values` are logarithms of probabilities, up to a constant.
    """
    order: list[int] = np.argsort(-(values + weights), kind="stable").tolist()
    return order


def diversified(vectors: Float32, k: int, diversity: float) -> list[int]:
    """Return all candidates: the first `k` by maximal marginal relevance, the others in their order.

    `vectors` [n, dimension] are the embeddings of the candidates, best first. Each place gets the candidate with the
    largest (1 - diversity) * relevance - diversity * similarity. The relevance falls evenly from 1 for the first
    candidate to 1/n for the last one. The similarity is the largest cosine with a track that was chosen before.

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998,
    https://doi.org/10.1145/290941.291025.
    """
    count = len(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    relevance = (1 - diversity) * (1 - np.arange(count) / max(count, 1))
    similar = np.full(count, -np.inf)
    left = np.ones(count, dtype=np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(k, count):
        value = relevance - diversity * similar if chosen else relevance
        best = int(np.argmax(np.where(left, value, -np.inf))) if chosen else 0
        chosen.append(best)
        left[best] = False
        np.maximum(similar, unit @ unit[best], out=similar)
    return [*chosen, *np.flatnonzero(left).tolist()]


def pinned(listed: Sequence[int], pins: Mapping[int, int], k: int) -> list[int]:
    """Return at most `k` candidates of a list, each pinned one in its place. `pins`: candidate by place, from 0.

    Pins behind the end of a list that is shorter than `k` come last.
    """
    fixed = {place: candidate for place, candidate in pins.items() if place < k}
    others = iter([one for one in listed if one not in fixed.values()])
    made: list[int] = []
    for place in range(min(k, len(set(listed) | set(fixed.values())))):
        found = fixed.pop(place, None)
        found = next(others, None) if found is None else found
        made.append(fixed.pop(min(fixed)) if found is None else found)
    return made


def explored(
    listed: Sequence[int],
    pool: Sequence[int],
    rate: float,
    draw: Random,
    fixed: Collection[int] = (),
    may_have: MayHave | None = None,
) -> list[int]:
    """Return a list in which each place gets, with the probability `rate`, a candidate of `pool` that is not in it.

    All candidates of `pool` that are left have the same probability. `fixed` places keep theirs. `may_have` returns
    those of some candidates that a place of the list may have; a place for which none is left keeps its own.
    """
    made = list(listed)
    for place in range(len(made)):
        if place in fixed or draw.random() >= rate:
            continue
        left = _left(made, place, pool, may_have)
        if left:
            made[place] = left[draw.randrange(len(left))]
    return made


def propensities(
    listed: Sequence[int],
    shown: Sequence[int],
    pool: Sequence[int],
    rate: float,
    fixed: Collection[int] = (),
    may_have: MayHave | None = None,
) -> list[float]:
    """Return the probability of each candidate of `shown` at its place, given the places above it.

    `shown` is a list that `explored` returned for the other arguments. Places are drawn from the top, so the product of
    the probabilities is the probability of the whole list. A place that cannot change has 1. A place that kept its
    candidate has 1 - `rate`; a drawn candidate has `rate` divided by the number of candidates that were left.
    """
    made = list(listed)
    chances: list[float] = []
    for place, candidate in enumerate(shown):
        left = [] if place in fixed else _left(made, place, pool, may_have)
        kept = candidate == listed[place]
        chances.append((1.0 - rate if kept else rate / len(left)) if left else 1.0)
        made[place] = candidate
    return chances


def _left(made: list[int], place: int, pool: Sequence[int], may_have: MayHave | None) -> list[int]:
    """Return the candidates of `pool` that exploration may draw for a place."""
    taken = set(made)
    left = [one for one in pool if one not in taken]
    return left if may_have is None else may_have(made, place, left)
