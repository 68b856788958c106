"""The embedded Redis: one a folder, ended with its owner, nothing lost."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from segue.errors import BadOption, StoreUnavailable
from service.sessions.embedded_redis import embedded_redis, redis_server_binary, repair_aof

_OWNER = """
import pathlib, sys, time
from service.sessions.embedded_redis import embedded_redis
with embedded_redis(pathlib.Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def ask(url: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(url.removeprefix("unix://"))
        client.sendall(command.encode() + b"\r\n")
        return client.recv(1000).decode().strip()


def test_it_is_a_real_server_that_is_gone_afterwards(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        assert ask(url, "PING") == "+PONG"
    with pytest.raises(OSError, match=r"No such file|refused"):
        ask(url, "PING")


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        assert ask(url, "SET name value") == "+OK"
    with embedded_redis(tmp_path) as url:
        assert ask(url, "GET name").split() == ["$5", "value"]


def test_a_long_folder_name_is_no_obstacle(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / ("long" * 40)) as url:
        assert ask(url, "PING") == "+PONG"
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_a_second_owner_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        embedded_redis(tmp_path),
        pytest.raises(BadOption, match="another service uses the data folder"),
        embedded_redis(tmp_path, lock_wait_s=0.2),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_owner_leaves_no_server_and_nothing_is_lost(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        server = int(next(word for word in ask(url, "INFO server").split() if word.startswith("process_id:"))[11:])
        assert ask(url, "SET name value") == "+OK"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with embedded_redis(tmp_path) as again:
            assert ask(again, "GET name").split() == ["$5", "value"]
            deadline = time.monotonic() + 5
            while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            state = Path(f"/proc/{server}/stat")
            assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_damaged_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_bytes(b"*3\r\n$3\r\nSET\r\nnonsense that no server can read back\r\n" * 4)
    with pytest.raises(StoreUnavailable, match="redis-server exited with code 1"), embedded_redis(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadOption, match="cannot be written"), embedded_redis(tmp_path / "file" / "redis"):
        pass


def test_the_binary_is_found() -> None:
    assert redis_server_binary().name == "redis-server"


def _as_written(*commands: tuple[str, ...]) -> bytes:
    """Commands as an append-only file holds them."""
    return b"".join(
        f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)
        for words in commands
    )


@pytest.mark.parametrize("left", ["MULTI", "a command", "half a command", "half of EXEC"])
def test_a_transaction_that_a_crash_left_half_written_is_never_carried_out(tmp_path: Path, left: str) -> None:
    """Not at the next start, and not at the one after it, when Redis would take what followed for its end."""
    half = {
        "MULTI": _as_written(("MULTI",)),
        "a command": _as_written(("MULTI",), ("RPUSH", "plays", "half")),
        "half a command": _as_written(("MULTI",), ("RPUSH", "plays", "half"), ("RPUSH", "plays", "other"))[:-9],
        "half of EXEC": _as_written(("MULTI",), ("RPUSH", "plays", "half"), ("EXEC",))[:-4],
    }[left]
    folder = tmp_path / "redis"
    with embedded_redis(folder) as url, redis.Redis.from_url(url, decode_responses=True) as client:
        client.eval("redis.call('RPUSH', 'plays', 'one') redis.call('RPUSH', 'plays', 'two')", 0)
    file = max(folder.glob("**/*.aof"), key=lambda path: path.stat().st_mtime)
    with file.open("ab") as stream:
        stream.write(half)
    expected = ["one", "two"]
    for more in ("three", "four"):
        with embedded_redis(folder) as url, redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.lrange("plays", 0, -1) == expected
            client.eval(f"redis.call('RPUSH', 'plays', '{more}') redis.call('SET', 'a', '{more}')", 0)
        expected.append(more)
    assert repair_aof(folder) == 0
