"""What each play adds to a score: contributions add up, and are Shapley's values where these are known."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.arrays import Float32, Int
from segue.catalogue import PAD_ROW
from segue.recommend import Ranked
from segue.window import Windows
from service.releases.explanation import contributions

LENGTH, DIMENSION = 6, 4
EMBEDDINGS = np.random.default_rng(0).standard_normal((50, DIMENSION)).astype(np.float32)
TARGETS = np.arange(10, 13)
VECTORS = EMBEDDINGS[TARGETS]


class _Scoring:
    """Scores tracks by the inner product of their embeddings and a query, as an encoder with an index does."""

    def encode(self, windows: Windows) -> Float32:
        raise NotImplementedError

    def rank(self, windows: Windows, k: int) -> Ranked:
        raise NotImplementedError

    def scores(self, windows: Windows, rows: Int) -> Float32:
        return np.asarray(np.einsum("bd,bcd->bc", self.encode(windows), EMBEDDINGS[rows]), dtype=np.float32)


class Additive(_Scoring):
    """A query that is the sum of its plays' embeddings, skips taken off: every play contributes by itself."""

    def encode(self, windows: Windows) -> Float32:
        signs = np.where(windows.skipped, -1.0, 1.0) * (windows.tracks != PAD_ROW)
        return np.asarray(np.einsum("bw,bwd->bd", signs, EMBEDDINGS[windows.tracks]), dtype=np.float32)


class Entangled(_Scoring):
    """A query in which plays act on each other, and their places count."""

    def encode(self, windows: Windows) -> Float32:
        places = np.arange(1, LENGTH + 1)[:, None] / LENGTH
        shown = EMBEDDINGS[windows.tracks] * (windows.tracks != PAD_ROW)[..., None]
        mixed = (shown * places).sum(axis=1) * np.where(windows.skipped.any(axis=1), 0.5, 2.0)[:, None]
        return np.asarray(np.tanh(mixed) * (1 + shown.prod(axis=2).sum(axis=1, keepdims=True)), dtype=np.float32)


def window_of(tracks: list[int], skipped: list[bool]) -> Windows:
    padding = LENGTH - len(tracks)
    return Windows(
        np.array([[PAD_ROW] * padding + tracks], dtype=np.int64),
        np.array([[False] * padding + skipped], dtype=np.bool_),
    )


plays = st.lists(st.tuples(st.integers(1, 49), st.booleans()), max_size=LENGTH)


@given(plays, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_contributions_add_up_to_the_score(session: list[tuple[int, bool]], orders: int) -> None:
    window = window_of([track for track, _ in session], [skip for _, skip in session])
    found = contributions(Entangled(), window, TARGETS, orders)
    assert found.shape == (3, len(session))
    if session:
        np.testing.assert_allclose(found.sum(axis=1), Entangled().encode(window)[0] @ VECTORS.T, rtol=1e-4, atol=1e-5)


@given(plays.filter(bool))
@settings(max_examples=40, deadline=None)
def test_a_play_that_acts_by_itself_contributes_its_own_part(session: list[tuple[int, bool]]) -> None:
    window = window_of([track for track, _ in session], [skip for _, skip in session])
    own = np.array([EMBEDDINGS[track] @ VECTORS.T * (-1 if skip else 1) for track, skip in session]).T
    np.testing.assert_allclose(contributions(Additive(), window, TARGETS), own, rtol=1e-4, atol=1e-5)


def test_few_plays_have_shapleys_own_values() -> None:
    """By the definition, over all parts of the plays, of four plays (24 orders are all orders)."""
    window = window_of([3, 9, 3, 27], [False, True, False, False])
    tracks, skipped = window.tracks[0, 2:], window.skipped[0, 2:]

    def score(part: tuple[int, ...]) -> Float32:
        if not part:
            return np.zeros(3, dtype=np.float32)
        shown = window_of(tracks[list(part)].tolist(), skipped[list(part)].tolist())
        return np.asarray(Entangled().encode(shown)[0] @ VECTORS.T)

    expected = np.zeros((3, 4))
    for play in range(4):
        others = [other for other in range(4) if other != play]
        for size in range(4):
            weight = math.factorial(size) * math.factorial(3 - size) / math.factorial(4)
            for part in itertools.combinations(others, size):
                expected[:, play] += weight * (score(tuple(sorted((*part, play)))) - score(part))
    np.testing.assert_allclose(contributions(Entangled(), window, TARGETS, 24), expected, rtol=1e-4, atol=1e-5)


def test_the_same_window_is_explained_alike() -> None:
    window = window_of([5, 6, 7, 8, 9, 10], [False, True, False, False, True, False])
    one, again = (contributions(Entangled(), window, TARGETS) for _ in range(2))
    assert (one == again).all()


def test_a_sampled_estimate_comes_near_the_value() -> None:
    window = window_of([5, 6, 7, 8, 9, 10], [False, True, False, False, True, False])
    exact = contributions(Entangled(), window, TARGETS, math.factorial(6))
    errors = [np.abs(contributions(Entangled(), window, TARGETS, n) - exact).mean() for n in (2, 200)]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1 * np.abs(exact).mean()
