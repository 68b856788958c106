"""`segue top` before a real service: one look when piped, a screen on a terminal, one line where it is refused."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from segue.cli import main
from service.http.keys import new_key, write_keys
from tests.live.redis_server import Server
from tests.live.terminal import Terminal

StartService = Callable[..., Any]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["top", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def table(out: str, title: str) -> dict[str, list[str]]:
    """The lines of one printed table by their first field, the line of names among them."""
    lines = out.partition(f"# {title}")[2].splitlines()[1:]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("#"):
            break
        first, *rest = line.split("\t")
        found[first] = rest
    return found


def test_one_look_when_piped_is_plain_and_holds_what_the_service_says(
    capsys: pytest.CaptureFixture[str], running: httpx.Client
) -> None:
    running.post("/sessions/top/events", json={"events": [{"type": "play", "track_id": "g0-t00"}]})
    told = running.get("/operations").json()
    code, out, err = run(capsys, running.base_url, "--interval", 0.3)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert not set(out) & set("─│┃━┏╭█▁")
    traffic = table(out, "Requests, last")
    assert traffic["route"] == ["per s", "p50 ms", "p90 ms", "p99 ms", "4xx per s", "5xx per s", "responses"]
    assert {len(line) for line in traffic.values()} == {7}
    assert traffic["GET /operations"][-1] == "1"  # between the two looks: the first of them
    assert traffic["all listener requests"][0] == "0.00"
    service = {name: " ".join(rest) for name, rest in table(out, "Service").items()}
    assert told["release"]["name"] in service["release"]
    assert service["sessions"].startswith(f"{told['events']['sessions']:,} started")
    assert service["Redis"].startswith("up, ")
    assert table(out, "Recommendation outcomes")[told["release"]["name"]][0] == "yes"


def test_json_is_the_services_own(capsys: pytest.CaptureFixture[str], running: httpx.Client) -> None:
    code, out, err = run(capsys, running.base_url, "--json")
    assert (code, err) == (0, "")
    told = running.get("/operations").json()
    assert json.loads(out).keys() == told.keys()
    assert json.loads(out)["release"] == told["release"]


def test_a_service_with_keys_wants_one_of_an_operator(
    capsys: pytest.CaptureFixture[str], start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, kept = new_key("operator", ["admin"])
    metrics, kept_too = new_key("prometheus", ["metrics"])
    write_keys(tmp_path / "keys.toml", [kept, kept_too])
    address = start_service(api_keys=tmp_path / "keys.toml").address()
    for arguments, told in (
        ([], "this call needs a key"),
        (["--key", "segue_wrong"], "is unknown or revoked"),
        (["--key", metrics], "has the scope metrics, and GET /operations needs admin"),
        (["--key", "ключ"], "characters that no key has"),
    ):
        code, out, err = run(capsys, address, *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert told in err
        assert metrics not in err
    assert run(capsys, address, "--key", admin, "--json")[0] == 0
    monkeypatch.setenv("SEGUE_API_KEY", admin)
    assert run(capsys, address, "--json")[0] == 0


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9 does not answer"),
        ("127.0.0.1:8000", "is not the address of a service"),
        ("ftp://127.0.0.1", "is not the address of a service"),
        ("http://", "is not the address of a service"),
        ("http://[::1", "is not the address of a service"),
        ("http://localhost:port", "is not the address of a service"),
        ("http://a\tb", "is not the address of a service"),
    ],
)
def test_a_wrong_address_is_one_line_and_code_two(capsys: pytest.CaptureFixture[str], url: str, told: str) -> None:
    code, out, err = run(capsys, url)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert told in err


def test_what_is_no_segue_is_said(capsys: pytest.CaptureFixture[str], running: httpx.Client) -> None:
    code, out, err = run(capsys, f"{running.base_url}/nowhere")
    assert (code, out) == (2, "")
    assert "answers 404" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_is_a_screen_until_it_is_told_to_end(running: httpx.Client, number: signal.Signals) -> None:
    terminal = Terminal("top", running.base_url, "--interval", "0.1")
    terminal.until("Press Ctrl-C to quit")
    assert "\x1b[?1049h" in terminal.text  # the alternate screen, which leaves no trace
    assert "event log" in terminal.text
    title = "Requests, last "  # before the second look it is another one
    terminal.until(title)
    terminal.text = terminal.text[terminal.text.index(title) :]
    terminal.until(" s")
    assert re.match(rf"{title}\d+ s", terminal.text)
    assert terminal.end(number) == 0
    assert "Traceback" not in terminal.text


def test_a_small_terminal_shows_what_matters_to_the_end(running: httpx.Client) -> None:
    for path in ("/tracks", "/recommendations?session_id=top", "/sessions/top", "/releases/current", "/health/live"):
        running.get(path)
    terminal = Terminal("top", running.base_url, "--interval", "0.1", lines=32)
    terminal.until("Press Ctrl-C to quit")
    assert "event log" in terminal.text
    assert terminal.end(signal.SIGINT) == 0


def test_a_service_that_goes_and_comes_back_is_waited_for(start_service: StartService, tmp_path: Path) -> None:
    with Server(tmp_path / "redis") as server:
        service = start_service(redis_url=server.url, durability="memory")
        address = service.address()
        terminal = Terminal("top", address, "--interval", "0.1")
        terminal.until("Press Ctrl-C to quit")
        server.kill()
        terminal.until("UNREACHABLE")
        service.stop()
        terminal.until("does not answer")
        server.start()
        start_service(redis_url=server.url, durability="memory", port=address.rpartition(":")[2]).address()
        terminal.text = ""
        terminal.until("up, ")
        assert terminal.end(signal.SIGINT) == 0
