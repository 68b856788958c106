"""The steps of `make gpu-check`, in the order in which they are run: what decides most comes first."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Step:
    """One measurement, which runs in a process of its own."""

    name: str
    module: str  # its `measure(sizes, folder, *arguments)` gives the result
    most_s: int  # after which it is stopped
    about: str
    arguments: tuple[int, ...] = ()  # the number of the catalogue, smallest first
    whole: bool = False  # whether it takes all of its time

    @property
    def least_s(self) -> int:
        """With less time left it is not started."""
        return self.most_s if self.whole else self.most_s // 2


_CATALOGUE: Final = ("small", "medium", "large")

# A card is often lent for half an hour, and a command for ten minutes: bounds add up to less, a test holds them to it.
STEPS: Final = (
    Step("environment", "environment", 40, "card, driver, libraries, copy bandwidth"),
    Step("tests", "device_tests", 80, "every test marked gpu"),
    Step("parity", "parity", 80, "the GPU index beside the CPU index and exact search"),
    Step("index-small", "index_speed", 50, "index search by batch size", (0,)),
    Step("processes", "one_card", 50, "two processes on one card are refused"),
    Step("training", "training_speed", 170, "training steps by precision, batch size and torch.compile, profile"),
    Step("training-run", "training_run", 500, "the whole training", whole=True),
    Step("index-medium", "index_speed", 50, "index search by batch size", (1,)),
    Step("index-large", "index_speed", 210, "index search by batch size", (2,)),
    Step("release-large", "service_release", 330, "a release of the largest catalogue with both indexes", (2,)),
    Step("service-large", "service_load", 130, "the service under load with either index", (2,)),
    Step("release-small", "service_release", 60, "a release of the smallest catalogue with both indexes", (0,)),
    Step("service-small", "service_load", 50, "the service under load with either index", (0,)),
)
MOST_S: Final = 1800
MOST_OF_ONE_S: Final = 540


def named(name: str) -> Step:
    """The step of that name."""
    return next(step for step in STEPS if step.name == name)
