"""How far long work has come, on stderr: bars on a terminal, a line for each epoch everywhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from segue.cli.pictures import sparkline

_POINTS: Final = 20


def _bar(console: Console, *columns: Any) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _counting_bar() -> Progress:
    return _bar(Console(stderr=True), MofNCompleteColumn(), TimeRemainingColumn())


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told (done, total)."""
    with _counting_bar() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting_steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told (what is done now, steps done, steps in all)."""
    with _counting_bar() as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


class _Speed(ProgressColumn):
    """Sessions a second, once that can be told."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} sessions/s" if task.speed is not None else "")


class TrainingProgress:
    """A bar over the sessions of an epoch with loss terms, speed and time left, and a lasting line for every epoch."""

    def __init__(
        self, epochs: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`console` is stderr's unless another is given; `clock` tells seconds."""
        self._epochs = epochs
        self._console = console or Console(stderr=True)
        columns = [TextColumn("{task.fields[terms]}"), _Speed(), TextColumn("{task.fields[left]}")]
        self._progress = _bar(self._console, *columns)
        self._task: TaskID | None = None
        self._epoch_shown = -1
        self._clock = clock
        self._began = clock()  # the epoch
        self._epoch_s: float | None = None  # the mean of the epochs of this run, validation included
        self._epochs_done = 0
        self._scores: list[float | None] = []

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._progress.stop()

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: Mapping[str, float]) -> None:
        """See training.trainer.Reporter."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        if self._task is None or epoch != self._epoch_shown:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(
                f"epoch {epoch + 1}/{self._epochs}", total=sessions, terms=shown, left=""
            )
            self._epoch_shown = epoch
        left = self._left(epoch, sessions_done / max(sessions, 1))
        self._progress.update(self._task, completed=sessions_done, terms=shown, left=left)

    def epoch(self, line: Mapping[str, float]) -> None:
        """See training.trainer.Reporter."""
        now = self._clock()
        self._epochs_done += 1
        self._epoch_s = ((self._epoch_s or 0.0) * (self._epochs_done - 1) + now - self._began) / self._epochs_done
        self._began = now
        self._scores.append(line["HR@10"])
        shown = (
            self._line(line)
            if self._console.is_terminal
            else Text(
                f"epoch {line['epoch']:.0f}/{self._epochs}  loss {line['loss']:.4f}  nll {line['nll']:.4f}  "
                f"nce {line['nce']:.4f}  validation HR@10 {line['HR@10']:.4f}  {line['sessions_per_s']:,.0f} sessions/s"
            )
        )
        self._console.print(shown, soft_wrap=True)

    def _line(self, line: Mapping[str, float]) -> Text:
        """An epoch for who looks at it: the best so far stands out, and how validation has gone is seen."""
        best = line["HR@10"] >= max(score for score in self._scores if score is not None)
        digits = len(str(self._epochs))
        return Text.assemble(
            (f"epoch {line['epoch']:>{digits}.0f}/{self._epochs}", "bold"),
            ("  loss ", "dim"),
            f"{line['loss']:.4f}",
            (f"  nll {line['nll']:.4f}  nce {line['nce']:.4f}", "dim"),
            ("  validation HR@10 ", "dim"),
            (f"{line['HR@10']:.4f}{' best' if best else '     '}", "bold green" if best else ""),
            (f"  {sparkline(self._scores, _POINTS, from_zero=False).ljust(min(_POINTS, self._epochs))}", "green"),
            (f"  {line['sessions_per_s']:,.0f} sessions/s", "dim"),
        )

    def _left(self, epoch: int, share: float) -> str:
        """The time that the epochs to come take at most, as training may stop early; '' while nobody can tell."""
        spent = self._clock() - self._began
        if self._epoch_s is not None:
            rest = max(self._epoch_s - spent, 0.0) + self._epoch_s * (self._epochs - epoch - 1)
        elif share > 0 and self._epochs > 1:
            rest = spent / share * (self._epochs - epoch) - spent
        else:
            return ""
        return f"at most {duration(rest)} left"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
