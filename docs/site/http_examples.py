"""Carries out the examples of docs/reference/http.md: one `curl` per call, each with the answer of a real service.

`python -m docs.site.http_examples docs/reference/http.md` writes the answers; a test does the same and compares.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from docs.site import walk

_WIDTH: Final = 80
# The tutorial's tracks with attributes, a second release to swap to, and the policy of the policies page.
_SETUP: Final = (
    "segue prepare events docs/plays.csv --tracks docs/tracks.csv --out data/mine > report.txt 2>&1",
    "segue train data/mine --recipe demo --out releases/mine > trained.txt 2>&1",
    "segue train data/mine --recipe demo --no-nce --set epochs=1 --out releases/plain > trained.txt 2>&1",
    "mkdir policies && cp docs/radio.toml policies",
    "SEGUE_RELEASES_DIR=releases SEGUE_POLICIES_DIR=policies segue serve releases/mine",
)
_EXAMPLE: Final = re.compile(r"```sh\n(curl .*?)\n```\n\n```(json|text)\n(.*?)```\n", re.DOTALL)


def examples(document: str) -> list[tuple[str, str]]:
    """Each command of a document with the answer below it."""
    return [(found[1], found[3]) for found in _EXAMPLE.finditer(document)]


def filled(document: str) -> str:
    """The document with the answers of a service that is started now."""
    with service() as shell:

        def example(old: re.Match[str]) -> str:
            language, answer = answer_to(shell, old[1])
            return f"```sh\n{old[1]}\n```\n\n```{language}\n{answer}```\n"

        return _EXAMPLE.sub(example, document)


@contextmanager
def service(**options: str) -> Iterator[walk.Shell]:
    """A shell beside a running service. `options`: as of walk.shell. Raises CalledProcessError if a command fails."""
    with walk.shell(**options) as shell:
        for command in _SETUP:
            shell.run(command)
        yield shell


def answer_to(shell: walk.Shell, command: str) -> tuple[str, str]:
    """What a command prints: its language, `json` or `text`, and its text, with JSON over lines."""
    output = shell.run(command)
    if output.startswith("{"):
        return "json", f"{formatted(json.loads(output))}\n"
    return "text", output


def formatted(value: Any, indent: str = "") -> str:
    """JSON over lines of at most 80 characters where possible. An object or array that fits stays on its line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= _WIDTH or not isinstance(value, dict | list):
        return line
    inside = value.values() if isinstance(value, dict) else value
    is_flat = not any(isinstance(part, dict | list) for part in inside)
    inner = indent + (" " if is_flat else "  ")
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {formatted(part, inner)}" for key, part in value.items()]
    else:
        parts = [formatted(part, inner) for part in value]
    if is_flat:
        parts = _packed(parts, _WIDTH - len(inner))
    joined = f",\n{inner}".join(parts)
    opening, closing = line[0], line[-1]
    return f"{opening}{joined}{closing}" if is_flat else f"{opening}\n{inner}{joined}\n{indent}{closing}"


def _packed(parts: list[str], width: int) -> list[str]:
    """The parts, as many on each line as fit."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
