"""Privacy of stored sessions: folder permissions, and erasure from the append-only file of the embedded Redis.

Folders with listening data are closed to other users of the machine at every start.

Deleting a key does not remove the commands that wrote it from the append-only file. Redis rewrites the file only when
it has grown. Therefore `erase_session.lua` sets a marker. A background thread polls the markers and triggers a rewrite,
at most once an hour. It retries until a rewrite has succeeded.
"""

import contextlib
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from segue.safe_files import private_folder

BUCKETS: Final = 64  # sessions are spread over them by a hash of their id
MIN_REWRITE_INTERVAL_S: Final = 3600.0
_POLL_INTERVAL_S: Final = 60.0
_TIMEOUT_S: Final = 10.0

# KEYS: the key for a pending rewrite, then the markers. Returns 1 if a rewrite must start. While a rewrite is pending,
# the first key contains the run id of the server that started it: after a restart, the rewrite must be started again.
_START_SCRIPT: Final = """
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
_PENDING_KEY: Final = "segue:rewrite"

_log = structlog.get_logger()


def close_to_others(folder: Path, *, shareable: bool = True, own: Sequence[str] = ("*",)) -> None:
    """Create the folder if needed, and close it to other users. Raises OSError if it cannot be created or read.

    Logs a warning if other users could read an existing folder, or if they still can because another user owns it.
    See segue/safe_files.py for `shareable` and `own`.
    """
    try:
        was_open = private_folder(folder, shareable=shareable, own=own)
    except PermissionError:
        if not folder.is_dir():
            raise
        _log.warning("folder_open_to_others", folder=str(folder), remedy="its owner must run chmod o-rwx on it")
        return
    if was_open:
        remedy = "see File permissions in docs/operate/redis.md"
        _log.warning("folder_closed_to_others", folder=str(folder), remedy=remedy)


def bucket_of(name: str) -> int:
    """Return the bucket, 0 to 63, that a hash assigns to a session or listener.

    Erasures are marked by bucket, so that a few marks stand for any number of sessions.
    """
    return zlib.crc32(name.encode()) % BUCKETS


def erased_marker(bucket: int) -> str:
    """The key that marks a bucket with a session erased since the last rewrite."""
    return f"segue:{{b{bucket}}}:erased"


@contextlib.contextmanager
def rewrite_after_erasures(
    path: Path, min_interval_s: float = MIN_REWRITE_INTERVAL_S, poll_interval_s: float = _POLL_INTERVAL_S
) -> Iterator[None]:
    """Rewrite the file after erasures while the context is open. `path` is the server's socket."""
    leaving = threading.Event()

    def watch() -> None:
        not_before = 0.0
        while not leaving.wait(poll_interval_s):
            if time.monotonic() < not_before:
                continue
            try:
                if rewrite_if_erased(path):
                    not_before = time.monotonic() + min_interval_s
            except OSError as error:  # the server is stopping or busy: the marker stays for the next poll
                _log.warning("aof_rewrite_failed", reason=str(error))

    threading.Thread(target=watch, name="append-only-file", daemon=True).start()
    try:
        yield
    finally:
        leaving.set()


def rewrite_if_erased(path: Path) -> bool:
    """Start a rewrite if a session was erased since the last one. Returns whether it was started. Raises OSError."""
    keys = [_PENDING_KEY, *map(erased_marker, range(BUCKETS))]
    reply = send_command(path, "EVAL", _START_SCRIPT, str(len(keys)), *keys)
    if reply == ":0":
        return False
    if reply == ":1":
        reply = send_command(path, "BGREWRITEAOF")
    if reply.startswith("-"):
        send_command(path, "SET", _PENDING_KEY, "not started")
        raise OSError(reply[1:])
    _log.info("aof_rewritten", reason="sessions were erased")
    return True


def send_command(path: Path, *words: str) -> str:
    """Send a command to a server's socket and return the first line of the reply. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_TIMEOUT_S)
        client.connect(str(path))
        encoded = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
        client.sendall(b"*%d\r\n%b" % (len(words), encoded))
        with client.makefile("rb") as reply:
            return reply.readline().decode(errors="replace").strip()
