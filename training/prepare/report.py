"""What each rule of `segue prepare` removed and what remains."""

from collections.abc import Sequence
from typing import NamedTuple

from segue.errors import BadLog
from training.prepare.reading import LinesRead


class StepCount(NamedTuple):
    """The number of plays and sessions of a partition that remain after a rule."""

    rule: str
    plays: int
    sessions: int | None  # None before sessions are built
    always_reported: bool  # if False, the report includes this rule only if the rule changed a count


class FilterStep(NamedTuple):
    """The number of plays and sessions of the whole log that remain after a rule."""

    rule: str
    plays: int
    sessions: int | None  # None before sessions are built


def summed_steps(read: LinesRead, partitions: Sequence[Sequence[StepCount]]) -> list[FilterStep]:
    """Return the remaining plays and sessions after each of the rules 1 to 5, summed over all partitions.

    Raises:
        BadLog: No play remains.

    """
    good = read.lines - read.malformed
    steps = [FilterStep("lines read", read.lines, None)]
    if read.malformed:
        steps.append(FilterStep("malformed lines left out", good, None))
    before: tuple[int, int | None] = (good, None)
    for counts in zip(*partitions, strict=True):
        plays = sum(count.plays for count in counts)
        sessions = None if counts[0].sessions is None else sum(count.sessions or 0 for count in counts)
        if counts[0].always_reported or (plays, sessions) != before:
            record_step(steps, FilterStep(counts[0].rule, plays, sessions))
        before = (plays, sessions)
    return steps


def record_step(steps: list[FilterStep], step: FilterStep) -> None:
    """Append `step` to `steps` in place.

    Raises:
        BadLog: No play remains.

    """
    steps.append(step)
    if step.plays == 0:
        listed = "; ".join(f"{step.rule}: {step.plays:,} plays" for step in steps)
        raise BadLog(f"no play is left ({listed}): relax the last of these rules")
