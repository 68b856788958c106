"""Reporters for tests: one that says nothing, and one that stops a training after some steps."""

from typing import Any


class Silent:
    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None: ...

    def epoch(self, line: dict[str, float]) -> None: ...


class Killed(Exception):
    pass


class KilledAfter(Silent):
    """Stops training after some steps, as a signal would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed
