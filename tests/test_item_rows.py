"""Item embeddings in training: what a step touches is trained as by dense Adam, what it does not stays as it is."""

import copy
from typing import Any

import numpy as np
import pytest

from training.data.loader import remap_rows, touched_rows

torch = pytest.importorskip("torch")

from segue.window import Sessions  # noqa: E402 (after the check that torch is there)
from training.data.loader import make_batch  # noqa: E402
from training.models.encoders.sasrec import SasRec  # noqa: E402
from training.optimizer import (  # noqa: E402
    ItemRows,
    MovingAverage,
)
from training.options import SasRecOptions  # noqa: E402

ROWS, DIMENSION = 12, 4


def table(seed: int = 0) -> Any:
    embedding = torch.nn.Embedding(ROWS, DIMENSION, padding_idx=0)
    with torch.no_grad():
        embedding.weight.copy_(torch.randn(ROWS, DIMENSION, generator=torch.Generator().manual_seed(seed)))
    return embedding


def step(items: ItemRows, rows: Any, wanted: Any) -> None:
    """Pull the gathered rows towards `wanted`, by the square of the distance."""
    with items.gathered_rows(rows) as gathered:
        gathered.grad = None
        ((gathered - (wanted if rows is None else wanted[rows])) ** 2).sum().backward()
        items.update(rows, gathered, 0.01)


class TestLazyAdam:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    @pytest.mark.parametrize("rows", [[0, 2, 3, 7], None])
    def test_rows_that_every_step_touches_are_as_in_dense_adam(
        self, rows: list[int] | None, weight_decay: float
    ) -> None:
        lazy, dense, wanted = table(), table(), torch.randn(ROWS, DIMENSION)
        items = ItemRows(lazy, weight_decay)
        optimizer = torch.optim.AdamW(dense.parameters(), lr=0.01, weight_decay=weight_decay)
        touched = torch.tensor(list(range(ROWS)) if rows is None else rows)
        for _ in range(20):
            step(items, None if rows is None else touched, wanted)
            optimizer.zero_grad()
            ((dense.weight - wanted) ** 2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(lazy.weight[touched], dense.weight[touched])

    def test_a_rows_first_step_is_as_in_dense_adam_and_others_stay(self) -> None:
        lazy, dense, wanted = table(), table(), torch.randn(ROWS, DIMENSION)
        items = ItemRows(lazy, 0.0)
        optimizer = torch.optim.AdamW(dense.parameters(), lr=0.01, weight_decay=0.0)
        before = lazy.weight.detach().clone()
        for row in (3, 5):
            step(items, torch.tensor([row]), wanted)
            optimizer.zero_grad()
            ((dense.weight[row] - wanted[row]) ** 2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(lazy.weight[5], dense.weight[5])
        assert not torch.equal(lazy.weight[3], dense.weight[3])  # which dense Adam has moved again, by old gradients
        untouched = [row for row in range(ROWS) if row not in (3, 5)]
        assert torch.equal(lazy.weight[untouched], before[untouched])

    def test_a_state_goes_on(self) -> None:
        wanted, rows = torch.randn(ROWS, DIMENSION), torch.tensor([1, 4])
        first, second = ItemRows(table(), 0.0), ItemRows(table(), 0.0)
        step(first, rows, wanted)
        with torch.no_grad():
            second.table.copy_(first.table)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for items in (first, second):
            step(items, rows, wanted)
        assert torch.equal(first.table, second.table)

    def test_the_table_is_back_after_an_error(self) -> None:
        embedding = table()
        items = ItemRows(embedding, 0.0)
        with pytest.raises(RuntimeError), items.gathered_rows(torch.tensor([0, 1])):
            raise RuntimeError
        assert embedding.weight is items.table


def test_a_renumbered_batch_names_the_same_tracks() -> None:
    rng = np.random.default_rng(0)
    sessions = Sessions(rng.integers(1, 1000, 24), rng.random(24) < 0.5, np.array([0, 3, 12, 24]))
    batch, negatives = make_batch(sessions, 8, "next"), torch.tensor([5, 999, 5, 0])
    rows = touched_rows(batch, negatives)
    local, local_negatives = remap_rows(batch, negatives, rows)
    assert torch.equal(rows[local_negatives], negatives)
    for name in batch._fields:
        if name == "plays_skipped":
            assert torch.equal(local.plays_skipped, batch.plays_skipped)
        else:
            assert torch.equal(rows[getattr(local, name)], getattr(batch, name)), name
    assert ((local.plays == 0) == (batch.plays == 0)).all()


def test_an_average_of_touched_rows_equals_one_of_all_rows() -> None:
    """Rows are touched at random; the plain average takes all weights in after each step."""
    rng = np.random.default_rng(0)
    encoder = SasRec(ROWS, SasRecOptions(dimension=DIMENSION, heads=1, window=3))
    encoder.initialise(torch.Generator().manual_seed(0))
    average = MovingAverage(encoder, 0.8)
    expected: list[Any] = []
    for _ in range(15):
        rows = torch.from_numpy(np.sort(rng.choice(ROWS, 3, replace=False)))
        weight = encoder.item_embeddings.weight
        before = weight.detach()[rows].clone()
        with torch.no_grad():
            weight[rows] += torch.from_numpy(rng.standard_normal((3, DIMENSION)).astype(np.float32))
            for parameter in encoder.blocks.parameters():
                parameter.add_(0.1)
        average.update(encoder, rows, before)
        now = [parameter.detach().clone() for parameter in encoder.parameters()]
        expected = [0.8 * mean + 0.2 * new for mean, new in zip(expected, now, strict=True)] if expected else now
    found = [parameter.detach() for parameter in average.materialize(encoder).parameters()]
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted)
