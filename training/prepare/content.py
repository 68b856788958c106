"""What a file of a log is, told from its bytes and never from its name."""

import re
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

Content: TypeAlias = Literal["text", "json_lines", "json", "parquet"]

HEAD_BYTES: Final = 1 << 16  # that many bytes of a file tell what it is
_ARRAY: Final = re.compile(rb'\s*\[\s*[\[\]{"0-9-]')
_OBJECT: Final = re.compile(rb'\s*\{\s*["}]')
_OBJECT_LINES: Final = re.compile(rb"\s*\{[^\n]*\}\s*\n\s*\{")


class PlainFile(NamedTuple):
    """A file without compression, in UTF-8 without a byte order mark if it is text."""

    path: Path
    content: Content  # json: an array of objects, or one object; json_lines: one object a line
    name: str  # the name of the log's file, for messages


def content_of(head: bytes) -> Content:
    """What a file without compression is, from its first HEAD_BYTES bytes."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if _ARRAY.match(head):
        return "json"
    if _OBJECT.match(head):
        return "json_lines" if _OBJECT_LINES.match(head) else "json"
    return "text"
