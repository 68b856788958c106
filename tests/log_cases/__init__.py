"""Invented logs, each with the dataset or the refusal that is expected of it."""

from typing import Final

from tests.log_cases import events, sources, tables
from tests.log_cases.case import Case

CASES: Final[dict[str, Case]] = {
    f"{case.kind}: {case.name}": case for case in (*events.CASES, *tables.CASES, *sources.CASES)
}
assert len(CASES) == len(events.CASES) + len(tables.CASES) + len(sources.CASES), "two cases have one name"
