"""What a case is: a log and what `segue prepare` makes of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.log_cases.history import SESSIONS, Content


class Case(NamedTuple):
    """A log, and the dataset or the refusal that is expected.

    `expected` has the tracks of the sessions in order: `*` marks a skip, `|` ends a session.
    """

    name: str
    kind: str
    files: Mapping[str, Content]
    options: str = ""
    expected: str = SESSIONS
    log: Mapping[str, Any] = {}  # facts of `log` in dataset.json
    malformed: int = 0
    says: tuple[str, ...] = ()  # regular expressions, found in the report, which is in lower case
    refused: tuple[str, ...] = ()  # regular expressions, found in the message of a refusal: then there is no dataset
    never: tuple[str, ...] = ()  # words that are not printed
    sources: tuple[str, ...] = ()  # arguments of the command; by default the files
    min_session_plays: int | None = 1
