"""The data loader: session views, the order of an epoch, batches, and the training steps made of them.

A view is the start and end of a part of a session, so plays are copied only when a batch is built. The dataset may be
mapped from a file larger than memory. On a GPU, a thread prepares the next steps while one runs.

An epoch takes its sessions in random order. For data that does not fit in memory this would read, for every session,
the megabytes that the disk reads ahead (seen: 500 batches of 64 sessions read a file of 500 MB completely). Beyond
WHOLE_UP_TO plays, an epoch therefore takes chunks of neighbouring sessions in random order, 64 at a time, and shuffles
the sessions within these. Every session occurs once, and every epoch has another order. Both orders depend only on the
seed, the epoch and the number of sessions and plays, not on the machine.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from segue.arrays import Bool, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.window import Sessions, SessionViews, distinct, to_windows
from training.options import NeuralOptions

WHOLE_UP_TO: Final = 1_000_000_000  # plays; 5 bytes each where they are mapped
CHUNK: Final = 65_536  # neighbouring sessions read together: 5 MB
CHUNKS_AT_ONCE: Final = 64  # chunks shuffled with each other: 4 million sessions


def epoch_order(seed: int, epoch: int, sessions: int, plays: int) -> Int:
    """Return all session indices in the order of an epoch, [sessions] int64; `plays` is the size of the dataset."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(sessions) if plays <= WHOLE_UP_TO else chunked_permutation(rng, sessions)


