"""What each step of training is given; for a GPU a thread makes it while the steps before it are taken."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from segue.arrays import Int
from segue.catalogue import FIRST_TRACK_ROW
from training.data.batches import Batch, epoch_batches
from training.data.session_views import SessionViews
from training.distributed import Processes
from training.item_rows import renumbered, touched_rows
from training.options import NeuralOptions

_MADE_AHEAD: Final = 4
_NEGATIVES: Final = 1  # what tells their stream from that of the order, and from dropout's

Made = TypeVar("Made")


class Step(NamedTuple):
    """What one step is taken on."""

    batch: Batch  # this process's share of the sessions
    negatives: Tensor  # [n] int64, of all processes
    rows: Tensor | None  # [n] int64: those that the step touches, which batch and negatives then count by; None: all
    sessions: int  # of all processes

    def to(self, device: torch.device) -> "Step":
        """The same on another device; what comes from pinned memory travels while the processor goes on."""
        rows = None if self.rows is None else self.rows.to(device, non_blocking=True)
        return Step(self.batch.to(device), self.negatives.to(device, non_blocking=True), rows, self.sessions)

    def pinned(self) -> "Step":
        """The same in memory that a GPU copies from by itself."""
        batch = Batch(*(tensor.pin_memory() for tensor in self.batch))
        rows = None if self.rows is None else self.rows.pin_memory()
        return Step(batch, self.negatives.pin_memory(), rows, self.sessions)


def steps(
    sessions: SessionViews,
    remaining: Int,
    num_rows: int,
    options: NeuralOptions,
    processes: Processes,
    at: tuple[int, int],
) -> Iterator[Step]:
    """The steps of an epoch from `at` (epoch, step) on, whose sessions are `remaining`, in that order."""
    epoch, first = at
    batches = epoch_batches(sessions, options.batch_size, options.window, options.objective, remaining)
    for number, batch in enumerate(batches, first):
        rng = np.random.default_rng((options.seed, epoch, number, _NEGATIVES))
        drawn = torch.from_numpy(rng.integers(FIRST_TRACK_ROW, num_rows, options.negatives))
        rows = touched_rows(batch, drawn) if options.updates == "touched" else None
        share, negatives = processes.share(batch), drawn
        if rows is not None:
            share, negatives = renumbered(share, drawn, rows)
        step = Step(share, negatives, rows, len(batch.plays))
        yield step if processes.device == "cpu" else step.pinned()


def ahead(made: Iterator[Made]) -> Iterator[Made]:
    """The same in the same order, some of them made before they are asked for."""
    with ThreadPoolExecutor(1, "segue-steps") as thread:
        waiting = deque(thread.submit(next, made, None) for _ in range(_MADE_AHEAD))
        while True:
            with record_function("segue: data"):
                found = waiting.popleft().result()
            if found is None:
                return
            waiting.append(thread.submit(next, made, None))
            yield found
