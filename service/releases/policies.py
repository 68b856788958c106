"""The policies of a service: the TOML files of a folder, read again within a second of a change, on every worker."""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from segue.errors import BadPolicy, UnknownPolicy
from segue.policy import NAME_PATTERN, Policy, read_policy
from service.threads import BlockingCalls

POLL_S: Final = 0.25
MAX_POLICIES: Final = 1_000

_TIMEOUT_S: Final = 5.0  # the folder may be on a network
_MAX_NAMED: Final = 20
_log = structlog.get_logger()

_Version = tuple[int, int, int, int]


class Policies:
    """The policies of a folder by name. Use an instance in one event loop only."""

    def __init__(self, folder: Path | None) -> None:
        """Read all policies. Raises BadPolicy for the first damaged one: a service must not start then."""
        self._folder = folder
        self._calls = BlockingCalls("the policies", _TIMEOUT_S)
        self._versions: dict[str, _Version] = {}  # of the files that were read, also of damaged ones
        self._failed: str | None = None  # the last error of the folder, which is logged once
        self.by_name: Mapping[str, Policy] = {}
        for problem in self._read():
            raise BadPolicy(problem)

    def named(self, name: str) -> Policy:
        """Return a policy. Raises UnknownPolicy with the known names."""
        found = self.by_name.get(name)
        if found is None:
            names = sorted(self.by_name)
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            known = ", ".join(names[:_MAX_NAMED]) + more if names else "none: set SEGUE_POLICIES_DIR"
            raise UnknownPolicy(f"{name[:100]!r} is not a policy of this service. It has {known}")
        return found

    async def watch(self, leaving: asyncio.Event) -> None:
        """Follow changes of the files until `leaving` is set. Of a damaged file, the last good version stays."""
        while self._folder is not None and not leaving.is_set():
            try:
                for problem in await self._calls(self._read):
                    _log.error("policy_rejected", reason=problem)
                self._failed = None
            except (BadPolicy, TimeoutError) as error:
                if str(error) != self._failed:
                    _log.error("policies_unreadable", reason=str(error))
                self._failed = str(error)
            except Exception:  # noqa: BLE001 (the task must not end)
                _log.exception("policies_unreadable")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), POLL_S)

    def _read(self) -> list[str]:
        """Read the files that have changed. Return why some of them are rejected. Raises BadPolicy for the folder."""
        if self._folder is None:
            return []
        seen = self._seen(self._folder)
        found = {name: policy for name, policy in self.by_name.items() if name in seen}
        problems: list[str] = []
        for name, version in seen.items():
            if version == self._versions.get(name):
                continue
            try:
                found[name] = _checked(self._folder / f"{name}.toml")
            except BadPolicy as error:
                problems.append(str(error))
        if seen != self._versions:
            self._versions, self.by_name = seen, dict(sorted(found.items()))
        return problems

    def _seen(self, folder: Path) -> dict[str, _Version]:
        """Return the version of each policy file. Raises BadPolicy if the folder cannot be read."""
        seen: dict[str, _Version] = {}
        try:
            for file in folder.iterdir():
                if file.suffix != ".toml" or file.name.startswith("."):
                    continue
                with contextlib.suppress(FileNotFoundError):  # it was removed or replaced just now
                    facts = file.stat()
                    seen[file.stem] = (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)
        except OSError as error:
            raise BadPolicy(f"{folder} cannot be read ({error.strerror}): SEGUE_POLICIES_DIR names a folder") from error
        if len(seen) > MAX_POLICIES:
            raise BadPolicy(f"{folder} has {len(seen):,} policies, expected at most {MAX_POLICIES:,}")
        return seen


def _checked(file: Path) -> Policy:
    if not re.fullmatch(NAME_PATTERN, file.stem):
        raise BadPolicy(
            f"{str(file)!a} cannot name a policy: use letters, digits and any of _ . - in the name, at most 64"
        )
    return read_policy(file)
