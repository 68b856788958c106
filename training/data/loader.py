"""The data loader: epoch order, batches and training steps.

Sessions are represented as views, the start and end of a part of a session. Plays are copied only when a batch is
built, so the dataset may be mapped from a file larger than memory. On a GPU, a thread prepares the next steps during
the current one.

An epoch visits all sessions once, in random order. For a dataset larger than memory, a random order is slow: the disk
reads ahead megabytes for every session (measured: 500 batches of 64 sessions read a 500 MB file completely). For
datasets of more than WHOLE_UP_TO plays, the loader therefore shuffles chunks of neighbouring sessions. Then it takes 64
chunks at a time and shuffles the sessions within them. Every epoch has a different order. The order depends only on the
seed, the epoch, and the numbers of sessions and plays. The machine has no effect.
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

WHOLE_UP_TO: Final = 1_000_000_000  # plays; a mapped play takes 5 bytes
CHUNK: Final = 65_536  # neighbouring sessions in a chunk, about 5 MB
CHUNKS_AT_ONCE: Final = 64  # chunks whose sessions are shuffled together, about 4 million sessions


def epoch_order(seed: int, epoch: int, sessions: int, plays: int) -> Int:
    """Return all session indices in the order of an epoch. [sessions] int64.

    `sessions` and `plays` are the numbers of sessions and plays in the dataset.
    """
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
    """The sessions of one training step, padded with PAD_ROW. A play and its target are in the same column."""

    plays: Tensor  # int64 [batch, window + 1], the last plays of each session
    plays_skipped: Tensor  # bool [batch, window + 1]
    targets: Tensor  # int64 [batch, window], targets of the NLL term for all plays except the last
    positives: Tensor  # int64 [batch, window], positives of the InfoNCE term: the next track that was not skipped
    session_skips: Tensor  # int64 [batch, window + 1], negatives of the InfoNCE term: the distinct skipped tracks
    session_tracks: Tensor  # int64 [batch, window + 1], the distinct tracks of the session

    @property
    def tracks(self) -> Tensor:
        """Return the plays without the last column, the input of a causal encoder. [batch, window] int64."""
        return self.plays[:, :-1]

    @property
    def skipped(self) -> Tensor:
        """Return the skip flags of `tracks`. [batch, window] bool."""
        return self.plays_skipped[:, :-1]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device, copied asynchronously."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def make_batch(sessions: Sessions, window: int, objective: Literal["next", "next-played"]) -> Batch:
    """Build a batch from the last window + 1 plays of each session.

    The targets are the next tracks for the objective "next", and the next tracks that were not skipped for
    "next-played".
    """
    plays = to_windows(sessions, window + 1)
    following, following_skipped = plays.tracks[:, 1:], plays.skipped[:, 1:]
    # In a session shorter than the window, the first play follows padding. Such a play is not a target.
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
    """Return for each column the first track, in that column or later, that was not skipped. [batch, window] int64.

    `following` [batch, window] int64 are tracks, `following_skipped` [batch, window] bool their skip flags. A column
    without such a track gets PAD_ROW.
    """
    window = following.shape[1]
    played = (following != PAD_ROW) & ~following_skipped
    # `first` is the column of the first played track at or after each column: a running minimum from the right.
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
    """Yield batches of the sessions with the indices `order` [n] int64. The last batch may be smaller."""
    for start in range(0, len(order), batch_size):
        with record_function("segue: data"):
            batch = make_batch(sessions.select(order[start : start + batch_size]), window, objective)
        yield batch


def trainable(sessions: Sessions | SessionViews, window: int) -> SessionViews:
    """Return views of the sessions with at least two plays, split into pieces of at most window + 1 plays.

    Consecutive pieces overlap by one play. As a result, every play except the first of a session is a target once.
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
_NEGATIVES: Final = 1  # part of the seed: separates the random stream of the negatives from the other random streams

Made = TypeVar("Made")


class Step(NamedTuple):
    """The input of one training step."""

    batch: Batch  # this process's shard of the sessions
    negatives: Tensor  # [negatives] int64, the same in all processes
    rows: Tensor | None  # [n] int64, the touched rows, which `batch` and `negatives` index; None for all rows
    sessions: int  # number of sessions in the shards of all processes

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
    """Return the sorted distinct rows that a step reads, including PAD_ROW. [n] int64 on the CPU."""
    return torch.from_numpy(np.unique(np.concatenate([[PAD_ROW], batch.plays.numpy().ravel(), negatives.numpy()])))


def remap_rows(batch: Batch, negatives: Tensor, rows: Tensor) -> tuple[Batch, Tensor]:
    """Replace the rows in a batch and its negatives with their positions in `rows` [n] int64.

    PAD_ROW stays PAD_ROW. All tensors must be on the CPU.
    """
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
    """Yield the steps of an epoch, starting at `at` (epoch, step).

    Args:
        sessions: The training sessions.
        remaining: [n] int64, indices of the sessions to visit, in order.
        num_rows: Number of rows of the item embeddings.
        options: The training options.
        at: Index of the epoch, and index of the first step to yield.
        shard: Returns this process's shard of a batch.
        pinned: Whether to put the steps into pinned memory, for a GPU.

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
    """Yield the items of `made` in order, computed in advance by a thread."""
    with ThreadPoolExecutor(1, "segue-steps") as thread:
        waiting = deque(thread.submit(next, made, None) for _ in range(_PREFETCHED_STEPS))
        while True:
            with record_function("segue: data"):
                found = waiting.popleft().result()
            if found is None:
                return
            waiting.append(thread.submit(next, made, None))
            yield found
