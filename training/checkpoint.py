"""Write and load checkpoints, and handle interruptions of training.

On Ctrl-C or SIGTERM, training finishes the current step and writes a checkpoint.

A checkpoint contains the weights, the optimizer state and the counters. Resumed training therefore gives the same
result as uninterrupted training. A checkpoint contains no state of random generators, because the seed of every step
derives from the training seed, the epoch, the step and the rank of the process.
"""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from segue.errors import BadOption

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was interrupted and wrote a checkpoint. The message is shown to the user."""


class StopSignal:
    """Records whether a stop of the training was requested."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, signum: int = 0, frame: FrameType | None = None) -> None:  # noqa: ARG002 (signature required by signal.signal)
        """Request a stop after the current step. A second request raises KeyboardInterrupt immediately."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stopping_on_signals() -> Iterator[StopSignal]:
    """Return a context manager in which SIGINT and SIGTERM request a stop.

    Only the main thread can install signal handlers. In any other thread, signals are not handled.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.request) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_FILE = "checkpoint.pt"
_FORMAT = 2  # increment it when the random numbers of a step or the parts of the state change
_BEST = "best.pt"  # the best weights so far, in a separate file that is written only after an improvement


@dataclass
class Progress:
    """The counters and validation scores of a training run."""

    epoch: int = 0  # the current epoch, from 0
    step: int = 0  # finished steps of the current epoch
    best: tuple[float, float] = (-1.0, -1.0)  # best validation HR@10 so far, and its MRR@10, which breaks ties
    best_epoch: int = -1
    seconds: float = 0.0  # total time of training so far, including validation
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per finished epoch
    sums: dict[str, float] = field(default_factory=dict)  # loss terms of the current epoch, summed over its steps


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one training run.

    `identity` contains the model, options and data of the run. Training resumes only from a checkpoint with the same
    `identity`.
    """

    folder: Path
    identity: dict[str, Any]

    def save(self, progress: Progress, state: dict[str, Any]) -> None:
        """Write a checkpoint atomically. After a crash, either the old or the new checkpoint exists."""
        content = {"format": _FORMAT, "identity": json.dumps(self.identity), "progress": vars(progress), "state": state}
        self._write(_FILE, content)

    def save_best(self, weights: dict[str, Any]) -> None:
        """Write the best weights so far. Call this method before `save`.

        After a crash between the two calls, training repeats the epoch and writes the same weights.
        """
        self._write(_BEST, weights)

    def best(self) -> dict[str, Any]:
        """Return the weights of the best epoch as memory-mapped tensors."""
        import torch

        found: dict[str, Any] = torch.load(self.folder / _BEST, weights_only=True, mmap=True)
        return found

    def _write(self, name: str, content: dict[str, Any]) -> None:
        import torch

        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{name}.unfinished"
        torch.save(content, unfinished)
        unfinished.rename(self.folder / name)

    def exist(self) -> bool:
        """Return whether a checkpoint exists. The weights are not read.

        Raises:
            BadOption: The checkpoint is damaged, or belongs to another run or version.

        """
        return self._content(mapped=True) is not None

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """Return the progress and the state of the checkpoint, or None if no checkpoint exists.

        Raises:
            BadOption: The checkpoint is damaged, or belongs to another run or version.

        """
        content = self._content()
        return None if content is None else (Progress(**content["progress"]), content["state"])

    def _content(self, *, mapped: bool = False) -> dict[str, Any] | None:
        path = self.folder / _FILE
        if not path.is_file():
            return None
        import torch

        try:
            content: dict[str, Any] = torch.load(path, weights_only=True, mmap=mapped)
            found = json.loads(content["identity"])
        except Exception as error:  # torch raises many types of errors for a damaged file
            raise BadOption(f"{path} is damaged ({type(error).__name__}): delete it to train from the start") from error
        if content.get("format") != _FORMAT:
            raise BadOption(f"{path} is of another version of Segue: delete {self.folder} to train from the start")
        expected = json.loads(json.dumps(self.identity))
        differing = sorted(key for key in expected | found if expected.get(key) != found.get(key))
        if differing:
            what = ", ".join(f"{key} {found.get(key)!r} there, {expected.get(key)!r} here" for key in differing[:3])
            raise BadOption(
                f"{path} belongs to another training ({what}): delete {self.folder} or choose another --out"
            )
        return content

    def remove(self) -> None:
        """Delete the checkpoint. Call this method after the release is written."""
        for name in (_FILE, _BEST):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / f"{name}.unfinished").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
