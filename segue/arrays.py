"""Array types used across the packages, so that signatures state their dtypes; and arrays from files."""

import tokenize
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segue.errors import BadRelease

# What NumPy raises for a header that lies depends on how it lies.
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
    """The array of an .npy file, memory-mapped and read-only. Raises BadRelease with one line.

    A shape that the file has no bytes for is refused, so a header cannot ask for memory; so are pickled objects, and
    headers of more characters than `largest_header` (a record has one that grows with its fields).
    """
    try:
        return np.lib.format.open_memmap(path, mode="r", max_header_size=largest_header)
    except _LIES as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise BadRelease(f"{path} is not a NumPy array: {reason}; copy the release again") from error
