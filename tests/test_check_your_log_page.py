"""docs/how-to/check-your-log.md shows what comes out, and explains every warning."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the documents are not part of the wheel")

from docs.site import walk
from tests.preloaded import COMMANDS, preloaded
from tests.test_docs_site import words_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "check-your-log.md").read_text(encoding="utf-8")
# The modules that give warnings, and how each of them names one.
SOURCES = {
    "training/data/describe/find_warnings.py": r'yield \(\s*"(\w+)"',
    "training/prepare/findings.py": r'DataWarning\(\s*code="(\w+)"',
}


def test_what_it_shows_is_what_comes_out() -> None:
    (block,) = walk.blocks(PAGE)
    with walk.shell(preloaded(COMMANDS).program) as shell:
        for command, shown in block:
            found = words_of(shell.run(command))
            alike = (found & words_of(shown)).total()
            assert alike >= 0.8 * max(found.total(), words_of(shown).total()), command


def test_it_explains_every_warning_and_no_other() -> None:
    explained = re.findall(r"^#### (\w+)$", PAGE, flags=re.MULTILINE)
    given = {
        code for path, named in SOURCES.items() for code in re.findall(named, (ROOT / path).read_text(encoding="utf-8"))
    }
    assert len(given) > 15
    assert sorted(explained) == sorted(given)


def test_it_names_only_figures_that_are_shown() -> None:
    table = PAGE.partition("## How to read the figures")[2].partition("\n## ")[0]
    (block,) = walk.blocks(PAGE)
    shown = block[-1][1].lower().replace("1%", "1 %")
    for names in re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)[1:]:
        for name in names.split(", "):
            assert name.lower() in shown, name
