"""API keys: the file that lists them, and what is kept of each. Knows nothing of HTTP.

A key is 256 random bits. Nobody can guess one, nor find one from its hash by trying words, so plain SHA-256 is the
right hash: those that are slow on purpose protect passwords, and would only cost every request.
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
LOOK_EVERY_S: Final = 1.0
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
_PREFIX: Final = "segue_"  # so that those who scan for published secrets know one when they see it
_HEADER: Final = """\
# API keys of a Segue service: `segue keys new` and `segue keys revoke` write this file, services read it as it changes.
# It holds hashes only. Whoever can write here can let themselves in.
"""


class Key(BaseModel):
    """What is kept of a key: never the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME_PATTERN, description="What operators call it; shown in answers to its holder")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal")
    scopes: Annotated[frozenset[Scope], Field(min_length=1, description="What it may do; `admin` may do everything")]
    created: date | None = Field(default=None, description="The day it was made")

    def allows(self, scope: Scope) -> bool:
        """Whether the key may do what needs `scope`."""
        return scope in self.scopes or "admin" in self.scopes


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[Key]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if twice := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"two keys have the {what} {min(twice)}")
        return self


def new_key(name: str, scopes: Sequence[Scope]) -> tuple[str, Key]:
    """A new key, to be shown once, and what is kept of it. Raises BadOption for a name that is none."""
    text = f"{_PREFIX}{secrets.token_urlsafe(32)}"
    try:
        return text, Key(name=name, sha256=_hash(text), scopes=frozenset(scopes), created=datetime.now(UTC).date())
    except ValidationError as error:
        raise BadOption(f"{name!r} is not a name for a key: use 1 to 64 letters, digits, '.', '_' and '-'") from error


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises BadOption if it cannot be read or is damaged."""
    try:
        return _KeysFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).keys
    except OSError as error:
        raise BadOption(
            f"the keys file {path} cannot be read: {error.strerror}; make it with `segue keys new`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadOption(f"the keys file {path} is damaged: {where} {first['msg'].lower()}".rstrip()) from error
    except ValueError as error:  # no TOML, no UTF-8
        raise BadOption(f"the keys file {path} is damaged: {str(error).splitlines()[0]}") from error


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file, whole or not at all; who may read it stays as it was. Raises BadOption if it cannot be."""
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
        raise BadOption(f"the keys file {path} cannot be written: {error.strerror}; choose another one") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


class Keyring:
    """The keys of a file as it is now: looked at again when a key is asked for, at most once in `LOOK_EVERY_S`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` answers seconds. Raises BadOption if the file cannot be read or is damaged."""
        self._path = path
        self._clock = clock
        self._state = _state(path)
        self._keys = [(bytes.fromhex(key.sha256), key) for key in read_keys(path)]
        self._look_at = clock() + LOOK_EVERY_S

    def find(self, text: bytes) -> Key | None:
        """The key whose text this is. Takes the same time for a wrong one, a right one, and whichever it is."""
        if self._clock() >= self._look_at:
            self._look()
        digest = hashlib.sha256(text).digest()
        found = None
        for kept, key in self._keys:  # to the end, whatever is found
            if hmac.compare_digest(kept, digest):
                found = key
        return found

    def _look(self) -> None:
        self._look_at = self._clock() + LOOK_EVERY_S
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = [(bytes.fromhex(key.sha256), key) for key in read_keys(self._path)]
        except BadOption as error:
            _log.error("keys_reload_failed", reason=str(error), effect="the keys known before stay in force")
        else:
            _log.info("keys_reloaded", file=str(self._path), names=[key.name for _, key in self._keys])


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does, by editing or by renaming."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _toml(key: Key) -> str:
    """A key as TOML. Nothing needs escapes: names, scopes and hashes are plain letters."""
    scopes = ", ".join(f'"{scope}"' for scope in SCOPES if scope in key.scopes)
    created = f"created = {key.created}\n" if key.created is not None else ""
    return f'\n[[keys]]\nname = "{key.name}"\nsha256 = "{key.sha256}"\nscopes = [{scopes}]\n{created}'
