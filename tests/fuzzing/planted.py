"""Targets that do at their third case what no target may do: to see that it is seen."""

import os
import random
from typing import Any, Final

from service.problems import problem_response
from tests.fuzzing.files import Files
from tests.fuzzing.requests import App, Asked


class _Planted(Files):
    """Counts its cases."""

    cases = 0

    def case(self, rng: random.Random) -> str:
        """See Target."""
        self.cases += 1
        if self.cases == 3:
            self.harm()
        return "done"

    def harm(self) -> None:
        """What must not be."""


class Fails(App):
    """A 500."""

    def case(self, rng: random.Random) -> str:
        """See Target."""
        self._app = problem_response(500, "planted")  # type: ignore[assignment]
        return str(self.ask(Asked("GET", "/", b"", [], [])).status)


class Ends(_Planted):
    """The end of the process."""

    def harm(self) -> None:
        """See _Planted."""
        os.abort()


class Hangs(_Planted):
    """A loop without an end."""

    def harm(self) -> None:
        """See _Planted."""
        while True:
            pass


TARGETS: Final[dict[str, Any]] = {"planted-fails": Fails, "planted-ends": Ends, "planted-hangs": Hangs}
