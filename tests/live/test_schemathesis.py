"""The running service against its own description: random requests, right and wrong, and every check there is."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_the_service_does_what_it_describes(running: httpx.Client, tmp_path: Path, examples: int) -> None:
    """By Schemathesis' own command: its phases are more than its pytest plugin runs."""
    program = Path(sys.executable).with_name("schemathesis")
    description = str(running.base_url.join("/openapi.json"))
    options = ["--max-examples", str(examples), "--checks", "all", "--generation-deterministic", "--no-color"]
    done = subprocess.run(
        [program, "run", description, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
