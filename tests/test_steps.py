"""What steps are given: in order, the same whether made ahead or not, and from the counters alone."""

from collections.abc import Generator, Iterator
from typing import Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segue.catalogue import FIRST_TRACK_ROW  # noqa: E402 (after the check that torch is there)
from segue.window import Sessions, SessionViews  # noqa: E402
from training.data.loader import (  # noqa: E402
    Step,
    prefetch,
    steps,
)
from training.options import SasRecOptions  # noqa: E402
from training.processes import Processes  # noqa: E402

ROWS, SESSIONS = 200, 50


def made(first: int = 0, updates: Literal["touched", "all"] = "touched", seed: int = 0) -> Iterator[Step]:
    rng = np.random.default_rng(1)
    sessions = Sessions(
        rng.integers(FIRST_TRACK_ROW, ROWS, SESSIONS * 6), rng.random(SESSIONS * 6) < 0.5, np.arange(SESSIONS + 1) * 6
    )
    options = SasRecOptions(batch_size=8, window=5, negatives=20, updates=updates, seed=seed)
    order = np.arange(SESSIONS)[first * 8 :]
    return steps(SessionViews.of(sessions), order, ROWS, options, (3, first), Processes().shard, pinned=False)


def equal(one: Step, other: Step) -> bool:
    return one.sessions == other.sessions and all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(
            (*one.batch, one.negatives, one.rows), (*other.batch, other.negatives, other.rows), strict=True
        )
    )


def test_steps_made_ahead_are_the_same_in_the_same_order() -> None:
    assert [step.sessions for step in prefetch(made())] == [8, 8, 8, 8, 8, 8, 2]
    assert all(equal(one, other) for one, other in zip(prefetch(made()), made(), strict=True))


def test_what_goes_wrong_in_making_them_is_raised_where_they_are_asked_for() -> None:
    def broken() -> Iterator[int]:
        yield from range(6)
        raise OSError("the file is gone")

    numbers = prefetch(broken())
    assert [next(numbers) for _ in range(6)] == list(range(6))
    with pytest.raises(OSError, match="the file is gone"):
        next(numbers)


def test_who_leaves_off_is_not_kept_waiting() -> None:
    left = iter(range(1000))
    numbers = prefetch(left)
    assert next(numbers) == 0
    assert isinstance(numbers, Generator)
    numbers.close()
    assert next(left) < 10


def test_an_epoch_that_goes_on_is_given_the_steps_that_were_left() -> None:
    assert all(equal(one, other) for one, other in zip(made(4), list(made())[4:], strict=True))


def test_negatives_differ_from_step_to_step_and_by_the_seed() -> None:
    first, second, *_ = (step.negatives for step in made(updates="all"))
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(made(updates="all", seed=1)).negatives)


def test_rows_and_places_name_the_tracks_of_all_rows() -> None:
    for local, whole in zip(made(), made(updates="all"), strict=True):
        assert whole.rows is None
        assert local.rows is not None
        assert torch.equal(local.rows[local.batch.plays], whole.batch.plays)
        assert torch.equal(local.rows[local.batch.session_skips], whole.batch.session_skips)
        assert torch.equal(local.rows[local.negatives], whole.negatives)
