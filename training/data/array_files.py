"""Arrays of one dimension in .npy files: written a part at a time, read as memory that the kernel may take back.

Knows nothing of what the numbers mean.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK: Final = 4_000_000  # elements that are worked on at a time

_HEADER_BYTES: Final = 128  # what NumPy takes for any array of one dimension


class GrowingArray:
    """An .npy file that is appended to; it can be read once the block has ended without an error."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb")
        self._file.write(b"\0" * _HEADER_BYTES)

    def __len__(self) -> int:
        """Elements written so far."""
        return self._length

    def append(self, values: NDArray[Any]) -> None:
        """Write more elements; they must fit the file's dtype."""
        self._file.write(np.ascontiguousarray(values.astype(self.dtype, copy=False)).data)
        self._length += len(values)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Write the header, which says how many elements there are."""
        with self._file:
            if kind is None:
                self._file.seek(0)
                facts = {"descr": self.dtype.str, "fortran_order": False, "shape": (self._length,)}
                np.lib.format.write_array_header_1_0(self._file, facts)
                assert self._file.tell() == _HEADER_BYTES


def mapped(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """The array of an .npy file, memory-mapped and read-only. Raises ValueError or OSError where it is none of `dtype`.

    It stays readable when the file is renamed or deleted.
    """
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise ValueError(f"{path} holds {array.ndim}-dimensional {array.dtype}, expected one dimension of {dtype}")
    # A plain array that keeps the map: np.memmap takes longer to index.
    return np.asarray(array)


def blocks(length: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover range(length), in order."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def counts(values: NDArray[Any], count: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """How often each number below `count` is among `values` (where `where` holds). [count] int64."""
    found = np.zeros(count, dtype=np.int64)
    for part in blocks(len(values)):
        found += np.bincount(values[part] if where is None else values[part][where[part]], minlength=count)
    return found
