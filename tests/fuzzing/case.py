"""What a target is: something that is opened once, and then given one damaged input after another."""

import random
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self


class Target(Protocol):
    """What is fuzzed. `folder` is empty and its own."""

    def __init__(self, folder: Path) -> None: ...

    def __enter__(self) -> Self:
        """Open it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...

    def case(self, rng: random.Random) -> str:
        """Draw an input, try it, and say in a word what came of it. Raises for whatever must not be."""
        ...
