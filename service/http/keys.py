"""API keys and the file that stores their hashes. Independent of HTTP.

A key has 256 random bits, so it cannot be guessed or recovered from its hash by a dictionary attack. Plain SHA-256 is
sufficient. Slow hashes protect passwords and would only add time to every request.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import time
import tomllib
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segue.errors import BadOption

_log = structlog.get_logger()

Scope: TypeAlias = Literal["client", "read", "metrics", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
CHECK_INTERVAL_S: Final = 1.0
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
_PREFIX: Final = "segue_"  # lets secret scanners recognise a published key
_HEADER: Final = """\
# API keys of a Segue service. `segue keys new` and `segue keys revoke` write this file. Running services reload it.
# It contains only hashes. Anyone who can write this file can give themselves access.
"""


class Key(BaseModel):
    """A stored key: its hash and scopes, never the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME_PATTERN, description="Name for operators; shown in responses to the client")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal")
    scopes: Annotated[frozenset[Scope], Field(min_length=1, description="Scopes; `admin` includes all others")]
    created: date | None = Field(default=None, description="Date of creation")

    def allows(self, scope: Scope) -> bool:
        """Whether the key has `scope`, directly or through `admin`."""
        return scope in self.scopes or "admin" in self.scopes


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[Key]

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if twice := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"two keys have the {what} {min(twice)}")
        return self


def new_key(name: str, scopes: Sequence[Scope]) -> tuple[str, Key]:
    """Create a key: its text, to be shown once, and its stored form. Raises BadOption if the name is invalid."""
    text = f"{_PREFIX}{secrets.token_urlsafe(32)}"
    try:
        return text, Key(name=name, sha256=_hash(text), scopes=frozenset(scopes), created=datetime.now(UTC).date())
    except ValidationError as error:
        raise BadOption(f"{name!r} is not a valid key name: use 1 to 64 letters, digits, '.', '_' and '-'") from error


def read_keys(path: Path) -> list[Key]:
    """Read the keys of a file. Raises BadOption if it cannot be read or is invalid."""
    try:
        return _KeysFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).keys
    except OSError as error:
        raise BadOption(
            f"the keys file {path} cannot be read: {error.strerror}; create it with `segue keys new`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadOption(f"the keys file {path} is invalid: {where} {first['msg'].lower()}".rstrip()) from error
    except ValueError as error:  # not TOML or not UTF-8
        raise BadOption(f"the keys file {path} is invalid: {str(error).splitlines()[0]}") from error


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file atomically and keep its permissions. Raises BadOption if it cannot be written."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(_HEADER + ("".join(map(_toml, keys)) or "keys = []\n"))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise BadOption(f"the keys file {path} cannot be written: {error.strerror}; choose another file") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


class Keyring:
    """The current keys of a file. A lookup reloads a changed file, at most once per `CHECK_INTERVAL_S`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds. Raises BadOption if the file cannot be read or is invalid."""
        self._path = path
        self._clock = clock
        self._state = _state(path)
        self._keys = [(bytes.fromhex(key.sha256), key) for key in read_keys(path)]
        self._next_check = clock() + CHECK_INTERVAL_S

    def find(self, text: bytes) -> Key | None:
        """Find the key with this text, in the same time for every text, valid or not."""
        if self._clock() >= self._next_check:
            self._reload()
        digest = hashlib.sha256(text).digest()
        found = None
        for kept, key in self._keys:  # no early exit: constant time
            if hmac.compare_digest(kept, digest):
                found = key
        return found

    def _reload(self) -> None:
        self._next_check = self._clock() + CHECK_INTERVAL_S
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = [(bytes.fromhex(key.sha256), key) for key in read_keys(self._path)]
        except BadOption as error:
            _log.error("keys_reload_failed", reason=str(error), effect="the previous keys stay valid")
        else:
            _log.info("keys_reloaded", file=str(self._path), names=[key.name for _, key in self._keys])


def _state(path: Path) -> tuple[int, ...] | None:
    """A fingerprint that changes when the file is edited or replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _toml(key: Key) -> str:
    """A key as TOML. Names, scopes and hashes contain no characters that need escaping."""
    scopes = ", ".join(f'"{scope}"' for scope in SCOPES if scope in key.scopes)
    created = f"created = {key.created}\n" if key.created is not None else ""
    return f'\n[[keys]]\nname = "{key.name}"\nsha256 = "{key.sha256}"\nscopes = [{scopes}]\n{created}'
