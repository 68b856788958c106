"""What mkdocs calls while it builds the site: pages from elsewhere in the repository, and pages made from the code.

Knows which file of the repository becomes which page, and rewrites links accordingly, so that every document reads as
well where it lies. What the made pages say is in reference.py, http_reference.py and figures.py beside this file.
"""

import posixpath
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.site import figures, http_reference, reference

ROOT: Final = Path(__file__).parents[2]
# Documents that lie outside docs/, and where they stand on the site.
PAGES: Final = {
    "README.md": "quick-start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "measurements.md",
    "benchmarks/peers/README.md": "peers.md",
}
# Code that documents refer to, and the page that is made from it.
SOURCES: Final = {
    "training/options.py": "reference/options.md",
    "training/data/describe/description.py": "reference/description.md",
    "service/settings.py": "reference/settings.md",
    "segue/cli/__init__.py": "reference/commands.md",
    "segue/__init__.py": "reference/python.md",
}
COPIES: Final = {"LICENSE": "LICENSE.txt", "openapi.yaml": "openapi.yaml"}
OPENAPI: Final = ROOT / "openapi.yaml"
RESULTS: Final = "benchmarks/results"
PICTURES: Final = "results/figures/"
MADE: Final[dict[str, Callable[[], str]]] = {
    "reference/commands.md": reference.commands,
    "reference/settings.md": reference.settings,
    "reference/options.md": reference.options,
    "reference/description.md": reference.description,
    "reference/python.md": reference.python,
    "reference/schemas.md": lambda: http_reference.schemas(OPENAPI.read_text(encoding="utf-8")),
}
# In a row of a table: an interval, such as `0.470 [0.459, 0.481]`, or a gain, such as `0.482 (+1%)`.
_INTERVAL: Final = re.compile(r"(?<=[\d%]) (\[[-+\d.]+%?,) ([-+\d.]+%?\])(?!\()")
_GAIN: Final = re.compile(r"(?<=\d) (\([-+][\d.]+%\))")
_LINK: Final = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the version on every page."""
    config.copyright = f"Segue {version()}. Apache License 2.0."
    return config


def version() -> str:
    """The version in pyproject.toml."""
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    copied = {**PAGES, **COPIES}
    for path in sorted((ROOT / RESULTS).rglob("*.*")):
        copied[path.relative_to(ROOT).as_posix()] = site_path(path.relative_to(ROOT).as_posix())
    for source, target in copied.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for name, picture in figures.pictures(ROOT / RESULTS).items():
        files.append(File.generated(config, PICTURES + name, content=picture))
    for target, make in MADE.items():
        files.append(File.generated(config, target, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 (mkdocs' names)
    """Put in figures, the version and what openapi.yaml says; let links lead to where their targets are on the site."""
    target = page.file.src_uri
    made = posixpath.relpath(PICTURES, posixpath.dirname(target) or ".") + "/"
    text = figures.filled(relinked(markdown, repository_path(target), target), ROOT / RESULTS, made)
    if target == http_reference.PAGE:
        text = http_reference.http(text, OPENAPI.read_text(encoding="utf-8"))
    return whole_intervals(text.replace("<!-- version -->", version()))


def whole_intervals(markdown: str) -> str:
    """The text with intervals and gains in tables that a browser does not break over lines."""
    space = "\u00a0"

    def whole(row: re.Match[str]) -> str:
        return _GAIN.sub(rf"{space}\1", _INTERVAL.sub(rf"{space}\1{space}\2", row[0]))

    return re.sub(r"^\|.*\|$", whole, markdown, flags=re.MULTILINE)


def site_path(source: str) -> str:
    """Where a file of the repository stands on the site."""
    if (known := {**PAGES, **COPIES, **SOURCES}.get(source)) is not None:
        return known
    # A page report.md would take the place of the file report.html beside it.
    return source.removeprefix("docs/").removeprefix("benchmarks/").replace("/report.md", "/tables.md")


def repository_path(target: str) -> str:
    """Where a page of the site lies in the repository."""
    for source, at in PAGES.items():
        if at == target:
            return source
    return (
        f"benchmarks/{target}".replace("/tables.md", "/report.md")
        if target.startswith("results/")
        else f"docs/{target}"
    )


def relinked(markdown: str, source: str, target: str) -> str:
    """A document's text with its relative links changed from the repository's paths to the site's."""

    def change(link: re.Match[str]) -> str:
        opening, to, anchor, closing = link.group(1), link.group(2), link.group(3) or "", link.group(4)
        there = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), to)))
        return f"{opening}{posixpath.relpath(there, posixpath.dirname(target) or '.')}{anchor}{closing}"

    return _LINK.sub(change, markdown)
