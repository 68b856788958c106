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
_UNFIT_CLASSES: Final = (OutOfMemoryError, ReadOnlyError, NoPermissionError, ClusterDownError, TryAgainError)
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
    if isinstance(error, _UNFIT_CLASSES) or (isinstance(error, RedisError) and any(w in str(error) for w in _UNFIT)):
        return StoreUnavailable("the session store refuses this for now: try again later", reason)
    return error
