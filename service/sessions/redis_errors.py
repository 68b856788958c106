"""What can go wrong with Redis, as the service's own errors.

Clients are told what it means for them. Where Redis is and what it said goes to the log: `StoreUnavailable.reason`.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from segue.errors import StoreUnavailable

# What says that nobody answered at all.
AWAY: Final = (RedisConnectionError, RedisTimeoutError, OSError)
# What Redis answers when it is alive and yet cannot serve: full, read-only, failing to save, without a quorum. The
# client makes classes of some words and cuts them from the text; within a script's error the word stays.
_UNFIT_CLASSES: Final[dict[type[RedisError], str]] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
}
_UNFIT: Final = (
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


# How Redis 7 says NOPERM of a command within a script.
_SCRIPT_FORBIDDEN: Final = "The user executing the script can't"
# What clients are told for each; where Redis is and what it said goes to the log alone.
_TEXTS: Final = {
    "OOM": "the session store is full: try again later, and have its operator raise its memory limit "
    "(SEGUE_REDIS_MAX_MEMORY_MB of the embedded Redis, maxmemory of any other)",
    "READONLY": "the session store is a read-only replica: name its primary in SEGUE_REDIS_URL",
    "MISCONF": "the session store cannot write to its disk: try again later",
    "NOREPLICAS": "the session store has fewer replicas than it wants for a write: try again later",
    "NOPERM": "the session store does not let Segue's user write: grant what docs/operations.md lists",
}
_REFUSES: Final = "the session store refuses this for now: try again later"


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what says that Redis is away or unfit into StoreUnavailable; other errors are ours and go on."""
    try:
        yield
    except (RedisError, OSError) as error:
        found = as_store_error(error)
        if found is error:
            raise
        raise found from error


def as_store_error(error: Exception) -> Exception:
    """StoreUnavailable for what says that Redis is away or unfit; any other error as it is."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, AWAY):
        return StoreUnavailable("the session store cannot be reached: try again in a moment", reason)
    if isinstance(error, RedisClusterException):
        return StoreUnavailable("the session store cannot be used: try again later", reason)
    word = _unfit(error)
    if word is None:
        return error
    # The client cuts some of the words off, and operators look for them.
    return StoreUnavailable(_TEXTS.get(word, _REFUSES), reason if word in reason else f"{word} {reason}")


def _unfit(error: Exception) -> str | None:
    """Which of these an error says, if any."""
    for kind, word in _UNFIT_CLASSES.items():
        if isinstance(error, kind):
            return word
    if not isinstance(error, RedisError):
        return None
    if _SCRIPT_FORBIDDEN in str(error):
        return "NOPERM"
    return next((word for word in _UNFIT if word in str(error)), None)
