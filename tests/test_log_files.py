"""Files of a log are known by their bytes, wherever they are: in folders, archives, encodings and standard input."""

import bz2
import codecs
import gzip
import io
import json
import os
import random
import stat
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import BadLog, BadOption
from training.prepare import archives
from training.prepare.content import HEAD_BYTES, PlainFile, content_of, why_unreadable
from training.prepare.disk_engine import disk_engine
from training.prepare.finding import FoundFiles, find_files
from training.prepare.options import LogKind
from training.prepare.pipeline import prepare, prepare_options
from training.prepare.ray_engine import ray_engine
from training.prepare.sources import FileSlice, LogFile, first_line, input_splits, opened, rows_of_slice

CSV: Final = "user_id,track_id,timestamp\n" + "".join(
    f"ann,t{number % 5},2024-03-01T10:{number:02}:00Z\n" for number in range(12)
)
LFM1K: Final = "".join(
    f"ann\t2009-05-04T10:{59 - number:02}:00Z\t\tThe Ferrymen\t\tTitle {number}\n" for number in range(12)
)
STREAMS: Final = (
    b'[{"ts": "2024-03-01T10:03:20Z", "ms_played": 200000, "spotify_track_uri": "spotify:track:A", "skipped": false}]'
)
ACCOUNT: Final = b'[{"endTime": "2024-03-01 10:03", "artistName": "A", "trackName": "B", "msPlayed": 200000}]'
PODCASTS: Final = b'[{"endTime": "2024-03-01 10:03", "podcastName": "A", "episodeName": "B", "msPlayed": 200000}]'
LISTENS: Final = b'{"listened_at": 1709287200, "track_metadata": {"track_name": "A", "artist_name": "B"}}\n' * 2
APPLE: Final = b"Artist Name,Song Name,Event Type,Play Duration Milliseconds\nA,B,PLAY_END,1000\n"

PACKED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
}


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


ARCHIVED: Final[dict[str, Callable[[Mapping[str, bytes]], bytes]]] = {
    "logs.zip": zipped,
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "bzip2.zip": lambda files: zipped(files, zipfile.ZIP_BZIP2),
    "logs.tar": tarred,
    "logs.tar.gz": lambda files: gzip.compress(tarred(files)),
    "logs.tar.bz2": lambda files: bz2.compress(tarred(files)),
    "logs.tar.zst": lambda files: zstandard.compress(tarred(files)),
    "logs.csv": lambda files: gzip.compress(tarred(files)),  # the name does not matter
}


