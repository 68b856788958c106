"""Training batches: windows, what comes next at each step, and the skipped tracks of the same session."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from segue.arrays import Bool, Int
from segue.catalogue import PAD_ROW
from segue.window import Sessions, to_windows
from training.data.session_views import SessionViews


class Batch(NamedTuple):
    """One training step's sessions. PAD_ROW marks what is not there; columns of a play and of what follows it agree."""

    plays: Tensor  # int64 [batch, window + 1], the last plays of each session
    plays_skipped: Tensor  # bool [batch, window + 1]
    targets: Tensor  # int64 [batch, window], what the NLL term predicts after each play but the last
    positives: Tensor  # int64 [batch, window], the next track that was not skipped: the InfoNCE term's positive
    session_skips: Tensor  # int64 [batch, window + 1], the distinct skipped tracks: the InfoNCE term's negatives
    session_tracks: Tensor  # int64 [batch, window + 1], the distinct tracks of the session

    @property
    def tracks(self) -> Tensor:
        """The plays that have a successor, which a causal encoder sees. [batch, window] int64."""
        return self.plays[:, :-1]

    @property
    def skipped(self) -> Tensor:
        """Which of `tracks` were skipped. [batch, window] bool."""
        return self.plays_skipped[:, :-1]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def make_batch(sessions: Sessions, window: int, objective: Literal["next", "next-played"]) -> Batch:
    """The batch of these sessions; only their last window + 1 plays take part."""
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
    """For each step, the first track from there on that was not skipped, PAD_ROW where none comes. [batch, window]."""
    window = following.shape[1]
    played = (following != PAD_ROW) & ~following_skipped
    # The column of the first played track at or after each column: a running minimum from the right.
    columns = np.where(played, np.arange(window), window)
    first = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([following, np.full((len(following), 1), PAD_ROW, dtype=following.dtype)], axis=1)
    return np.take_along_axis(padded, first, axis=1)


def distinct(tracks: Int) -> Int:
    """The tracks of each session, each once, PAD_ROW in place of its repetitions. [batch, n] -> [batch, n]."""
    earlier = np.tril(np.ones((tracks.shape[1], tracks.shape[1]), dtype=np.bool_), k=-1)
    repeated = ((tracks[:, :, None] == tracks[:, None, :]) & earlier).any(axis=2)
    return np.where(repeated, PAD_ROW, tracks)


def epoch_batches(
    sessions: Sessions | SessionViews,
    batch_size: int,
    window: int,
    objective: Literal["next", "next-played"],
    order: Int,
) -> Iterator[Batch]:
    """Batches of the sessions in the given order; the last one may be smaller."""
    for start in range(0, len(order), batch_size):
        with record_function("segue: data"):
            batch = make_batch(sessions.select(order[start : start + batch_size]), window, objective)
        yield batch


def trainable(sessions: Sessions | SessionViews, window: int) -> SessionViews:
    """Sessions with something to predict, those longer than the window cut into pieces that overlap by one play.

    Each piece has at most window + 1 plays, so that every play but a session's first is predicted once.
    """
    views = SessionViews.of(sessions)
    starts, ends = views.starts, views.ends
    pieces = np.maximum(-(-(ends - starts - 1) // window), 0)
    piece_starts = np.repeat(starts, pieces) + window * (
        np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    )
    piece_ends = np.minimum(piece_starts + window + 1, np.repeat(ends, pieces))
    return SessionViews(views.whole, piece_starts, piece_ends)
