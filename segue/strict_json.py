"""JSON files that may come from anywhere: whatever could be read in two ways is refused."""

import json
from pathlib import Path
from typing import Any, Final, NoReturn

MOST_BYTES: Final = 16 * 2**20


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError with one line.

    Refused are links, files over MOST_BYTES, a name that an object holds twice (of which readers take the first or the
    last), numbers that JSON does not know, and what is nested too deeply.
    """
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
        return json.loads(path.read_bytes(), object_pairs_hook=_without_repetition, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object holds {twice[:80]!r} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
