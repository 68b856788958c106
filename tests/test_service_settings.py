"""The settings: read once, checked, handed on to the workers unchanged."""

import re
from pathlib import Path
from typing import Any

import pytest

from segue.errors import BadOption
from service.settings import Settings, as_environment, check_environment, read_settings
from tests.trips import ROOT


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in as_environment(Settings(release=Path("unused"), redis_url="redis://r", event_log_dir=Path("e"))):
        monkeypatch.delenv(name, raising=False)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_PORT", "1")
    monkeypatch.setenv("SEGUE_HOST", "::1")
    monkeypatch.setenv("SEGUE_DATA", "is no setting and does no harm")
    settings = read_settings(release="r", port=2, host=None)
    assert (settings.release, settings.port, settings.host) == (Path("r"), 2, "::1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": "65536"}, "port is '65536': expected a number of at most 65535; see SEGUE_PORT"),
        ({"idle_gap_s": 0}, "idle_gap_s is 0: expected a number above 0; see SEGUE_IDLE_GAP_S"),
        ({"redis_url": "localhost"}, "redis_url is 'localhost'"),
        ({"log_level": "loud"}, "log_level is 'loud': expected 'debug', 'info', 'warning' or 'error'; see"),
        ({"event_log": False, "list_log_rate": 0.1}, "list_log_rate requires event_log: set SEGUE_EVENT_LOG=true, or"),
        ({"event_log": "perhaps"}, "event_log is 'perhaps': expected true or false; see"),
        ({"redis_connections": "many"}, "redis_connections is 'many': expected a whole number; see"),
        ({"redis_password_file": "nowhere"}, "redis_password_file is 'nowhere': expected an existing file; see"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption) as caught:
        read_settings(release="r", **given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_service_needs_a_release() -> None:
    with pytest.raises(BadOption, match="release is missing: set SEGUE_RELEASE"):
        read_settings()


def test_workers_read_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        release=Path("r"),
        port=0,
        event_log=False,
        idle_gap_s=0.25,
        redis_url="unix:///tmp/a b.sock",
        allowed_hosts=("music.example", "::1"),
    )
    for name, value in as_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert read_settings() == settings


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("SEGUE_RELEASE_DIR", "did you mean SEGUE_RELEASES_DIR?"),
        ("SEGUE_PROT", "did you mean SEGUE_PORT?"),
        ("segue_prot", "did you mean SEGUE_PORT?"),
        ("SEGUE_SHUTDOWN_GRACE", "did you mean SEGUE_SHUTDOWN_GRACE_S?"),
        ("SEGUE_SOMETHING_ELSE_ENTIRELY", "docs/operate/settings.md lists the settings"),
    ],
)
def test_an_unknown_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, remedy: str) -> None:
    monkeypatch.setenv("SEGUE_RELEASE", "somewhere")
    monkeypatch.setenv(name, "1")
    with pytest.raises(BadOption, match=re.escape(f"unknown setting {name}: {remedy}")):
        read_settings()


def test_every_variable_of_the_repository_is_known() -> None:
    """Or a variable for the tests, CI or the benchmarks would keep a service from starting."""
    read = re.compile(
        r"""(?:environ(?:\.get\(|\[)|getenv\()\s*["'](SEGUE_[A-Z_]+)["']|\$[({]?(SEGUE_[A-Z_]+)|(SEGUE_[A-Z_]+)="""
    )
    used = set()
    for folder in ("segue", "service", "training", "index", "tests", "benchmarks", "docker", ".ci", "docs"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in {"", ".py", ".sh", ".yaml", ".yml", ".md"}:
                used |= {name for found in read.findall(file.read_text(errors="replace")) for name in found if name}
    assert {"SEGUE_DATA", "SEGUE_AUDIT", "SEGUE_SCREENSHOTS", "SEGUE_API_KEY", "SEGUE_COMMIT"} <= used
    check_environment(used)


@pytest.mark.parametrize("name", ["SEGUE_API_KEY", "SEGUE_SERVICE_HOST", "SEGUE_PORT_8000_TCP_ADDR", "SEGUELESS"])
def test_a_variable_of_another_use_is_none_of_the_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SEGUE_RELEASE", "somewhere")
    monkeypatch.setenv(name, "1")
    assert read_settings().release == Path("somewhere")
