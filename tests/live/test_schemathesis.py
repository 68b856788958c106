"""The running service against its own description: random requests, right and wrong, and every check there is."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.keys import new_key, write_keys

NIGHTLY = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1500)]
EXAMPLES = pytest.mark.parametrize("examples", [15, pytest.param(500, marks=NIGHTLY)])


# What a filter and `fields` can name depends on the release, which a description cannot say.
FILTERS = ["explicit:false", "genre:g1|g2,!explicit:true", '{"any": [{"markets": "DE"}, {"year": {"min": 2003}}]}']
FIELDS = ["genre", "explicit,markets,year"]
# So do the neighbours and attributes of an added track.
ADDED: dict[str, list[Any]] = {
    "neighbours": [["g0-t00"], ["g1-t01", "g2-t02"]],
    "attributes": [{}, {"genre": "g1", "explicit": False, "markets": ["FR"], "year": None}],
    "embedding": [[]],
}
# A new track needs neighbours, a known one does not: which one it is depends on the release as well.
CONFIGURATION = """
[[operations]]
include-path = "/added-tracks/{track_id}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 409, 422]
"""


def described(address: httpx.URL, folder: Path, headers: dict[str, str]) -> Path:
    """Write the service's own description, with filters and fields of the tests' releases."""
    spec = httpx.get(address.join("/openapi.json"), headers=headers, trust_env=False).json()

    def visit(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("in") == "query" and part.get("name") in ("filter", "fields"):
                part["schema"] = {"enum": FILTERS if part["name"] == "filter" else FIELDS}
                part.pop("examples", None)
            for name, values in (("filter", FILTERS), ("fields", [one.split(",") for one in FIELDS])):
                if name in part.get("properties", {}):
                    part["properties"][name] = {"enum": [*values, None] if name == "filter" else values}
            for inner in part.values():
                visit(inner)
        elif isinstance(part, list):
            for inner in part:
                visit(inner)

    visit(spec)
    added = spec["components"]["schemas"]["TrackToAdd"]
    added["properties"] |= {name: {"enum": values} for name, values in ADDED.items()}
    path = folder / "openapi.json"
    path.write_text(json.dumps(spec))
    return path


def check(address: httpx.URL, folder: Path, examples: int, *more: str) -> str:
    """By Schemathesis' own command: its phases are more than its pytest plugin runs. What it said."""
    headers = dict(one.split(": ") for one in more if ": " in one)
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--max-examples", str(examples), "--checks", "all", "--generation-deterministic", "--no-color", *more]
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    options += ["--exclude-path-regex", "/stream$"]  # it has no end: test_session_stream.py
    done = subprocess.run(
        [
            program,
            "--config-file",
            str(configuration),
            "run",
            str(described(address, folder, headers)),
            "--url",
            str(address),
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tell(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Show what was counted."""
    [cases] = re.findall(r"(\d+) generated, \d+ passed", said)
    [scenarios] = re.findall(r"Scenarios: +(\d+)", said)
    with capsys.disabled():
        print(f"\n  {cases} cases, {scenarios} walks among them")  # noqa: T201 (the counts are the result)


@EXAMPLES
def test_the_service_does_what_it_describes(
    running: httpx.Client, tmp_path: Path, examples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(check(running.base_url, tmp_path, examples), capsys)


@EXAMPLES
def test_it_does_so_all_along_a_session(
    running: httpx.Client, tmp_path: Path, examples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """From what is reported to recommendations, to tracks near those, to the plays, to their erasure."""
    # Left to itself, Schemathesis starts its walks at these paths, from where none leads to a session.
    elsewhere = ("/tracks", "/added-tracks/{track_id}", "/removed-tracks/{track_id}")
    away = [one for path in elsewhere for one in ("--exclude-path", path)]
    said = check(running.base_url, tmp_path, examples, "--phases", "stateful", *away)
    [covered] = re.findall(r"API Links: +(\d+) covered", said)
    assert int(covered) >= 4, said
    tell(said, capsys)


@pytest.mark.slow
def test_so_does_one_with_keys_and_a_folder_of_releases(
    start_service: Callable[..., Any], tmp_path: Path, releases_dir: Path
) -> None:
    key, kept = new_key("tests", ["admin"])
    write_keys(tmp_path / "keys.toml", [kept])
    address = httpx.URL(start_service(api_keys=tmp_path / "keys.toml", releases_dir=releases_dir).address())
    check(address, tmp_path, 15, "--header", f"Authorization: Bearer {key}")
