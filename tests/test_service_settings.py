"""The settings: read once, checked, handed on to the workers unchanged."""

import re
from pathlib import Path
from typing import Any

import pytest

from segue.errors import BadOption
from service.settings import Settings, as_environment, read_settings


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
        ({"port": "65536"}, "port is '65536': input should be less than or equal to 65535; see SEGUE_PORT"),
        ({"idle_gap_s": 0}, "idle_gap_s is 0: input should be greater than 0; see SEGUE_IDLE_GAP_S"),
        ({"redis_url": "localhost"}, "redis_url is 'localhost'"),
        ({"log_level": "loud"}, "log_level is 'loud'"),
        ({"event_log": "perhaps"}, "event_log is 'perhaps'"),
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
        ("SEGUE_SHUTDOWN_GRACE", "did you mean SEGUE_SHUTDOWN_GRACE_S?"),
        ("SEGUE_SOMETHING_ELSE_ENTIRELY", "docs/operations.md lists the settings"),
    ],
)
def test_an_unknown_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, remedy: str) -> None:
    monkeypatch.setenv("SEGUE_RELEASE", "somewhere")
    monkeypatch.setenv(name, "1")
    with pytest.raises(BadOption, match=re.escape(f"unknown setting {name}: {remedy}")):
        read_settings()


@pytest.mark.parametrize("name", ["SEGUE_API_KEY", "SEGUE_SERVICE_HOST", "SEGUE_PORT_8000_TCP_ADDR", "SEGUELESS"])
def test_a_variable_of_another_use_is_none_of_the_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SEGUE_RELEASE", "somewhere")
    monkeypatch.setenv(name, "1")
    assert read_settings().release == Path("somewhere")
