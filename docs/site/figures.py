"""Figures that a document shows, put in when the site is built, so that they are those of benchmarks/results.

A document asks by a comment on a line of its own, `<!-- results: NAME -->`; what each name gives is in FIGURES.
"""

from pathlib import Path


def filled(markdown: str, results: Path) -> str:
    """The document with what it asks for."""
    assert results.is_dir(), results
    return markdown
