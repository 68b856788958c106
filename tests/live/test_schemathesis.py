"""The running service against its own description: random requests, right and wrong, and every check there is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.keys import new_key, write_keys


def check(address: httpx.URL, folder: Path, examples: int, *more: str) -> None:
    """By Schemathesis' own command: its phases are more than its pytest plugin runs."""
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--max-examples", str(examples), "--checks", "all", "--generation-deterministic", "--no-color", *more]
    done = subprocess.run(
        [program, "run", str(address.join("/openapi.json")), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_the_service_does_what_it_describes(running: httpx.Client, tmp_path: Path, examples: int) -> None:
    check(running.base_url, tmp_path, examples)


@pytest.mark.slow
def test_so_does_one_with_keys(start_service: Callable[..., Any], tmp_path: Path) -> None:
    key, kept = new_key("tests", ["admin"])
    write_keys(tmp_path / "keys.toml", [kept])
    address = httpx.URL(start_service(api_keys=tmp_path / "keys.toml").address())
    check(address, tmp_path, 15, "--header", f"Authorization: Bearer {key}")
