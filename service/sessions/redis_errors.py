"""Converts errors of the Redis client to StoreUnavailable, with a message that says what to do.

Messages describe the effect on the client. The address of Redis and its own message are only logged
(`StoreUnavailable.reason`).
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ClusterError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from segue.errors import StoreUnavailable

# Errors without a response from Redis.
UNREACHABLE: Final = (RedisConnectionError, RedisTimeoutError, OSError)
# Errors of redis-py. RedisClusterException is not a RedisError. For AttributeError, see `_UNKNOWN_NODE`.
CLIENT_ERRORS: Final = (RedisError, RedisClusterException, OSError, AttributeError)
# The cluster client fails with these texts if a node redirects it to a new node that stores no complete slot yet.
_UNKNOWN_NODE: Final = tuple(
    f"'NoneType' object has no attribute '{name}'" for name in ("connection_kwargs", "execute_command")
)
# Error codes of a Redis that responds but cannot serve: full, read-only, unable to save, without a quorum. The client
# has classes for some codes and removes them from the message. A script error keeps the code in its message.
_CODE_BY_CLASS: Final[dict[type[RedisError], str]] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
    ClusterError: "TRYAGAIN",  # too many redirections while keys move to another node
    NoScriptError: "NOSCRIPT",  # Redis was restarted again while the scripts were loaded into it
}
_CODES: Final = (
    "OOM",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "NOPERM",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "LOADING",
    "BUSY",
    "TRYAGAIN",
)


# Redis 7 reports NOPERM for a command within a script with this text.
_SCRIPT_FORBIDDEN: Final = "The user executing the script can't"
# The message for clients by error code.
_MESSAGES: Final = {
    "OOM": "the session store is full: try again later, or ask its operator to raise the memory limit "
    "(SEGUE_REDIS_MAX_MEMORY_MB for the embedded Redis, maxmemory for any other)",
    "READONLY": "the session store is a read-only replica: set SEGUE_REDIS_URL to its primary",
    "MISCONF": "the session store cannot write to its disk: try again later",
    "NOREPLICAS": "the session store has too few replicas to accept writes: try again later",
    "NOPERM": "the session store denies Segue's user write access: grant the permissions in docs/operate/redis.md",
}
# The message for clients by a part of the error, if only other settings help. The first match counts.
_NO_DATABASE: Final = (
    "the session store has no database with the number in SEGUE_REDIS_URL: remove the number, or use a lower one"
)
_MISCONFIGURATIONS: Final = {
    "cluster support disabled": "the session store is not a Redis Cluster: set SEGUE_REDIS_CLUSTER=false",
    "DB index is out of range": _NO_DATABASE,
    "SELECT is not allowed in cluster mode": _NO_DATABASE,
    "HELLO": "the session store does not support HELLO: use Redis 6.2 or later, or add ?protocol=2 to SEGUE_REDIS_URL",
    "unknown command": "the session store lacks commands that Segue needs: set SEGUE_REDIS_URL to a Redis server, not "
    "a Sentinel",
}
_WRONG_LOGIN: Final = (
    "the session store rejects Segue's user name or password: correct SEGUE_REDIS_URL or SEGUE_REDIS_PASSWORD_FILE"
)
UNREACHABLE_MESSAGE: Final = "the session store cannot be reached: try again in a moment"
_UNUSABLE: Final = "the session store cannot be used: try again later"
_REJECTED_CONNECTION: Final = (
    "the session store rejects Segue's connection or scripts: correct SEGUE_REDIS_URL, or the settings of the server"
)
REJECTED: Final = "the session store rejects commands at the moment: try again later"


class StoreMisconfigured(StoreUnavailable):
    """The server at SEGUE_REDIS_URL does not match the settings. A retry with the same settings fails again."""


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise StoreUnavailable for errors of an unreachable or unusable Redis. Other errors are bugs and pass through."""
    try:
        yield
    except CLIENT_ERRORS as error:
        converted = as_store_error(error)
        if converted is error:
            raise
        raise converted from error


@contextlib.contextmanager
def connection_errors() -> Iterator[None]:
    """Like store_errors, but raise StoreMisconfigured if Redis rejects the connection or a script.

    Use it where replies to other commands are returned, not raised.
    """
    with store_errors():
        try:
            yield
        except CLIENT_ERRORS as error:
            if as_store_error(error) is not error or not isinstance(error, ResponseError):
                raise
            raise StoreMisconfigured(_REJECTED_CONNECTION, _reason(error)) from error


def as_store_error(error: Exception) -> Exception:
    """Convert an error of an unreachable or unusable Redis to StoreUnavailable. Returns other errors unchanged."""
    root = _root(error)
    reason = _reason(root)
    if is_unreachable(root):
        return StoreUnavailable(UNREACHABLE_MESSAGE, reason)
    if isinstance(root, AttributeError):
        return StoreUnavailable(REJECTED, reason) if any(text in reason for text in _UNKNOWN_NODE) else error
    misconfiguration = _misconfiguration(root)
    if misconfiguration is not None:
        return StoreMisconfigured(misconfiguration, reason)
    if isinstance(root, RedisClusterException):
        return StoreUnavailable(UNREACHABLE_MESSAGE if "cannot be connected" in reason else _UNUSABLE, reason)
    code = _error_code(root)
    if code is None:
        return error if root is error else StoreUnavailable(_UNUSABLE, reason)
    # Restore the code if the client removed it: operators search the log for it.
    return StoreUnavailable(_MESSAGES.get(code, REJECTED), reason if code in reason else f"{code} {reason}")


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error of the client means that there was no response from Redis."""
    root = _root(error) if isinstance(error, Exception) else None
    return isinstance(root, UNREACHABLE) and not isinstance(root, AuthenticationError)


def _reason(error: Exception) -> str:
    # Redis repeats the arguments of an unknown command: those of HELLO contain the password.
    text = str(error).partition(", with args beginning with")[0]
    return (text.splitlines() or [type(error).__name__])[0][:200]


def _root(error: Exception) -> Exception:
    """The response from Redis that the client wrapped into an error of a connection or a cluster, or the error."""
    if isinstance(error, (RedisConnectionError, RedisClusterException)):
        cause = error.__cause__
        for wrapped in (cause, cause.__context__ if isinstance(cause, RedisClusterException) else None):
            if isinstance(wrapped, (ResponseError, InvalidResponse)):
                return wrapped
    return error


def _misconfiguration(error: Exception) -> str | None:
    """Return the message for a server that does not match the settings, or None."""
    if isinstance(error, AuthenticationError):
        return _WRONG_LOGIN
    if isinstance(error, InvalidResponse):
        return "the session store does not speak the Redis protocol: set SEGUE_REDIS_URL to a Redis server"
    if isinstance(error, AskError):  # and its subclass MovedError; the cluster client follows both
        return "the session store is a node of a Redis Cluster: set SEGUE_REDIS_CLUSTER=true"
    return next((message for part, message in _MISCONFIGURATIONS.items() if part in str(error)), None)


def _error_code(error: Exception) -> str | None:
    """The code of an error of an unusable Redis; None for other errors."""
    for error_class, code in _CODE_BY_CLASS.items():
        if isinstance(error, error_class):
            return code
    if not isinstance(error, RedisError):
        return None
    if _SCRIPT_FORBIDDEN in str(error):
        return "NOPERM"
    return next((code for code in _CODES if code in str(error)), None)
