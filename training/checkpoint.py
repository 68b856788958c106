"""Checkpoints, and interruption by Ctrl-C or SIGTERM: the current step is finished, then a checkpoint is written.

A checkpoint contains everything that training needs to resume as if it had not stopped: weights, optimiser state and
counters. It needs no generator state, because all randomness of a step derives from (seed, epoch, step) and the
process.
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
    """Training was interrupted and wrote a checkpoint; the message is shown to the user."""


class StopSignal:
    """Records a request to stop training."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, signum: int = 0, frame: FrameType | None = None) -> None:  # noqa: ARG002 (what signal.signal calls)
        """Request a stop after the current step; a second request raises KeyboardInterrupt at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stopping_on_signals() -> Iterator[StopSignal]:
    """Make SIGINT and SIGTERM request a stop inside the `with` block.

    Only the main thread can install signal handlers; in another thread no signal is handled.
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
_FORMAT = 2  # raise it when a step draws other random numbers or the state has other parts
_BEST = "best.pt"  # the best weights so far: a file of their own, so that they are written only when they improve


@dataclass
class Progress:
    """The counters and scores of a training run."""

    epoch: int = 0  # the current epoch, from 0
    step: int = 0  # steps of that epoch already taken
    best: tuple[float, float] = (-1.0, -1.0)  # best validation HR@10 so far, and MRR@10, which breaks ties
    best_epoch: int = -1
    seconds: float = 0.0  # total of the finished epochs, including validation
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per finished epoch
    sums: dict[str, float] = field(default_factory=dict)  # loss terms of the current epoch, summed over its steps


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one training run; a checkpoint is resumed only if its `identity` is equal."""

    folder: Path
    identity: dict[str, Any]

    def save(self, progress: Progress, state: dict[str, Any]) -> None:
        """Write a checkpoint atomically: a kill at any moment leaves the old or the new one."""
        content = {"format": _FORMAT, "identity": json.dumps(self.identity), "progress": vars(progress), "state": state}
        self._write(_FILE, content)

    def save_best(self, weights: dict[str, Any]) -> None:
        """Write the best weights so far. Call it before `save`: a repeated epoch gives the same weights again."""
        self._write(_BEST, weights)

    def best(self) -> dict[str, Any]:
        """Return the weights of the best epoch, memory-mapped."""
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
        """Whether a checkpoint exists, without reading its weights. Raises BadOption as `load` does."""
        return self._content(mapped=True) is not None

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """Return the checkpoint to resume from, or None. Raises BadOption if it belongs to another run or version."""
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
        except Exception as error:  # torch raises many kinds for a damaged file
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
        """Delete the checkpoint, once the release is written."""
        for name in (_FILE, _BEST):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / f"{name}.unfinished").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
