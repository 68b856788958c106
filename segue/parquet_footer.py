"""Whether the footer of a Parquet file keeps to its own bytes, looked at before Polars sees it.

A footer says how many columns and row groups follow. Polars takes memory for so many before it reads them, and where
there is not as much, it does not raise: it ends the process. One damaged byte in a file of the event log would so end
every service that looks at it. This walks the footer (Thrift's compact protocol, whatever it means) and compares each
number of elements with the bytes that are left, as none takes less than one.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md (2026)
"""

from pathlib import Path
from typing import Final

import polars as pl

_MAGIC: Final = b"PAR1"
_TAIL: Final = 8  # the footer's length, and the magic again
_DEEPEST: Final = 64
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_VARINTS: Final = (4, 5, 6)
_FIXED: Final = {_BYTE: 1, _DOUBLE: 8}


class DamagedFile(ValueError):
    """A file that is not to be given to Polars."""


# What a damaged Parquet or Arrow file may raise: Polars' errors, a panic of its own included, and those of this module.
UNREADABLE: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, DamagedFile)


def check_footer(path: Path) -> None:
    """Raise DamagedFile where Polars would follow the footer of `path` too far; what else is wrong, it says itself.

    Raises OSError for a file that cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if size < _TAIL:
            return
        stream.seek(size - _TAIL)
        tail = stream.read(_TAIL)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - _TAIL:
            return
        stream.seek(size - _TAIL - length)
        footer = stream.read(length)
    _Walk(footer).value(_STRUCT, 0)


class _Walk:
    """Goes through values without keeping any."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def value(self, kind: int, depth: int) -> None:
        """One value of a type."""
        if depth > _DEEPEST:
            raise DamagedFile("its footer is nested too deeply")
        if kind in _VARINTS:
            self._varint()
        elif kind in _FIXED:
            self._skip(_FIXED[kind])
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind == _STRUCT:
            self._struct(depth)
        elif kind in (_LIST, _SET):
            head = self._byte()
            self._elements(self._varint() if head >> 4 == 15 else head >> 4, (head & 15,), depth)
        elif kind == _MAP:
            count = self._varint()
            if count:
                kinds = self._byte()
                self._elements(count, (kinds >> 4, kinds & 15), depth)
        else:
            raise DamagedFile(f"its footer holds a value of the unknown type {kind}")

    def _struct(self, depth: int) -> None:
        while (head := self._byte()) != _STOP:
            if head >> 4 == 0:
                self._varint()  # the field's number
            if head & 15 not in (_TRUE, _FALSE):  # which are in the head itself
                self.value(head & 15, depth + 1)

    def _elements(self, count: int, kinds: tuple[int, ...], depth: int) -> None:
        if count > len(self._content) - self._at:
            raise DamagedFile(f"its footer states {count:,} elements in {len(self._content) - self._at:,} bytes")
        for _ in range(count):
            for kind in kinds:
                self.value(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)

    def _byte(self) -> int:
        self._skip(1)
        return self._content[self._at - 1]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise DamagedFile("a number in its footer does not end")

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._content):
            raise DamagedFile("its footer ends within a value")
