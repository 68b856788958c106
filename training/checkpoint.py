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
    """Training was told to stop and has written a checkpoint; its text is meant for the user."""


class StopSignal:
    """Whether training was told to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, signum: int = 0, frame: FrameType | None = None) -> None:  # noqa: ARG002 (what signal.signal calls)
        """Stop after this step; asked twice, at once, with the checkpoint of before."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stopping_on_signals() -> Iterator[StopSignal]:
    """Within, SIGINT and SIGTERM ask to stop. Only the main thread may say what a signal does: elsewhere none does."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_FILE = "checkpoint.pt"
_FORMAT = 2  # another one where a step draws other numbers, or keeps another state
_BEST = (
    "best.pt"  # the best weights so far, written when they get better: not with every checkpoint, nor held in memory
)


@dataclass
class Progress:
    """Where training stands."""

    epoch: int = 0  # the epoch under way, from 0
    step: int = 0  # steps of that epoch already taken
    best: tuple[float, float] = (-1.0, -1.0)  # best validation HR@10 so far and, where several epochs reach it, MRR@10
    best_epoch: int = -1
    seconds: float = 0.0  # spent in finished epochs, validation included
    history: list[dict[str, float]] = field(default_factory=list)  # a line for every finished epoch
    sums: dict[str, float] = field(default_factory=dict)  # loss terms of the epoch under way, summed over steps


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one training; `identity` is what must be equal for a checkpoint to be resumed."""

    folder: Path
    identity: dict[str, Any]

    def save(self, progress: Progress, state: dict[str, Any]) -> None:
        """Write beside, then rename: a kill at any moment leaves the old or the new checkpoint."""
        content = {"format": _FORMAT, "identity": json.dumps(self.identity), "progress": vars(progress), "state": state}
        self._write(_FILE, content)

    def save_best(self, weights: dict[str, Any]) -> None:
        """Keep the best weights so far, before the checkpoint that says so: an epoch done twice gives them twice."""
        self._write(_BEST, weights)

    def best(self) -> dict[str, Any]:
        """The weights of the best epoch."""
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
        """Whether there is one to resume from, whose weights are not read. Raises BadOption as `load` does."""
        return self._content(mapped=True) is not None

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """The checkpoint to resume from, or None. Raises BadOption where it is of another training or version."""
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
