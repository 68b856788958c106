"""The files of the API viewer over HTTP."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.keys import new_key, write_keys
from service.http.middleware import RESPONSE_HEADERS

FILES = ("docs/files/swagger-ui.css", "docs/files/swagger-ui-bundle.js", "web/docs.css", "web/docs.js", "web/icon.svg")


def test_the_page_names_its_own_files_by_relative_names(running: httpx.Client) -> None:
    page = running.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert set(named) == set(FILES)
    for name in named:
        assert running.get(f"/{name}").status_code == 200


@pytest.mark.parametrize("path", ["docs", *FILES])
def test_its_content_policy_is_that_of_every_answer(running: httpx.Client, path: str) -> None:
    expected = dict(RESPONSE_HEADERS)["content-security-policy"]
    assert running.get(f"/{path}").headers["content-security-policy"] == expected


@pytest.mark.parametrize("path", ["docs", "docs/files/swagger-ui.css"])
def test_head_is_answered_as_get_is(running: httpx.Client, path: str) -> None:
    got, headed = running.get(f"/{path}"), running.head(f"/{path}")
    assert (headed.status_code, headed.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert headed.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        *("/docs/", "/docs/files", "/docs/files/", "/docs/files/redoc.standalone.js", "/docs/files/favicon.png"),
        *(
            "/docs/files/../core.py",
            "/docs/files/%2e%2e/core.py",
            "/docs/swagger-ui.css",
        ),
    ],
)
def test_other_files_are_not_found(running: httpx.Client, path: str) -> None:
    answer = running.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_it_needs_no_key(start_service: Callable[..., Any], tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.toml", [new_key("app", ["client"])[1]])
    with start_service(api_keys=tmp_path / "keys.toml").client() as client:
        for path in ("docs", *FILES, "openapi.json"):
            assert client.get(f"/{path}").status_code == 200
