"""Archives, compressed files and encodings: damaged, nested and cut, they are read in the scratch folder or refused."""

import bz2
import codecs
import gzip
import io
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import zstandard

from segue.errors import InputError
from tests.fuzzing.files import Files
from tests.fuzzing.mutations import damaged
from training.prepare.finding import find_files
from training.prepare.options import LogKind
from training.prepare.sources import first_line, input_splits, opened

_TEXTS: Final[dict[str, bytes]] = {
    "plays.csv": b"user_id,track_id,timestamp\n" + b'ann,"t ""1""",2024-03-01T10:00:00Z\n' * 40,
    "plays.jsonl": b'{"user_id": "ann", "track_id": "t"}\n' * 40,
    "endsong_0.json": b'[{"ts": "2024-03-01T10:03:20Z", "ms_played": 9000}]',
    "StreamingHistory0.json": b'[{"endTime": "2024-03-01 10:03", "msPlayed": 9000, "trackName": "a"}]',
    "log_0_20180715.csv": b"session_id,session_position\n" + b"s,1\n" * 40,
    "userid-timestamp.tsv": b"ann\t2009-05-04T23:08:57Z\t\tArtist\tm\tTitle\n" * 40,
    "listens.parquet": b"PAR1" + bytes(range(256)) + b"PAR1",
    "notes.txt": b"notes\n",
}
_ENCODINGS: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
_NAMED: Final = ("", "", "", "latin-1", "cp1252", "utf-16", "utf-16-be", "utf-7", "shift-jis", "cp037")
_PACKINGS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    *(bytes, bytes, gzip.compress, bz2.compress),
    *(zstandard.compress, lambda content: zstandard.compress(b"") + zstandard.compress(content)),
)  # fmt: skip
_NAMES: Final = ("", "a/", "../../", "/", "..\\", "a\x1b[2J\n/", "é/", "x" * 300 + "/", "__MACOSX/._", "flat/50m/")


def _zipped(files: Mapping[str, bytes], rng: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)))
    return stream.getvalue()


def _tarred(files: Mapping[str, bytes], rng: random.Random) -> bytes:
    stream = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name if form != tarfile.USTAR_FORMAT else name[-90:])
            entry.size, entry.linkname = len(content), "/etc/hostname"
            entry.type = rng.choice((*[tarfile.REGTYPE] * 8, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE))
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class LogFiles(Files):
    """What `find_files` and `opened` read."""

    def prepare(self) -> None:
        """See Files."""
        self._log, self._scratch = self.folder / "log", self.folder / "scratch"

    def case(self, rng: random.Random) -> str:
        """See Target."""
        shutil.rmtree(self._log, ignore_errors=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._log.mkdir()
        self._scratch.mkdir()
        file = self._log / f"log{rng.choice(('.csv', '.json', '.zip', '.tar.gz', '.zst', ''))}"
        file.write_bytes(_content(rng, 0))
        given: list[Path] = [file if rng.random() < 0.7 else self._log]
        kind: LogKind = rng.choice(get_args(LogKind))
        refusal = ""
        try:
            self._read(kind, given, rng.choice(_NAMED), rng)
        except InputError as error:
            refusal = str(error)
        assert refusal.isprintable(), refusal
        left = set(self.folder.iterdir()) - {self._log, self._scratch}
        assert not left, left
        assert list(self._log.iterdir()) == [file]
        assert not [found for found in self._scratch.rglob("*") if found.parent != self._scratch]
        return "refused" if refusal else "read"

    def _read(self, kind: LogKind, sources: list[Path], encoding: str, rng: random.Random) -> None:
        files, notes = find_files(kind, sources, self._scratch)
        assert all(note.isprintable() for note in notes)
        for split in input_splits(files, rng.choice((50, 1000, 1 << 20)), kind, encoding):
            for slice_ in split:
                assert str(slice_.file).isprintable()
                with opened(slice_, kind, self._scratch, encoding) as plain:
                    content = plain.path.read_bytes()
                marked = slice_.file.first_bytes().startswith(codecs.BOM_UTF8)
                if encoding and plain.content != "parquet" and not marked:
                    content.decode()
                if plain.content != "parquet":
                    assert first_line(slice_, kind, encoding) >= 1


def _content(rng: random.Random, depth: int) -> bytes:
    """A file or an archive of files, packed and damaged."""
    if depth < 3 and rng.random() < 0.6:
        names = [rng.choice(_NAMES) + rng.choice(list(_TEXTS)) for _ in range(rng.choice((1, 1, 2, 5)))]
        files = {name: _content(rng, depth + 1) for name in names}
        content = rng.choice((_zipped, _tarred))(files, rng)
    else:
        content = rng.choice(list(_TEXTS.values()))
        if rng.random() < 0.4 and not content.startswith(b"PAR1"):
            content = content.decode().encode(rng.choice(_ENCODINGS))
    if rng.random() < 0.3:
        content = damaged(content, rng)
    content = rng.choice(_PACKINGS)(content)
    return damaged(content, rng) if rng.random() < 0.2 else content


TARGETS: Final[dict[str, Any]] = {"log-files": LogFiles}
