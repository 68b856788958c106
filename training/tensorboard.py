"""A training's epochs for TensorBoard, which is an extra: `pip install 'segue[tensorboard]'`."""

from pathlib import Path
from typing import Final, Self

from torch.utils.tensorboard import SummaryWriter

_GROUPS: Final = {"loss": "loss", "nll": "loss", "nce": "loss", "HR@10": "validation", "MRR@10": "validation"}


class TensorBoard:
    """Writes what every epoch ended with under `loss/`, `validation/` and `speed/`, by the epoch's number from 1."""

    def __init__(self, folder: Path) -> None:
        """`folder` is a run of TensorBoard's: name one for each training, all in one folder for `--logdir`."""
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        """Nothing more to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._writer.close()

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """See training.trainer.Reporter."""

    def epoch(self, line: dict[str, float]) -> None:
        """See training.trainer.Reporter."""
        for name, value in line.items():
            if name != "epoch":
                group = _GROUPS.get(name, "speed")
                self._writer.add_scalar(f"{group}/{name.replace('@', '_at_')}", value, int(line["epoch"]))
        self._writer.flush()