def chunked_permutation(
    rng: np.random.Generator, sessions: int, chunk: int = CHUNK, chunks_at_once: int = CHUNKS_AT_ONCE
) -> Int:
    """Shuffle chunks, then the sessions within each group of `chunks_at_once` chunks. [sessions] int64."""
    chunks = rng.permutation(-(-sessions // chunk))
    order = np.empty(sessions, dtype=np.int64)
    position = 0
    for start in range(0, len(chunks), chunks_at_once):
        which = chunks[start : start + chunks_at_once, None]
        numbers = (which * chunk + np.arange(chunk)).ravel()
        numbers = rng.permutation(numbers[numbers < sessions])
        order[position : position + len(numbers)] = numbers
        position += len(numbers)
    return order


class Batch(NamedTuple):
    """The sessions of one training step, padded with PAD_ROW; a play and its target are in the same column."""

    plays: Tensor  # int64 [batch, window + 1], the last plays of each session
    plays_skipped: Tensor  # bool [batch, window + 1]
    targets: Tensor  # int64 [batch, window], what the NLL term predicts after each play but the last
    positives: Tensor  # int64 [batch, window], the next track that was not skipped: the InfoNCE term's positive
    session_skips: Tensor  # int64 [batch, window + 1], the distinct skipped tracks: the InfoNCE term's negatives
    session_tracks: Tensor  # int64 [batch, window + 1], the distinct tracks of the session

    @property
    def tracks(self) -> Tensor:
        """The plays before the last column: the input of a causal encoder. [batch, window] int64."""
        return self.plays[:, :-1]

    @property
    def skipped(self) -> Tensor:
        """The skip flags of `tracks`. [batch, window] bool."""
        return self.plays_skipped[:, :-1]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device, copied asynchronously."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def make_batch(sessions: Sessions, window: int, objective: Literal["next", "next-played"]) -> Batch:
    """Build the batch of these sessions from their last window + 1 plays."""
    plays = to_windows(sessions, window + 1)
    following, following_skipped = plays.tracks[:, 1:], plays.skipped[:, 1:]
    # A session shorter than the window leaves its first play as a "next" of padding: nothing predicts it.
    predicts = plays.tracks[:, :-1] != PAD_ROW
    positives = np.where(predicts, next_played(following, following_skipped), PAD_ROW)
    targets = positives if objective == "next-played" else np.where(predicts, following, PAD_ROW)
    arrays = (
        plays.tracks,
        plays.skipped,
        targets,
        positives,
        distinct(np.where(plays.skipped, plays.tracks, PAD_ROW)),
        distinct(plays.tracks),
    )
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def next_played(following: Int, following_skipped: Bool) -> Int:
    """Return for each step the first track from there on that was not skipped, or PAD_ROW. [batch, window] int64."""
    window = following.shape[1]
    played = (following != PAD_ROW) & ~following_skipped
    # The column of the first played track at or after each column: a running minimum from the right.
    columns = np.where(played, np.arange(window), window)
    first = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([following, np.full((len(following), 1), PAD_ROW, dtype=following.dtype)], axis=1)
    return np.take_along_axis(padded, first, axis=1)


def epoch_batches(
    sessions: Sessions | SessionViews,
    batch_size: int,
    window: int,
    objective: Literal["next", "next-played"],
    order: Int,
) -> Iterator[Batch]:
    """Yield batches of the sessions in the given order; the last one may be smaller."""
    for start in range(0, len(order), batch_size):
        with record_function("segue: data"):
            batch = make_batch(sessions.select(order[start : start + batch_size]), window, objective)
        yield batch


def trainable(sessions: Sessions | SessionViews, window: int) -> SessionViews:
    """Return sessions of two or more plays, split into pieces of at most window + 1 plays that overlap by one play.

    The overlap has the effect that every play but a session's first is predicted once.
    """
    views = SessionViews.of(sessions)
    starts, ends = views.starts, views.ends
    pieces = np.maximum(-(-(ends - starts - 1) // window), 0)
    piece_starts = np.repeat(starts, pieces) + window * (
        np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    )
    piece_ends = np.minimum(piece_starts + window + 1, np.repeat(ends, pieces))
    return SessionViews(views.whole, piece_starts, piece_ends)


_PREFETCHED_STEPS: Final = 4
_NEGATIVES: Final = 1  # distinguishes their random stream from those of the order and of dropout

Made = TypeVar("Made")


class Step(NamedTuple):
    """The input of one training step."""

    batch: Batch  # this process's shard of the sessions
    negatives: Tensor  # [n] int64, of all processes
    rows: Tensor | None  # [n] int64, the touched rows that batch and negatives then index; None: all rows
    sessions: int  # of all processes

    def to(self, device: torch.device) -> "Step":
        """Return the step on another device; pinned tensors are copied asynchronously."""
        rows = None if self.rows is None else self.rows.to(device, non_blocking=True)
        return Step(self.batch.to(device), self.negatives.to(device, non_blocking=True), rows, self.sessions)

    def pinned(self) -> "Step":
        """Return the step in pinned memory."""
        batch = Batch(*(tensor.pin_memory() for tensor in self.batch))
        rows = None if self.rows is None else self.rows.pin_memory()
        return Step(batch, self.negatives.pin_memory(), rows, self.sessions)


def touched_rows(batch: Batch, negatives: Tensor) -> Tensor:
    """Return the sorted rows that a step reads, with PAD_ROW first. [n] int64 on the CPU."""
    return torch.from_numpy(np.unique(np.concatenate([[PAD_ROW], batch.plays.numpy().ravel(), negatives.numpy()])))


def remap_rows(batch: Batch, negatives: Tensor, rows: Tensor) -> tuple[Batch, Tensor]:
    """Replace rows in a batch and its negatives with positions in `rows`; PAD_ROW stays PAD_ROW. All on the CPU."""
    flags = {name: getattr(batch, name) for name in ("plays_skipped",)}
    tracks = {name: tensor for name, tensor in batch._asdict().items() if name not in flags}
    places = {name: _positions(tensor, rows) for name, tensor in tracks.items()}
    return Batch(**places, **flags), _positions(negatives, rows)


def _positions(tracks: Tensor, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.searchsorted(rows.numpy(), tracks.numpy()))


def steps(
    sessions: SessionViews,
    remaining: Int,
    num_rows: int,
    options: NeuralOptions,
    at: tuple[int, int],
    shard: Callable[[Batch], Batch],
    *,
    pinned: bool,
) -> Iterator[Step]:
    """Yield the steps of an epoch from `at` (epoch, step) on, over the session indices `remaining` in that order.

    `shard` returns this process's shard of a batch. With `pinned` the steps are in pinned memory, for a GPU.
    """
    epoch, first = at
    batches = epoch_batches(sessions, options.batch_size, options.window, options.objective, remaining)
    for number, batch in enumerate(batches, first):
        rng = np.random.default_rng((options.seed, epoch, number, _NEGATIVES))
        drawn = torch.from_numpy(rng.integers(FIRST_TRACK_ROW, num_rows, options.negatives))
        rows = touched_rows(batch, drawn) if options.updates == "touched" else None
        share, negatives = shard(batch), drawn
        if rows is not None:
            share, negatives = remap_rows(share, drawn, rows)
        step = Step(share, negatives, rows, len(batch.plays))
        yield step.pinned() if pinned else step


def prefetch(made: Iterator[Made]) -> Iterator[Made]:
    """Yield the same items in the same order, computed ahead by a thread."""
    with ThreadPoolExecutor(1, "segue-steps") as thread:
        waiting = deque(thread.submit(next, made, None) for _ in range(_PREFETCHED_STEPS))
        while True:
            with record_function("segue: data"):
                found = waiting.popleft().result()
            if found is None:
                return
            waiting.append(thread.submit(next, made, None))
            yield found
