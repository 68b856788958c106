"""What a file of a log is: told from its first bytes, never from its name."""

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from segue.errors import BadOption

Content: TypeAlias = Literal["text", "json_lines", "json", "parquet"]
Compression: TypeAlias = Literal["gzip", "bzip2", "zstd"]
Archive: TypeAlias = Literal["zip", "tar"]

LFM1B_FIELDS: Final = ("user_id", "artist_id", "album_id", "track_id", "timestamp")

HEAD_BYTES: Final = 1 << 16  # the functions of this module look at this many bytes


class PlainFile(NamedTuple):
    """A file without compression. Text is UTF-8 without a byte order mark."""

    path: Path
    content: Content  # json: an array of objects, or one object; json_lines: one object a line
    name: str  # the name of the log's file, for messages
    is_lfm1b: bool = False  # whether the log's file is that of LFM-1b, which has no header
    first_lines: bytes = b""  # of a slice of JSON Lines: the first lines of the log's file
    line_in_log: Callable[[int], int] = int  # the number in the log's file of a line of this file, both from 1


def printable(text: str) -> str:
    """Return text with its control characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


_COMPRESSIONS: Final[tuple[tuple[re.Pattern[bytes], Compression], ...]] = (
    (re.compile(rb"\x1f\x8b\x08"), "gzip"),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), "bzip2"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd"),  # a frame, or a frame to be skipped
)


def compression_of(head: bytes) -> Compression | None:
    """How a file is compressed, if it is."""
    return next((name for magic, name in _COMPRESSIONS if magic.match(head)), None)


def archive_of(head: bytes) -> Archive | None:
    """The kind of archive that a file without compression is, if it is one."""
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return "zip"
    return "tar" if head[257:262] == b"ustar" else None


# UTF-32 first: its mark of small-endian text begins with that of UTF-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class TextForm(NamedTuple):
    """How the text of a file is stored."""

    encoding: str
    mark_bytes: int  # the length of the byte order mark

    @property
    def is_plain(self) -> bool:
        """Whether the bytes are those of a PlainFile."""
        return self.encoding == "utf-8" and not self.mark_bytes

    @property
    def has_line_feeds(self) -> bool:
        """Whether a byte of value 10 always ends a line, so that the file can be sliced at such bytes."""
        return re.match(r"utf-8|ascii|iso8859|cp125|koi8|mac-", self.encoding) is not None


def text_form(head: bytes, encoding: str | None) -> TextForm:
    """The form of a text file: that of its byte order mark if it has one, else `encoding`, else UTF-8.

    Raises BadOption if `encoding` is unknown.
    """
    for mark, marked in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return TextForm(marked, len(mark))
    return TextForm("utf-8" if encoding is None else encoding_named(encoding), 0)


def encoding_named(encoding: str) -> str:
    """The usual name of a text encoding. Raises BadOption if there is no such encoding."""
    try:
        "a".encode(encoding)  # raises LookupError for codecs that are not of text
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise BadOption(
            f"--encoding {printable(encoding)} is unknown: name a text encoding, such as latin-1, cp1252 or utf-16"
        ) from error


def head_as_utf8(head: bytes, form: TextForm) -> bytes:
    """The first bytes of a text file as UTF-8. Bytes that are not in its encoding are left out."""
    if form.encoding == "utf-8":
        return head[form.mark_bytes :]
    return head[form.mark_bytes :].decode(form.encoding, errors="ignore").encode("utf-8", errors="ignore")


def is_lfm1b(head: bytes) -> bool:
    """Whether a text file has no header and its first line is a listening event of LFM-1b."""
    fields = head.partition(b"\n")[0].rstrip(b"\r").split(b"\t")
    return len(fields) == len(LFM1B_FIELDS) and all(one.isdigit() for one in fields)


_ARRAY: Final = re.compile(rb'\s*\[\s*[\[\]{"0-9-]')
_OBJECT: Final = re.compile(rb'\s*\{\s*["}]')


def content_of(head: bytes) -> Content:
    """What a file is, from its first bytes without compression and as UTF-8."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if _ARRAY.match(head):
        return "json"
    if _OBJECT.match(head):
        first, *others = head.lstrip().split(b"\n")
        is_lines = first.rstrip() != b"{" and any(line.startswith(b"{") for line in others)
        return "json_lines" if is_lines else "json"
    return "text"


_FIRST_BYTES: Final = (
    (b"%PDF-", "is a PDF document, expected a log"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Office document, such as .xls: export it as CSV first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "is a RAR archive: unpack it first"),
    (b"\xfd7zXZ\x00", "is compressed with xz: uncompress it first"),
    (b"\x04\x22\x4d\x18", "is compressed with LZ4: uncompress it first"),
    (b"SQLite format 3\x00", "is an SQLite database: export its table as CSV first"),
    (b"ARROW1\x00\x00", "is an Arrow file: write it as Parquet first"),
    (b"Obj\x01", "is an Avro file: write it as Parquet or JSON Lines first"),
    (b"\x89HDF\r\n", "is an HDF5 file: write it as Parquet or CSV first"),
    (b"PARE", "is encrypted Parquet: decrypt it first"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
)
_FIRST_WORDS: Final = (
    (re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html)", re.I | re.S), "is a web page: fetch the file again"),
    (re.compile(rb"\s*<(?:\?xml|plist)", re.I), "is XML: export the log as CSV or JSON first"),
    (re.compile(rb"[a-z]+(?:\.[a-z_]+)?\t[^\t\n]+\t-?\d*\t\{"), "is in the idomaar format: convert it to CSV first"),
    (
        re.compile(rb'\s*\{(?:\s*"info"\s*:\s*\{[^{}]*\}\s*,)?\s*"playlists"\s*:'),
        "holds playlists: they have neither listening times nor skips",
    ),
)
_CONTROL: Final = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_MAX_CONTROL_SHARE: Final = 0.05  # random bytes have 10 %, and UTF-16 has about 50 %


def why_unreadable(head: bytes) -> str | None:
    """Why no kind of log can be read from a file, and what to do, from its first bytes without compression.

    Text must be given as UTF-8. Return None if nothing speaks against the file.
    """
    if head.startswith(b"PAR1"):
        return None
    for first, reason in _FIRST_BYTES:
        if head.startswith(first):
            return reason
    for words, reason in _FIRST_WORDS:
        if words.match(head):
            return reason
    if len(head) - len(head.translate(None, _CONTROL)) <= len(head) * _MAX_CONTROL_SHARE:
        return None
    for half, order in ((head[1::2], "le"), (head[::2], "be")):
        if half.count(0) > 0.4 * len(half):
            return f"looks like UTF-16 without a byte order mark: name its encoding, such as --encoding utf-16-{order}"
    return "holds binary data: expected CSV, TSV, JSON or Parquet"
