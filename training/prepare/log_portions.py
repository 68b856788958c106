"""Logs in portions of about equal size: parts of large files, and small files together.

A part of a text is the lines that begin in a range of its bytes, with the header; a part of a Parquet file is a range
of its rows; a compressed file has one part. Read part by part, a file gives the lines that it gives as a whole, in the
same order. Knows nothing of what stands in a line.
"""

import contextlib
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import polars as pl

from segue.errors import BadLog
from training.prepare.sources import COMPRESSIONS, LogKind, inner_suffix, uncompressed

_COPY_BYTES: Final = 1 << 20
_FILES_AT_MOST: Final = 1000
_WITHOUT_HEADER: Final[tuple[LogKind, ...]] = ("lfm1k",)


class Part(NamedTuple):
    """Part `number` of `of` parts of a file."""

    file: Path
    number: int = 0
    of: int = 1


Portion: TypeAlias = tuple[Part, ...]


def portions_of(files: Sequence[Path], portion_bytes: int) -> list[Portion]:
    """All files in their order, in portions of at most about so many bytes; compressed files are never parted."""
    portions: list[Portion] = []
    small: list[Part] = []
    held = 0
    for file in files:
        size = file.stat().st_size
        parts = 1 if file.suffix.lower() in COMPRESSIONS else -(-size // portion_bytes)
        if small and (parts > 1 or held + size > portion_bytes or len(small) == _FILES_AT_MOST):
            portions.append(tuple(small))
            small, held = [], 0
        if parts > 1:
            portions.extend((Part(file, number, parts),) for number in range(parts))
        else:
            small.append(Part(file))
            held += size
    return [*portions, tuple(small)] if small else portions


@contextlib.contextmanager
def opened(part: Part, kind: LogKind, scratch: Path) -> Iterator[Path]:
    """Yield an uncompressed file with the lines of a part; of a Parquet file, the whole (`rows_of_part`).

    Copies lie in the folder `scratch` and are gone afterwards. Raises BadLog.
    """
    if part.of == 1:
        with uncompressed(part.file, scratch) as plain:
            yield plain
    elif _is_parquet(part):
        yield part.file
    else:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".log-") as folder:
            copy = Path(folder) / part.file.name
            _copy_lines(part, copy, headed=kind not in _WITHOUT_HEADER)
            yield copy


def rows_of_part(part: Part, lines: pl.LazyFrame) -> pl.LazyFrame:
    """Of the lines of what `opened` yielded, those of the part."""
    if part.of == 1 or not _is_parquet(part):
        return lines
    rows = int(lines.select(pl.len()).collect().item())
    start = rows * part.number // part.of
    return lines.slice(start, rows * (part.number + 1) // part.of - start)


def _is_parquet(part: Part) -> bool:
    return inner_suffix(part.file) == ".parquet"


def _copy_lines(part: Part, copy: Path, *, headed: bool) -> None:
    try:
        with (
            part.file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text,
            copy.open("wb") as out,
        ):
            first = _line_from(text, 1) if headed else 0
            _copy_bytes(text, 0, first, out.write)
            start = max(first, _line_from(text, len(text) * part.number // part.of))
            end = max(first, _line_from(text, len(text) * (part.number + 1) // part.of))
            _copy_bytes(text, start, end, out.write)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise BadLog(f"{part.file} cannot be read: {error}: was it changed meanwhile?") from error


def _line_from(text: mmap.mmap, place: int) -> int:
    """Where the first line begins that does not begin before `place`."""
    if place == 0:
        return 0
    found = text.find(b"\n", place - 1)
    return len(text) if found < 0 else found + 1


def _copy_bytes(text: mmap.mmap, start: int, end: int, write: Callable[[bytes], object]) -> None:
    for place in range(start, end, _COPY_BYTES):
        write(text[place : min(place + _COPY_BYTES, end)])