class Folder:
    """A folder of a test, and a scratch folder."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "log"
        self.scratch = tmp_path / "scratch"
        self.path.mkdir()
        self.scratch.mkdir()

    def write(self, name: str, content: bytes) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def find(self, kind: LogKind, *sources: Path | str) -> FoundFiles:
        return find_files(kind, sources, self.scratch)

    def read(self, kind: LogKind, *sources: Path | str, encoding: str = "") -> dict[str, str]:
        """The texts of a log by the names of its files, without the folder."""
        found = {}
        for file in self.find(kind, *sources).files:
            with opened(FileSlice(file), kind, self.scratch, encoding) as plain:
                found[str(file).removeprefix(f"{self.path}/")] = plain.path.read_bytes().decode()
        return found

    def opened(self, content: bytes, name: str = "log.csv", *, encoding: str = "") -> tuple[PlainFile, bytes]:
        file = LogFile(self.write(name, content))
        with opened(FileSlice(file), "events", self.scratch, encoding) as plain:
            return plain, plain.path.read_bytes()

    def refused(self, kind: LogKind, *sources: Path | str, encoding: str = "") -> str:
        """The one line that a log is refused with."""
        with pytest.raises(BadLog) as caught:
            self.read(kind, *sources, encoding=encoding)
        line = str(caught.value)
        assert line.isprintable(), line
        return line.replace(f"{self.path}/", "")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def parquet() -> bytes:
    stream = io.BytesIO()
    pl.DataFrame({"user_id": ["ann"] * 9, "track_id": list("abcdefghi"), "timestamp": range(9)}).write_parquet(stream)
    return stream.getvalue()


class TestContent:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"user_id,track_id\n", "text"),
            (b"[user_id],[track_id]\n", "text"),  # a header, not an array
            (b"{user_id},x\n", "text"),
            (b"", "text"),
            (b'[{"a": 1}]', "json"),
            (b'\n [\n\t{"a": 1}]', "json"),
            (b"[]", "json"),
            (b"[[1, 2]]", "json"),
            (b'{"a": 1}\n{"a": 2}\n', "json_lines"),
            (b'{"a": 1}\r\n\r\n{"a": 2}\r\n', "json_lines"),
            (b'{"a": 1\n{"a": 2}\n', "json_lines"),  # the first line is damaged
            (b'{"scrobbles": [\n {"a": 1},\n {"a": 2}]}', "json"),
            (b'{\n"scrobbles": [\n{"a": 1},\n{"a": 2}]}', "json"),
            (b'{"a": 1}', "json"),
            (b"PAR1\x15\x00", "parquet"),
        ],
    )
    def test_the_first_bytes_tell_what_a_file_is(self, content: bytes, expected: str) -> None:
        assert content_of(content) == expected

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "export it as CSV first"),
            (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive: unpack it first"),
            (b"Rar!\x1a\x07\x01\x00", "is a RAR archive: unpack it first"),
            (b"\xfd7zXZ\x00\x00", "is compressed with xz"),
            (b"SQLite format 3\x00", "is an SQLite database"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "run `git lfs pull`"),
            (b"\n<!DOCTYPE html>\n<html>", "is a web page: fetch the file again"),
            (b'<?xml version="1.0"?><plist>', "is XML"),
            (b'event.session\t0\t1709287200\t{"numtracks": 6}\t{"subjects": []}\n', "is in the idomaar format"),
            (b'{"info": {"slice": "0-1"}, "playlists": [{"name": "x"}]}', "neither listening times nor skips"),
            (b'{\n "playlists": [', "neither listening times nor skips"),
            (random.Random(0).randbytes(3000), "holds binary data: expected CSV, TSV, JSON or Parquet"),
            (CSV.encode("utf-16-le"), "--encoding utf-16-le"),
            (CSV.encode("utf-16-be"), "--encoding utf-16-be"),
        ],
    )
    def test_what_no_kind_can_read_is_refused_with_advice(self, folder: Folder, content: bytes, expected: str) -> None:
        line = folder.refused("events", folder.write("log.csv", content))
        assert line.startswith("log.csv ")
        assert expected in line

    @pytest.mark.parametrize(
        "content",
        [
            CSV.encode(),
            CSV.replace("t1", "\x1b[31mt1\x00").encode(),  # a control character is no binary data
            "Zoë,Café\n".encode("latin-1"),
            "曲,歌手\n".encode("shift-jis"),
            LFM1K.encode(),
            b"",
        ],
    )
    def test_text_with_a_few_odd_bytes_is_text(self, content: bytes) -> None:
        assert why_unreadable(content) is None

    def test_names_do_not_matter(self, folder: Folder) -> None:
        assert folder.opened(CSV.encode(), "log.parquet")[0].content == "text"
        assert folder.opened(parquet(), "log.csv")[0].content == "parquet"
        assert folder.opened(gzip.compress(parquet()), "log.csv")[1] == parquet()
        assert folder.opened(CSV.encode(), "log.csv.gz")[1] == CSV.encode()  # a browser has uncompressed it

    def test_control_characters_of_names_are_escaped(self, folder: Folder) -> None:
        file = folder.write("lo\x1b[2Jg\n.csv", b"")
        assert folder.refused("events", file) == r"lo\x1b[2Jg\n.csv is empty: expected a log of kind events"
        archive = folder.write("logs.zip", zipped({"a\x07b.csv": b"%PDF-"}))
        assert folder.refused("events", archive).startswith(r"logs.zip: a\x07b.csv is a PDF document")


class TestCompression:
    @pytest.mark.parametrize("packing", PACKED)
    def test_compressed_content_is_read_whatever_its_name(self, folder: Folder, packing: str) -> None:
        pack = PACKED[packing]
        assert folder.opened(pack(CSV.encode()))[1] == CSV.encode()
        assert folder.opened(pack(CSV[:50].encode()) + pack(CSV[50:].encode()))[1] == CSV.encode()
        assert folder.opened(gzip.compress(pack(CSV.encode())))[1] == CSV.encode()
        assert not list(folder.scratch.iterdir())

    @pytest.mark.parametrize("packing", PACKED)
    def test_damaged_data_are_refused(self, folder: Folder, packing: str) -> None:
        packed = PACKED[packing](random.Random(0).randbytes(3000).hex().encode())
        for damaged in (packed[:-9], packed[:90], packed[:12] + b"junk" * 99):
            line = folder.refused("events", folder.write("log.csv.gz", damaged))
            assert line.startswith("log.csv.gz cannot be uncompressed: ")
            assert not list(folder.scratch.iterdir())

    @pytest.mark.parametrize("packing", PACKED)
    def test_nothing_compressed_is_refused(self, folder: Folder, packing: str) -> None:
        line = folder.refused("events", folder.write("log.csv", PACKED[packing](b"")))
        assert line == "log.csv holds nothing once uncompressed: expected a log"

    def test_frames_of_zstd_may_be_skipped_or_empty(self, folder: Folder) -> None:
        skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
        content = skipped + zstandard.compress(b"") + zstandard.compress(CSV.encode())
        assert folder.opened(content)[1] == CSV.encode()

    def test_content_compressed_three_times_is_refused(self, folder: Folder) -> None:
        packed = gzip.compress(gzip.compress(gzip.compress(CSV.encode())))
        assert "holds binary data" in folder.refused("events", folder.write("log.csv", packed))

    @pytest.mark.parametrize("packing", PACKED)
    def test_a_copy_never_fills_the_disk(self, folder: Folder, monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
        file = folder.write("bomb.csv", PACKED[packing](b"a" * (100 << 20)))
        assert file.stat().st_size < 150_000
        free = archives.shutil.disk_usage(folder.scratch)._replace(free=340 << 20)  # type: ignore[attr-defined]
        written = []

        def disk_usage(path: Path) -> Any:
            written.append(sum(copy.stat().st_size for copy in folder.scratch.rglob("*") if copy.is_file()))
            return free._replace(free=free.free - written[-1])

        monkeypatch.setattr("shutil.disk_usage", disk_usage)
        line = folder.refused("events", file)
        assert line.startswith("bomb.csv is too large to be unpacked in ")
        assert max(written) <= 80 << 20


class TestArchives:
    FILES: Final = {"b/plays.csv": CSV.encode(), "a.csv": CSV[:83].encode(), "b/README.md": b"read me"}

    @pytest.mark.parametrize("name", ARCHIVED)
    def test_the_logs_in_an_archive_are_read_in_the_order_of_their_names(self, folder: Folder, name: str) -> None:
        archive = folder.write(name, ARCHIVED[name](self.FILES))
        assert folder.read("events", archive) == {f"{name}: a.csv": CSV[:83], f"{name}: b/plays.csv": CSV}
        assert folder.find("events", archive).notes == [f"{archive}: b/README.md: no log of kind events"]

    def test_an_archive_gives_the_dataset_of_its_folder(self, folder: Folder, tmp_path: Path) -> None:
        expected = None
        for name, pack in {"folder": None, **ARCHIVED}.items():
            for file, content in self.FILES.items() if pack is None else ():
                folder.write(f"{name}/{file}", content)
            source = folder.path / name if pack is None else folder.write(name, pack(self.FILES))
            for engine in (None, disk_engine(100)):
                options = prepare_options(min_session_plays=1)
                report = prepare("events", [source], tmp_path / "out", options, overwrite=True, engine=engine)
                expected = expected or report.dataset.facts.fingerprint
                assert report.dataset.facts.fingerprint == expected, name
        assert not list(tmp_path.glob(".log-*"))

    def test_compressed_members_are_read(self, folder: Folder) -> None:
        files = {"a.csv.gz": gzip.compress(CSV.encode()), "b.csv": zstandard.compress(CSV.encode())}
        found = folder.read("events", folder.write("logs.tgz", gzip.compress(tarred(files))))
        assert found == {"logs.tgz: a.csv.gz": CSV, "logs.tgz: b.csv": CSV}

    def test_parquet_in_an_archive_is_read(self, folder: Folder) -> None:
        (file,) = folder.find("events", folder.write("logs.zip", zipped({"a.parquet": parquet()}))).files
        with opened(FileSlice(file), "events", folder.scratch) as plain:
            assert plain.content == "parquet"
            assert len(pl.read_parquet(plain.path)) == 9

    @pytest.mark.parametrize("name", ["logs.zip", "logs.tar.gz"])
    def test_a_single_file_of_any_name_is_the_log(self, folder: Folder, name: str) -> None:
        archive = folder.write(name, ARCHIVED[name]({"export": CSV.encode(), "__MACOSX/._export": b"\x00"}))
        assert folder.read("events", archive) == {f"{name}: export": CSV}
        archive = folder.write(name, ARCHIVED[name]({"export": CSV.encode(), "more": b"x"}))
        line = folder.refused("events", archive)
        assert line.startswith(f"{name} holds no log of kind events: expected files *.csv")

    @pytest.mark.parametrize("name", ["../../evil.csv", "/tmp/evil.csv", "..\\evil.csv", "a/../../evil.csv"])
    @pytest.mark.parametrize("archive", ["logs.zip", "logs.tar"])
    def test_nothing_is_written_outside_the_scratch_folder(self, folder: Folder, archive: str, name: str) -> None:
        path = folder.write(archive, ARCHIVED[archive]({name: CSV.encode(), "a.csv": CSV.encode()}))
        folder.find("events", path)
        inside = {file.parent for file in folder.path.parent.rglob("*") if file.is_file()}
        assert inside == {folder.path, folder.scratch}

    def test_links_and_devices_are_not_followed(self, folder: Folder) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                entry = tarfile.TarInfo(f"{kind!r}.csv")
                entry.type, entry.linkname = kind, "/etc/passwd"
                archive.addfile(entry)
            entry = tarfile.TarInfo("plays.csv")
            entry.size = len(CSV)
            archive.addfile(entry, io.BytesIO(CSV.encode()))
        assert folder.read("events", folder.write("logs.tar", stream.getvalue())) == {"logs.tar: plays.csv": CSV}

    def test_an_archive_in_an_archive_is_read_and_no_deeper(self, folder: Folder) -> None:
        inner = zipped({"Apple Music Activity/Apple Music Play Activity.csv": APPLE, "other.csv": b"a,b\n"})
        outer = zipped({"Apple_Media_Services.zip": inner, "about.txt": b"about"})
        found = folder.read("apple-music", folder.write("takeout.zip", outer))
        name = "takeout.zip: Apple_Media_Services.zip: Apple Music Activity/Apple Music Play Activity.csv"
        assert found == {name: APPLE.decode()}
        deeper = zipped({"outer.zip": zipped({"middle.zip": inner})})
        assert folder.refused("apple-music", folder.write("takeout.zip", deeper)).endswith("unpack it first")

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}, "is an Office document (.xlsx)"),
            ({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}, "is an Office document (such as .docx)"),
            ({"mimetype": b"application/vnd.oasis", "content.xml": b"<x/>"}, "is an OpenDocument file, such as .ods"),
        ],
    )
    def test_documents_are_refused(self, folder: Folder, files: Mapping[str, bytes], expected: str) -> None:
        line = folder.refused("events", folder.write("sheet.csv", zipped(files)))
        assert line == f"sheet.csv {expected}: export it as CSV first"

    def test_encrypted_and_unknown_methods_are_refused(self, folder: Folder) -> None:
        content = bytearray(zipped({"plays.csv": CSV.encode()}, zipfile.ZIP_STORED))
        central = content.index(b"PK\x01\x02")
        content[central + 8] |= 1
        assert "is encrypted: unpack it" in folder.refused("events", folder.write("logs.zip", bytes(content)))
        content[central + 8] &= 0xFE
        content[central + 10] = 97
        assert "method 97, which is not read" in folder.refused("events", folder.write("logs.zip", bytes(content)))

    @pytest.mark.parametrize("name", ARCHIVED)
    def test_a_cut_archive_is_refused(self, folder: Folder, name: str) -> None:
        whole = ARCHIVED[name]({"plays.csv": random.Random(0).randbytes(5000).hex().encode()})
        line = folder.refused("events", folder.write(name, whole[: len(whole) // 2]))
        assert line.startswith(f"{name} cannot be uncompressed: ") or "cannot be uncompressed" in line

    def test_a_tar_whose_headers_mislead_is_refused(self, folder: Folder) -> None:
        def header(kind: bytes, size: bytes) -> bytes:
            entry = tarfile.TarInfo("plays.csv")
            entry.type = kind
            block = bytearray(entry.tobuf(tarfile.GNU_FORMAT)[:512])
            block[124:136] = size
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            return bytes(block)

        backwards = header(tarfile.REGTYPE, b"\xff" * 11 + b"\x00")
        endless = header(tarfile.XHDTYPE, b"%011o\0" % (1 << 32))
        for block in (backwards, endless):
            content = gzip.compress(block + bytes(1 << 22))
            assert "cannot be uncompressed" in folder.refused("events", folder.write("logs.tar.gz", content))

    @pytest.mark.parametrize("name", ["logs.zip", "logs.tar.gz"])
    def test_an_archive_of_too_many_files_is_refused(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
        files = {f"{number}.csv": CSV.encode() for number in range(20)}
        archive = folder.write(name, ARCHIVED[name](files))
        assert len(folder.find("events", archive).files) == 20
        archive = folder.write(name, ARCHIVED[name](files | {"more.txt": b"x"}))
        assert folder.refused("events", archive) == f"{name} holds more than 20 files: unpack it first"

    def test_other_archives_in_a_folder_are_read_only_without_logs(self, folder: Folder) -> None:
        folder.write("exports/export.zip", zipped({"plays.csv": CSV.encode()}))
        assert folder.read("events", folder.path / "exports") == {"exports/export.zip: plays.csv": CSV}
        folder.write("exports/plays.csv", CSV.encode())
        found = folder.find("events", folder.path / "exports")
        assert [file.name for file in found.files] == ["plays.csv"]
        assert found.notes == [f"{folder.path}/exports: export.zip: no log of kind events"]

    def test_one_archive_named_twice_is_read_once(self, folder: Folder) -> None:
        archive = folder.write("logs.zip", zipped({"plays.csv": CSV.encode()}))
        assert len(folder.find("events", archive, folder.path, str(folder.path / "*.zip")).files) == 1

    def test_a_zip_that_is_compressed_is_refused(self, folder: Folder) -> None:
        archive = folder.write("logs.zip.gz", gzip.compress(zipped({"plays.csv": CSV.encode()})))
        assert folder.refused("events", archive).endswith("uncompress it first")

    def test_an_empty_log_in_an_archive_is_refused(self, folder: Folder) -> None:
        archive = folder.write("logs.zip", zipped({"plays.csv": b""}))
        assert folder.refused("events", archive) == "logs.zip: plays.csv is empty: expected a log of kind events"


class TestEncodings:
    MARKS: Final = {
        "utf-8": codecs.BOM_UTF8,
        "utf-16-le": codecs.BOM_UTF16_LE,
        "utf-16-be": codecs.BOM_UTF16_BE,
        "utf-32-le": codecs.BOM_UTF32_LE,
        "utf-32-be": codecs.BOM_UTF32_BE,
    }
    TEXT: Final = "user_id,track_id,timestamp\n" + "".join(
        f"ann,{name},2024-03-01T10:{number:02}:00Z\n"
        for number, name in enumerate(("Café", "Cafè", "Naïve", "Naîve", "Zoë", "Zoé") * 2)
    )

    @pytest.mark.parametrize("encoding", MARKS)
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_a_byte_order_mark_tells_the_encoding(
        self, folder: Folder, encoding: str, pack: Callable[[bytes], bytes]
    ) -> None:
        mark = self.MARKS[encoding]
        content = pack(mark + self.TEXT.encode(encoding))
        assert folder.opened(content)[1].decode() == self.TEXT
        assert folder.opened(content, encoding="latin-1")[1].decode() == self.TEXT  # the mark takes precedence
        records = pack(mark + '[{"a": "é"}]'.encode(encoding))
        assert folder.opened(records)[0].content == "json"

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ISO-8859-15", "utf-16-le", "utf-16", "cp037", "utf-7"])
    def test_an_encoding_can_be_named(self, folder: Folder, encoding: str) -> None:
        assert folder.opened(self.TEXT.encode(encoding), encoding=encoding)[1].decode() == self.TEXT
        assert folder.opened(self.TEXT.encode(encoding) * 900, encoding=encoding)[1].decode()[:300] == self.TEXT[:300]

    def test_encodings_give_the_same_dataset(self, folder: Folder, tmp_path: Path) -> None:
        expected = None
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"):
            file = folder.write("log.csv", self.TEXT.encode(encoding))
            options = prepare_options(encoding=encoding if encoding in ("latin-1", "cp1252") else "")
            for engine in (None, disk_engine(90)):
                report = prepare("events", [file], tmp_path / "out", options, overwrite=True, engine=engine)
                expected = expected or report.dataset.facts.fingerprint
                assert report.dataset.facts.fingerprint == expected, encoding
                assert report.dataset.facts.counts.tracks == 6

    def test_bytes_of_another_encoding_are_named_with_their_line(self, folder: Folder) -> None:
        file = folder.write("log.csv", b"user_id,track_id\nann,a\nann,\x81\n")
        line = folder.refused("events", file, encoding="cp1252")
        assert line.startswith("log.csv, line 3: byte 0x81 is not in the encoding cp1252: name that of the file")
        file = folder.write("log.csv", b"\n" * (3 << 20) + b"\x81")
        assert folder.refused("events", file, encoding="cp1252").startswith("log.csv, line 3,145,729: byte 0x81")
        file = folder.write("log.csv", codecs.BOM_UTF16_LE + "a,b\nc".encode("utf-16-le")[:-1])
        assert "log.csv, line 2: " in folder.refused("events", file)

    def test_utf8_is_left_to_the_reader(self, folder: Folder) -> None:
        assert folder.opened(b"a,b\n\xff,1\n")[1] == b"a,b\n\xff,1\n"

    @pytest.mark.parametrize("encoding", ["base64", "rot13", "klingon", "a\0b", "undefined"])
    def test_an_unknown_encoding_is_refused(self, folder: Folder, encoding: str) -> None:
        with pytest.raises(BadOption, match="such as latin-1") as caught:
            folder.opened(CSV.encode(), encoding=encoding)
        assert str(caught.value).isprintable()


class TestLayouts:
    MSSD: Final = "session_id,session_position,session_length,track_id_clean,skip_2\n"

    def test_of_mssd_the_training_set_is_read(self, folder: Folder) -> None:
        folder.write("training_set/log_0_20180715_000000000000.csv", self.MSSD.encode())
        folder.write("training_set/log_1_20180715_000000000000.csv.gz", gzip.compress(self.MSSD.encode()))
        folder.write("test_set/log_input_20180715_000000000000.csv", b"session_id\n")
        folder.write("test_set/log_prehistory_20180715_000000000000.csv", self.MSSD.encode())
        folder.write("track_features/tf_000000000000.csv", b"track_id\n")
        found = folder.find("mssd", folder.path)
        assert [file.name[:5] for file in found.files] == ["log_0", "log_1"]
        test_set = "test_set/log_input_20180715_000000000000.csv, test_set/log_prehistory_20180715_000000000000.csv"
        assert found.notes == [
            f"{folder.path}: {test_set}: halves of sessions (the test set): name them to read them as well",
            f"{folder.path}: track_features/tf_000000000000.csv: features of tracks",
        ]
        named = folder.find("mssd", folder.path, folder.path / "test_set")
        assert [file.name[:9] for file in named.files] == ["log_0_201", "log_1_201", "log_input", "log_prehi"]
        line = folder.refused("mssd", folder.path / "track_features")
        assert "tf_000000000000.csv holds features of tracks" in line
        assert "expected files log_*.csv of the training set, or log_prehistory_*.csv of the test set" in line

    def test_the_test_set_of_mssd_in_an_archive_is_read_if_it_is_named(self, folder: Folder) -> None:
        for name in ("test_set", "track_features", "training_set"):
            file = {"test_set": "log_prehistory_1.csv", "track_features": "tf_1.csv"}.get(name, "log_0_1.csv")
            folder.write(f"{name}.tar.gz", gzip.compress(tarred({f"{name}/{file}": self.MSSD.encode()})))
        test_set, features, training_set = sorted(folder.path.glob("*.tar.gz"))
        found = folder.find("mssd", folder.path)
        assert [file.name for file in found.files] == ["log_0_1.csv"]
        assert sorted(note.removeprefix(f"{folder.path}: ") for note in found.notes) == [
            "test_set.tar.gz: test_set/log_prehistory_1.csv: halves of sessions (the test set): name them to read them "
            "as well",
            "track_features.tar.gz: no log of kind mssd",
        ]
        for sources in (
            (folder.path, test_set),
            (test_set, folder.path),
            (training_set, test_set),
            (folder.path / "t*_set.tar.gz",),
        ):
            names = [file.name for file in folder.find("mssd", *sources).files]
            assert sorted(names) == ["log_0_1.csv", "log_prehistory_1.csv"]
        line = folder.refused("mssd", features)
        assert "holds no log of kind mssd" in line

    def test_sizes_of_yambda_are_not_mixed(self, folder: Folder) -> None:
        for size in ("50m", "500m"):
            for name in ("listens", "likes", "multi_event"):
                folder.write(f"flat/{size}/{name}.parquet", parquet())
            folder.write(f"sequential/{size}/listens.parquet", parquet())
        found = folder.find("yambda", folder.path / "flat" / "50m")
        assert [file.name for file in found.files] == ["listens.parquet"]
        assert [note.partition(": ")[2] for note in found.notes] == [
            "likes.parquet: likes, not listens",
            "multi_event.parquet: listens in another form",
        ]
        sizes = "flat/500m and flat/50m are samples of one data set, of different sizes: name one of them"
        assert folder.refused("yambda", folder.path) == sizes
        assert folder.refused("yambda", *sorted(folder.path.glob("flat/*/listens.parquet"))) == sizes
        likes = folder.path / "flat" / "50m" / "likes.parquet"
        assert "likes.parquet holds likes, not listens: expected *listens*.parquet" in folder.refused("yambda", likes)
        (folder.path / "flat" / "50m" / "listens.parquet").unlink()
        (file,) = folder.find("yambda", folder.path / "flat" / "50m").files
        assert file.name == "multi_event.parquet"

    def test_lfm1k_is_read_as_published(self, folder: Folder) -> None:
        log = "lastfm-dataset-1K/userid-timestamp-artid-artname-traid-traname.tsv"
        files = {"lastfm-dataset-1K/userid-profile.tsv": b"#id\tgender\n", log: LFM1K.encode()}
        archive = folder.write("lastfm-dataset-1K.tar.gz", gzip.compress(tarred(files)))
        assert folder.read("lfm1k", archive) == {f"lastfm-dataset-1K.tar.gz: {log}": LFM1K}
        for name, content in files.items():
            folder.write(name, content)
        assert list(folder.read("lfm1k", folder.path / "lastfm-dataset-1K")) == [log]

    SPOTIFY: Final = {
        "MyData/ReadMeFirst.pdf": b"%PDF-1.7",
        "MyData/Streaming_History_Audio_2023_0.json": STREAMS,
        "MyData/endsong_1.json": STREAMS,
        "MyData/renamed.json": STREAMS,
        "MyData/Streaming_History_Video_2024.json": STREAMS,
        "MyData/StreamingHistory_music_0.json": ACCOUNT,
        "MyData/StreamingHistory_podcast_0.json": PODCASTS,
        "MyData/Playlist1.json": b'{"playlists": []}',
    }

    @pytest.mark.parametrize("name", ["folder", "my_spotify_data.zip"])
    def test_spotify_files_are_told_by_their_rows(self, folder: Folder, name: str) -> None:
        if name == "folder":
            for file, content in self.SPOTIFY.items():
                folder.write(f"folder/{file}", content)
        else:
            folder.write(name, zipped(self.SPOTIFY))
        found = folder.find("spotify", folder.path / name)
        assert [file.name for file in found.files] == [
            "Streaming_History_Audio_2023_0.json",
            "endsong_1.json",
            "renamed.json",
        ]
        notes = "\n".join(found.notes)
        assert "MyData/Streaming_History_Video_2024.json: video, not audio" in notes
        assert "StreamingHistory_music_0.json: Spotify account data, with times in whole minutes" in notes
        account = folder.find("spotify-account", folder.path / name)
        assert [file.name for file in account.files] == ["StreamingHistory_music_0.json"]
        notes = "\n".join(account.notes)
        assert "MyData/StreamingHistory_podcast_0.json: podcasts" in notes
        assert "Spotify's extended streaming history: read it with `segue prepare spotify`" in notes

    def test_a_file_of_the_other_spotify_export_is_refused_with_its_kind(self, folder: Folder) -> None:
        account = folder.write("StreamingHistory0.json", ACCOUNT)
        assert "`segue prepare spotify-account`, or request the extended" in folder.refused("spotify", account)
        assert "holds Spotify's extended streaming history" in folder.refused(
            "spotify-account", folder.write("endsong_0.json", STREAMS)
        )
        video = folder.write("Streaming_History_Video_2024.json", STREAMS)
        assert "holds video, not audio: expected Streaming_History_Audio" in folder.refused("spotify", video)
        audio = folder.write("Streaming_History_Audio_2024.json", STREAMS)
        found = folder.find("spotify", audio, video, account)  # as a shell expands *.json
        assert [file.path for file in found.files] == [audio]
        assert len(found.notes) == 2

    def test_listens_of_listenbrainz_are_read(self, folder: Folder) -> None:
        files = {"user.json": b'{"user_id": 1}', "feedback.jsonl": b'{"score": 1}\n', "listens/2024/3.jsonl": LISTENS}
        archive = folder.write("listenbrainz_ann.zip", zipped(files))
        (file,) = folder.find("listenbrainz", archive).files
        assert str(file).endswith("listenbrainz_ann.zip: listens/2024/3.jsonl")

    def test_a_folder_without_a_log_is_refused(self, folder: Folder) -> None:
        folder.write("notes.txt", b"notes")
        line = folder.refused("spotify", folder.path)
        assert line.endswith(
            "holds no log of kind spotify: expected files " + ("Streaming_History_Audio_*.json or endsong_*.json")
        )

    def test_a_folder_of_events_leaves_out_objects_and_hidden_files(self, folder: Folder) -> None:
        for name, content in {
            "a.csv": CSV.encode(),
            "b.jsonl": b'{"a": 1}\n{"a": 2}\n',
            "c.json": b'[{"a": 1}]',
            "dataset.json": b'{"format_version": 1}',
            ".hidden.csv": CSV.encode(),
            "_temporary/d.csv": CSV.encode(),
            "README.md": b"# Log",
        }.items():
            folder.write(name, content)
        found = folder.find("events", folder.path)
        assert [file.name for file in found.files] == ["a.csv", "b.jsonl", "c.json"]
        assert found.notes == [f"{folder.path}: README.md, dataset.json: no log of kind events"]

    def test_a_glob_leaves_out_files_that_are_no_log_by_their_names(self, folder: Folder) -> None:
        folder.write("a.csv", CSV.encode())
        for name in ("README.txt", ".DS_Store", "SHA256SUMS", "a.csv.md5"):
            folder.write(name, b"")
        named = sorted(folder.path.iterdir())  # as a shell replaces * by names
        found = folder.find("events", *named)
        assert [file.name for file in found.files] == ["a.csv"]
        (note,) = found.notes
        assert note == (
            f"{folder.path}: .DS_Store, README.txt, SHA256SUMS and 1 more: no log of kind events, by its name"
        )

    def test_long_lists_are_cut(self, folder: Folder) -> None:
        folder.write("a.csv", CSV.encode())
        for number in range(1200):
            folder.write(f"{number:04}.txt", b"x")
        (note,) = folder.find("events", folder.path).notes
        assert note == f"{folder.path}: 0000.txt, 0001.txt, 0002.txt and 1,197 more: no log of kind events"

    def test_the_report_has_the_notes(self, folder: Folder, tmp_path: Path) -> None:
        folder.write("a.csv", CSV.encode())
        folder.write("README.md", b"# Log")
        report = prepare("events", [folder.path], tmp_path / "out", prepare_options(min_session_plays=1))
        assert report.not_read == (f"{folder.path}: README.md: no log of kind events",)


class TestStandardInput:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda content: zipped({"plays.csv": content})])
    def test_it_is_read_like_a_file(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
    ) -> None:
        stream = io.TextIOWrapper(io.BytesIO(pack(CSV.encode())))
        monkeypatch.setattr(sys, "stdin", stream)
        ((name, text),) = folder.read("events", "-", "-").items()
        assert text == CSV
        assert name.startswith("standard input")

    def test_nothing_is_refused(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        assert folder.refused("events", "-") == "standard input is empty: expected a log of kind events"

    def test_a_cluster_does_not_see_copies_on_this_machine(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CSV.encode())))
        archive = folder.write("logs.zip", zipped({"plays.csv": CSV.encode()}))
        for source in ("-", archive):
            with pytest.raises(BadOption, match="is a copy on this machine alone: give files that all machines"):
                prepare("events", [source], tmp_path / "out", engine=ray_engine("127.0.0.1:1"))

    def test_a_pipe_is_read(self, folder: Folder) -> None:
        pipe = folder.path / "pipe"
        os.mkfifo(pipe)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        writer = threading.Thread(target=pipe.write_bytes, args=(CSV.encode(),), daemon=True)
        writer.start()
        assert folder.read("events", pipe) == {"pipe": CSV}
        writer.join(10)


def slices_of(file: Path, kind: LogKind, split_bytes: int, encoding: str = "") -> list[FileSlice]:
    return [slice_ for split in input_splits([LogFile(file)], split_bytes, kind, encoding) for slice_ in split]


class TestSlices:
    @pytest.mark.parametrize(
        ("content", "kind", "sliced"),
        [
            (CSV.encode(), "events", True),
            (CSV.replace("t1", '"t1"').encode(), "events", True),
            (CSV.replace("t1", '12" mix').encode(), "events", True),
            (CSV.replace("t1", '"t ""1"""').encode(), "events", True),
            (CSV.replace("t1", '"t\n1"').encode(), "events", False),
            (CSV.replace("t1", '"t\r\n1"').encode(), "events", False),
            (CSV.replace("t1", '"t ""\n""1"').encode(), "events", False),
            (CSV.replace("track_id", '"track\nid"').encode(), "events", False),
            (CSV.replace("ann", '"an\nn"').encode(), "events", False),
            (CSV.replace(",", ";").replace("t1", '"t\n1"').encode(), "events", False),
            (CSV.replace("t1", '12" mix,"t\n1').encode(), "events", False),
            (CSV.replace("t1", '"t\n1"').encode(), "lfm2b", True),  # this kind has no quotes
            (b'{"a": "\\n", "b": 2}\n' * 20, "events", True),
            (b'[{"a": 1},\n{"a": 2}]' + b"\n" * 100, "events", False),
            (gzip.compress(random.Random(0).randbytes(300).hex().encode()), "events", False),
            (codecs.BOM_UTF8 + CSV.encode(), "events", True),
            (CSV.encode("utf-16"), "events", False),
            (CSV.encode(), "lastfm", False),  # what the first lines of an export mean is told from all of it
        ],
    )
    def test_a_file_is_sliced_if_every_line_is_a_record(
        self, folder: Folder, content: bytes, kind: LogKind, *, sliced: bool
    ) -> None:
        slices = slices_of(folder.write("log", content), kind, 100)
        assert (len(slices) > 1) == sliced

    @given(st.lists(st.text('"",;a', max_size=9), min_size=2, max_size=6))
    @settings(max_examples=300, deadline=None)
    def test_a_quote_that_may_remain_open_is_found(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[str]
    ) -> None:
        def is_open(line: str) -> bool:
            starts = [at for at, letter in enumerate(line) if letter == '"' and (at == 0 or line[at - 1] in ",;")]
            return any('"' not in line[at + 1 :].replace('""', "") for at in starts)

        file = tmp_path_factory.mktemp("quotes") / "log"
        file.write_text("a,b\n" + "\n".join(lines))
        assert (len(slices_of(file, "events", 2)) > 1) == (not any(map(is_open, lines)))

    def test_a_quote_that_remains_open_late_in_a_file_is_found(self, folder: Folder) -> None:
        lines = b"a,b\n" + b'"a","b ""b"""\n' * (200 << 10)
        assert len(slices_of(folder.write("log", lines), "events", 1 << 20)) == 3
        assert len(slices_of(folder.write("log", lines + b'"a","b\nb"\n' + lines), "events", 1 << 20)) == 1

    @given(
        st.lists(st.text("ab,é\r", max_size=8), min_size=1, max_size=12),
        st.integers(1, 30),
        st.sampled_from(["utf-8", "utf-8-sig", "latin-1"]),
        st.sampled_from(["events", "lfm1k"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_slices_give_the_lines_of_the_file(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, encoding: str, kind: LogKind
    ) -> None:
        folder = Folder(tmp_path_factory.mktemp("slices"))
        text = "\n".join(["a,head", *lines])
        file = folder.write("log", text.encode(encoding))
        named = encoding if encoding == "latin-1" else ""
        slices = slices_of(file, kind, size, named)
        assert len(slices) == max(1, -(-file.stat().st_size // size))
        whole = text.split("\n")
        found = []
        for slice_ in slices:
            with opened(slice_, kind, folder.scratch, named) as plain:
                part = plain.path.read_bytes().decode()
            first = first_line(slice_, kind, named)
            if kind == "events":
                header, end, part = part.partition("\n")
                assert header == "a,head"
                part = part if end else ""
            if part:
                rows = part.removesuffix("\n").split("\n")
                assert rows == whole[first - 1 : first - 1 + len(rows)]
            found.append(part)
        assert "".join(found) == (text.partition("\n")[2] if kind == "events" else text)

    @pytest.mark.parametrize("end", ["", "\n"])
    def test_a_log_that_grows_while_it_is_read_loses_no_line(self, folder: Folder, end: str) -> None:
        """Also if only the begin of its last line was there when it was divided. Later lines are not read."""
        lines = [f"t{number}" for number in range(100)]
        file = folder.write("log", ("\n".join(lines) + end).encode())
        slices = slices_of(file, "lfm1k", 100)
        assert len(slices) == 4
        found = ""
        for slice_ in slices:
            with opened(slice_, "lfm1k", folder.scratch) as plain:
                found += plain.path.read_text()
            with file.open("a") as log:
                log.write("x\n" + "more\n" * 20)
        assert found.split() == [*lines[:-1], "t99" if end else "t99x"]

    def test_a_file_that_is_replaced_while_it_is_read_is_told_in_one_line(self, folder: Folder) -> None:
        for content in (CSV.encode() * 9, parquet()):
            file = folder.write("log", content)
            first, second, *_ = slices_of(file, "events", len(content) // 3)
            with opened(first, "events", folder.scratch):
                pass
            file.write_bytes(content[: len(content) // 2] if content[:4] != b"PAR1" else parquet() + b"PAR1")
            with (
                pytest.raises(BadLog, match="was replaced while it was read"),
                opened(second, "events", folder.scratch),
            ):
                pass

    def test_rows_of_parquet_are_sliced(self, folder: Folder) -> None:
        file = LogFile(folder.write("log", parquet()))
        found: list[str] = []
        for number in range(4):
            slice_ = FileSlice(file, number, 4)
            with opened(slice_, "events", folder.scratch) as plain:
                rows = rows_of_slice(slice_, pl.scan_parquet(plain.path)).collect()["track_id"].to_list()
            assert first_line(slice_, "events") == len(found) + 1
            found += rows
        assert found == list("abcdefghi")

    def test_a_first_line_needs_no_slices(self, folder: Folder) -> None:
        file = LogFile(folder.write("log", CSV.encode()))
        assert first_line(FileSlice(file), "events") == 2
        assert first_line(FileSlice(file), "lfm1k") == 1
        assert first_line(FileSlice(LogFile(folder.write("l", b'{"a":1}\n{"a":2}\n'))), "events") == 1

    def test_a_file_that_no_kind_reads_is_refused_before_it_is_divided(self, folder: Folder) -> None:
        with pytest.raises(BadLog, match="holds binary data"):
            slices_of(folder.write("log", bytes(range(256)) * 9), "events", 100)


class TestSlicesAsTheWholeFile:
    def test_of_json_lines_may_be_empty(self, folder: Folder, tmp_path: Path) -> None:
        rows = [{"user_id": "ann", "track_id": f"t{n}", "timestamp": 1709287200 + 90 * n} for n in range(12)]
        rows[5]["track_id"] = "x" * 500
        lines = list(map(json.dumps, rows))
        file = folder.write("log", "\n".join([*lines[:9], "{" + "broken" * 50, *lines[9:]]).encode())
        options = prepare_options(min_session_plays=1, max_malformed_pct=20)
        found = [
            prepare("events", [file], tmp_path / "out", options, overwrite=True, engine=engine).dataset.facts
            for engine in (None, disk_engine(100))
        ]
        assert found[0].fingerprint == found[1].fingerprint
        assert found[0].counts.tracks == 12
        file = folder.write("log", b'{"a\n' * 100)
        with pytest.raises(BadLog, match="holds no JSON object"):
            prepare("events", [file], tmp_path / "out", options, overwrite=True)

    @pytest.mark.parametrize("encoding", ["", "ascii"])
    @pytest.mark.parametrize("row", ["ann,{},17092872{:02}", '{{"user_id": "ann", "track_id": "{}", "timestamp": {}}}'])
    def test_name_the_line_of_bytes_of_another_encoding(
        self, folder: Folder, tmp_path: Path, row: str, encoding: str
    ) -> None:
        header = "" if row.startswith("{") else "user_id,track_id,timestamp\n"
        lines = [row.format("caf\xe9" if number == 37 else "a", number) for number in range(60)]
        file = folder.write("log", (header + "\n".join(lines)).encode("latin-1"))
        with pytest.raises(BadLog, match=f"log, line {38 + bool(header)}: byte 0x[eE]9 is no"):
            prepare("events", [file], tmp_path / "out", prepare_options(encoding=encoding), engine=disk_engine(300))

    def test_of_lfm_1b_repeat_no_line(self, folder: Folder, tmp_path: Path) -> None:
        lines = [f"1\t7\t8\t{number}\t{1709287200 + 90 * number}\n" for number in range(30)]
        file = folder.write("log", "".join([*lines[:9], "cut short " * 30 + "\n", *lines[9:]]).encode())
        options = prepare_options(max_malformed_pct=20)
        for engine in (None, disk_engine(100)):
            report = prepare("lfm2b", [file], tmp_path / "out", options, overwrite=True, engine=engine)
            assert report.lines == 31
            assert report.dataset.facts.counts.plays == 30


@pytest.mark.parametrize("kind", ["events", "lastfm"])
@pytest.mark.parametrize("place", ["artist", "track", "timestamp", "other", "\ud800"])
def test_half_a_character_makes_a_malformed_line(folder: Folder, tmp_path: Path, kind: LogKind, place: str) -> None:
    rows: list[dict[str, Any]] = [
        {"user": "ann", "track": "\U0001f600\\ud800", "artist": "a", "timestamp": 1709287200 + 90 * n} for n in range(9)
    ]
    rows[4][place] = "a\ud800"
    columns: Any = {"track_id": "track"} if kind == "events" else {}
    options = prepare_options(max_malformed_pct=20, columns=columns)
    for text in (json.dumps(rows), "\n".join(map(json.dumps, rows)), json.dumps({"track": rows, "user": "\udc00"})):
        file = folder.write("log", text.encode())
        for engine in (None, disk_engine(300)):
            report = prepare(kind, [file], tmp_path / "out", options, overwrite=True, engine=engine)
            malformed = int(kind == "events" or place not in ("other", "\ud800") or text.startswith('{"user"'))
            assert report.dataset.facts.counts.plays == 9 - malformed
            assert all("is not a text" in reason for reason in report.malformed_reasons)


def test_the_head_of_compressed_data_is_enough_to_know_them(folder: Folder) -> None:
    rows = b'{"a": "' + random.Random(0).randbytes(HEAD_BYTES).hex().encode() + b'"}\n'
    for pack in PACKED.values():
        assert folder.opened(pack(b'{"a": 1}\n' * 2 + rows * 4))[0].content == "json_lines"
    assert zlib.crc32(folder.opened(gzip.compress(rows * 9))[1]) == zlib.crc32(rows * 9)
