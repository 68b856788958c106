"""Erased sessions leave the append-only file of the embedded Redis within a bounded time.

An erasure deletes keys, and the file keeps the commands that wrote them until it is rewritten. Redis rewrites it only
when it has grown. So `erase_session.lua` sets a marker, and a thread beside the embedded server looks for markers and
has the file rewritten, at most once an hour. That a rewrite is needed is forgotten once it has succeeded.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

BUCKETS: Final = 64  # over which sessions are spread
REWRITE_EVERY_S: Final = 3600.0
_LOOK_EVERY_S: Final = 60.0
_TIMEOUT_S: Final = 10.0

# KEYS: that a rewrite is needed, then the markers. Answers 1 if one is to begin. The first key holds the server's run
# id while a rewrite that it began is to succeed: a server that was started anew knows nothing of it.
_BEGIN: Final = """
local info = redis.call('INFO', 'persistence')
if string.find(info, 'aof_rewrite_in_progress:1', 1, true) or string.find(info, 'aof_rewrite_scheduled:1', 1, true) then
  return 0
end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if redis.call('GET', KEYS[1]) == run and string.find(info, 'aof_last_bgrewrite_status:ok', 1, true) then
  redis.call('DEL', KEYS[1])
end
if redis.call('DEL', unpack(KEYS, 2)) == 0 and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[1], run)
return 1
"""
_NEEDED: Final = "segue:rewrite"

_log = structlog.get_logger()


def erased_marker(bucket: int) -> str:
    """The key that says that a session of a bucket was erased since the file was rewritten."""
    return f"segue:{{b{bucket}}}:erased"


@contextlib.contextmanager
def rewritten_after_erasures(
    path: Path, every_s: float = REWRITE_EVERY_S, look_every_s: float = _LOOK_EVERY_S
) -> Iterator[None]:
    """Look for erasures while the context lasts; `path` is the server's socket."""
    leaving = threading.Event()

    def watch() -> None:
        not_before = 0.0
        while not leaving.wait(look_every_s):
            if time.monotonic() < not_before:
                continue
            try:
                if rewrite_if_erased(path):
                    not_before = time.monotonic() + every_s
            except OSError as error:  # the server ends, or is busy: the next look finds the marker
                _log.warning("aof_rewrite_failed", reason=str(error))

    threading.Thread(target=watch, name="append-only-file", daemon=True).start()
    try:
        yield
    finally:
        leaving.set()


def rewrite_if_erased(path: Path) -> bool:
    """Have the file rewritten if a session was erased since it was; answers whether that has begun. Raises OSError."""
    keys = [_NEEDED, *map(erased_marker, range(BUCKETS))]
    begins = ask(path, "EVAL", _BEGIN, str(len(keys)), *keys)
    if begins == ":0":
        return False
    said = ask(path, "BGREWRITEAOF") if begins == ":1" else begins
    if said.startswith("-"):
        ask(path, "SET", _NEEDED, "not begun")
        raise OSError(said[1:])
    _log.info("aof_rewritten", reason="sessions were erased")
    return True


def ask(path: Path, *words: str) -> str:
    """The first line that a server answers to a command. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_TIMEOUT_S)
        client.connect(str(path))
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
        client.sendall(b"*%d\r\n%b" % (len(words), parts))
        with client.makefile("rb") as answer:
            return answer.readline().decode(errors="replace").strip()
