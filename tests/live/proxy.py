"""The HAProxy of the compose file, with its shipped configuration, in front of services on loopback."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CONFIGURATION = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
# Debian keeps it off the path of ordinary users.
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_haproxy = pytest.mark.skipif(
    HAPROXY is None or not CONFIGURATION.is_file(),
    reason="takes docker/haproxy.cfg and haproxy: apt-get install haproxy",
)


def on_loopback(configuration: str, port: int, replica: str) -> str:
    """The configuration with its ports on loopback and one replica by address: no name server is needed."""
    changes = {
        r"bind :8000": f"bind 127.0.0.1:{port}",
        r"(?ms)^resolvers docker$.*?(?=^defaults$)": "",
        r"(?m)^    default-server resolvers docker .*$": "",
        r"server-template replica 8 service:8000": f"server replica {replica}",
    }
    for pattern, replacement in changes.items():
        configuration, count = re.subn(pattern, replacement, configuration)
        assert count, f"docker/haproxy.cfg has no {pattern}"
    return configuration


@contextlib.contextmanager
def proxy_for(address: str, folder: Path) -> Iterator[str]:
    """Run HAProxy in front of the service at `address`; yield the proxy's own address once it answers."""
    assert HAPROXY is not None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    file = folder / "haproxy.cfg"
    file.write_text(on_loopback(CONFIGURATION.read_text(), port, urlsplit(address).netloc))
    with (folder / "haproxy.log").open("w") as log:
        proxy = subprocess.Popen([HAPROXY, "-f", str(file)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert proxy.poll() is None, (folder / "haproxy.log").read_text()
            assert time.monotonic() < deadline, "HAProxy does not listen"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        proxy.kill()
        proxy.wait(10)
