"""Find the files of a log, in folders, archives and standard input.

What a file is, and whether it is a log, is told from its bytes (see training.prepare.content and
training.prepare.layouts). The logs in an archive are copied to a scratch folder, in one pass through the archive.
"""

import contextlib
import functools
import glob
import itertools
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Final, NamedTuple

from segue.errors import BadLog
from training.prepare.archives import Head, Member, Readable, copy, members
from training.prepare.content import archive_of, printable
from training.prepare.layouts import ARCHIVES, Role, expected_files, is_beside, is_hidden, role_of, yambda_size
from training.prepare.options import LogKind
from training.prepare.sources import LogFile

STANDARD_INPUT: Final = "-"
_NAMES_SHOWN: Final = 3
_DEEPEST: Final = 2  # archives in archives are read, archives in those are not


class NoLog(BadLog):
    """A folder or an archive in which no file is a log of the kind."""


class FoundFiles(NamedTuple):
    """The files of a log, and what was found beside them."""

    files: list[LogFile]
    notes: list[str]  # a line for each group of files that are not read, and why


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`, which need not exist yet, and delete the folder at the end."""
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(dir=above, prefix=".log-") as folder:
        yield Path(folder)


def find_files(kind: LogKind, sources: Sequence[Path | str], scratch: Path) -> FoundFiles:
    """Return the distinct files in `sources`: files, folders, globs, archives, or `-` for standard input.

    The files of a folder, glob or archive are sorted by name. In a folder or archive, hidden files and files that are
    no logs of this `kind` are not read. Standard input and the logs in archives are copied to the folder `scratch`.

    Raises:
        BadLog: A source does not exist, contains no log or cannot be read, or a file is empty.

    """
    if not sources:
        raise BadLog("no log is named: name at least one file or folder")
    finder = _Finder(kind, scratch)
    for source in sources:
        finder.add(source)
    return finder.found()


class _Finder:
    """Collects files and notes."""

    def __init__(self, kind: LogKind, scratch: Path) -> None:
        self._kind: LogKind = kind
        self._scratch = scratch
        self._numbers = itertools.count()  # of the copies in the scratch folder
        self._files: list[LogFile] = []
        self._seen: set[Path] = set()
        self._not_read: dict[tuple[str, str], list[str]] = {}  # names, by where they are and what they hold
        # Files of archives that are read if there is no other log: the archive, and what they hold.
        self._second: dict[LogFile, tuple[Path, str]] = {}

    def found(self) -> FoundFiles:
        """Return the result. Raises BadLog if there is no file, or if the files are not one log."""
        if not self._files:
            (place, holds), names = next(iter(self._not_read.items()))
            remedy = "" if ":" in holds else f": expected {expected_files(self._kind)}"
            raise BadLog(f"{place}/{names[0]} holds {holds}{remedy}")
        if self._kind == "yambda":
            sizes = {size for file in self._files if (size := yambda_size(PurePosixPath(str(file))))}
            if len(sizes) > 1:
                raise BadLog(
                    f"{' and '.join(sorted(sizes))} are samples of one data set, of different sizes: name one of them"
                )
        notes = []
        for (place, holds), names in self._not_read.items():
            more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
            notes.append(f"{place}: {', '.join(names[:_NAMES_SHOWN])}{more}: {holds}")
        return FoundFiles(self._files, notes)

    def add(self, source: Path | str) -> None:
        """Add the files of a source."""
        path = Path(source)
        if str(source) == STANDARD_INPUT:
            if path not in self._seen:
                self._seen.add(path)
                self._add_file(self._copied(sys.stdin.buffer, "standard input"))
        elif path.is_dir():
            self._add_folder(path)
        elif path.is_file():
            self._add_file(LogFile(path))
        elif path.exists() and stat.S_ISFIFO(path.stat().st_mode):  # such as <(zcat log.Z) of a shell
            with path.open("rb") as stream:
                self._add_file(self._copied(stream, str(path)))
        elif not glob.has_magic(str(source)):
            raise BadLog(f"{printable(str(path))} does not exist: name a file, a folder or a glob")
        else:
            # Use glob.glob, because Path.glob does not accept absolute patterns.
            names = sorted(Path(name) for name in glob.glob(str(source), recursive=True))  # noqa: PTH207
            files = [name for name in names if name.is_file()]
            if not files:
                raise BadLog(f"no file matches {printable(str(source))}: name a file, a folder or a glob")
            for file in files:
                self._add_file(LogFile(file))

    def _add_file(self, file: LogFile) -> None:
        """Add a file that the user named: it is a log, unless it is known to be something else."""
        if is_beside(file.path.name):
            self._leave_out(printable(str(file.path.parent)), file.name, f"no log of kind {self._kind}, by its name")
            return
        if not self._is_new(file):
            return
        head = file.head()
        if archive_of(head.content) is not None:
            self._add_archive(file, head, depth=1)
            return
        role = role_of(self._kind, PurePath(file.path.name), lambda: head.content)
        if role.use == "none" and role.holds:
            self._leave_out(printable(str(file.path.parent)), file.name, role.holds)
        else:
            self._files.append(file)

    def _add_folder(self, folder: Path) -> None:
        names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
        roles: dict[PurePath, Role] = {
            name: role_of(self._kind, name, LogFile(folder / name).first_bytes) for name in names
        }
        used = _used(roles)
        if not used:
            used = [name for name in names if ARCHIVES.search(name.name) and not is_hidden(name, self._kind)]
        self._leave_out_others(printable(str(folder)), roles, used)
        self._add_several([LogFile(folder / name) for name in used], printable(str(folder)), depth=0)

    def _add_archive(self, file: LogFile, head: Head, *, depth: int) -> None:
        if head.compression is not None and archive_of(head.content) == "zip":
            raise BadLog(f"{file} is a zip archive that is compressed once more: uncompress it first")
        roles, used = self._logs_in(file)
        second = [] if used else self._second_choice(roles, nested=depth == _DEEPEST)
        for member in members(file.path, str(file)) if second else ():
            name = _path_of(member)
            if name in second:
                used[name] = self._copied(member.open(), f"{file}: {name}")
                if roles[name].use == "if no other":
                    self._second[used[name]] = file.path.resolve(), roles[name].holds
        self._leave_out_others(str(file), roles, list(used))
        self._add_several([log for _, log in sorted(used.items())], str(file), depth=depth)

    def _add_several(self, files: Sequence[LogFile], place: str, *, depth: int) -> None:
        """Add logs of a folder or archive, or archives of which at least one has a log. `depth` is that of archives."""
        before = len(self._files)
        without: list[NoLog] = []
        for file in files:
            if not self._is_new(file):
                continue
            head = file.head()
            if archive_of(head.content) is None:
                self._files.append(file)
            elif depth == _DEEPEST:
                raise BadLog(f"{file} is an archive in an archive in an archive: unpack it first")
            else:
                try:
                    self._add_archive(file, head, depth=depth + 1)
                except NoLog as error:  # such as the other archives of a download
                    without.append(error)
                    self._leave_out(place, _name_in(place, file), f"no log of kind {self._kind}")
        if without and len(without) == len(files):
            raise without[0]
        added = self._files[before:]
        if not all(file in self._second for file in added):
            self._files[before:] = [file for file in added if file not in self._second]
            for file in added:
                if file in self._second:
                    archive, holds = self._second[file]
                    self._seen.discard(archive)  # the user may name it as well
                    self._leave_out(place, _name_in(place, file), holds)

    def _logs_in(self, file: LogFile) -> tuple[dict[PurePath, Role], dict[PurePath, LogFile]]:
        """The roles of the members of an archive, and copies of those that are surely logs."""
        roles: dict[PurePath, Role] = {}
        logs: dict[PurePath, LogFile] = {}
        for member in members(file.path, str(file)):
            name = _path_of(member)
            copied = functools.cache(lambda one=member, name=name: self._copied(one.open(), f"{file}: {name}"))
            roles[name] = role_of(self._kind, name, lambda copied=copied: copied().first_bytes())  # type: ignore[misc]
            if roles[name].use == "log":
                logs[name] = copied()
            elif copied.cache_info().currsize:
                copied().path.unlink()
        return roles, logs

    def _second_choice(self, roles: dict[PurePath, Role], *, nested: bool) -> list[PurePath]:
        """The members to read from an archive without a file that is surely a log."""
        visible = [name for name in roles if not is_hidden(name, self._kind)]
        archives = [name for name in visible if ARCHIVES.search(name.name)]
        alone = [name for name in visible if len(visible) == 1 and not roles[name].holds]
        return _used(roles) or archives or ([] if nested else alone)

    def _is_new(self, file: LogFile) -> bool:
        resolved = file.path.resolve()
        if resolved in self._seen:
            return False
        self._seen.add(resolved)
        if file.size() == 0:
            raise BadLog(f"{file} is empty: expected a log of kind {self._kind}")
        return True

    def _copied(self, stream: Readable, shown: str) -> LogFile:
        file = LogFile(self._scratch / f"{next(self._numbers)}", shown)
        with file.path.open("wb") as out:
            copy(stream, out.write, self._scratch, str(file))
        return file

    def _leave_out_others(self, place: str, roles: dict[PurePath, Role], used: Sequence[PurePath]) -> None:
        """Note the files that are not used. Raises BadLog if none is used."""
        others = [name for name in roles if name not in used and not is_hidden(name, self._kind)]
        if not used:
            known = [f"; {printable(str(name))} holds {roles[name].holds}" for name in others if roles[name].holds]
            expected = f"expected files {expected_files(self._kind)}{''.join(known[:1])}"
            raise NoLog(f"{place} holds no log of kind {self._kind}: {expected}")
        for name in others:
            self._leave_out(place, printable(str(name)), roles[name].holds or f"no log of kind {self._kind}")

    def _leave_out(self, place: str, name: str, holds: str) -> None:
        self._not_read.setdefault((place, holds), []).append(name)


def _used(roles: dict[PurePath, Role]) -> list[PurePath]:
    """The logs among files, or the files to read if there is no log."""
    return [name for name, role in roles.items() if role.use == "log"] or [
        name for name, role in roles.items() if role.use == "if no other"
    ]


def _name_in(place: str, file: LogFile) -> str:
    return str(file).removeprefix(place).lstrip("/: ")


def _path_of(member: Member) -> PurePosixPath:
    return PurePosixPath(member.name.replace("\\", "/"))
