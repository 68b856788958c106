"""One file of a log that can be parsed: uncompressed, and UTF-8 if it is text."""

from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Content: TypeAlias = Literal["text", "json_lines", "json", "parquet"]


class PlainFile(NamedTuple):
    """An uncompressed file. Error messages call it `name`."""

    path: Path
    content: Content
    name: str
