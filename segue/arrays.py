"""Type aliases for NumPy arrays, which state dtypes in signatures, and memory-mapped arrays and texts."""

import mmap
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.errors import BadRelease

# The exceptions that NumPy raises for invalid .npy headers.
_LIES: Final = (
    ValueError,
    TypeError,
    OverflowError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    RecursionError,
    OSError,
)

Int: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]


def mapped_array(path: Path, largest_header: int = 10_000) -> NDArray[Any]:
    """Memory-map the array in an .npy file, read-only. Raises BadRelease with a one-line message.

    Files shorter than their header states, pickled objects, and headers of more than `largest_header` characters are
    rejected, so that a damaged header cannot cause a large memory allocation. The header of a structured array grows
    with its number of fields.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r", max_header_size=largest_header)
    except _LIES as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise BadRelease(f"{path} is not a NumPy array: {reason}; copy the release again") from error


def plain_array(file: Path) -> NDArray[Any]:
    """Memory-map an array as a plain view, which is faster to index than a memmap object. Raises BadRelease."""
    return np.asarray(mapped_array(file))


class MappedTexts:
    """One text per row: a file of concatenated texts, and an array of their end positions."""

    def __init__(self, file: Path, ends: Path) -> None:
        """Memory-map the files. Raises BadRelease."""
        self._bytes = _mapped(file)
        self.ends = plain_array(ends)
        # A memoryview reads a single number faster than an array. Callers reject other dtypes.
        self._end: Any = self.ends.data if self.ends.dtype == np.int64 else self.ends

    def of(self, row: int) -> bytes:
        """Return the text of a row as UTF-8 bytes."""
        text: bytes = self._bytes[self._end[row - 1] : self._end[row]]
        return text

    def text(self, row: int) -> str:
        """Return the text of a row as a string."""
        text: str = self._bytes[self._end[row - 1] : self._end[row]].decode()
        return text

    def fit(self) -> bool:
        """Return True if the end positions are ascending and cover the whole file."""
        ends = self.ends
        return ends[0] == 0 and ends[-1] == len(self._bytes) and bool((ends[1:] >= ends[:-1]).all())


def write_texts(folder: Path, texts: str, ends: str, parts: Sequence[pl.Series]) -> None:
    """Write the files that MappedTexts reads. `parts` are the texts in row order, in blocks."""
    lengths = [np.zeros(1, dtype=np.int64)]
    with (folder / texts).open("wb") as file:
        for part in parts:
            file.write("".join(part.to_list()).encode())
            lengths.append(part.str.len_bytes().to_numpy().astype(np.int64))
    np.save(folder / ends, np.cumsum(np.concatenate(lengths)), allow_pickle=False)


def _mapped(file: Path) -> Any:
    """Memory-map a file. A slice of the result is a bytes object."""
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""
