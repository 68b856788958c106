"""The address that a service listens on, and what a user is told where it cannot."""

import errno
import socket
from pathlib import Path

import pytest

from segue.errors import BadOption
from service.http.auth import check
from service.server import _address, _bind
from service.settings import Settings

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_have_brackets(host: str) -> None:
    settings = Settings(release=Path("unused"), host=host)
    check(settings)
    assert settings.host == "::1"
    with _bind(settings.host, 0) as listening:
        assert _address(listening).startswith("http://[::1]:")


@pytest.mark.parametrize("host", ["[::1", "::1]", "[]", "[localhost]", "nowhere.invalid", "a" * 300, "..", "256.1.1.1"])
def test_a_host_that_is_none_is_said_to_be_at_fault(host: str) -> None:
    with pytest.raises(BadOption) as caught:
        _bind(host, 0)
    assert "--host" in str(caught.value)
    assert "--port" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_of_another_machine_is_said_to_be_at_fault() -> None:
    with pytest.raises(BadOption, match="set --host to an address of this machine") as caught:
        _bind("192.0.2.1", 0)
    assert "--port" not in str(caught.value)


def test_a_port_in_use_is_said_to_be_at_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadOption, match=f"cannot listen on 127.0.0.1:{port}.*choose another --port") as caught:
            _bind("127.0.0.1", port)
    assert "--host" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "port", "remedy"),
    [
        (errno.EACCES, 80, "choose a --port of 1024 or above"),
        (errno.EPERM, 443, "choose a --port of 1024 or above"),
        (errno.EACCES, 8000, "permission was denied"),
        (errno.EAFNOSUPPORT, 8000, "set --host to an address"),
        (errno.ENOBUFS, 8000, "another --host or --port"),
    ],
)
def test_the_remedy_fits_the_cause(number: int, port: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(BadOption, match=remedy):
        _bind("127.0.0.1", port)
