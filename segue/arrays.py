"""Type aliases for NumPy arrays, which state dtypes in signatures, and a safe reader for .npy files."""

import tokenize
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
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
